"""Fleet test kit: breakers and limiters of several workers on one virtual-time loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from fake_redis import FakeConnection, FakeRedisCluster
from pipeline_kit import run_guarded

from resilient_imagen.circuitbreaker import BreakerConfig, Permit, Rejection, Settlement
from resilient_imagen.distributed.redis_breaker import RedisCircuitBreaker
from resilient_imagen.distributed.redis_limiter import RedisRateLimiter
from resilient_imagen.reasons import POLICIES, BreakerOutcome, Reason

T = TypeVar("T")


class Worker:
    """One worker: a coordinator, the breaker of one route and the limiter of its provider."""

    def __init__(
        self,
        redis: FakeRedisCluster,
        *,
        per_minute: float = 6000,
        slots: int = 4,
        burst: int = 1,
        host: str = "",
        **numbers: Any,
    ) -> None:
        self.redis = redis
        self.coordinator = redis.coordinator(host)
        config = BreakerConfig(**{"reset_timeout": 60.0, **numbers})
        self.breaker = RedisCircuitBreaker(
            "google:pro", config, coordinator=self.coordinator, random=lambda: 0.0
        )
        self.limiter = RedisRateLimiter(
            "google",
            coordinator=self.coordinator,
            max_concurrent=slots,
            per_minute=per_minute,
            burst=burst,
        )

    @property
    def connection(self) -> FakeConnection:
        """Return the current connection."""
        mine = self.redis.connections_of[self.coordinator.worker]
        return mine[-1]

    @property
    def state(self) -> str:
        return self.breaker.metrics().state.value

    async def admit(self) -> Permit | Rejection:
        """Acquire a permit as the pipeline does: before the queue, and again after it."""
        permit = self.breaker.try_acquire_early()
        if isinstance(permit, Rejection):
            return permit
        with self.limiter.join() as ticket:
            await ticket.granted
            if permit is not None and permit.stale:
                permit.settle(BreakerOutcome.NEUTRAL)
                permit = None
            answer = permit or self.breaker.acquire()
            if isinstance(answer, Permit):
                ticket.consume()
                answer.begin()
            return answer

    async def request(
        self, reason: Reason | None = None, *, takes: float = 0.0, retry_after: float | None = None
    ) -> Settlement | Rejection:
        """Send one request that fails with ``reason``, or succeeds without one."""
        answer = await self.admit()
        if isinstance(answer, Rejection):
            return answer
        await asyncio.sleep(takes)
        if reason is None:
            return answer.settle(BreakerOutcome.SUCCESS)
        return answer.settle(
            POLICIES[reason].verdict, cause=reason, summary="failed", retry_after=retry_after
        )

    async def fail(self, times: int = 1, reason: Reason = Reason.OVERLOADED) -> None:
        for _ in range(times):
            await self.request(reason)


@contextlib.asynccontextmanager
async def started_workers(
    redis: FakeRedisCluster, count: int, **numbers: Any
) -> AsyncIterator[list[Worker]]:
    """Provide ``count`` connected workers."""
    workers = [Worker(redis, **numbers) for _ in range(count)]
    try:
        for worker in workers:
            await worker.coordinator.ready()
        yield workers
    finally:
        for worker in workers:
            await worker.coordinator.aclose()


def run_with_fake_redis(
    scene: Callable[[FakeRedisCluster], Awaitable[T]], latency: float = 0.001
) -> T:
    """Run a scenario on virtual time."""

    async def main() -> T:
        return await scene(FakeRedisCluster(latency))

    return run_guarded(main())


async def messages_delivered() -> None:
    """Wait until messages have reached all workers, but less than a heartbeat."""
    await asyncio.sleep(0.05)


def states(workers: list[Worker]) -> set[str]:
    return {worker.state for worker in workers}


async def open_breaker(workers: list[Worker]) -> None:
    """Open the shared breaker for 60 seconds."""
    await workers[0].fail(3)
    await messages_delivered()
    assert states(workers) == {"open"}


async def wait_until_probe_is_due(workers: list[Worker]) -> None:
    """Open the shared breaker, and wait until it is due for a probe."""
    await open_breaker(workers)
    await asyncio.sleep(60.1)
