"""One breaker in many processes: server hints, fatal failures in flight, refusals."""

from __future__ import annotations

import asyncio

import pytest
from fake_redis import FakeRedisCluster
from fleet_kit import Worker, news, opening_over, run_with_fake_redis, started_workers, states

from resilient_imagen.circuitbreaker import Permit, Rejection
from resilient_imagen.reasons import BreakerOutcome, Reason


async def in_flight(worker: Worker) -> Permit:
    permit = await worker.admit()
    assert isinstance(permit, Permit)
    return permit


def shared(workers: list[Worker]) -> set[str]:
    return {worker.gate.snapshot()["fleet"]["state"] for worker in workers}


def test_when_a_hint_is_over_everybody_is_let_through_without_a_probe() -> None:
    """Also a worker that asks at that very moment, and one that joins meanwhile."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 3) as workers:
            await workers[0].request(Reason.RATE_LIMITED, retry_after=2.0)
            await news()
            assert states(workers) == {"open"}
            async with started_workers(sea, 1) as (newcomer,):
                assert newcomer.state == "open"
                await asyncio.sleep(2.0)
                everybody = [*workers, newcomer]
                assert states(everybody) == {"closed"}
                answers = await asyncio.gather(*(worker.admit() for worker in everybody * 2))
                assert [isinstance(each, Permit) and each.probe for each in answers] == [False] * 8
                await news()
                assert shared(everybody) == {"closed"}

    run_with_fake_redis(scene)


def test_a_hint_leaves_the_fleets_count_in_a_row_as_it_was() -> None:
    """Two failures of one worker, a hint, and another worker's failure are three in a row."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 3, min_calls=1000) as workers:
            await workers[0].fail(2)
            await workers[1].request(Reason.RATE_LIMITED, retry_after=2.0)
            await asyncio.sleep(2.1)
            assert states(workers) == {"closed"}
            await workers[2].fail(1)
            await news()
            assert states(workers) == {"open"}
            assert workers[0].gate.metrics().retry_after == pytest.approx(60, abs=1)

    run_with_fake_redis(scene)


def test_of_hints_in_flight_the_longest_holds_for_all() -> None:
    """Whichever worker receives it, and in whatever order."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 3) as workers:
            permits = [await in_flight(worker) for worker in (*workers, workers[0])]
            for permit, hint in zip(permits, (9.0, 30.0, 2.0, 12.0), strict=True):
                permit.settle(BreakerOutcome.THROTTLED, cause=Reason.RATE_LIMITED, retry_after=hint)
                await news()
            assert states(workers) == {"open"}
            for worker in workers:
                assert worker.gate.metrics().retry_after == pytest.approx(30, abs=0.5)
            await asyncio.sleep(30)
            assert states(workers) == {"closed"}

    run_with_fake_redis(scene)


@pytest.mark.parametrize("first", [Reason.OVERLOADED, Reason.RATE_LIMITED])
def test_a_quota_in_flight_lengthens_the_opening_of_all(first: Reason) -> None:
    """With its cause; whatever opened the circuit, it then waits for a probe."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 3) as workers:
            straggler = await in_flight(workers[2])
            for _ in range(3):
                await workers[0].request(first, retry_after=20.0)
            straggler.settle(BreakerOutcome.TRIP, cause=Reason.QUOTA_EXHAUSTED, summary="429 QUOTA")
            await news()
            for worker in workers:
                rejection = await worker.admit()
                assert isinstance(rejection, Rejection)
                assert (rejection.cause, rejection.summary) == ("quota_exhausted", "429 QUOTA")
                assert rejection.retry_after == pytest.approx(600, abs=1)
            await asyncio.sleep(600.1)
            probe = await in_flight(workers[1])
            assert probe.probe

    run_with_fake_redis(scene)


def test_a_quota_learned_while_redis_was_away_is_told_when_it_is_back() -> None:
    """The opening is lengthened for all, unless it has ended meanwhile."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 2) as workers:
            straggler = await in_flight(workers[1])
            await workers[0].fail(3)
            await news()
            sea.stop()
            await news()
            straggler.settle(BreakerOutcome.TRIP, cause=Reason.QUOTA_EXHAUSTED)
            sea.restart(empty=False)
            await asyncio.sleep(5)
            for worker in workers:
                assert worker.gate.metrics().retry_after == pytest.approx(595, abs=1)

    run_with_fake_redis(scene)


@pytest.mark.parametrize("hint", [None, 300.0])
def test_news_of_an_earlier_state_open_nothing(hint: float | None) -> None:
    """Closed again, the fleet is not opened by what was sent before the outage."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 2) as workers:
            straggler = await in_flight(workers[1])
            await opening_over(workers)
            await workers[0].request()
            await news()
            assert states(workers) == {"closed"}
            verdict = BreakerOutcome.TRIP if hint is None else BreakerOutcome.THROTTLED
            straggler.settle(verdict, cause=Reason.QUOTA_EXHAUSTED, retry_after=hint)
            await news()
            assert (states(workers), shared(workers)) == ({"closed"}, {"closed"})

    run_with_fake_redis(scene)


def test_a_hint_of_the_fleet_does_not_end_a_workers_own_opening() -> None:
    """Its network has failed three times: two seconds of somebody else's hint prove nothing."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 3) as workers:
            sick, *healthy = workers
            await sick.fail(3, Reason.CONNECTION)
            await healthy[0].request(Reason.RATE_LIMITED, retry_after=2.0)
            await asyncio.sleep(3)
            assert (sick.state, states(healthy)) == ("open", {"closed"})
            assert sick.gate.metrics().retry_after == pytest.approx(57, abs=0.5)

    run_with_fake_redis(scene)


def test_a_refused_probe_frees_its_place_for_everybody() -> None:
    """A refusal is no recovery: another worker's caller is the next probe, at once."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 2) as workers:
            await opening_over(workers)
            await workers[0].request(Reason.CONTENT_BLOCKED)
            await news()
            assert states(workers) == {"half_open"}
            probe = await in_flight(workers[1])
            assert probe.probe
            probe.settle(BreakerOutcome.SUCCESS)
            await news()
            assert states(workers) == {"closed"}

    run_with_fake_redis(scene)


def test_a_probe_of_a_closed_loop_gives_its_lease_back() -> None:
    """A probe whose loop was closed frees its place at once, not after a minute."""

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 2) as workers:
            await opening_over(workers)
            await in_flight(workers[0])
            gone = asyncio.new_event_loop()
            gone.close()
            workers[0].gate._clock._loop = gone  # as if all of it had happened there
            workers[0].gate.snapshot()
            await news()
            assert (await in_flight(workers[1])).probe

    run_with_fake_redis(scene)
