"""A breaker shared by several workers: probes and recovery."""

from __future__ import annotations

import asyncio

import pytest
from fake_redis import FakeRedisCluster
from fleet_kit import (
    messages_delivered,
    open_breaker,
    run_with_fake_redis,
    started_workers,
    states,
    wait_until_probe_is_due,
)

from resilient_imagen.circuitbreaker import Permit, Rejection
from resilient_imagen.reasons import BreakerOutcome, Reason


def test_the_fleet_sends_one_probe_whose_success_closes_every_breaker() -> None:
    """All workers ask at the same moment: one permit is granted, and its success closes the breaker
    for all.
    """

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 8) as workers:
            await wait_until_probe_is_due(workers)
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
            await messages_delivered()
            assert states(workers) == {"closed"}

    run_with_fake_redis(scene)


def test_a_connection_failure_of_one_probe_leaves_the_decision_to_the_next() -> None:
    """A probe that may have failed by its worker's network opens that worker only.

    Another worker's probe decides.
    """

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 4) as workers:
            for worker in workers:
                await worker.request()
            await wait_until_probe_is_due(workers)
            await workers[3].fail(1, Reason.CONNECTION)
            await messages_delivered()
            assert workers[3].state == "open"
            assert isinstance(await workers[3].admit(), Rejection)
            await workers[1].request()
            await messages_delivered()
            assert states(workers) == {"closed"}

    run_with_fake_redis(scene)


def test_connection_failures_of_two_workers_probes_open_for_all() -> None:
    """A second worker confirms that the failure is not local to one worker."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 4) as workers:
            for worker in workers:
                await worker.request()
            await wait_until_probe_is_due(workers)
            await workers[3].fail(1, Reason.CONNECTION)
            await messages_delivered()
            assert states(workers[:3]) == {"half_open"}
            await workers[1].fail(1, Reason.CONNECTION)
            await messages_delivered()
            assert states(workers) == {"open"}
            assert workers[0].breaker.metrics().retry_after == pytest.approx(60, abs=1)

    run_with_fake_redis(scene)


def test_a_cancelled_probe_releases_its_lease() -> None:
    """After the caller of a probe is cancelled, a caller in any process may probe at once."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 3) as workers:
            await wait_until_probe_is_due(workers)
            probe = await workers[0].admit()
            assert isinstance(probe, Permit)
            await messages_delivered()
            assert isinstance(await workers[1].admit(), Rejection)
            waiting = workers[1].breaker.wait_for_change()
            probe.settle(BreakerOutcome.NEUTRAL)
            await asyncio.wait_for(waiting, 0.05)
            assert isinstance(await workers[1].admit(), Permit)

    run_with_fake_redis(scene)


def test_a_killed_process_delays_recovery_by_one_probe_deadline_at_most() -> None:
    """The lease of a killed process expires at the probe's deadline.

    Rejected requests of others do not extend it.
    """

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 3, probe_deadline=30.0) as workers:
            await wait_until_probe_is_due(workers)
            loop = asyncio.get_running_loop()
            assert isinstance(await workers[0].admit(), Permit)
            began = loop.time()
            workers[0].connection.break_off()  # a killed process sends no command
            await workers[0].coordinator.aclose()
            while isinstance(await workers[1].request(), Rejection):  # noqa: ASYNC110 - a caller
                await asyncio.sleep(0.5)
            assert loop.time() - began <= 31
            await messages_delivered()
            assert states(workers[1:]) == {"closed"}

    run_with_fake_redis(scene)


