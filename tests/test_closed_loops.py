"""Event loops that are closed without cancelling their tasks, as in notebooks and scripts."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis_kit import RedisServer

from resilient_imagen import ImageClient, Settings
from resilient_imagen.errors import provider_failure
from resilient_imagen.providers.base import ProviderImage, ProviderResult
from resilient_imagen.reasons import Reason
from resilient_imagen.request import ImageRequest
from resilient_imagen.snapshots import QueueSnapshot
from resilient_imagen.testing import TINY_PNG
from resilient_imagen.virtualtime import VirtualTimeLoop

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

Loops = Callable[[], asyncio.AbstractEventLoop]
LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, VirtualTimeLoop])


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Collect unfinished tasks after each test, so that Python does not warn in a later one."""
    yield
    gc.collect()


class Google:
    """A provider that answers, fails, or hangs on a future that only its call references.

    FakeProvider is not suitable: a table of anyio keeps its tasks alive.
    """

    name = "google"

    def __init__(self) -> None:
        self.requests = 0
        self.hangs = True
        self.fails = 0

    async def generate(self, request: ImageRequest, model: str) -> ProviderResult:
        del request
        self.requests += 1
        if self.fails:
            self.fails -= 1
            raise provider_failure(Reason.OVERLOADED, provider=self.name, status=503)
        if self.hangs:
            await asyncio.get_running_loop().create_future()
        return ProviderResult((ProviderImage(TINY_PNG, "image/png"),), model)

    async def aclose(self) -> None:
        return


class HeldImage:
    """A reference image of a call."""

    data = TINY_PNG


def client_of(google: Google, **settings: Any) -> ImageClient:
    numbers = {"routes": "google:pro", "ipm": 60_000, "max_retries": 0, **settings}
    return ImageClient(Settings(**numbers), providers=[google])


def leave_behind(
    client: ImageClient, new_loop: Loops, calls: int, ready: Callable[[], bool]
) -> list[weakref.ref[HeldImage]]:
    """Start calls on a new loop, and close it as soon as `ready`."""
    loop = new_loop()
    images = [HeldImage() for _ in range(calls)]

    async def call(image: HeldImage) -> None:
        await client.generate("a lighthouse", references=[image.data])

    async def start() -> None:
        for image in images:
            asyncio.ensure_future(call(image))  # noqa: RUF006 - the test must not reference it
        async with asyncio.timeout(20):
            while not ready():  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0.001)

    loop.run_until_complete(start())
    loop.close()
    return [weakref.ref(image) for image in images]


async def serve(client: ImageClient) -> None:
    result = await client.generate("a lighthouse", deadline=20)
    assert result.image_bytes == TINY_PNG


def run(new_loop: Loops, client: ImageClient, calls: int = 1) -> None:
    """Serve this many calls on a new loop, in sequence."""
    loop = new_loop()
    try:
        for _ in range(calls):
            loop.run_until_complete(serve(client))
    finally:
        loop.close()


async def read_time(client: ImageClient) -> None:
    """Let the client read the time: a later virtual loop starts at 0 again."""
    client.snapshot()


def queue_of(client: ImageClient) -> QueueSnapshot:
    return client.snapshot()["routes"][0]["queue"]


@LOOPS
def test_slots_of_closed_loops_are_free_for_the_next_one(new_loop: Loops) -> None:
    """Four loops close with a request per slot in flight; the fifth loop's call is served."""
    google = Google()
    client = client_of(google, max_concurrent=4)
    for number in range(1, 5):
        leave_behind(client, new_loop, 1, lambda number=number: google.requests == number)  # type: ignore[misc]
    google.hangs = False
    run(new_loop, client)

    assert google.requests == 5
    assert (queue_of(client)["in_flight"], queue_of(client)["waiting"]) == (0, 0)


@LOOPS
def test_queued_callers_of_a_closed_loop_delay_no_later_caller(new_loop: Loops) -> None:
    """Twenty queued callers of a closed loop do not saturate the next loop's caller."""
    google = Google()
    client = client_of(google, max_concurrent=1, max_queue=20, ipm=6)
    leave_behind(client, new_loop, 21, lambda: queue_of(client)["waiting"] == 20)
    google.hangs = False
    run(VirtualTimeLoop, client, calls=2)

    assert google.requests == 3


@LOOPS
def test_the_next_loop_frees_the_images_of_calls_of_a_closed_loop(new_loop: Loops) -> None:
    """The next loop frees images of calls that were in flight or queued."""
    google = Google()
    client = client_of(google, max_concurrent=2)
    images = leave_behind(client, new_loop, 10, lambda: queue_of(client)["waiting"] == 8)
    google.hangs = False
    run(new_loop, client)
    gc.collect()

    assert [image() for image in images] == [None] * 10


@LOOPS
def test_a_probe_of_a_closed_loop_and_its_waiters_are_released(new_loop: Loops) -> None:
    """A loop is closed with a probe in flight and nine callers that wait for its outcome.

    The next loop's first caller is the probe, and no failure is counted.
    """
    google = Google()
    google.fails = 1
    client = client_of(google, breaker_fail_max=1, breaker_reset_timeout=0.01)
    loop = new_loop()
    with pytest.raises(Exception, match="503"):
        loop.run_until_complete(serve(client))
    breaker = client.breakers["google:pro"]
    loop.run_until_complete(asyncio.sleep(0.02))
    loop.run_until_complete(read_time(client))
    loop.close()
    images = leave_behind(
        client, new_loop, 10, lambda: google.requests == 2 and len(breaker._waiters) == 9
    )
    google.hangs = False
    run(new_loop, client)
    gc.collect()

    assert breaker.metrics().state == "closed"
    assert [image() for image in images] == [None] * 10


@pytest.mark.redis
def test_the_shared_limiter_keeps_nothing_of_closed_loops(server: RedisServer) -> None:
    """The shared limiter frees slots and queue of a closed loop for the next one."""
    google = Google()
    client = client_of(google, max_concurrent=2, redis_url=server.url)
    for number in (2, 4):
        images = leave_behind(
            client,
            asyncio.new_event_loop,
            6,
            lambda number=number: google.requests == number and queue_of(client)["waiting"] == 4,  # type: ignore[misc]
        )
    google.hangs = False
    loop = asyncio.new_event_loop()
    try:
        for _ in range(5):
            loop.run_until_complete(serve(client))
        loop.run_until_complete(client.aclose())
    finally:
        loop.close()
    gc.collect()

    assert (queue_of(client)["in_flight"], queue_of(client)["waiting"]) == (0, 0)
    assert [image() for image in images] == [None] * 6


def test_a_client_refuses_a_second_running_loop() -> None:
    """The call of the second loop raises at once, in place of waiting for a slot for ever."""
    google, ended = Google(), threading.Event()
    client = client_of(google)

    def serve_elsewhere() -> None:
        with asyncio.Runner() as runner:
            runner.run(until_ended())

    async def until_ended() -> None:
        call = asyncio.create_task(client.generate("a lighthouse"))
        await asyncio.to_thread(ended.wait)
        call.cancel()

    thread = threading.Thread(target=serve_elsewhere)
    thread.start()
    try:
        while google.requests == 0:
            time.sleep(0.001)
        with pytest.raises(RuntimeError, match="serves calls of another event loop"):
            asyncio.run(client.generate("a fox"))
    finally:
        ended.set()
        thread.join()
