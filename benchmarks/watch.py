"""Watches a design at work; needs nothing but Python, so that it runs in any environment."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

Make = Callable[[], Awaitable[object]]
Figures = dict[str, float]

LOADS = {"small": 20, "4K": 1, "references": 1}
"""Pictures one after the other in one measurement."""
CALLERS = 12
TIMEOUT = 1.0
"""Seconds per request where Google hangs."""
PATIENCE = 15.0
"""Seconds until callers that hang are given up."""


async def per_picture(make: Make, load: str) -> Figures:
    """CPU and wall time per picture, CPU up to the first, the longest stall, the most memory."""
    count = LOADS[load]
    await make()  # the first picture pays for connecting and for what is loaded lazily
    first = time.process_time()
    late = 0.0

    async def tick() -> None:
        nonlocal late
        while True:
            slept = time.perf_counter()
            await asyncio.sleep(0.001)
            late = max(late, time.perf_counter() - slept - 0.001)

    ticker = asyncio.ensure_future(tick())
    await asyncio.sleep(0.05)
    late = 0.0
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(count):
        await make()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    await asyncio.sleep(0.01)  # a stall at the very end counts, too
    ticker.cancel()
    return {
        "first_s": first,
        "wall_ms": wall / count * 1e3,
        "cpu_ms": cpu / count * 1e3,
        "stall_ms": late * 1e3,
        "peak_mb": peak(),
    }


def peak() -> float:
    """The most megabytes held since this program began; ru_maxrss would count the parent's, too."""
    (held,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"))
    return int(held) / 1024


async def while_hanging(make: Make) -> Figures:
    """Pictures that twelve callers get, and seconds until the last of them."""
    done: list[float] = []
    began = time.perf_counter()

    async def one() -> None:
        await make()
        done.append(time.perf_counter() - began)

    tasks = [asyncio.ensure_future(one()) for _ in range(CALLERS)]
    await asyncio.wait(tasks, timeout=PATIENCE)
    return {"served": float(len(done)), "last_s": max(done, default=PATIENCE)}