def test_a_hung_probe_counts_as_failed_at_its_deadline() -> None:
    """The worker of the probe opens its own breaker, and the next worker may probe."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 2, probe_deadline=30.0) as workers:
            await workers[1].request()
            await wait_until_probe_is_due(workers)
            assert isinstance(await workers[0].admit(), Permit)
            await asyncio.sleep(30.1)
            assert workers[0].state == "open"
            await messages_delivered()
            assert not isinstance(await workers[1].request(), Rejection)

    run_with_fake_redis(scene)


def test_half_open_calls_limits_concurrent_probes_and_sets_the_needed_successes() -> None:
    """With `half_open_calls` = 2 the fleet sends two probes at a time, and closes at the second
    success.
    """

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 4, half_open_calls=2) as workers:
            await wait_until_probe_is_due(workers)
            answers = await asyncio.gather(*(worker.admit() for worker in workers))
            probes = [answer for answer in answers if isinstance(answer, Permit)]
            assert len(probes) == 2
            probes[0].settle(BreakerOutcome.SUCCESS)
            await messages_delivered()
            assert states(workers) == {"half_open"}
            assert all([isinstance(await worker.admit(), Rejection) for worker in workers])
            probes[1].settle(BreakerOutcome.SUCCESS)
            await messages_delivered()
            assert states(workers) == {"closed"}

    run_with_fake_redis(scene)


def test_acquire_does_not_wait_for_a_lease() -> None:
    """`acquire` rejects a probe without a lease, and leaves the place to `try_acquire_early`."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 2) as workers:
            await wait_until_probe_is_due(workers)
            rejection = workers[0].breaker.acquire()
            assert isinstance(rejection, Rejection)
            assert rejection.probing
            await messages_delivered()
            assert isinstance(await workers[1].admit(), Permit)

    run_with_fake_redis(scene)


def test_a_probe_that_is_not_sent_before_its_deadline_loses_its_lease() -> None:
    """A probe that queued until its deadline may not be sent, and another worker probes."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 2, probe_deadline=30.0) as workers:
            await wait_until_probe_is_due(workers)
            held = workers[0].breaker.try_acquire_early()
            assert isinstance(held, Permit)
            await asyncio.sleep(30.1)
            assert held.stale
            assert isinstance(await workers[1].admit(), Permit)
            assert held.settle(BreakerOutcome.NEUTRAL).counted == "stale"

    run_with_fake_redis(scene)


def test_a_permit_settled_in_another_thread_reaches_the_fleet() -> None:
    """Permits may be settled in any thread; the commands are sent on the coordinator's loop."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 2) as workers:
            permits = [await workers[0].admit() for _ in range(3)]
            for permit in permits:
                assert isinstance(permit, Permit)
                await asyncio.to_thread(
                    permit.settle, BreakerOutcome.FAILURE, cause=Reason.OVERLOADED, summary="503"
                )
            await messages_delivered()
            assert states(workers) == {"open"}

    run_with_fake_redis(scene)


def test_acquire_sends_no_command() -> None:
    """A thousand permits and a thousand rejections cause no command to Redis."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 2) as workers:
            before = redis.store.steps
            for _ in range(1000):
                permit = workers[0].breaker.acquire()
                assert isinstance(permit, Permit)
                permit.settle(BreakerOutcome.NEUTRAL)
            await messages_delivered()
            assert redis.store.steps == before
            await open_breaker(workers)
            before = redis.store.steps
            for _ in range(1000):
                assert isinstance(workers[1].breaker.try_acquire_early(), Rejection)
            await messages_delivered()
            assert redis.store.steps == before

    run_with_fake_redis(scene)


def test_force_trip_opens_the_breaker_of_every_process() -> None:
    """`force_trip` with an exhausted quota opens this route in every process, with its cause and
    summary.
    """

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 3) as workers:
            workers[0].breaker.force_trip(
                cause=Reason.QUOTA_EXHAUSTED, summary="429 RESOURCE_EXHAUSTED"
            )
            await messages_delivered()
            assert states(workers) == {"open"}
            rejection = await workers[2].admit()
            assert isinstance(rejection, Rejection)
            assert (rejection.cause, rejection.summary) == (
                "quota_exhausted",
                "429 RESOURCE_EXHAUSTED",
            )

    run_with_fake_redis(scene)
