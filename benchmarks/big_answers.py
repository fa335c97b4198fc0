"""A 20 MB picture that needs no fitting: loop stall, CPU and memory beside the bare SDKs.

Each measurement runs in a process of its own, the emulator in another. A ticker sleeps for a
millisecond and notes by how much it came late: the longest delay is what every other request of
the server would have felt. Memory is counted from where a small answer has left it: the peak, that
of three such bursts, and what is still there when the pictures are gone. ``allocated`` is the peak
of what was asked for through Python, from a run of its own: the same on every machine.

Run: ``python benchmarks/big_answers.py [rounds]``
"""

from __future__ import annotations

import asyncio
import base64
import gc
import io
import multiprocessing
import os
import resource
import statistics
import sys
import time
import tracemalloc
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import httpx2

Measure = Callable[[Callable[[], Awaitable[object]]], Awaitable[dict[str, float]]]

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 9
MEGABYTES = 20


def picture() -> bytes:
    """A valid 3072x5504 (9:16) PNG of MEGABYTES, its pixels noise."""
    width, height = 3072, 5504
    noise = os.urandom(int(MEGABYTES * 1e6))
    rows = io.BytesIO()
    per_row = len(noise) // height
    for row in range(height):
        start = row * per_row
        line = noise[start : start + per_row]
        rows.write(b"\0" + line + bytes(3 * width - len(line)))
    body = zlib.compress(rows.getvalue(), 1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + checksum

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def serve(pipe: Connection) -> None:
    from resilient_imagen.emulator import Emulator, EmulatorServer

    async def main() -> None:
        emulator = Emulator(picture="tiny")
        large = picture()
        async with EmulatorServer(emulator) as server:
            pipe.send((server.google_url, server.openai_url))
            while (order := await asyncio.to_thread(pipe.recv)) != "done":
                emulator.picture = large if order == "large" else "tiny"
                pipe.send(order)

    asyncio.run(main())


def resident() -> float:
    with open("/proc/self/statm") as file:  # noqa: PTH123 - one line, read once
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


@dataclass
class Order:
    """What one process is to measure."""

    at_once: int
    traced: bool
    pipe: Connection


async def measured(make: Callable[[], Awaitable[object]], order: Order) -> dict[str, float]:
    """What it takes to make ``order.at_once`` large pictures, after a small one."""
    await make()
    order.pipe.send("enlarge")
    order.pipe.recv()
    late = 0.0
    done = False

    async def tick() -> None:
        nonlocal late
        while not done:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            late = max(late, time.perf_counter() - before - 0.001)

    ticker = asyncio.create_task(tick())
    await asyncio.sleep(0.05)
    late = 0.0
    base = resident()
    if order.traced:
        tracemalloc.start()
    cpu, wall = time.process_time(), time.perf_counter()
    pictures = await asyncio.gather(*(make() for _ in range(order.at_once)))
    figures = {
        "cpu ms": (time.process_time() - cpu) * 1e3,
        "wall ms": (time.perf_counter() - wall) * 1e3,
    }
    done = True
    await ticker  # it wakes once more: a stall at the very end counts, too
    figures["stall ms"] = late * 1e3
    figures["peak MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - base
    figures["allocated MB"] = tracemalloc.get_traced_memory()[1] / 2**20
    if not order.traced:
        for _ in range(2):
            del pictures
            pictures = await asyncio.gather(*(make() for _ in range(order.at_once)))
    del pictures
    await asyncio.sleep(0.01)  # until then the loop holds the last result
    gc.collect()
    figures["peak of 3 MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - base
    figures["left MB"] = resident() - base
    return figures


async def bare_google(url: str, measure: Measure) -> dict[str, float]:
    from google import genai
    from google.genai import types

    async with httpx2.AsyncClient(timeout=None) as http:
        options = types.HttpOptions(base_url=url, httpx_async_client=http)
        client = genai.Client(api_key="k", vertexai=False, http_options=options)

        async def make() -> object:
            answer = await client.aio.models.generate_content(
                model="gemini-3-pro-image", contents="x"
            )
            assert answer.parts
            data = answer.parts[0].inline_data.data  # type: ignore[union-attr]
            return base64.b64encode(data).decode("ascii")  # type: ignore[arg-type]

        return await measure(make)


async def bare_openai(url: str, measure: Measure) -> dict[str, float]:
    from openai import AsyncOpenAI

    async with AsyncOpenAI(api_key="k", base_url=url, max_retries=0) as client:

        async def make() -> object:
            answer = await client.images.generate(model="gpt-image-2.5-flare", prompt="x")
            assert answer.data
            assert answer.data[0].b64_json
            return base64.b64decode(answer.data[0].b64_json)

        return await measure(make)


async def ours(route: str, urls: tuple[str, str], measure: Measure) -> dict[str, float]:
    from resilient_imagen import ImageClient, Settings
    from resilient_imagen.images.base64s import encode_base64_async

    settings = Settings(
        google_api_key="k", openai_api_key="k", google_base_url=urls[0], openai_base_url=urls[1],
        ipm=1_000_000, max_concurrent=64, routes=route,
    )  # fmt: skip
    async with ImageClient(settings) as client:

        async def make() -> object:
            result = await client.generate("x", resolution="4K")
            if route.startswith("openai"):
                return result.image_bytes
            return await encode_base64_async(result.image_bytes)

        return await measure(make)


def run(kind: str, urls: tuple[str, str], order: Order) -> None:
    async def measure(make: Callable[[], Awaitable[object]]) -> dict[str, float]:
        return await measured(make, order)

    work: dict[str, Callable[[], Any]] = {
        "bare google": lambda: bare_google(urls[0], measure),
        "bare openai": lambda: bare_openai(urls[1], measure),
        "ours google": lambda: ours("google:gemini-3-pro-image", urls, measure),
        "ours openai": lambda: ours("openai:gpt-image-2.5-flare", urls, measure),
    }
    order.pipe.send(asyncio.run(work[kind]()))


def main() -> None:
    context = multiprocessing.get_context("spawn")
    server_pipe, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    urls = server_pipe.recv()

    def deliver(size: str) -> None:
        server_pipe.send(size)
        server_pipe.recv()

    def once(kind: str, at_once: int, *, traced: bool = False) -> dict[str, float]:
        mine, yours = context.Pipe()
        deliver("tiny")
        process = context.Process(target=run, args=(kind, urls, Order(at_once, traced, yours)))
        process.start()
        yours.close()
        mine.recv()
        deliver("large")
        mine.send(None)
        figures: dict[str, float] = mine.recv()
        process.join()
        return figures

    names = ("stall ms", "cpu ms", "wall ms", "peak MB", "peak of 3 MB", "left MB", "allocated MB")
    print(f"{MEGABYTES} MB PNG, {os.cpu_count()} cores, median of {ROUNDS} rounds in turn")
    print(" " * 20 + "".join(f"{name:>14}" for name in names))
    for vendor in ("google", "openai"):
        for at_once in (1, 8):
            kinds = (f"bare {vendor}", f"ours {vendor}")
            rounds = [[once(kind, at_once) for kind in kinds] for _ in range(ROUNDS)]
            rows = [
                {name: statistics.median(pair[which][name] for pair in rounds) for name in names}
                for which in (0, 1)
            ]
            for row, kind in zip(rows, kinds, strict=True):
                row["allocated MB"] = once(kind, at_once, traced=True)["allocated MB"]
                figures = "".join(f"{row[name]:14.0f}" for name in names)
                print(f"{kind} x{at_once:<8}{figures}", flush=True)
            ratios = "".join(f"{rows[1][name] / rows[0][name]:14.2f}" for name in names)
            print(f"{'ratio':<20}{ratios}", flush=True)
    server_pipe.send("done")
    server.join(5)


if __name__ == "__main__":
    main()
