"""Busy fleet: workers with full queues on a fake Redis, and the times of their requests."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Any, Self

from fake_redis import FakeRedisCluster
from fleet_kit import Worker, run_with_fake_redis

PER_MINUTE = 60.0
WINDOW = 15.0
AT_MOST = 18
"""1.2 times the images that the limit allows in a window."""


def now() -> float:
    return asyncio.get_running_loop().time()


class BusyFleet:
    """Workers with more waiting callers than the limit serves, and the times of their requests."""

    def __init__(self, redis: FakeRedisCluster, count: int, **numbers: Any) -> None:
        self.redis = redis
        self.sent: list[float] = []
        self.workers: list[Worker] = []
        self.snapshot = redis.store.copy_data()
        """Data of Redis at an earlier time."""
        self._callers: dict[Worker, list[asyncio.Task[None]]] = {}
        self._count = count
        self._numbers = {"per_minute": PER_MINUTE, **numbers}

    async def __aenter__(self) -> Self:
        for _ in range(self._count):
            await self.add()
        return self

    async def __aexit__(self, *_: object) -> None:
        for worker in list(self.workers):
            self.kill(worker)
            await worker.coordinator.aclose()

    async def add(self, **numbers: Any) -> Worker:
        """Start a worker with a full queue."""
        worker = Worker(self.redis, **{**self._numbers, **numbers})
        self.workers.append(worker)
        await worker.coordinator.ready()
        self._callers[worker] = [asyncio.create_task(self._call(worker)) for _ in range(6)]
        return worker

    def kill(self, worker: Worker) -> None:
        """End a worker without unregistering it in Redis."""
        self.workers.remove(worker)
        worker.connection.stuck = True
        self.redis.factories[int(worker.coordinator.worker.split("/")[1]) - 1].stuck = True
        for caller in self._callers.pop(worker):
            caller.cancel()

    def cut(self, workers: list[Worker]) -> None:
        """Break the connections of workers."""
        for worker in workers:
            with contextlib.suppress(KeyError):  # it was never connected
                worker.connection.break_off()

    async def _call(self, worker: Worker) -> None:
        while True:
            with worker.limiter.join() as slot:
                await slot.granted
                slot.consume()
                self.sent.append(now())

    def most(self, since: float = 0.0) -> int:
        """Return the highest number of requests in any window."""
        times = [when for when in self.sent if when >= since]
        return max((sum(t <= u < t + WINDOW for u in times) for t in times), default=0)

    def between(self, start: float, end: float) -> int:
        return sum(start <= when < end for when in self.sent)


def run_fleet(
    scene: Callable[[BusyFleet], Awaitable[None]], count: int = 8, **numbers: Any
) -> None:
    """Run a scenario with a busy fleet on virtual time."""

    async def main(redis: FakeRedisCluster) -> None:
        async with BusyFleet(redis, count, **numbers) as fleet:
            await asyncio.sleep(10)
            await scene(fleet)

    random.seed(count)  # of the heartbeats
    run_with_fake_redis(main)
