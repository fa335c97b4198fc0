"""One SDK client per event loop, without references to closed loops."""

from __future__ import annotations

import asyncio
import gc
import threading
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from providers_kit import (
    MODELS,
    PROMPT,
    google_body,
    http,
    openai_body,
    provider_for,
    raw_server,
)

from resilient_imagen.providers.http import CapturingClient
from resilient_imagen.providers.per_loop_clients import PerLoopClients
from resilient_imagen.request import ImageRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from providers_kit import RawServer

VENDORS = pytest.mark.parametrize("vendor", MODELS)


class Builds:
    """A factory that counts builds, can be blocked and can fail."""

    def __init__(self) -> None:
        self.count = 0
        self.fail = False
        self.made: list[CapturingClient] = []
        self.go = threading.Event()
        self.go.set()

    def __call__(self) -> tuple[object, CapturingClient]:
        self.count += 1
        self.go.wait(20)
        if self.fail:
            raise OSError("no certificates")
        self.made.append(CapturingClient("http://x", max_connections=1, connect_timeout=1))
        return object(), self.made[-1]


def test_concurrent_callers_share_one_build() -> None:
    """Concurrent first requests share one build, even if the first caller is cancelled."""
    builds = Builds()
    builds.go.clear()

    async def main() -> None:
        sessions = PerLoopClients(builds)
        waiting = [asyncio.create_task(sessions.get()) for _ in range(5)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
        builds.go.set()
        got = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(got[0], asyncio.CancelledError)
        assert len({id(sdk) for sdk in got[1:]}) == 1
        await sessions.aclose()

    asyncio.run(main())
    assert builds.count == 1


def test_a_failed_build_is_tried_again() -> None:
    """A failed build does not prevent the next one."""
    builds = Builds()
    builds.fail = True

    async def main() -> None:
        sessions = PerLoopClients(builds)
        with pytest.raises(OSError, match="certificates"):
            await sessions.get()
        builds.fail = False
        await sessions.get()
        await sessions.aclose()

    asyncio.run(main())
    assert builds.count == 2


def test_a_closed_provider_opens_no_connections() -> None:
    """A closed provider raises an error instead of opening connections."""

    async def main() -> None:
        sessions = PerLoopClients(Builds())
        await sessions.get()
        await sessions.aclose()
        with pytest.raises(RuntimeError, match="closed"):
            await sessions.get()

    asyncio.run(main())


def test_closing_while_building() -> None:
    """A client that is being built is closed, and its waiting callers get an error."""
    builds = Builds()
    builds.go.clear()

    async def main() -> None:
        sessions = PerLoopClients(builds)
        waiting = asyncio.create_task(sessions.get())
        await asyncio.sleep(0)
        closing = asyncio.create_task(sessions.aclose())
        await asyncio.sleep(0)
        builds.go.set()
        await closing
        with pytest.raises(RuntimeError, match="closed"):
            await waiting
        assert builds.made[0].is_closed

    asyncio.run(main())


@contextmanager
def served(vendor: str) -> Iterator[RawServer]:
    """Run a server in a thread that outlives the loops of its clients."""
    body = google_body() if vendor == "google" else openai_body()
    ready: Future[RawServer] = Future()
    stopping = threading.Event()

    async def serve() -> None:
        async with raw_server(http(200, body)) as server:
            ready.set_result(server)
            await asyncio.to_thread(stopping.wait, 60)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        yield ready.result(20)
    finally:
        stopping.set()
        thread.join(60)


@VENDORS
def test_successive_loops_have_separate_connections(vendor: str) -> None:
    """The same provider serves successive asyncio.run calls."""
    with served(vendor) as server:
        provider = provider_for(vendor, server.url)
        for _ in range(3):
            asyncio.run(_once(provider, vendor))
        gc.collect()  # an unclosed transport would be an error here
        assert server.connections == 3
        assert len(provider._sessions._sessions) == 1  # closed loops have no entry


async def _once(provider: Any, vendor: str) -> None:
    await provider.generate(ImageRequest(PROMPT), MODELS[vendor])


@VENDORS
def test_loops_in_several_threads_at_once(vendor: str) -> None:
    """Each thread's loop has separate connections; closing reaches all running loops."""
    body = google_body() if vendor == "google" else openai_body()

    async def main() -> None:
        async with raw_server(http(200, body)) as server:
            provider = provider_for(vendor, server.url)
            both = threading.Barrier(2)

            async def other() -> None:
                await _once(provider, vendor)
                await asyncio.to_thread(both.wait, 20)  # used on this side
                await asyncio.to_thread(both.wait, 20)  # closed on the other

            thread = asyncio.create_task(asyncio.to_thread(asyncio.run, other()))
            await _once(provider, vendor)
            await asyncio.to_thread(both.wait, 20)
            assert server.connections == 2
            await provider.aclose()
            async with asyncio.timeout(20):
                await server.gone.wait()
            await asyncio.to_thread(both.wait, 20)
            await thread

    asyncio.run(main())
    gc.collect()
