"""The cost of sharing through Redis, and how fast up to 1000 workers agree.

    python benchmarks/redis_ops.py [--largest 1000]

First, with a real redis-server and providers that respond at once: commands and round trips per
image, and the milliseconds that they add to a call.

Then, on virtual time with the real Lua scripts: each worker is 1 ms from Redis, makes an image of
10 s and pauses for 10 s until the vendor fails. Printed are the failed requests, the time until all
workers know of the outage (with and without messages) and of the recovery, and the load on Redis of
an idle fleet.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import redis
from fake_redis import FakeRedisCluster
from fleet_kit import Worker
from redis_kit import RedisServer, binary

from resilient_imagen import ImageClient, Settings
from resilient_imagen.circuitbreaker import Permit
from resilient_imagen.distributed import SharedOrders
from resilient_imagen.reasons import BreakerOutcome, Reason
from resilient_imagen.testing import FakeProvider, run_virtual

SIZES = (8, 32, 100, 320, 1000)
TURN = 10.0
"""Seconds that an image takes, and then a rest."""
HEADER = (
    "workers", "failed requests", "of them in flight at the third", "all know after",
    "if all messages are lost", "all are back after", "commands a second when idle",
)  # fmt: skip


@dataclass
class Cost:
    """The cost of sharing, per image."""

    steps: float
    """Commands."""
    trips: float
    """Round trips, at most."""
    step_us: float
    """Microseconds of Redis for a command."""
    alone_ms: float
    """Milliseconds of the median call without Redis."""
    shared_ms: float


@dataclass
class Agreement:
    """One fleet's outage and recovery."""

    failed: int
    under_way: int
    """Failed requests that were in flight at the third failure."""
    later: int
    """Failed requests that were sent after the third failure."""
    probes: int
    opened_s: float
    """Seconds from the third failure until all workers know."""
    closed_s: float
    """Seconds from the probe's success until all workers know."""
    messages: int
    """Messages that were delivered for the opening."""
    idle_steps: float
    """Commands per second of all workers, without calls."""
    idle_trips: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--largest", type=int, default=SIZES[-1])
    largest = parser.parse_args().largest
    if binary() is None:
        print("no redis-server here: the first part is left out")
    else:
        cost = asyncio.run(per_image(500))
        print(f"an image: {cost.steps:.2f} commands of {cost.step_us:.0f} µs", end=", ")
        print(f"{cost.trips:.2f} round trips at most; a call: {cost.alone_ms:.2f} ms", end=", ")
        print(f"through Redis on this machine {cost.shared_ms:.2f} ms\n")
    print(f"| {' | '.join(HEADER)} |\n{'|---' * len(HEADER)}|")
    for size in [size for size in SIZES if size <= largest]:
        heard, unheard = (run_virtual(agree(size, deaf=deaf)) for deaf in (False, True))
        print(
            f"| {size} | {heard.failed} | {heard.under_way} | {heard.opened_s * 1000:.0f} ms"
            f" | {unheard.opened_s:.1f} s | {heard.closed_s * 1000:.0f} ms"
            f" | {heard.idle_steps:.0f} |"
        )


async def per_image(images: int) -> Cost:
    """Measure one worker with one call after the other."""
    server = RedisServer()
    try:
        with redis.Redis.from_url(server.url) as monitor:
            alone, shared = await timed(None, images), await timed(server.url, images)
            before: Any = monitor.info("all")
            await timed(server.url, images)
            after: Any = monitor.info("all")
    finally:
        server.close()
    command = after["cmdstat_evalsha"]
    steps = command["calls"] - before["cmdstat_evalsha"]["calls"]
    trips = after["total_reads_processed"] - before["total_reads_processed"]
    us = command["usec_per_call"]
    return Cost(steps / images, trips / images, us, alone * 1000, shared * 1000)


async def timed(url: str | None, images: int) -> float:
    """Return the seconds of the median call."""
    settings = Settings(redis_url=url, routes="google:pro", ipm=1_000_000)
    async with ImageClient(settings, providers=[FakeProvider("google", latency=0)]) as client:
        await client.warm_up()
        took = []
        for _ in range(images):
            began = time.perf_counter()
            await client.generate("a lighthouse")
            took.append(time.perf_counter() - began)
    return statistics.median(took)


async def agree(size: int, *, deaf: bool) -> Agreement:
    """Simulate an outage, and a recovery that one worker probes; ``deaf`` loses all messages."""
    now, chance = asyncio.get_running_loop().time, random.Random(5)
    cluster, down, failed = FakeRedisCluster(), asyncio.Event(), list[tuple[float, float]]()
    workers = [Worker(cluster, per_minute=60_000_000) for _ in range(size)]
    orders = [SharedOrders(worker.coordinator, lambda *_: None, dict) for worker in workers]

    async def caller(worker: Worker) -> None:
        """Send requests, and record start and end of those that fail."""
        await asyncio.sleep(chance.uniform(0, 2 * TURN))
        while True:
            answer = await worker.admit()
            if isinstance(answer, Permit):
                sent = now()
                await asyncio.sleep(chance.uniform(0.8, 1.2) * TURN)
                if down.is_set():
                    failed.append((sent, now()))
                    answer.settle(BreakerOutcome.FAILURE, cause=Reason.OVERLOADED, summary="503")
                else:
                    answer.settle(BreakerOutcome.SUCCESS)
            await asyncio.sleep(chance.uniform(0.8, 1.2) * TURN)

    await asyncio.gather(*(worker.coordinator.ready() for worker in workers))
    await asyncio.sleep(25)  # until heartbeats are spread
    steps, trips = cluster.store.steps, cluster.trips
    await asyncio.sleep(20)
    idle_steps, idle_trips = (cluster.store.steps - steps) / 20, (cluster.trips - trips) / 20
    for worker in workers if deaf else ():
        worker.connection.drops_messages = True

    callers = [asyncio.ensure_future(caller(worker)) for worker in workers]
    await asyncio.sleep(6 * TURN)
    down.set()
    messages = cluster.deliveries
    opened = await agreed(workers, "open")
    messages = cluster.deliveries - messages
    await asyncio.sleep(2 * TURN)  # until all requests have ended
    for each in callers:
        each.cancel()
    third = sorted(end for _, end in failed)[2]

    await asyncio.sleep(61)
    asked = await asyncio.gather(*(worker.admit() for worker in workers))
    probes = [answer for answer in asked if isinstance(answer, Permit)]
    well = now()
    for probe in probes:
        probe.settle(BreakerOutcome.SUCCESS)
    closed = await agreed(workers, "closed")
    await asyncio.gather(*(worker.coordinator.aclose() for worker in workers))
    assert len(orders) == size  # the coordinator itself keeps weak references only
    return Agreement(
        failed=len(failed),
        under_way=sum(sent <= third < end for sent, end in failed),
        later=sum(sent > third for sent, _ in failed),
        probes=len(probes),
        opened_s=opened - third,
        closed_s=closed - well,
        messages=messages,
        idle_steps=idle_steps,
        idle_trips=idle_trips,
    )


async def agreed(workers: list[Worker], state: str) -> float:
    """Return the time at which the last worker is in a state."""
    for worker in workers:
        while worker.state != state:
            await worker.breaker.wait_for_change()
    return asyncio.get_running_loop().time()


if __name__ == "__main__":
    main()
