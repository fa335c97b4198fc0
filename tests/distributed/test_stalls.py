"""The stall watch measures blocked loops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from fleet_stalls import StallWatch


def stall(what: Callable[[], None], *, after: float = 0.0) -> float:
    """Return the longest stall of a loop that runs ``what`` once."""
    watch = StallWatch()

    async def main() -> None:
        await asyncio.sleep(after)
        watch.worst = 0.0
        asyncio.get_running_loop().call_soon(what)
        await asyncio.sleep(0.01)

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(watch)) as runner:
        runner.run(main())
    return watch.worst


def compute() -> None:
    """Use a tenth of a second of CPU time."""
    end = time.thread_time() + 0.1
    while time.thread_time() < end:
        pass


@pytest.mark.parametrize("what", [lambda: time.sleep(0.1), compute], ids=["blocks", "computes"])
def test_a_blocking_or_computing_callback_is_measured_in_full(what: Callable[[], None]) -> None:
    """Callbacks that block or compute for a tenth of a second are measured as such."""
    assert 0.075 < max(stall(what) for _ in range(3)) < 0.15


def test_a_sleeping_loop_does_not_stall() -> None:
    """A loop that only sleeps has no stall."""
    assert stall(lambda: None, after=0.2) < 0.02
