"""A breaker shared by several workers: lost messages, and outages of Redis."""

from __future__ import annotations

import asyncio
import random

import pytest
from fake_redis import FakeRedisCluster
from fleet_kit import (
    Worker,
    messages_delivered,
    open_breaker,
    run_with_fake_redis,
    started_workers,
    states,
    wait_until_probe_is_due,
)

from resilient_imagen.circuitbreaker import Permit, Rejection
from resilient_imagen.reasons import Reason


def test_a_heartbeat_replaces_lost_messages() -> None:
    """Workers whose channel delivers nothing adopt the shared state within two seconds."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 4) as workers:
            for worker in workers[1:]:
                worker.connection.drops_messages = True
            await workers[0].fail(3)
            await asyncio.sleep(2)
            assert states(workers) == {"open"}
            assert redis.warnings == []

    run_with_fake_redis(scene)


def test_a_new_worker_adopts_the_shared_state_when_it_connects() -> None:
    """A worker that starts during an outage, or during a probe, sends no request."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 2) as workers:
            await open_breaker(workers)
            async with started_workers(redis, 1) as (newcomer,):
                assert isinstance(await newcomer.admit(), Rejection)
                assert newcomer.breaker.metrics().retry_after == pytest.approx(60, abs=1)
            await asyncio.sleep(60.1)
            assert isinstance(await workers[0].admit(), Permit)
            async with started_workers(redis, 1) as (newcomer,):
                rejection = await newcomer.admit()
                assert isinstance(rejection, Rejection)
                assert rejection.probing

    run_with_fake_redis(scene)


def test_workers_restore_the_open_period_in_an_empty_redis() -> None:
    """Redis restarts empty during an outage: new workers adopt the rest of the open period."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 4) as workers:
            await open_breaker(workers)
            await asyncio.sleep(20)
            redis.stop()
            await asyncio.sleep(5)
            redis.restart(empty=True)
            await asyncio.sleep(5)
            assert all(worker.coordinator.joined for worker in workers)
            async with started_workers(redis, 1) as (newcomer,):
                assert newcomer.state == "open"
                left = newcomer.breaker.metrics().retry_after
                assert left == pytest.approx(30, abs=1)
            assert states(workers) == {"open"}

    run_with_fake_redis(scene)


def test_a_recovery_without_redis_is_shared_after_the_reconnect() -> None:
    """A worker that closed its breaker during an outage of Redis closes it for all afterwards."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 3) as workers:
            await open_breaker(workers)
            redis.stop()
            await asyncio.sleep(61)
            assert not any(worker.coordinator.joined for worker in workers)
            assert not isinstance(await workers[0].request(), Rejection)
            assert workers[0].state == "closed"
            redis.restart(empty=False)
            await asyncio.sleep(4)
            assert states(workers) == {"closed"}
            assert redis.warnings == ["redis_away"] * 3

    run_with_fake_redis(scene)


def test_a_probe_waits_half_a_second_at_most_for_its_lease() -> None:
    """If Redis does not answer, the probe is sent without a lease."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 2) as workers:
            await wait_until_probe_is_due(workers)
            for worker in workers:
                worker.connection.stuck = True
            loop = asyncio.get_running_loop()
            began = loop.time()
            assert isinstance(await workers[0].admit(), Permit)
            assert loop.time() - began < 1

    run_with_fake_redis(scene)


def test_a_disconnected_worker_does_not_wait_for_another_workers_probe() -> None:
    """A worker that loses Redis during another worker's probe sends its own probe at once."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 2) as workers:
            await wait_until_probe_is_due(workers)
            assert isinstance(await workers[0].admit(), Permit)
            await messages_delivered()
            assert isinstance(await workers[1].admit(), Rejection)
            redis.stop()
            await messages_delivered()
            assert isinstance(await workers[1].admit(), Permit)

    run_with_fake_redis(scene)


def test_a_failover_to_a_server_with_an_older_clock_does_not_extend_the_open_period() -> None:
    """The promoted server's clock is an hour behind; the probe is still due after 60 seconds."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 2) as workers:
            await open_breaker(workers)
            await asyncio.sleep(10)
            redis.clock_skew = -3600.0
            await asyncio.sleep(55)
            assert not isinstance(await workers[1].request(), Rejection)
            await messages_delivered()
            assert states(workers) == {"closed"}

    run_with_fake_redis(scene)


@pytest.mark.no_cover
@pytest.mark.parametrize(
    "seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.ci) for seed in range(6, 12))]
)
def test_random_faults(seed: int) -> None:  # noqa: C901 - one scenario in one place
    """Lost messages, broken connections and outages occur at random, and then end.

    Meanwhile a caller is admitted within the longest open period and two probes' deadlines.
    Afterwards all workers share the closed state.
    """
    rng = random.Random(seed)

    async def scene(redis: FakeRedisCluster) -> None:  # noqa: C901 - one scenario in one place
        healthy = False
        async with started_workers(
            redis, 4, reset_timeout=5.0, reset_max=20.0, probe_deadline=10.0
        ) as workers:
            loop = asyncio.get_running_loop()
            end_of_faults = loop.time() + 120

            async def inject_faults() -> None:
                nonlocal healthy
                while loop.time() < end_of_faults:
                    await asyncio.sleep(rng.expovariate(1 / 3))
                    link = rng.choice(workers).connection
                    match rng.randrange(7):
                        case 0:
                            link.drops_messages = not link.drops_messages
                        case 1:
                            link.stuck = True
                        case 2:
                            link.drops_answers = True
                        case 3:
                            link.break_off()
                        case 4 if redis.up:
                            redis.stop()
                        case 4:
                            redis.restart(empty=rng.random() < 0.5)
                        case _:
                            healthy = not healthy
                if not redis.up:
                    redis.restart(empty=False)
                healthy = True
                for worker in workers:
                    worker.connection.break_off()

            last_admitted = loop.time()

            async def callers(worker: Worker) -> None:
                nonlocal last_admitted
                while loop.time() < end_of_faults + 60:
                    reason = None if healthy else rng.choice([Reason.OVERLOADED, Reason.TIMEOUT])
                    # During the faults some requests exceed the deadline of a probe.
                    longest = 12 if loop.time() < end_of_faults else 9
                    answer = await worker.request(reason, takes=rng.uniform(0, longest))
                    if isinstance(answer, Rejection):
                        assert loop.time() - last_admitted < 20 * 1.1 + 2 * 10 + 15
                        await asyncio.sleep(0.3)
                    else:
                        last_admitted = loop.time()

            await asyncio.gather(inject_faults(), *(callers(worker) for worker in workers))
            await asyncio.sleep(2)
            assert states(workers) == {"closed"}
            assert all(worker.coordinator.joined for worker in workers)
            assert {worker.breaker.snapshot()["fleet"]["state"] for worker in workers} == {"closed"}
            assert all(worker.limiter.in_flight == 0 for worker in workers)

    run_with_fake_redis(scene)
