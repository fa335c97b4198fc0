"""A Redis that lost writes: it restarted from an old snapshot, or a replica was promoted that
lagged behind.
"""

from __future__ import annotations

import asyncio

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

from resilient_imagen.circuitbreaker import Permit

pytestmark = pytest.mark.no_cover


async def lose_writes(redis: FakeRedisCluster, snapshot: object) -> None:
    """Replace the server by one with older data, and wait for the next heartbeats."""
    redis.stop()
    redis.store.restore(snapshot)
    redis.restart(empty=False)
    await asyncio.sleep(3)


async def recover(worker: Worker) -> None:
    """Close the shared breaker by a probe."""
    await asyncio.sleep(60.1)
    await worker.request()
    await messages_delivered()


@pytest.mark.parametrize("outages_lost", [1, 2])
def test_the_next_outages_are_shared_after_writes_were_lost(outages_lost: int) -> None:
    """The snapshot is older than some outages, whose records all workers have received."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 4) as workers:
            snapshot = redis.store.copy_data()
            for _ in range(outages_lost):
                await open_breaker(workers)
                await recover(workers[1])
                assert states(workers) == {"closed"}
            await lose_writes(redis, snapshot)
            for _ in range(3):
                await open_breaker(workers)
                await recover(workers[2])
                assert states(workers) == {"closed"}

    run_with_fake_redis(scene)


def test_an_open_period_survives_the_loss_of_its_writes() -> None:
    """The server lost the open period; the workers restore it, and one probe ends it."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 4) as workers:
            await asyncio.sleep(2)
            snapshot = redis.store.copy_data()
            await open_breaker(workers)
            await lose_writes(redis, snapshot)
            assert states(workers) == {"open"}
            async with started_workers(redis, 1) as (newcomer,):
                assert newcomer.state == "open"
            await asyncio.sleep(58)
            answers = [await worker.admit() for worker in workers]
            assert sum(isinstance(answer, Permit) for answer in answers) == 1

    run_with_fake_redis(scene)


def test_an_outage_that_had_ended_does_not_return_with_old_data() -> None:
    """A snapshot from an open period that a probe has ended since does not reopen the breaker."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 4) as workers:
            await open_breaker(workers)
            snapshot = redis.store.copy_data()
            await recover(workers[0])
            await lose_writes(redis, snapshot)
            assert states(workers) == {"closed"}
            await open_breaker(workers)

    run_with_fake_redis(scene)


def test_a_probe_is_repeated_at_once_if_its_lease_is_lost() -> None:
    """The probe in flight no longer counts, and the next caller sends another one."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 3) as workers:
            await open_breaker(workers)
            snapshot = redis.store.copy_data()
            await asyncio.sleep(60.1)
            probe = asyncio.create_task(workers[0].request(takes=20))
            await messages_delivered()
            await lose_writes(redis, snapshot)
            await workers[1].request()
            await messages_delivered()
            assert states(workers) == {"closed"}
            await probe
            assert states(workers) == {"closed"}

    run_with_fake_redis(scene)


@pytest.mark.parametrize("probes", [(1, 3), (3, 1)])
def test_workers_with_different_numbers_of_probes_recover(probes: tuple[int, int]) -> None:
    """Some workers need three successful probes and others one, as during a rolling deployment.

    Rejected callers retry at once; the workers request few leases, and the breaker closes.
    """

    async def scene(redis: FakeRedisCluster) -> None:
        workers = [Worker(redis, half_open_calls=calls) for calls in probes * 2]
        for worker in workers:
            await worker.coordinator.ready()
        await wait_until_probe_is_due(workers)
        before = redis.store.steps
        loop = asyncio.get_running_loop()
        began = loop.time()

        async def call(worker: Worker) -> None:
            while loop.time() < began + 10:
                await worker.request(takes=0.5)
                wait = worker.breaker.metrics().retry_after
                await asyncio.sleep(wait or 0.1)

        await asyncio.gather(*(call(worker) for worker in workers for _ in range(2)))
        assert states(workers) == {"closed"}
        assert (redis.store.steps - before) / 10 < 120
        for worker in workers:
            await worker.coordinator.aclose()

    run_with_fake_redis(scene)
