"""A Redis that lost writes: restarted from an old snapshot, or a replica that was behind."""

from __future__ import annotations

import asyncio

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

from resilient_imagen.circuitbreaker import Permit


async def fall_back(redis: FakeRedisCluster, snapshot: object) -> None:
    """Replace the server by one with older data, and wait for the next heartbeats."""
    redis.stop()
    redis.store.restore(snapshot)
    redis.restart(empty=False)
    await asyncio.sleep(3)


async def recover(worker: Worker) -> None:
    """Close the shared breaker by a probe."""
    await asyncio.sleep(60.1)
    await worker.request()
    await news()


@pytest.mark.parametrize("outages_lost", [1, 2])
def test_the_next_outages_are_shared_after_writes_were_lost(outages_lost: int) -> None:
    """The snapshot is older than some outages, whose records all workers have received."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 4) as workers:
            snapshot = redis.store.copy_data()
            for _ in range(outages_lost):
                await outage(workers)
                await recover(workers[1])
                assert states(workers) == {"closed"}
            await fall_back(redis, snapshot)
            for _ in range(3):
                await outage(workers)
                await recover(workers[2])
                assert states(workers) == {"closed"}

    run_with_fake_redis(scene)


def test_an_open_period_survives_the_loss_of_its_writes() -> None:
    """The server does not know of the opening; the workers restore it, and one probe ends it."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 4) as workers:
            await asyncio.sleep(2)
            snapshot = redis.store.copy_data()
            await outage(workers)
            await fall_back(redis, snapshot)
            assert states(workers) == {"open"}
            async with started_workers(redis, 1) as (newcomer,):
                assert newcomer.state == "open"
            await asyncio.sleep(58)
            answers = [await worker.admit() for worker in workers]
            assert sum(isinstance(answer, Permit) for answer in answers) == 1

    run_with_fake_redis(scene)


def test_an_outage_that_had_ended_does_not_return_with_old_data() -> None:
    """The snapshot is from an open period that a probe has ended since."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 4) as workers:
            await outage(workers)
            snapshot = redis.store.copy_data()
            await recover(workers[0])
            await fall_back(redis, snapshot)
            assert states(workers) == {"closed"}
            await outage(workers)

    run_with_fake_redis(scene)


def test_a_probe_is_repeated_at_once_if_its_lease_is_lost() -> None:
    """The probe in flight does not count any more; the next caller sends another one."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 3) as workers:
            await outage(workers)
            snapshot = redis.store.copy_data()
            await asyncio.sleep(60.1)
            probe = asyncio.create_task(workers[0].request(takes=20))
            await news()
            await fall_back(redis, snapshot)
            await workers[1].request()
            await news()
            assert states(workers) == {"closed"}
            await probe
            assert states(workers) == {"closed"}

    run_with_fake_redis(scene)


@pytest.mark.parametrize("probes", [(1, 3), (3, 1)])
def test_workers_with_different_numbers_of_probes_recover(probes: tuple[int, int]) -> None:
    """Some workers need three successful probes and others one, as in a rolling deploy.

    Callers that are rejected ask again at once. Redis is asked for few leases, and it closes.
    """

    async def scene(redis: FakeRedisCluster) -> None:
        workers = [Worker(redis, half_open_calls=calls) for calls in probes * 2]
        for worker in workers:
            await worker.fleet.ready()
        await opening_over(workers)
        before = redis.store.steps
        loop = asyncio.get_running_loop()
        began = loop.time()

        async def call(worker: Worker) -> None:
            while loop.time() < began + 10:
                await worker.request(takes=0.5)
                wait = worker.gate.metrics().retry_after
                await asyncio.sleep(wait or 0.1)

        await asyncio.gather(*(call(worker) for worker in workers for _ in range(2)))
        assert states(workers) == {"closed"}
        assert (redis.store.steps - before) / 10 < 120
        for worker in workers:
            await worker.fleet.aclose()

    run_with_fake_redis(scene)
