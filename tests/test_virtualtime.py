"""The virtual-time loop does not wait, lose threads or stop its clock."""

from __future__ import annotations

import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_imagen.testing import run_virtual


def now() -> float:
    return asyncio.get_running_loop().time()


def test_a_day_of_sleep_takes_no_time() -> None:
    """Timers fire in order, at their virtual times."""
    fired: list[float] = []

    async def sleeper(seconds: float) -> None:
        await asyncio.sleep(seconds)
        fired.append(now())

    async def main() -> None:
        await asyncio.gather(*(sleeper(seconds) for seconds in (86_400, 60, 3600)))

    run_virtual(main())
    assert fired == [pytest.approx(t) for t in (60, 3600, 86_400)]


def test_time_does_not_advance_while_a_thread_works() -> None:
    """A pending timer does not fire before the thread's work is done."""

    async def main() -> None:
        release = threading.Event()
        timer = asyncio.create_task(asyncio.sleep(1))
        work = asyncio.create_task(asyncio.to_thread(release.wait, 10))
        for _ in range(5):
            await asyncio.sleep(0)
        release.set()
        assert await work
        assert not timer.done()
        assert now() == 0
        await timer

    run_virtual(main())


def test_a_deadlock_raises_an_error() -> None:
    """If every task waits and no timer is left, the loop raises an error."""

    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="no timer or thread"):
        run_virtual(main())


@given(start=st.floats(0, 1e6), left=st.floats(1e-15, 1e-6))
def test_the_shortest_sleep_advances_the_clock(start: float, left: float) -> None:
    """A loop that sleeps until a moment reaches it, even a very near one."""

    async def main() -> None:
        await asyncio.sleep(start)
        then = now() + left
        for _ in range(3):
            if now() >= then:
                return
            await asyncio.sleep(then - now())
        pytest.fail("the clock does not advance")

    run_virtual(main())


@pytest.mark.parametrize("start", [0.0, 142.06691290343926, 1e5])
def test_a_delay_below_the_clock_resolution_advances_the_clock(start: float) -> None:
    """A delay below the resolution of the loop's time still advances the clock."""

    async def main() -> None:
        await asyncio.sleep(start)
        before = now()
        for delay in (1e-300, 5.7e-15, 1e-9):
            await asyncio.sleep(delay)
            assert now() > before
            before = now()

    run_virtual(main())
