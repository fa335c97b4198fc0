"""Image processing in worker threads: shares, cancellation and memory."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
import weakref
from functools import partial

import pytest
from images_hostile import narrow_png
from images_samples import encoded, picture

from resilient_imagen import ImageClient, Settings
from resilient_imagen.images import worker_pool
from resilient_imagen.images.image_errors import UnusableImageError
from resilient_imagen.images.worker_pool import Pool, off_loop, pool_for, shares_of_one_call
from resilient_imagen.references import loading
from resilient_imagen.testing import TINY_PNG, FakeProvider, run_virtual


class Holder:
    """An object whose end can be observed, unlike that of bytes."""


def test_work_runs_in_a_thread_and_returns_its_result() -> None:
    """Work runs in a named thread of the library, and its result is returned."""
    name = asyncio.run(off_loop(lambda: threading.current_thread().name))

    assert name.startswith("resilient-imagen-images")


def test_an_error_is_raised_unchanged() -> None:
    """An error in a worker thread keeps type and message."""
    with pytest.raises(ValueError, match="12a"):
        asyncio.run(off_loop(int, "12a"))


def test_cancellation_returns_at_once_and_drops_queued_work() -> None:
    """A cancelled caller returns at once, and its queued work never runs."""
    begun, release = threading.Semaphore(0), threading.Event()
    ran: list[int] = []

    def block() -> None:
        begun.release()
        release.wait(30)

    async def run() -> None:
        threads = min(worker_pool._MAX_THREADS, os.cpu_count() or 1)
        blocking = [asyncio.create_task(off_loop(block)) for _ in range(threads)]
        for _ in range(threads):
            assert await asyncio.to_thread(begun.acquire, timeout=30)
        queued = [asyncio.create_task(off_loop(ran.append, 1)) for _ in range(50)]
        await asyncio.sleep(0)
        for task in (*blocking, *queued):
            task.cancel()
        await asyncio.gather(*blocking, *queued, return_exceptions=True)
        assert all(task.cancelled() for task in (*blocking, *queued))
        release.set()
        await off_loop(ran.append, 2)

    try:
        asyncio.run(run())
    finally:
        release.set()
    assert ran == [2]


def test_the_number_of_threads_is_bounded() -> None:
    """The number of worker threads is limited, however many images arrive."""

    async def run() -> None:
        await asyncio.gather(*(off_loop(sum, range(1000)) for _ in range(200)))

    asyncio.run(run())

    names = [each.name for each in threading.enumerate()]
    ours = [name for name in names if name.startswith("resilient-imagen-images")]
    assert len(ours) <= worker_pool._MAX_THREADS


def test_a_reference_never_delays_a_result_of_another_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call is served and fitted while references keep all their threads busy."""
    begun, release = threading.Semaphore(0), threading.Event()

    def endless(*_: object, **__: object) -> None:
        begun.release()
        release.wait(60)
        raise UnusableImageError("is endless")

    async def run() -> None:
        provider = FakeProvider("google", latency=0, image=encoded(picture(), "PNG"))
        async with ImageClient(Settings(ipm=60_000), providers=[provider]) as client:
            busy = [
                asyncio.create_task(client.generate("x", references=[TINY_PNG] * 6))
                for _ in range(3)
            ]
            assert await asyncio.to_thread(begun.acquire, timeout=30)
            async with asyncio.timeout(30):
                result = await client.generate("x", aspect_ratio="1:1")
            assert result.adjustments
            release.set()
            assert all(each.dropped_references for each in await asyncio.gather(*busy))

    monkeypatch.setattr(loading, "normalize", endless)
    try:
        asyncio.run(run())
    finally:
        release.set()


