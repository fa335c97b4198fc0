"""What sharing through Redis costs, and how fast a fleet agrees: from 8 workers to 1000.

Part one, with a real redis-server and scripted providers: Redis steps and round trips per image,
and the milliseconds they add to a call.

Part two, on virtual time with the scripts' real Lua: fleets of growing size, 1 ms between each
worker and Redis, each worker making an image of 10 s and resting for 10 s, by turns. In the middle
of that the vendor fails, for everything that is under way and everything that comes. How many
requests failed, how many of them were under way at the third failure (nothing could have held them
back) and how many were sent afterwards; by when every worker knew, when news arrive and when all
news are lost; the same for recovery; messages delivered for the opening; and what the fleet asks of
Redis per second when nobody wants anything.

Run: python benchmarks/redis_ops.py [--largest 1000]
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
from resilient_imagen.reasons import BreakerOutcome, Reason
from resilient_imagen.testing import FakeProvider, run_virtual

IMAGES = 500
SIZES = (8, 32, 100, 320, 1000)
TURN = 10.0
"""Seconds that an image takes, and then a rest."""


@dataclass
class Cost:
    """What sharing costs per image."""

    steps: float
    trips: float
    step_us: float
    """Redis' own time for a step, in microseconds."""
    alone_ms: float
    """The median call without Redis."""
    shared_ms: float


@dataclass
class Agreement:
    """One fleet's outage and recovery."""

    failed: int
    under_way: int
    """Of the failed ones, those that were under way at the third failure."""
    later: int
    """Of the failed ones, those that were sent after the third failure."""
    probes: int
    opened_s: float
    closed_s: float
    messages: int
    idle_steps: float
    """Steps per second, of all workers, when nobody wants anything."""
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
    """Steps, round trips and time for each image, one worker, one call after the other."""
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
    """The median call, in seconds."""
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
    """Steps taken so far, or the microseconds that the server spends on one."""
    for line in server.ask("INFO", "commandstats").decode().split("\r\n"):
        if line.startswith("cmdstat_evalsha:"):
            return float(line.partition(f"{what}=")[2].partition(",")[0])
    return 0.0


def reads(server: RedisServer) -> int:
    """How often the server read from a client so far: each is a round trip, or part of one."""
    for line in server.ask("INFO", "stats").decode().split("\r\n"):
        if line.startswith("total_reads_processed:"):
            return int(line.partition(":")[2])
    return 0


class RedisTraffic:
    """What all workers send; from `fail` on, whatever ends has failed."""

    def __init__(self, workers: list[Worker]) -> None:
        self._loop = asyncio.get_running_loop()
        self._chance = random.Random(5)
        self._down_from = float("inf")
        self.failed: list[tuple[float, float]] = []
        """When each was sent, and when it ended."""
        self._callers = [asyncio.ensure_future(self._call(worker)) for worker in workers]

    def fail(self) -> None:
        """The vendor fails from now on."""
        self._down_from = self._loop.time()

    async def stop(self) -> None:
        """Nobody asks any more."""
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
    """An outage in the middle of the day's work, and a recovery that one probes."""
    sea = FakeRedisCluster()
    loop = asyncio.get_running_loop()
    workers = [Worker(sea, per_minute=60_000_000) for _ in range(size)]
    await asyncio.gather(*(worker.fleet.ready() for worker in workers))
    await asyncio.sleep(25)  # check-ins have found their pace
    steps, trips = sea.store.steps, sea.trips
    await asyncio.sleep(20)
    idle_steps, idle_trips = (sea.store.steps - steps) / 20, (sea.trips - trips) / 20
    for worker in workers if deaf else ():
        worker.link.deaf = True

    traffic = RedisTraffic(workers)
    await asyncio.sleep(6 * TURN)
    traffic.fail()
    messages = sea.deliveries
    opened = await agreed(workers, "open")
    messages = sea.deliveries - messages
    await asyncio.sleep(2 * TURN)  # whatever was under way has ended
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
    await asyncio.gather(*(worker.fleet.aclose() for worker in workers))
    return Agreement(
        len(traffic.failed), under_way, later, len(probes),
        opened - third, closed - well, messages, idle_steps, idle_trips,
    )  # fmt: skip


async def agreed(workers: list[Worker], state: str) -> float:
    """When the last of them is in that state."""
    for worker in workers:
        while worker.state != state:
            await worker.gate.wait_for_change()
    return asyncio.get_running_loop().time()


if __name__ == "__main__":
    main()
