"""The cost of sharing through Redis, and how fast up to 1000 workers agree.

    python benchmarks/redis_ops.py [--largest 1000]

Part one, with a real redis-server and providers that respond at once: commands and round trips per
image, and the milliseconds that they add to a call.

Part two, on virtual time with the real Lua scripts: each worker is 1 ms from Redis, makes an image
of 10 s and pauses for 10 s. Then the vendor fails. Printed are the failed requests, those of them
that were in flight at the third failure and those sent afterwards, the time until all workers know
of the outage (with and without messages) and of the recovery, the messages delivered for the
opening, and the load on Redis of an idle fleet.
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

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

from fake_redis import FakeRedisCluster
from fleet_kit import Worker
from redis_kit import RedisServer, binary

from resilient_imagen import ImageClient, Settings
from resilient_imagen.circuitbreaker import Permit, Rejection
from resilient_imagen.distributed import SharedOrders
from resilient_imagen.reasons import BreakerOutcome, Reason
from resilient_imagen.testing import FakeProvider, run_virtual

IMAGES = 500
SIZES = (8, 32, 100, 320, 1000)
TURN = 10.0
"""Seconds that an image takes, and then a rest."""


@dataclass
class Cost:
    """The cost of sharing, per image."""

    steps: float
    trips: float
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
    closed_s: float
    messages: int
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
        cost = asyncio.run(per_image(IMAGES))
        print(f"one call after the other, {IMAGES} images, vendor answers at once:")
        print(f"  Redis steps per image            {cost.steps:.2f}")
        print(f"  Redis round trips per image      {cost.trips:.2f} at most")
        print(f"  Redis' own time for a step       {cost.step_us:.0f} us")
        print(f"  a call without Redis             {cost.alone_ms:.2f} ms (median)")
        print(f"  a call with Redis on loopback    {cost.shared_ms:.2f} ms (median)")
    print(
        "\nworkers  failed  under way  sent later  probes  agree open  agree closed  without news"
        "  messages  idle steps/s  idle trips/s"
    )
    for size in [size for size in SIZES if size <= largest]:
        heard, unheard = (run_virtual(agree(size, deaf=deaf)) for deaf in (False, True))
        print(
            f"{size:7}  {heard.failed:6}  {heard.under_way:9}  {heard.later:10}  {heard.probes:6}"
            f"  {heard.opened_s * 1000:7.1f} ms  {heard.closed_s * 1000:9.1f} ms"
            f"  {unheard.opened_s:10.2f} s  {heard.messages:8}"
            f"  {heard.idle_steps:12.0f}  {heard.idle_trips:12.0f}"
        )


async def per_image(images: int) -> Cost:
    """Measure one worker with one call after the other."""
    server = RedisServer()
    try:
        alone, shared = await timed(None, images), await timed(server.url, images)
        before = evalshas(server), reads(server)
        await timed(server.url, images)
        steps, trips = evalshas(server) - before[0], reads(server) - before[1]
        us = evalshas(server, "usec_per_call")
        return Cost(steps / images, trips / images, us, alone * 1000, shared * 1000)
    finally:
        server.close()


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


def evalshas(server: RedisServer, what: str = "calls") -> float:
    """Return the number of commands so far, or the microseconds of one."""
    for line in server.ask("INFO", "commandstats").decode().split("\r\n"):
        if line.startswith("cmdstat_evalsha:"):
            return float(line.partition(f"{what}=")[2].partition(",")[0])
    return 0.0


def reads(server: RedisServer) -> int:
    """Return the number of reads from clients so far; each is a round trip, or part of one."""
    for line in server.ask("INFO", "stats").decode().split("\r\n"):
        if line.startswith("total_reads_processed:"):
            return int(line.partition(":")[2])
    return 0


class RedisTraffic:
    """The requests of all workers; those that end after `fail` have failed."""

    def __init__(self, workers: list[Worker]) -> None:
        self._loop = asyncio.get_running_loop()
        self._chance = random.Random(5)
        self._down_from = float("inf")
        self.failed: list[tuple[float, float]] = []
        """Start and end of each failed request."""
        self._callers = [asyncio.ensure_future(self._call(worker)) for worker in workers]

    def fail(self) -> None:
        """The vendor fails from now on."""
        self._down_from = self._loop.time()

    async def stop(self) -> None:
        """Send no more requests."""
        for caller in self._callers:
            caller.cancel()
        await asyncio.wait(self._callers)

    async def _call(self, worker: Worker) -> None:
        await asyncio.sleep(self._chance.uniform(0, 2 * TURN))
        while True:
            answer = await worker.admit()
            if isinstance(answer, Permit):
                sent = self._loop.time()
                await asyncio.sleep(self._chance.uniform(0.8, 1.2) * TURN)
                if self._loop.time() < self._down_from:
                    answer.settle(BreakerOutcome.SUCCESS)
                else:
                    self.failed.append((sent, self._loop.time()))
                    answer.settle(BreakerOutcome.FAILURE, cause=Reason.OVERLOADED, summary="503")
            await asyncio.sleep(self._chance.uniform(0.8, 1.2) * TURN)


async def agree(size: int, *, deaf: bool) -> Agreement:
    """Simulate an outage, and a recovery that one worker probes; ``deaf`` loses all messages."""
    cluster = FakeRedisCluster()
    loop = asyncio.get_running_loop()
    workers = [Worker(cluster, per_minute=60_000_000) for _ in range(size)]
    orders = [SharedOrders(worker.coordinator, lambda *_: None, dict) for worker in workers]
    await asyncio.gather(*(worker.coordinator.ready() for worker in workers))
    await asyncio.sleep(25)  # until heartbeats are spread
    steps, trips = cluster.store.steps, cluster.trips
    await asyncio.sleep(20)
    idle_steps, idle_trips = (cluster.store.steps - steps) / 20, (cluster.trips - trips) / 20
    for worker in workers if deaf else ():
        worker.connection.drops_messages = True

    traffic = RedisTraffic(workers)
    await asyncio.sleep(6 * TURN)
    traffic.fail()
    messages = cluster.deliveries
    opened = await agreed(workers, "open")
    messages = cluster.deliveries - messages
    await asyncio.sleep(2 * TURN)  # until all requests have ended
    await traffic.stop()
    third = sorted(end for _, end in traffic.failed)[2]
    under_way = sum(sent <= third < end for sent, end in traffic.failed)
    later = sum(sent > third for sent, _ in traffic.failed)

    await asyncio.sleep(61)
    asked = await asyncio.gather(*(worker.admit() for worker in workers))
    probes = [answer for answer in asked if isinstance(answer, Permit)]
    assert len(probes) == size - sum(isinstance(answer, Rejection) for answer in asked)
    well = loop.time()
    for probe in probes:
        probe.settle(BreakerOutcome.SUCCESS)
    closed = await agreed(workers, "closed")
    await asyncio.gather(*(worker.coordinator.aclose() for worker in workers))
    assert len(orders) == size  # the coordinator itself keeps weak references only
    return Agreement(
        len(traffic.failed), under_way, later, len(probes),
        opened - third, closed - well, messages, idle_steps, idle_trips,
    )  # fmt: skip


async def agreed(workers: list[Worker], state: str) -> float:
    """Return the time at which the last worker is in a state."""
    for worker in workers:
        while worker.state != state:
            await worker.breaker.wait_for_change()
    return asyncio.get_running_loop().time()


if __name__ == "__main__":
    main()
