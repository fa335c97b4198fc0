"""A 20 MB picture that needs no fitting: loop stall, CPU and memory beside the bare SDKs.

Each measurement runs in a process of its own, the emulator in another. A ticker sleeps for a
millisecond and notes by how much it came late: the longest delay is what every other request of
the server would have felt. Run: ``python benchmarks/big_answers.py``
"""

from __future__ import annotations

import asyncio
import base64
import io
import multiprocessing
import os
import resource
import statistics
import time
import zlib
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any

import httpx2

ROUNDS = 5
MEGABYTES = 20


def picture(mime: str) -> bytes:
    """A valid 3072x5504 (9:16) PNG of MEGABYTES, its pixels noise."""
    del mime
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
        async with EmulatorServer(Emulator(picture=picture("image/png"))) as server:
            pipe.send((server.google_url, server.openai_url))
            await asyncio.to_thread(pipe.recv)

    asyncio.run(main())


async def stall_and_cpu(make: Callable[[], Awaitable[object]], at_once: int) -> dict[str, float]:
    """The longest delay of a ticker, CPU and wall time while ``at_once`` answers come in."""
    await make()
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
    cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.gather(*(make() for _ in range(at_once)))
    figures = {
        "cpu_ms": (time.process_time() - cpu) * 1e3,
        "wall_ms": (time.perf_counter() - wall) * 1e3,
    }
    done = True
    await ticker  # it wakes once more: a stall at the very end counts, too
    figures["stall_ms"] = late * 1e3
    figures["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - base
    return figures


def resident() -> float:
    with open("/proc/self/statm") as file:  # noqa: PTH123 - one line, read once
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


async def bare_google(url: str, at_once: int) -> dict[str, float]:
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
            return base64.b64encode(answer.parts[0].inline_data.data)  # type: ignore[union-attr, arg-type]

        return await stall_and_cpu(make, at_once)


async def bare_openai(url: str, at_once: int) -> dict[str, float]:
    from openai import AsyncOpenAI

    async with AsyncOpenAI(api_key="k", base_url=url, max_retries=0) as client:

        async def make() -> object:
            answer = await client.images.generate(model="gpt-image-2.5-flare", prompt="x")
            assert answer.data
            assert answer.data[0].b64_json
            return base64.b64decode(answer.data[0].b64_json)

        return await stall_and_cpu(make, at_once)


async def ours(route: str, urls: tuple[str, str], at_once: int) -> dict[str, float]:
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

        return await stall_and_cpu(make, at_once)


def measure(kind: str, urls: tuple[str, str], at_once: int, pipe: Connection) -> None:
    google, openai = "google:gemini-3-pro-image", "openai:gpt-image-2.5-flare"
    work: dict[str, Callable[[], Any]] = {
        "bare google": lambda: bare_google(urls[0], at_once),
        "bare openai": lambda: bare_openai(urls[1], at_once),
        "ours google": lambda: ours(google, urls, at_once),
        "ours openai": lambda: ours(openai, urls, at_once),
    }
    pipe.send(asyncio.run(work[kind]()))


def main() -> None:
    context = multiprocessing.get_context("spawn")
    control, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    urls = control.recv()

    def once(kind: str, at_once: int) -> dict[str, float]:
        mine, yours = context.Pipe()
        process = context.Process(target=measure, args=(kind, urls, at_once, yours))
        process.start()
        figures: dict[str, float] = mine.recv()
        process.join()
        return figures

    print(f"{MEGABYTES} MB PNG, {os.cpu_count()} cores, median of {ROUNDS} rounds in turn")
    print(f"{'':24}{'stall ms':>10}{'CPU ms':>10}{'wall ms':>10}{'peak MB':>10}")
    for vendor in ("google", "openai"):
        for at_once in (1, 8):
            rounds = [
                (once(f"bare {vendor}", at_once), once(f"ours {vendor}", at_once))
                for _ in range(ROUNDS)
            ]
            names = ("stall_ms", "cpu_ms", "wall_ms", "peak_mb")
            for which, label in ((0, "bare SDK"), (1, "ours")):
                row = [statistics.median(pair[which][name] for pair in rounds) for name in names]
                print(
                    f"{vendor} x{at_once} {label:<14}" + "".join(f"{value:10.0f}" for value in row)
                )
            ratios = [statistics.median(p[1][name] / p[0][name] for p in rounds) for name in names]
            print(
                f"{vendor} x{at_once} {'ratio':<14}" + "".join(f"{value:10.2f}" for value in ratios)
            )
    control.send("done")
    server.join(5)


if __name__ == "__main__":
    main()
