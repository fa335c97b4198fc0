"""The cost of sharing through Redis, and how fast up to 1000 workers agree.

    python benchmarks/redis_ops.py [WORKERS]

First, with a real redis-server and providers that respond at once: commands and round trips per
image, and the milliseconds that they add to a call.

Then, on virtual time (`fleet_agreement`), for fleets of up to 1000 or WORKERS workers: the failed
requests of an outage, the time until all workers know of it (with and without messages) and of the
recovery, and the load on Redis of an idle fleet.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import redis
from fleet_agreement import agree
from redis_kit import binary, redis_server

from resilient_imagen import ImageClient, Settings
from resilient_imagen.testing import FakeProvider, run_virtual

SIZES = (8, 32, 100, 320, 1000)
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


def main() -> None:
    largest = int(sys.argv[1]) if len(sys.argv) > 1 else SIZES[-1]
    if binary() is None:
        print("no redis-server here: the first part is left out")
    else:
        with redis_server() as server:
            cost = asyncio.run(per_image(server.url, 500))
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


async def per_image(url: str, images: int) -> Cost:
    """Measure one worker with one call after the other."""
    alone, shared = await timed(None, images), await timed(url, images)
    with redis.Redis.from_url(url) as monitor:
        before: Any = monitor.info("all")
        await timed(url, images)
        after: Any = monitor.info("all")
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


if __name__ == "__main__":
    main()
