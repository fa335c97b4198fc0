"""One breaker in many processes: probes and recovery."""

from __future__ import annotations

import asyncio

import pytest
from fake_redis import FakeRedisCluster
from fleet_kit import news, opening_over, outage, run_with_fake_redis, started_workers, states

from resilient_imagen.circuitbreaker import Permit, Rejection
from resilient_imagen.reasons import BreakerOutcome, Reason


def test_one_probe_for_the_whole_fleet_and_everybody_is_back_at_once() -> None:
    """All ask at the same moment: one is let through, and its success closes for all."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 8) as workers:
            await opening_over(workers)
            answers = await asyncio.gather(
                *(worker.admit() for worker in workers for _ in range(5))
            )
            probes = [answer for answer in answers if isinstance(answer, Permit)]
            assert len(probes) == 1
            assert probes[0].probe
            assert all(answer.probing for answer in answers if isinstance(answer, Rejection))
            await asyncio.sleep(20)
            assert states(workers) == {"half_open"}
            probes[0].settle(BreakerOutcome.SUCCESS)
            await news()
            assert states(workers) == {"closed"}

    run_with_fake_redis(scene)


def test_a_probe_that_failed_by_its_own_network_has_a_second_opinion() -> None:
    """A probe that fails by its worker's network delays no other worker: the next probe decides."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 4) as workers:
            for worker in workers:
                await worker.request()
            await opening_over(workers)
            await workers[3].fail(1, Reason.CONNECTION)
            await news()
            assert workers[3].state == "open"
            assert isinstance(await workers[3].admit(), Rejection)
            await workers[1].request()
            await news()
            assert states(workers) == {"closed"}

    run_with_fake_redis(scene)


def test_a_second_opinion_that_agrees_opens_for_all() -> None:
    """Two workers' probes fail to connect: it was not one worker's network."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 4) as workers:
            for worker in workers:
                await worker.request()
            await opening_over(workers)
            await workers[3].fail(1, Reason.CONNECTION)
            await news()
            assert states(workers[:3]) == {"half_open"}
            await workers[1].fail(1, Reason.CONNECTION)
            await news()
            assert states(workers) == {"open"}
            assert workers[0].gate.metrics().retry_after == pytest.approx(60, abs=1)

    run_with_fake_redis(scene)


def test_a_cancelled_probe_frees_its_place_for_everybody() -> None:
    """The caller leaves: the next one, in any process, may probe right away."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 3) as workers:
            await opening_over(workers)
            probe = await workers[0].admit()
            assert isinstance(probe, Permit)
            await news()
            assert isinstance(await workers[1].admit(), Rejection)
            waiting = workers[1].gate.wait_for_change()
            probe.settle(BreakerOutcome.NEUTRAL)
            await asyncio.wait_for(waiting, 0.05)
            assert isinstance(await workers[1].admit(), Permit)

    run_with_fake_redis(scene)


def test_a_killed_process_holds_recovery_up_by_one_deadline_at_most() -> None:
    """The lease it held ends by itself; asking in vain meanwhile does not prolong it."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 3, probe_deadline=30.0) as workers:
            await opening_over(workers)
            loop = asyncio.get_running_loop()
            assert isinstance(await workers[0].admit(), Permit)
            began = loop.time()
            workers[0].link.break_off()  # as a killed process does: without a word
            await workers[0].fleet.aclose()
            while isinstance(await workers[1].request(), Rejection):  # noqa: ASYNC110 - a caller
                await asyncio.sleep(0.5)
            assert loop.time() - began <= 31
            await news()
            assert states(workers[1:]) == {"closed"}

    run_with_fake_redis(scene)


def test_a_hung_probe_counts_as_failed_at_its_deadline() -> None:
    """Its own worker says so, stays away itself, and the next worker may probe."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 2, probe_deadline=30.0) as workers:
            await workers[1].request()
            await opening_over(workers)
            assert isinstance(await workers[0].admit(), Permit)
            await asyncio.sleep(30.1)
            assert workers[0].state == "open"
            await news()
            assert not isinstance(await workers[1].request(), Rejection)

    run_with_fake_redis(scene)


def test_as_many_probes_as_configured_and_as_many_successes() -> None:
    """The fleet sends two probes at a time, and closes with the second success of any workers."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 4, half_open_calls=2) as workers:
            await opening_over(workers)
            answers = await asyncio.gather(*(worker.admit() for worker in workers))
            probes = [answer for answer in answers if isinstance(answer, Permit)]
            assert len(probes) == 2
            probes[0].settle(BreakerOutcome.SUCCESS)
            await news()
            assert states(workers) == {"half_open"}
            assert all([isinstance(await worker.admit(), Rejection) for worker in workers])
            probes[1].settle(BreakerOutcome.SUCCESS)
            await news()
            assert states(workers) == {"closed"}

    run_with_fake_redis(scene)


def test_a_probe_is_had_at_the_entrance_only() -> None:
    """`acquire` waits for no lease: it rejects and frees the place for `try_acquire_early`."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 2) as workers:
            await opening_over(workers)
            rejection = workers[0].gate.acquire()
            assert isinstance(rejection, Rejection)
            assert rejection.probing
            await news()
            assert isinstance(await workers[1].admit(), Permit)

    run_with_fake_redis(scene)


def test_a_probe_held_unsent_too_long_loses_its_place_everywhere() -> None:
    """Stuck in a queue for the deadline: it may not be sent any more, and another worker probes."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 2, probe_deadline=30.0) as workers:
            await opening_over(workers)
            held = workers[0].gate.try_acquire_early()
            assert isinstance(held, Permit)
            await asyncio.sleep(30.1)
            assert held.stale
            assert isinstance(await workers[1].admit(), Permit)
            assert held.settle(BreakerOutcome.NEUTRAL).counted == "stale"

    run_with_fake_redis(scene)


def test_an_outcome_told_by_another_thread_reaches_the_fleet() -> None:
    """Permits may be settled from anywhere; what they say goes out on the fleet's own loop."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 2) as workers:
            permits = [await workers[0].admit() for _ in range(3)]
            for permit in permits:
                assert isinstance(permit, Permit)
                await asyncio.to_thread(
                    permit.settle, BreakerOutcome.FAILURE, cause=Reason.OVERLOADED, summary="503"
                )
            await news()
            assert states(workers) == {"open"}

    run_with_fake_redis(scene)


def test_asking_costs_no_round_trip() -> None:
    """A thousand admissions, closed and open, and not one word to Redis."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 2) as workers:
            before = sea.store.steps
            for _ in range(1000):
                permit = workers[0].gate.acquire()
                assert isinstance(permit, Permit)
                permit.settle(BreakerOutcome.NEUTRAL)
            await news()
            assert sea.store.steps == before
            await outage(workers)
            before = sea.store.steps
            for _ in range(1000):
                assert isinstance(workers[1].gate.try_acquire_early(), Rejection)
            await news()
            assert sea.store.steps == before

    run_with_fake_redis(scene)


def test_what_a_sibling_route_learned_reaches_the_others() -> None:
    """`force_trip` for a used-up quota opens this route in every process."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 3) as workers:
            workers[0].gate.force_trip(
                cause=Reason.QUOTA_EXHAUSTED, summary="429 RESOURCE_EXHAUSTED"
            )
            await news()
            assert states(workers) == {"open"}
            rejection = await workers[2].admit()
            assert isinstance(rejection, Rejection)
            assert (rejection.cause, rejection.summary) == (
                "quota_exhausted",
                "429 RESOURCE_EXHAUSTED",
            )

    run_with_fake_redis(scene)
