"""The shared rate limit under any sequence of faults."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from busy_fleet import AT_MOST, WINDOW, BusyFleet, now, run_fleet
from hypothesis import example, given, settings
from hypothesis import strategies as st

from resilient_imagen.virtualtime import VirtualTimeLoop

LOWER = 50.0
"""Images a minute of a worker that is killed; its limit applies for another minute."""


async def away(fleet: BusyFleet, seconds: float, data: Any = None) -> None:
    """Stop Redis for some seconds; restart it with its data or with older ones."""
    fleet.redis.stop()
    await asyncio.sleep(seconds)
    if data is not None:
        fleet.redis.store.restore(data)
    fleet.redis.restart(empty=False)


async def replace(fleet: BusyFleet, count: int) -> None:
    for worker in fleet.workers[:count]:
        fleet.kill(worker)
        await fleet.add()


async def pause(fleet: BusyFleet, seconds: float) -> None:
    cast("VirtualTimeLoop", asyncio.get_running_loop()).advance(seconds)


async def cut(fleet: BusyFleet, count: int) -> None:
    fleet.cut(fleet.workers[:count])


async def flush(fleet: BusyFleet) -> None:
    fleet.redis.store.flush()


async def restore(fleet: BusyFleet) -> None:
    await away(fleet, 0.05, fleet.snapshot)


async def save(fleet: BusyFleet) -> None:
    fleet.snapshot = fleet.redis.store.copy_data()


async def add_slower_worker_briefly(fleet: BusyFleet) -> None:
    """Start a worker with a lower limit, and kill it."""
    fleet.kill(await fleet.add(per_minute=LOWER))


async def wait(fleet: BusyFleet, seconds: float) -> None:
    await asyncio.sleep(seconds)


Script = list[tuple[Callable[..., Awaitable[None]], Any]]

FAULTS: Script = [
    *((cut, count) for count in (1, 4)),
    *((away, seconds) for seconds in (0.05, 3.0, 10.0)),
    *((replace, count) for count in (1, 4)),
    *((pause, seconds) for seconds in (0.7, 14.0)),
    *((wait, seconds) for seconds in (0.3, 1.0, 4.0)),
    *((fault, None) for fault in (flush, save, restore, add_slower_worker_briefly)),
]


def run_faults(script: Script) -> None:
    """Run a busy fleet of four workers under faults, and check that it keeps the limit."""

    async def scene(fleet: BusyFleet) -> None:
        for fault, argument in script:
            await (fault(fleet) if argument is None else fault(fleet, argument))
        await asyncio.sleep(10)
        began = now()
        await asyncio.sleep(WINDOW)
        assert fleet.most() <= AT_MOST
        assert fleet.between(began, began + WINDOW) >= LOWER / 60 * WINDOW - 1

    run_fleet(scene, count=4)


@settings(max_examples=15, deadline=None)
@example(script=[(cut, 4), (wait, 1.0)] * 5)
@example(script=[(save, None), (wait, 4.0), (restore, None), (flush, None), (replace, 4)])
@example(script=[(away, 3.0), (replace, 1), (away, 3.0)])  # a new worker reconnects
@example(script=[(away, 0.05), (wait, 0.3), (pause, 14.0)])  # paused during the reconnect
@given(script=st.lists(st.sampled_from(FAULTS), max_size=12))
def test_any_sequence_of_faults_keeps_the_limit(script: Script) -> None:
    """The fleet never exceeds 1.2 times the limit in any 15 seconds, and sends after the faults."""
    run_faults(script)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(script=st.lists(st.sampled_from(FAULTS), max_size=25))
def test_long_sequences_of_faults_keep_the_limit(script: Script) -> None:
    """Longer sequences of faults do not exceed the limit either."""
    run_faults(script)
