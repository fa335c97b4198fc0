"""Work on pictures stands in nobody's way, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import weakref

import pytest

from resilient_imagen.images import offload
from resilient_imagen.images.offload import off_loop
from resilient_imagen.testing import run_virtual


class Holder:
    """Something whose end can be watched, as bytes cannot."""


def test_work_runs_elsewhere_and_its_result_comes_back() -> None:
    """In a thread of ours, by name."""
    name = asyncio.run(off_loop(lambda: threading.current_thread().name))

    assert name.startswith("resilient-imagen-images")


def test_an_error_comes_back_as_it_is() -> None:
    """Type and text."""
    with pytest.raises(ValueError, match="12a"):
        asyncio.run(off_loop(int, "12a"))


def test_cancellation_returns_at_once_and_drops_what_has_not_begun() -> None:
    """The caller does not wait for threads; queued work of cancelled callers never runs."""
    begun, release = threading.Semaphore(0), threading.Event()
    ran: list[int] = []

    def block() -> None:
        begun.release()
        release.wait(30)

    async def run() -> None:
        threads = min(offload._MAX_THREADS, os.cpu_count() or 1)
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
    """However many pictures come at once."""

    async def run() -> None:
        await asyncio.gather(*(off_loop(sum, range(1000)) for _ in range(200)))

    asyncio.run(run())

    ours = [each for each in threading.enumerate() if each.name.startswith("resilient-imagen")]
    assert len(ours) <= offload._MAX_THREADS


def test_nothing_holds_a_result() -> None:
    """Once the caller lets go, the picture is gone: idle threads keep none."""

    async def run() -> weakref.ref[Holder]:
        given = Holder()
        result = await off_loop(lambda held: (held, Holder())[1], given)
        await off_loop(len, "")
        return weakref.ref(result)

    assert asyncio.run(run())() is None


def test_it_works_on_virtual_time() -> None:
    """Time stands still while a thread works."""

    async def run() -> float:
        await off_loop(sum, range(100_000))
        return asyncio.get_running_loop().time()

    assert run_virtual(run()) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_gets_threads_of_its_own() -> None:
    """A server that forks after warming up must not hang on its first picture."""
    script = (
        "import asyncio, os\n"
        "from resilient_imagen.images.offload import off_loop\n"
        "asyncio.run(off_loop(len, 'parent'))\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(asyncio.run(off_loop(len, 'abc')))\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )

    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], timeout=60, check=False)

    assert done.returncode == 3


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    """Importing the package costs no Pillow, pydantic or network library."""
    script = (
        "import sys\n"
        "from resilient_imagen.images import base64s, fit, mend, references, shrink, sniff\n"
        "raise SystemExit(', '.join({'PIL', 'pydantic', 'httpx2', 'anyio'} & set(sys.modules)))\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], timeout=60, check=False, capture_output=True, text=True
    )

    assert done.stderr.strip() == ""
