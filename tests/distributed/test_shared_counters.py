"""Counters of all workers for each minute, which registrations bring along."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping

import pytest
from fake_redis import ADDRESS, START, FakeRedisCluster
from fleet_kit import Worker, run_with_fake_redis, started_workers

from resilient_imagen import ImageClient, Settings, client
from resilient_imagen.distributed.coordinator import Counters, registry_keys
from resilient_imagen.testing import FakeProvider

REGISTERED = 13.0
"""Seconds in which each worker registers at least once."""


def count(worker: Worker, age: float = 0.0, **counts: float) -> None:
    """Let the worker add counters at its next registration."""
    pending: list[tuple[float, Mapping[str, float]]] = [(age, counts)]

    def take() -> Counters:
        taken = pending.copy()
        pending.clear()
        return taken, lambda: pending.extend(taken)

    worker.coordinator.take_counters = take


def stored(redis: FakeRedisCluster) -> dict[str, float]:
    """Return the counters by the minutes since the server's start, such as ``0 calls``."""
    found = redis.store.hashes.get(registry_keys(ADDRESS)[3], {})
    first = int(START) // 60
    rows = [(field.split(" "), float(value)) for field, value in found.items()]
    return {f"{int(minute) - first} {name}": value for (minute, name), value in rows}


def calls_of(redis: FakeRedisCluster) -> dict[int, float]:
    """Return the number of calls by the minutes since the server's start."""
    return {
        int(name.removesuffix(" calls")): count
        for name, count in stored(redis).items()
        if name.endswith(" calls")
    }


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


def started_client(redis: FakeRedisCluster, patch: pytest.MonkeyPatch) -> ImageClient:
    """Return a client whose calls take no time."""
    patch.setattr(client, "_new_coordinator", lambda *_: redis.coordinator())
    settings = Settings(redis_url="redis://fake", routes="google:gemini-3-pro-image", ipm=6000)
    return ImageClient(settings, providers=[FakeProvider("google", latency=0.0)])


async def until_server_time(redis: FakeRedisCluster, minute: int, second: float) -> None:
    await asyncio.sleep(60 * minute + second - START % 60 - redis.loop.time())


def test_calls_belong_to_their_minute_by_the_clock_of_redis(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its minutes begin 40 s after those of the loop; registrations come every ten seconds."""

    async def main(redis: FakeRedisCluster) -> None:
        async with started_client(redis, monkeypatch) as client:
            for minute in range(1, 6):
                await until_server_time(redis, minute, 11)
                for _ in range(5):
                    await client.generate("a lighthouse")
                    await asyncio.sleep(1)
            await asyncio.sleep(REGISTERED)
        assert calls_of(redis) == dict.fromkeys(range(1, 6), 5)

    run_with_fake_redis(main)


def test_counters_are_kept_until_redis_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts to join a Redis that accepts connections and does not answer lose none."""

    async def main(redis: FakeRedisCluster) -> None:
        async with started_client(redis, monkeypatch) as client:
            (factory,) = redis.factories
            factory.stuck = True
            for minute in range(1, 4):
                await until_server_time(redis, minute, 30)
                await client.generate("a lighthouse")
            assert stored(redis) == {}
            factory.stuck = False
            await until_server_time(redis, 5, 30)
            await client.generate("a lighthouse")
            await asyncio.sleep(REGISTERED)
            assert calls_of(redis) == {1: 1, 2: 1, 3: 1, 5: 1}

    run_with_fake_redis(main)


def test_a_forked_process_does_not_add_what_its_parent_has_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The parent adds it; the forked process adds its own."""

    async def main(redis: FakeRedisCluster) -> None:
        async with started_client(redis, monkeypatch) as client:
            await client.generate("in the parent")
            coordinator = redis.factories[0].coordinator
            assert coordinator is not None
            parents_task = coordinator._task
            assert parents_task is not None
            monkeypatch.setattr(os, "getpid", lambda: -1)
            redis.connections[0].stuck = True  # the parent sends nothing meanwhile
            await client.generate("in the child")
            await asyncio.sleep(REGISTERED)
            assert calls_of(redis) == {0: 1}
            parents_task.cancel()  # without a real fork the task of the parent still exists
            await asyncio.wait({parents_task})

    run_with_fake_redis(main)
