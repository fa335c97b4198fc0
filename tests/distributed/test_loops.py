"""Sharing through a real Redis from several event loops, threads and processes."""

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


def test_closing_a_client_ends_its_tasks_connections_and_leases(server: RedisServer) -> None:
    """A closed client has no task, connection or lease, and is not counted as a worker."""

    async def scene() -> None:
        scenarios = [LoopScenario(server.url) for _ in range(3)]
        for scenario in scenarios:
            await scenario.ask()
        for scenario in scenarios:
            await scenario.client.aclose()
            await scenario.client.aclose()

    run_loop_scenario(scene())
    keys = "resilient_imagen:{google:pro}:"
    assert server.ask("ZCARD", f"{keys}seen") == b":0\r\n"
    deadline = time.monotonic() + PATIENCE
    while b"name=resilient-imagen" in server.ask("CLIENT", "LIST"):
        assert time.monotonic() < deadline


def test_one_client_can_be_used_by_successive_loops(server: RedisServer) -> None:
    """A client used by three runs of `asyncio.run` connects in each, serves all calls and causes no
    warning.
    """
    scenario = LoopScenario(server.url)
    for _ in range(3):
        asyncio.run(scenario.ask())
    assert len(scenario.google.sent) == 3
    asyncio.run(scenario.client.aclose())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_closed_with_pending_tasks_does_not_affect_the_next_loop(
    server: RedisServer,
) -> None:
    """Garbage of the first loop is collected while the second one shares.

    Python's warning about the unclosed connection of the first loop is expected: it cannot be
    closed any more.
    """
    gc.freeze()  # a collection would block the loop below while Redis does not answer
    scenario = LoopScenario(server.url)
    gc.disable()
    try:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(scenario.ask())
        loop.close()
        del loop

        async def again() -> None:
            await scenario.ask()
            assert scenario.joined
            gc.collect()
            await asyncio.sleep(0.01)
            assert scenario.joined
            await scenario.ask()

        asyncio.run(again())
        asyncio.run(scenario.client.aclose())
    finally:
        gc.enable()
    assert len(scenario.google.sent) == 3


def test_a_client_shares_in_each_of_two_alternating_loops(server: RedisServer) -> None:
    """Neither loop is closed.

    Clean-up of the first one does not end the sharing of the second one.
    """
    scenario = LoopScenario(server.url)
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()

    async def joined() -> bool:
        return scenario.joined

    for loop, other in ((first, second), (second, first), (first, second)):
        loop.run_until_complete(scenario.ask())
        other.run_until_complete(asyncio.sleep(0.05))
        assert loop.run_until_complete(joined())
    first.run_until_complete(scenario.client.aclose())
    for loop in (first, second):
        loop.run_until_complete(asyncio.sleep(0.02))
        loop.close()


@pytest.mark.ci
def test_each_child_of_a_fork_is_a_worker_of_its_own(server: RedisServer) -> None:
    """After a fork, three children are three workers and send one probe together."""
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
    assert max(child["workers"] for child in children) == 3 + 1  # and the parent
    probe, *later = sorted(at for child in children for at in child["sent"])
    assert len(later) == 2
    assert min(later) >= probe + PROBE


def test_loops_in_threads_have_their_own_connections(server: RedisServer) -> None:
    """Four threads, each with a client and a loop, share one circuit."""
    scenarios = [LoopScenario(server.url) for _ in range(4)]
    joined = threading.Barrier(4)
    done = threading.Barrier(4)
    states: list[str] = []

    async def main(index: int) -> None:
        scenario = scenarios[index]
        async with scenario.client:
            await scenario.client.warm_up()
            await asyncio.to_thread(joined.wait, PATIENCE)
            if index == 0:
                await scenario.open_breaker()
            await until(lambda: scenario.state == "open")
            states.append(scenario.state)
            await asyncio.to_thread(done.wait, PATIENCE)

    threads = [threading.Thread(target=asyncio.run, args=(main(n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert states == ["open"] * 4


def test_cancelled_callers_release_everything(server: RedisServer) -> None:
    """A hundred calls are cancelled at moments spread over the round trips.

    All slots and leases are free.
    """

    async def scene() -> None:
        scenario = LoopScenario(server.url, max_concurrent=3)
        async with scenario.client:
            await scenario.client.warm_up()
            for step in range(100):
                tasks = [asyncio.ensure_future(scenario.ask()) for _ in range(3)]
                await asyncio.sleep(step * 0.00003)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            await scenario.ask()
            queue = scenario.client.snapshot()["routes"][0]["queue"]
            assert (queue["in_flight"], queue["waiting"]) == (0, 0)
            assert scenario.joined

    run_loop_scenario(scene())
