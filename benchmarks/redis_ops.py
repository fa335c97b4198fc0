"""What sharing through Redis costs, and how fast a fleet agrees: from 8 workers to 1000.

Part one, with a real redis-server and scripted providers: Redis steps and round trips per image,
and the milliseconds they add to a call.

Part two, on virtual time with the scripts' real Lua: an outage and a recovery, for fleets of
growing size; 1 ms between each worker and Redis. Requests that reach the vendor, time from the
deciding outcome until every worker agrees (when news arrive, and when all news are lost), messages
delivered, and what the fleet asks of Redis per second when nobody wants anything.

Run: python benchmarks/redis_ops.py [--largest 1000]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from fleet_kit import Worker
from lua_store import Sea
from redis_kit import RedisServer, binary

from resilient_imagen import ImageClient, Settings
from resilient_imagen.breaker import Permit, Rejection
from resilient_imagen.reasons import Reason, Verdict
from resilient_imagen.testing import FakeProvider, run_virtual

IMAGES = 500
SIZES = (8, 32, 100, 320, 1000)


@dataclass
class Agreement:
    """One fleet's outage and recovery."""

    requests: int
    """That failed before everybody knew."""
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
        asyncio.run(per_image())
    print(
        "\nworkers  failed  probes  agree open  agree closed  without news  messages"
        "  idle steps/s  idle trips/s"
    )
    for size in [size for size in SIZES if size <= largest]:
        heard, unheard = (run_virtual(agree(size, deaf=deaf)) for deaf in (False, True))
        print(
            f"{size:7}  {heard.requests:6}  {heard.probes:6}  {heard.opened_s * 1000:7.1f} ms"
            f"  {heard.closed_s * 1000:9.1f} ms  {unheard.opened_s:10.2f} s  {heard.messages:8}"
            f"  {heard.idle_steps:12.0f}  {heard.idle_trips:12.0f}"
        )


async def per_image() -> None:
    """Steps, round trips and time for each image, one worker, one call after the other."""
    server = RedisServer()
    try:
        alone, shared = await timed(None), await timed(server.url)
        before = evalshas(server), reads(server)
        await timed(server.url)
        steps, trips = evalshas(server) - before[0], reads(server) - before[1]
        print(f"one call after the other, {IMAGES} images, vendor answers at once:")
        print(f"  Redis steps per image            {steps / IMAGES:.2f}")
        print(f"  Redis round trips per image      {trips / IMAGES:.2f} at most")
        print(f"  Redis' own time for a step       {evalshas(server, 'usec_per_call'):.0f} us")
        print(f"  a call without Redis             {alone * 1000:.2f} ms (median)")
        print(f"  a call with Redis on loopback    {shared * 1000:.2f} ms (median)")
    finally:
        server.close()


async def timed(url: str | None) -> float:
    """The median call, in seconds."""
    settings = Settings(redis_url=url, routes="google:pro", ipm=1_000_000)
    async with ImageClient(settings, providers=[FakeProvider("google", latency=0)]) as client:
        await client.warm_up()
        took = []
        for _ in range(IMAGES):
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


async def agree(size: int, *, deaf: bool) -> Agreement:
    """An outage that three workers see, and a recovery that one probes."""
    sea = Sea()
    loop = asyncio.get_running_loop()
    workers = [Worker(sea, per_minute=60_000_000) for _ in range(size)]
    await asyncio.gather(*(worker.fleet.ready() for worker in workers))
    await asyncio.sleep(25)  # check-ins have found their pace
    steps, trips = sea.store.steps, sea.trips
    await asyncio.sleep(20)
    idle_steps, idle_trips = (sea.store.steps - steps) / 20, (sea.trips - trips) / 20
    for worker in workers if deaf else ():
        worker.link.deaf = True

    messages = sea.deliveries
    began_at = loop.time()
    answers = await asyncio.gather(*(worker.request(Reason.OVERLOADED) for worker in workers[:3]))
    opened = await agreed(workers, "open") - began_at
    failed = sum(not isinstance(answer, Rejection) for answer in answers)
    messages = sea.deliveries - messages

    await asyncio.sleep(61)
    asked = await asyncio.gather(*(worker.admit() for worker in workers))
    probes = [answer for answer in asked if isinstance(answer, Permit)]
    began_at = loop.time()
    for probe in probes:
        probe.settle(Verdict.SUCCESS)
    closed = await agreed(workers, "closed") - began_at
    await asyncio.gather(*(worker.fleet.aclose() for worker in workers))
    return Agreement(failed, len(probes), opened, closed, messages, idle_steps, idle_trips)


async def agreed(workers: list[Worker], state: str) -> float:
    """When the last of them is in that state."""
    for worker in workers:
        while worker.state != state:
            await worker.gate.changed()
    return asyncio.get_running_loop().time()


if __name__ == "__main__":
    main()