@pytest.mark.parametrize("pool", [Pool.REFERENCES, Pool.LARGE, Pool.FILES])
def test_one_call_gets_a_share_of_the_threads(pool: Pool) -> None:
    """The work of one call leaves threads or queue positions to other calls."""
    running, most = 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0)
        with lock:
            running -= 1

    async def one_call() -> None:
        with shares_of_one_call():
            await asyncio.gather(*(off_loop(work, pool=pool) for _ in range(200)))

    async def run() -> None:
        busy_work = asyncio.create_task(one_call())
        await asyncio.sleep(0)
        await off_loop(work, pool=pool)  # not behind two hundred others
        assert not busy_work.done()
        await busy_work

    asyncio.run(run())
    share = {Pool.LARGE: 1, Pool.FILES: worker_pool._WAITING_OF_ONE_CALL}
    assert most <= share.get(pool, worker_pool._MAX_THREADS) + 1


def test_large_references_are_processed_in_a_separate_thread() -> None:
    """References that are large, or of unknown size, are processed in a separate thread."""
    assert pool_for(TINY_PNG) is Pool.REFERENCES
    assert pool_for(narrow_png(5001, 5000)) is Pool.LARGE
    assert pool_for(narrow_png(5000, 5000)) is Pool.REFERENCES
    assert pool_for(encoded(picture(), "AVIF")) is Pool.LARGE


def test_idle_threads_do_not_keep_a_result() -> None:
    """Idle threads do not keep the result of their last work."""

    async def run() -> weakref.ref[Holder]:
        given = Holder()
        result = await off_loop(lambda held: (held, Holder())[1], given)
        held = weakref.ref(result)
        del result
        for _ in range(1000):  # the thread may not yet have come to its end of it
            await off_loop(len, "")
            if held() is None:
                break
        return held

    assert asyncio.run(run())() is None


def test_it_works_on_virtual_time() -> None:
    """Virtual time does not advance while a thread works."""

    async def run() -> float:
        await off_loop(sum, range(100_000))
        return asyncio.get_running_loop().time()

    assert run_virtual(run()) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_gets_new_threads() -> None:
    """A child that is forked after warm-up processes its first image."""
    script = (
        "import asyncio, os\n"
        "from resilient_imagen.images.worker_pool import off_loop\n"
        "asyncio.run(off_loop(len, 'parent'))\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(asyncio.run(off_loop(len, 'abc')))\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )

    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], timeout=60, check=False)

    assert done.returncode == 3


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    """Importing the package loads neither Pillow, pydantic nor a network library."""
    script = (
        "import sys\n"
        "from resilient_imagen.images import base64_codec, fit, inspect, normalize\n"
        "from resilient_imagen.references import loading, shrink\n"
        "raise SystemExit(', '.join({'PIL', 'pydantic', 'httpx2', 'anyio'} & set(sys.modules)))\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], timeout=60, check=False, capture_output=True, text=True
    )

    assert done.stderr.strip() == ""


def test_the_heap_is_trimmed_when_all_images_of_a_burst_are_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Images that a client fits lead to a trim when no thread works any more, and not before."""
    begun, release, trimmed = threading.Event(), threading.Event(), threading.Event()
    monkeypatch.setattr(worker_pool, "trim_heap", trimmed.set)
    provider = FakeProvider("google", latency=0, image=encoded(picture(), "PNG"))

    def block() -> None:
        begun.set()
        release.wait(30)

    async def settle() -> None:
        for _ in range(2 * worker_pool._MAX_THREADS):
            await off_loop(len, "")

    async def run() -> None:
        await settle()  # work of other tests
        trimmed.clear()
        async with ImageClient(Settings(ipm=60_000), providers=[provider]) as client:
            generate = partial(client.generate, "x", aspect_ratio="1:1")
            blocking = asyncio.ensure_future(off_loop(block))
            assert await asyncio.to_thread(begun.wait, 30)
            if worker_pool._threads() > 1:
                results = await asyncio.gather(*(generate() for _ in range(4)))
                assert all(each.adjustments for each in results)
                await settle()
                assert not trimmed.is_set()
            last = asyncio.create_task(generate())
            release.set()
            await asyncio.gather(blocking, last)
            assert await asyncio.to_thread(trimmed.wait, 30)

    try:
        asyncio.run(run())
    finally:
        release.set()
