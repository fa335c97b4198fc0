"""Watches a design at work; needs nothing but Python, so that it runs in any environment."""

import asyncio
import contextlib
import gc
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

SMALL, LARGE = "a lighthouse", "a large lighthouse"
"""Prompts: the emulator's picture for the second is 20 MB."""
Make = Callable[[str], Awaitable[object]]
Figures = dict[str, float]


@dataclass(frozen=True)
class Load:
    """What one measurement asks for."""

    vendor: str = "google"
    prompt: str = SMALL
    guided: bool = False
    """By eight 2K references."""
    at_once: int = 1
    times: int = 1


LOADS = {
    "small": Load(times=20),
    "4K google": Load(prompt=LARGE),
    "4K google, 8": Load(prompt=LARGE, at_once=8),
    "4K openai": Load("openai", LARGE),
    "4K openai, 8": Load("openai", LARGE, at_once=8),
    "references": Load(guided=True),
    "hang": Load(),
}
CALLERS = 12
"""At once, where Google hangs."""
TIMEOUT = 1.0
"""Seconds per request there."""
PATIENCE = 15.0
"""Seconds until callers that hang are given up."""


async def watched(make: Make, name: str) -> Figures:
    """What a load tells of a design."""
    return await (while_hanging(make) if name == "hang" else per_picture(make, LOADS[name]))


async def per_picture(make: Make, load: Load) -> Figures:
    """Time and CPU per picture, CPU up to the first, the longest stall, and memory.

    A small picture comes before everything: it pays for connecting and for what is loaded lazily.
    Memory is counted from where it has left it.
    """
    await make(SMALL)
    first, most, late = time.process_time(), memory("VmHWM"), 0.0
    forget_the_peak()

    async def tick() -> None:
        nonlocal late
        while True:
            slept = time.perf_counter()
            await asyncio.sleep(0.001)
            late = max(late, time.perf_counter() - slept - 0.001)

    ticker = asyncio.ensure_future(tick())
    await asyncio.sleep(0.05)
    late, base = 0.0, memory("VmRSS")
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(load.times):
        pictures = await asyncio.gather(*(make(load.prompt) for _ in range(load.at_once)))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    await asyncio.sleep(0.01)  # a stall at the very end counts, too
    ticker.cancel()
    peak = memory("VmHWM")
    del pictures
    await asyncio.sleep(0.01)  # until then the loop holds the last result
    gc.collect()
    count = load.times * load.at_once
    return {
        "first_s": first,
        "wall_ms": wall / count * 1e3,
        "cpu_ms": cpu / count * 1e3,
        "stall_ms": late * 1e3,
        "process_mb": max(most, peak),
        "peak_mb": max(peak - base, 0.0),
        "left_mb": max(memory("VmRSS") - base, 0.0),
    }


def forget_the_peak() -> None:
    """Let VmHWM start from what is held now; where that is not allowed, it stays as it was."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")


def memory(what: str) -> float:
    """Megabytes held now (VmRSS), or at most (VmHWM): ru_maxrss would count the parent's, too."""
    status = Path("/proc/self/status").read_text("ascii")
    (held,) = re.findall(rf"{what}:\s+(\d+) kB", status)
    return int(held) / 1024


async def while_hanging(make: Make) -> Figures:
    """Pictures that twelve callers get, and seconds until the last of them."""
    done: list[float] = []
    began = time.perf_counter()

    async def one() -> None:
        await make(SMALL)
        done.append(time.perf_counter() - began)

    tasks = [asyncio.ensure_future(one()) for _ in range(CALLERS)]
    await asyncio.wait(tasks, timeout=PATIENCE)
    return {"served": float(len(done)), "last_s": max(done, default=PATIENCE)}
