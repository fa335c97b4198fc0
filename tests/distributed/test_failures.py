"""One breaker in many processes: news that get lost, and a store that comes and goes."""

from __future__ import annotations

import asyncio
import random

import pytest
from fake_redis import FakeRedisCluster
from fleet_kit import (
    Worker,
    news,
    opening_over,
    outage,
    run_with_fake_redis,
    started_workers,
    states,
)

from resilient_imagen.circuitbreaker import Permit, Rejection
from resilient_imagen.reasons import Reason


def test_news_that_are_lost_arrive_with_the_next_check_in() -> None:
    """Workers that hear nothing of the channel agree within two seconds all the same."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 4) as workers:
            for worker in workers[1:]:
                worker.link.deaf = True
            await workers[0].fail(3)
            await asyncio.sleep(2)
            assert states(workers) == {"open"}
            assert sea.warnings == []

    run_with_fake_redis(scene)


def test_a_newcomer_learns_the_state_on_joining() -> None:
    """A worker started in the middle of an outage sends nothing; so does one during a probe."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 2) as workers:
            await outage(workers)
            async with started_workers(sea, 1) as (newcomer,):
                assert isinstance(await newcomer.admit(), Rejection)
                assert newcomer.gate.metrics().retry_after == pytest.approx(60, abs=1)
            await asyncio.sleep(60.1)
            assert isinstance(await workers[0].admit(), Permit)
            async with started_workers(sea, 1) as (newcomer,):
                rejection = await newcomer.admit()
                assert isinstance(rejection, Rejection)
                assert rejection.probing

    run_with_fake_redis(scene)


def test_a_store_that_lost_its_memory_is_told_of_the_opening() -> None:
    """Redis restarts empty in the middle of an outage: it stays open, for what was left of it."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 4) as workers:
            await outage(workers)
            await asyncio.sleep(20)
            sea.stop()
            await asyncio.sleep(5)
            sea.restart(empty=True)
            await asyncio.sleep(5)
            assert all(worker.fleet.joined for worker in workers)
            async with started_workers(sea, 1) as (newcomer,):
                assert newcomer.state == "open"
                left = newcomer.gate.metrics().retry_after
                assert left == pytest.approx(30, abs=1)
            assert states(workers) == {"open"}

    run_with_fake_redis(scene)


def test_without_redis_each_worker_opens_and_recovers_alone_and_tells_afterwards() -> None:
    """The record was open when Redis went away; who probed alone and found it well, says so."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 3) as workers:
            await outage(workers)
            sea.stop()
            await asyncio.sleep(61)
            assert not any(worker.fleet.joined for worker in workers)
            assert not isinstance(await workers[0].request(), Rejection)
            assert workers[0].state == "closed"
            sea.restart(empty=False)
            await asyncio.sleep(4)
            assert states(workers) == {"closed"}
            assert sea.warnings == ["redis_away"] * 3

    run_with_fake_redis(scene)


def test_a_lease_asked_of_a_silent_redis_holds_up_no_probe_for_long() -> None:
    """The answer never comes: after half a second the probe is sent as if Redis were not there."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 2) as workers:
            await opening_over(workers)
            for worker in workers:
                worker.link.stuck = True
            loop = asyncio.get_running_loop()
            began = loop.time()
            assert isinstance(await workers[0].admit(), Permit)
            assert loop.time() - began < 1

    run_with_fake_redis(scene)


def test_a_probe_elsewhere_is_not_waited_for_without_redis() -> None:
    """Cut off while another worker probes: this one probes too, instead of waiting a minute."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 2) as workers:
            await opening_over(workers)
            assert isinstance(await workers[0].admit(), Permit)
            await news()
            assert isinstance(await workers[1].admit(), Rejection)
            sea.stop()
            await news()
            assert isinstance(await workers[1].admit(), Permit)

    run_with_fake_redis(scene)


def test_a_server_whose_clock_is_an_hour_behind_takes_over() -> None:
    """A failover to a server with another clock prolongs nothing."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 2) as workers:
            await outage(workers)
            await asyncio.sleep(10)
            sea.clock_skew = -3600.0
            await asyncio.sleep(55)
            assert not isinstance(await workers[1].request(), Rejection)
            await news()
            assert states(workers) == {"closed"}

    run_with_fake_redis(scene)


@pytest.mark.no_cover
@pytest.mark.parametrize("seed", range(12))
def test_random_faults(seed: int) -> None:  # noqa: C901 - one scenario in one place
    """Lost messages, cut connections and outages occur at random, and then end.

    Meanwhile a caller is admitted within the longest open period and two probes' deadlines.
    Afterwards all workers share again.
    """
    chance = random.Random(seed)

    async def scene(sea: FakeRedisCluster) -> None:  # noqa: C901 - likewise
        healthy = False
        async with started_workers(
            sea, 4, reset_timeout=5.0, reset_max=20.0, probe_deadline=10.0
        ) as workers:
            loop = asyncio.get_running_loop()
            end_of_trouble = loop.time() + 120

            async def trouble() -> None:
                nonlocal healthy
                while loop.time() < end_of_trouble:
                    await asyncio.sleep(chance.expovariate(1 / 3))
                    link = chance.choice(workers).link
                    match chance.randrange(7):
                        case 0:
                            link.deaf = not link.deaf
                        case 1:
                            link.stuck = True
                        case 2:
                            link.steps_only_lost = True
                        case 3:
                            link.break_off()
                        case 4 if sea.up:
                            sea.stop()
                        case 4:
                            sea.restart(empty=chance.random() < 0.5)
                        case _:
                            healthy = not healthy
                if not sea.up:
                    sea.restart(empty=False)
                healthy = True
                for worker in workers:
                    worker.link.break_off()

            last_admitted = loop.time()

            async def callers(worker: Worker) -> None:
                nonlocal last_admitted
                while loop.time() < end_of_trouble + 60:
                    reason = None if healthy else chance.choice([Reason.OVERLOADED, Reason.TIMEOUT])
                    # Longer than a probe may take, until nothing goes wrong any more.
                    longest = 12 if loop.time() < end_of_trouble else 9
                    answer = await worker.request(reason, takes=chance.uniform(0, longest))
                    if isinstance(answer, Rejection):
                        assert loop.time() - last_admitted < 20 * 1.1 + 2 * 10 + 15
                        await asyncio.sleep(0.3)
                    else:
                        last_admitted = loop.time()

            await asyncio.gather(trouble(), *(callers(worker) for worker in workers))
            await asyncio.sleep(2)
            assert states(workers) == {"closed"}
            assert all(worker.fleet.joined for worker in workers)
            assert {worker.gate.snapshot()["fleet"]["state"] for worker in workers} == {"closed"}
            assert all(worker.pacer.in_flight == 0 for worker in workers)

    run_with_fake_redis(scene)
