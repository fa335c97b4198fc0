"""The shared rate limit under faults: lost connections, lost data, killed and stopped processes."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from busy_fleet import AT_MOST, WINDOW, BusyFleet, now, run_fleet
from fake_redis import FakeRedisCluster
from fleet_kit import Worker, run_with_fake_redis

from resilient_imagen.virtualtime import VirtualTimeLoop

pytestmark = pytest.mark.no_cover


def test_five_short_disconnects_do_not_speed_the_fleet_up() -> None:
    """All connections break five times for 50 ms; all workers together keep the limit."""

    async def scene(fleet: BusyFleet) -> None:
        for _ in range(5):
            fleet.redis.stop()
            await asyncio.sleep(0.05)
            fleet.redis.restart(empty=False)
            await asyncio.sleep(2)
        await asyncio.sleep(15)
        assert fleet.most() <= AT_MOST

    run_fleet(scene)


@pytest.mark.parametrize("empty", [False, True])
def test_a_missing_redis_does_not_speed_the_fleet_up(empty: bool) -> None:
    """Redis is down for ten seconds; during that time and afterwards all workers keep the limit."""

    async def scene(fleet: BusyFleet) -> None:
        began = now()
        fleet.redis.stop()
        await asyncio.sleep(10)
        assert 7 <= fleet.between(began, began + 10) <= 12
        fleet.redis.restart(empty=empty)
        await asyncio.sleep(25)
        assert fleet.most() <= AT_MOST

    run_fleet(scene)


def test_a_flushed_redis_does_not_speed_the_fleet_up() -> None:
    """FLUSHALL at any moment: workers remember the place that they took last."""

    async def scene(fleet: BusyFleet) -> None:
        for pause in (0.3, 1.7, 0.5, 2.2, 3.1):
            fleet.redis.store.flush()
            await asyncio.sleep(pause)
        await asyncio.sleep(15)
        assert fleet.most() <= AT_MOST

    run_fleet(scene)


def test_older_data_do_not_speed_the_fleet_up() -> None:
    """Redis restarts from a snapshot that is ten seconds old.

    All workers together keep the limit.
    """

    async def scene(fleet: BusyFleet) -> None:
        snapshot = fleet.redis.store.copy_data()
        await asyncio.sleep(10)
        fleet.redis.stop()
        fleet.redis.store.restore(snapshot)
        fleet.redis.restart(empty=False)
        await asyncio.sleep(20)
        assert fleet.most() <= AT_MOST
        assert fleet.between(now() - 10, now()) >= 9

    run_fleet(scene)


@pytest.mark.parametrize("per_minute", [10.0, 60.0])
def test_new_workers_send_within_seconds_after_all_others_were_killed(per_minute: float) -> None:
    """Killed workers with full queues hold one place at most, and lose their turns."""

    async def scene(fleet: BusyFleet) -> None:
        for worker in list(fleet.workers):
            fleet.kill(worker)
        killed, last = now(), fleet.sent[-1]
        await asyncio.gather(fleet.add(), fleet.add())
        await asyncio.sleep(20)
        first = next(when for when in fleet.sent if when > killed)
        assert first <= max(killed + 5.0, last + 2 * 60.0 / per_minute + 0.5)
        assert fleet.most() <= 1.2 * max(per_minute / 60.0 * WINDOW, 2.5) + 0.01

    run_fleet(scene, per_minute=per_minute)


def test_a_stalled_process_does_not_use_the_places_that_it_missed() -> None:
    """A loop that was stopped for 14 seconds sends no burst afterwards."""

    async def scene(fleet: BusyFleet) -> None:
        cast("VirtualTimeLoop", asyncio.get_running_loop()).advance(14)
        resumed = now()
        await asyncio.sleep(15)
        assert fleet.between(resumed, resumed + 15) <= AT_MOST
        assert fleet.between(resumed, resumed + 15) >= 13

    run_fleet(scene, count=3)


@pytest.mark.parametrize("seconds", [0.3, 0.7, 3.0])
def test_a_stalled_loop_does_not_lose_its_connection(seconds: float) -> None:
    """Answers that arrived during a stall are read before the connection counts as lost."""

    async def scene(fleet: BusyFleet) -> None:
        lost: list[bool] = []
        loop = cast("VirtualTimeLoop", asyncio.get_running_loop())
        for _ in range(5):
            loop.advance(seconds)
            for _ in range(20):
                await asyncio.sleep(0.05)
                lost += [not worker.coordinator.joined for worker in fleet.workers]
        assert not any(lost)

    run_fleet(scene, count=3)


def test_waiting_processes_are_served_in_turn() -> None:
    """At ten images a minute each of eight processes is served once before any is served twice."""

    async def scene(redis: FakeRedisCluster) -> None:
        order: list[int] = []

        async def call(number: int, worker: Worker) -> None:
            while True:
                with worker.limiter.join() as slot:
                    await slot.granted
                    slot.consume()
                    order.append(number)

        workers = [Worker(redis, per_minute=10) for _ in range(8)]
        for worker in workers:
            await worker.coordinator.ready()
        calls = [
            asyncio.create_task(call(number, worker))
            for number, worker in enumerate(workers)
            for _ in range(4)
        ]
        await asyncio.sleep(8 * 2 * 6 + 10)
        for task in calls:
            task.cancel()
        for worker in workers:
            await worker.coordinator.aclose()
        assert sorted(order[1:9]) == list(range(8))  # the first caller did not wait
        assert order[9:17] == order[1:9]

    run_with_fake_redis(scene)


def test_the_slowest_setting_applies_and_both_values_are_named() -> None:
    """One worker with 30 images a minute slows the others down, and each warns once."""

    async def scene(fleet: BusyFleet) -> None:
        slow = await fleet.add(per_minute=30)
        began = now()
        await asyncio.sleep(30)
        assert 13 <= fleet.between(began, began + 30) <= 17
        (text,) = {t for t in fleet.redis.texts if "images per minute" in t}
        assert "60 images per minute here and 30 there" in text
        await slow.coordinator.aclose()
        fleet.kill(slow)
        await asyncio.sleep(6)
        began = now()
        await asyncio.sleep(20)
        assert 19 <= fleet.between(began, began + 20) <= 21

    run_fleet(scene, count=3)
