"""Counters of all workers for each minute, which registrations bring along."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from fake_redis import ADDRESS, START, FakeRedisCluster
from fleet_kit import Worker, run_with_fake_redis, started_workers

from resilient_imagen.distributed.coordinator import registry_keys

REGISTERED = 13.0
"""Seconds in which each worker registers at least once."""


def count(worker: Worker, age: float = 0.0, **counts: float) -> None:
    """Let the worker add counters at its next registration."""
    pending: list[tuple[float, Mapping[str, float]]] = [(age, counts)]

    def take() -> list[tuple[float, Mapping[str, float]]]:
        taken = pending.copy()
        pending.clear()
        return taken

    worker.coordinator.take_counters = take


def stored(redis: FakeRedisCluster) -> dict[str, float]:
    """Return the counters by the minutes since the server's start, such as ``0 calls``."""
    found = redis.store.hashes.get(registry_keys(ADDRESS)[3], {})
    first = int(START) // 60
    rows = [(field.split(" "), float(value)) for field, value in found.items()]
    return {f"{int(minute) - first} {name}": value for (minute, name), value in rows}


def test_workers_add_up_and_the_longest_wait_is_a_maximum() -> None:
    """Each counter is added once, whatever the number of registrations."""

    async def main(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 3) as workers:
            for number, worker in enumerate(workers, 1):
                count(worker, calls=number, cost_usd=0.04, longest_wait_s=10.0 * number)
            await asyncio.sleep(REGISTERED)
            assert stored(redis) == {"0 calls": 6, "0 cost_usd": 0.12, "0 longest_wait_s": 30}
            await asyncio.sleep(30 + REGISTERED)
            assert stored(redis)["0 calls"] == 6

    run_with_fake_redis(main)


def test_counters_belong_to_the_minute_of_their_age() -> None:
    """A worker that was without Redis adds them afterwards."""

    async def main(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 1) as workers:
            await asyncio.sleep(300 + REGISTERED)
            count(workers[0], age=180.0, calls=1)
            await asyncio.sleep(REGISTERED)
            (field,) = stored(redis)
            assert field in {"2 calls", "3 calls"}

    run_with_fake_redis(main)


def test_a_worker_that_leaves_adds_its_last_counters() -> None:
    """The last counters are part of the command that unregisters the worker."""

    async def main(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 2) as workers:
            await asyncio.sleep(REGISTERED)
            count(workers[0], calls=7)
            await workers[0].coordinator.aclose()
            assert stored(redis) == {"0 calls": 7}

    run_with_fake_redis(main)


@pytest.mark.no_cover
def test_only_the_last_hour_is_kept() -> None:
    """Older minutes, damaged fields, and those of a clock that was wrong are removed."""

    async def main(redis: FakeRedisCluster) -> None:
        key = registry_keys(ADDRESS)[3]
        async with started_workers(redis, 1) as workers:
            count(workers[0], calls=1)
            await asyncio.sleep(REGISTERED)
            assert stored(redis) == {"0 calls": 1}
            redis.store.hashes[key]["damaged"] = "x"
            redis.store.hashes[key][f"{int(START) // 60 + 500} calls"] = "9"
            await asyncio.sleep(62 * 60)
            count(workers[0], calls=2)
            await asyncio.sleep(REGISTERED)
            assert list(stored(redis).values()) == [2]
            redis.store.hashes[key] = dict.fromkeys(redis.store.hashes[key], "x")
            count(workers[0], calls=3)
            await asyncio.sleep(REGISTERED)
            assert list(stored(redis).values()) == [3]

    run_with_fake_redis(main)
