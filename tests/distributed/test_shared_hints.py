"""A breaker shared by several workers: server hints, fatal failures in flight, refusals."""

from __future__ import annotations

import asyncio

import pytest
from fake_redis import FakeRedisCluster
from fleet_kit import (
    Worker,
    messages_delivered,
    run_with_fake_redis,
    started_workers,
    states,
    wait_until_probe_is_due,
)

from resilient_imagen.circuitbreaker import Permit, Rejection
from resilient_imagen.reasons import BreakerOutcome, Reason

pytestmark = pytest.mark.no_cover


async def in_flight(worker: Worker) -> Permit:
    permit = await worker.admit()
    assert isinstance(permit, Permit)
    return permit


def shared(workers: list[Worker]) -> set[str]:
    return {worker.breaker.snapshot()["fleet"]["state"] for worker in workers}


def test_after_a_hint_the_breaker_closes_without_a_probe() -> None:
    """All workers admit callers when the hint ends, including one that connected meanwhile."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 3) as workers:
            await workers[0].request(Reason.RATE_LIMITED, retry_after=2.0)
            await messages_delivered()
            assert states(workers) == {"open"}
            async with started_workers(redis, 1) as (newcomer,):
                assert newcomer.state == "open"
                await asyncio.sleep(2.0)
                everybody = [*workers, newcomer]
                assert states(everybody) == {"closed"}
                answers = await asyncio.gather(*(worker.admit() for worker in everybody * 2))
                assert [isinstance(each, Permit) and each.probe for each in answers] == [False] * 8
                await messages_delivered()
                assert shared(everybody) == {"closed"}

    run_with_fake_redis(scene)


def test_a_hint_does_not_reset_consecutive_failures() -> None:
    """Two failures of one worker, a hint and another worker's failure are three in a row."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 3, min_calls=1000) as workers:
            await workers[0].fail(2)
            await workers[1].request(Reason.RATE_LIMITED, retry_after=2.0)
            await asyncio.sleep(2.1)
            assert states(workers) == {"closed"}
            await workers[2].fail(1)
            await messages_delivered()
            assert states(workers) == {"open"}
            assert workers[0].breaker.metrics().retry_after == pytest.approx(60, abs=1)

    run_with_fake_redis(scene)


def test_the_longest_of_several_hints_applies_to_all() -> None:
    """The longest hint determines the open period, whichever worker receives it, in any order."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 3) as workers:
            permits = [await in_flight(worker) for worker in (*workers, workers[0])]
            for permit, hint in zip(permits, (9.0, 30.0, 2.0, 12.0), strict=True):
                permit.settle(BreakerOutcome.THROTTLED, cause=Reason.RATE_LIMITED, retry_after=hint)
                await messages_delivered()
            assert states(workers) == {"open"}
            for worker in workers:
                assert worker.breaker.metrics().retry_after == pytest.approx(30, abs=0.5)
            await asyncio.sleep(30)
            assert states(workers) == {"closed"}

    run_with_fake_redis(scene)


@pytest.mark.parametrize("first", [Reason.OVERLOADED, Reason.RATE_LIMITED])
def test_an_exhausted_quota_reported_late_extends_the_open_period_of_all(first: Reason) -> None:
    """A fatal failure of a request in flight replaces cause and end of any open period, which then
    needs a probe.
    """

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 3) as workers:
            late_call = await in_flight(workers[2])
            for _ in range(3):
                await workers[0].request(first, retry_after=20.0)
            late_call.settle(BreakerOutcome.TRIP, cause=Reason.QUOTA_EXHAUSTED, summary="429 QUOTA")
            await messages_delivered()
            for worker in workers:
                rejection = await worker.admit()
                assert isinstance(rejection, Rejection)
                assert (rejection.cause, rejection.summary) == ("quota_exhausted", "429 QUOTA")
                assert rejection.retry_after == pytest.approx(600, abs=1)
            await asyncio.sleep(600.1)
            probe = await in_flight(workers[1])
            assert probe.probe

    run_with_fake_redis(scene)


def test_an_exhausted_quota_seen_without_redis_is_shared_after_the_reconnect() -> None:
    """The open period is extended for all, unless it has ended meanwhile."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 2) as workers:
            late_call = await in_flight(workers[1])
            await workers[0].fail(3)
            await messages_delivered()
            redis.stop()
            await messages_delivered()
            late_call.settle(BreakerOutcome.TRIP, cause=Reason.QUOTA_EXHAUSTED)
            redis.restart(empty=False)
            await asyncio.sleep(5)
            for worker in workers:
                assert worker.breaker.metrics().retry_after == pytest.approx(595, abs=1)

    run_with_fake_redis(scene)


@pytest.mark.parametrize("hint", [None, 300.0])
def test_late_hints_and_fatal_failures_do_not_reopen_a_closed_breaker(hint: float | None) -> None:
    """Requests sent before the outage do not open the breaker after it has closed."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 2) as workers:
            late_call = await in_flight(workers[1])
            await wait_until_probe_is_due(workers)
            await workers[0].request()
            await messages_delivered()
            assert states(workers) == {"closed"}
            verdict = BreakerOutcome.TRIP if hint is None else BreakerOutcome.THROTTLED
            late_call.settle(verdict, cause=Reason.QUOTA_EXHAUSTED, retry_after=hint)
            await messages_delivered()
            assert (states(workers), shared(workers)) == ({"closed"}, {"closed"})

    run_with_fake_redis(scene)


def test_a_shared_hint_does_not_end_a_workers_local_open_period() -> None:
    """A worker with three connection failures keeps its own open period when a shorter shared hint
    ends.
    """

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 3) as workers:
            failing, *healthy = workers
            await failing.fail(3, Reason.CONNECTION)
            await healthy[0].request(Reason.RATE_LIMITED, retry_after=2.0)
            await asyncio.sleep(3)
            assert (failing.state, states(healthy)) == ("open", {"closed"})
            assert failing.breaker.metrics().retry_after == pytest.approx(57, abs=0.5)

    run_with_fake_redis(scene)


def test_a_probe_that_ends_in_a_refusal_releases_its_lease() -> None:
    """A refusal does not prove a recovery: a caller of another worker may probe at once."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 2) as workers:
            await wait_until_probe_is_due(workers)
            await workers[0].request(Reason.CONTENT_BLOCKED)
            await messages_delivered()
            assert states(workers) == {"half_open"}
            probe = await in_flight(workers[1])
            assert probe.probe
            probe.settle(BreakerOutcome.SUCCESS)
            await messages_delivered()
            assert states(workers) == {"closed"}

    run_with_fake_redis(scene)


def test_a_probe_whose_loop_closed_releases_its_lease() -> None:
    """The lease is free at once, not only after the probe's deadline."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 2) as workers:
            await wait_until_probe_is_due(workers)
            await in_flight(workers[0])
            gone = asyncio.new_event_loop()
            gone.close()
            workers[0].breaker._clock._loop = gone  # as if the probe were acquired there
            workers[0].breaker.snapshot()
            await messages_delivered()
            assert (await in_flight(workers[1])).probe

    run_with_fake_redis(scene)
