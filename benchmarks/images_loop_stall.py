"""How long work on a 20 MB PNG keeps the event loop from everything else, and what it costs.

Each job runs two ways: as one would write it at first, and as this library does. Beside it a ticker
wakes every millisecond; the longest time it overslept is the stall that every other coroutine of
the process (health checks, other requests, timeouts) would have felt. Medians of several rounds.

Run: python benchmarks/images_loop_stall.py [--rounds 7] [--megabytes 20]
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gc
import io
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from PIL import Image

from resilient_imagen.images.base64s import decode_base64_async, encode_base64_async
from resilient_imagen.images.fit import fit
from resilient_imagen.images.limits import ImageLimits
from resilient_imagen.images.references import load_references

Job = Callable[[], Awaitable[object]]
TICK = 0.001


@dataclass(frozen=True)
class Cost:
    """Milliseconds."""

    stall: float
    total: float
    cpu: float


async def measured(job: Job) -> Cost:
    worst = 0.0

    async def tick() -> None:
        nonlocal worst
        while True:
            before = time.perf_counter()
            await asyncio.sleep(TICK)
            worst = max(worst, time.perf_counter() - before - TICK)

    ticker = asyncio.create_task(tick())
    await asyncio.sleep(0.02)
    worst = 0.0
    began, cpu = time.perf_counter(), time.process_time()
    await job()
    total, cpu = time.perf_counter() - began, time.process_time() - cpu
    await asyncio.sleep(0.01)  # a stalled ticker still has to notice
    ticker.cancel()
    return Cost(worst * 1e3, total * 1e3, cpu * 1e3)


def median(job: Job, rounds: int) -> Cost:
    asyncio.run(measured(job))  # imports and first uses are not the subject
    costs = []
    for _ in range(rounds):
        gc.collect()
        costs.append(asyncio.run(measured(job)))
    return Cost(
        statistics.median(cost.stall for cost in costs),
        statistics.median(cost.total for cost in costs),
        statistics.median(cost.cpu for cost in costs),
    )


def photo(megabytes: float) -> bytes:
    """A PNG of about that size, 1:1, hard to compress as photos are."""
    side = round((megabytes * 1e6 / 2.65) ** 0.5)
    bands = [Image.effect_noise((side, side), 60) for _ in "RGB"]
    out = io.BytesIO()
    Image.merge("RGB", bands).save(out, "PNG", compress_level=1)
    return out.getvalue()


def naive_crop(data: bytes) -> bytes:
    picture = Image.open(io.BytesIO(data))
    width, height = picture.size
    left = (width - height * 9 // 16) // 2
    out = io.BytesIO()
    picture.crop((left, 0, width - left, height)).save(out, "PNG")
    return out.getvalue()


def naive_reference(text: str) -> bytes:
    data = base64.b64decode(text)
    Image.open(io.BytesIO(data)).load()  # is it a whole picture?
    return data


def jobs(data: bytes) -> dict[str, tuple[Job, Job]]:
    text = base64.b64encode(data).decode()

    async def naive_decode() -> object:
        return base64.b64decode(text)

    async def naive_thread_decode() -> object:
        return await asyncio.to_thread(base64.b64decode, text)

    async def naive_encode() -> object:
        return base64.b64encode(data).decode()

    async def naive_fit() -> object:
        return naive_crop(data)

    async def naive_load() -> object:
        return naive_reference(text)

    async def naive_load_six() -> object:
        return [naive_reference(text) for _ in range(6)]

    async def load(count: int) -> object:
        items = [{"image_base64": text}] * count
        return await load_references(items, limits=ImageLimits(), fetch=None, strict=True)

    return {
        "decode base64": (naive_decode, lambda: decode_base64_async(text)),
        "decode base64, naive in a thread": (
            naive_thread_decode,
            lambda: decode_base64_async(text),
        ),
        "encode base64": (naive_encode, lambda: encode_base64_async(data)),
        "crop to 9:16": (naive_fit, lambda: fit(data, ratio="9:16", mode="crop")),
        "fit what already fits": (naive_fit, lambda: fit(data, ratio="1:1", mode="crop")),
        "load a good reference": (naive_load, lambda: load(1)),
        "load six good references": (naive_load_six, lambda: load(6)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--megabytes", type=float, default=20)
    options = parser.parse_args()
    data = photo(options.megabytes)
    print(f"{len(data) / 1e6:.1f} MB PNG, milliseconds, medians of {options.rounds}: naive -> ours")
    print(f"{'':34}{'stall':>24}{'total':>20}{'CPU':>20}")
    for name, (naive, ours) in jobs(data).items():
        before, after = median(naive, options.rounds), median(ours, options.rounds)
        print(
            f"{name:34}"
            f"{before.stall:8.1f} ->{after.stall:6.1f} {before.stall / after.stall:5.0f}x"
            f"{before.total:10.0f} ->{after.total:7.0f}{before.cpu:10.0f} ->{after.cpu:7.0f}"
        )


if __name__ == "__main__":
    main()
