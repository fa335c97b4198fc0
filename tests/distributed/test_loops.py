"""Against a real Redis: event loops, threads, processes and callers that come and go."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import threading
import time

import pytest
from fleet_forks import PROBE
from loop_kit import PATIENCE, LoopScenario, run_loop_scenario, until
from paths import SUPPORT
from redis_kit import RedisServer

pytestmark = pytest.mark.redis


def test_a_closed_client_leaves_nothing(server: RedisServer) -> None:
    """No task, no connection, no lease; and no worker is counted that is not there."""

    async def scene() -> None:
        worlds = [LoopScenario(server.url) for _ in range(3)]
        for world in worlds:
            await world.ask()
        for world in worlds:
            await world.client.aclose()
            await world.client.aclose()

    run_loop_scenario(scene())
    keys = "resilient_imagen:{google:pro}:"
    assert server.ask("ZCARD", f"{keys}seen") == b":0\r\n"
    deadline = time.monotonic() + PATIENCE
    while b"name=resilient-imagen" in server.ask("CLIENT", "LIST"):
        assert time.monotonic() < deadline


def test_a_loop_that_ends_without_closing_leaves_no_warning(server: RedisServer) -> None:
    """One client is used by three runs of `asyncio.run`; each run connects, and all are served."""
    world = LoopScenario(server.url)
    for _ in range(3):
        asyncio.run(world.ask())
    assert len(world.google.sent) == 3
    asyncio.run(world.client.aclose())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_closed_over_its_tasks_disturbs_no_later_one(server: RedisServer) -> None:
    """What is left of it goes in the middle of the next one, which shares as ever.

    That Python complains of the first loop's connection is right: nobody can close it any more.
    """
    gc.freeze()  # or the collection below would stop the loop for as long as a silent Redis
    world = LoopScenario(server.url)
    gc.disable()
    try:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(world.ask())
        loop.close()
        del loop

        async def again() -> None:
            await world.ask()
            assert world.joined
            gc.collect()
            await asyncio.sleep(0.01)
            assert world.joined
            await world.ask()

        asyncio.run(again())
        asyncio.run(world.client.aclose())
    finally:
        gc.enable()
        gc.unfreeze()
    assert len(world.google.sent) == 3


def test_loops_that_take_turns_share_each_in_its_turn(server: RedisServer) -> None:
    """Neither is closed: what the first one still has to end does not end the second one's part."""
    world = LoopScenario(server.url)
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()

    async def joined() -> bool:
        return world.joined

    for loop, other in ((first, second), (second, first), (first, second)):
        loop.run_until_complete(world.ask())
        other.run_until_complete(asyncio.sleep(0.05))
        assert loop.run_until_complete(joined())
    first.run_until_complete(world.client.aclose())
    for loop in (first, second):
        loop.run_until_complete(asyncio.sleep(0.02))
        loop.close()


def test_each_child_of_a_fork_is_a_worker_of_its_own(server: RedisServer) -> None:
    """The client was used before: three children count as three, and send one probe together."""
    script = SUPPORT / "fleet_forks.py"
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), server.url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    children = json.loads(ended.stdout)
    assert len({child["worker"] for child in children}) == len(children) == 3
    assert max(child["workers"] for child in children) == 3 + 1  # who forked was one, a moment ago
    probe, *later = sorted(at for child in children for at in child["sent"])
    assert len(later) == 2
    assert min(later) >= probe + PROBE


def test_loops_in_threads_have_their_own_connections(server: RedisServer) -> None:
    """Four threads, each with its client and loop, share one circuit, undisturbed."""
    worlds = [LoopScenario(server.url) for _ in range(4)]
    joined = threading.Barrier(4)
    done = threading.Barrier(4)
    states: list[str] = []

    async def main(index: int) -> None:
        world = worlds[index]
        async with world.client:
            await world.client.warm_up()
            await asyncio.to_thread(joined.wait, PATIENCE)
            if index == 0:
                await world.outage()
            await until(lambda: world.state == "open")
            states.append(world.state)
            await asyncio.to_thread(done.wait, PATIENCE)

    threads = [threading.Thread(target=asyncio.run, args=(main(n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert states == ["open"] * 4


def test_callers_that_are_cancelled_at_any_moment_leave_nothing(server: RedisServer) -> None:
    """A hundred calls, cancelled at moments spread over the round trips: everything is free."""

    async def scene() -> None:
        world = LoopScenario(server.url, max_concurrent=3)
        async with world.client:
            await world.client.warm_up()
            for step in range(100):
                tasks = [asyncio.ensure_future(world.ask()) for _ in range(3)]
                await asyncio.sleep(step * 0.00003)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            await world.ask()
            queue = world.client.snapshot()["routes"][0]["queue"]
            assert (queue["in_flight"], queue["waiting"]) == (0, 0)
            assert world.joined

    run_loop_scenario(scene())
