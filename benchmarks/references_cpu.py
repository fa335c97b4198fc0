"""CPU per image with eight 2K references: this library beside the bare async SDK.

Half of the references are PNG, half JPEG, all photo-like. The emulator runs in a process of its
own, so that only the client's CPU is counted. Both are run in turn, several rounds; the median of
the ratios is what counts. Run: ``python benchmarks/references_cpu.py``
"""

from __future__ import annotations

import asyncio
import base64
import io
import multiprocessing
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection

import httpx2
from PIL import Image

from resilient_imagen import ImageClient, Settings
from resilient_imagen.emulator import Emulator, EmulatorServer

ROUNDS = 7
IMAGES = 3


def photo(kind: str, seed: int) -> bytes:
    """A 2048x2048 picture that compresses about as badly as a photograph."""
    noise = Image.effect_noise((512, 512), 60).resize((2048, 2048), Image.Resampling.BICUBIC)
    gradient = Image.linear_gradient("L").resize((2048, 2048)).rotate(seed * 20)
    picture = Image.merge("RGB", (noise, gradient, Image.blend(noise, gradient, 0.5)))
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": 92} if kind == "JPEG" else {"compress_level": 1}))
    return buffer.getvalue()


def serve(pipe: Connection) -> None:
    async def main() -> None:
        async with EmulatorServer(Emulator(picture="tiny")) as server:
            pipe.send((server.google_url, server.openai_url))
            await asyncio.to_thread(pipe.recv)

    asyncio.run(main())


async def cpu_per_image(make: Callable[[], Awaitable[object]]) -> float:
    await make()
    started = time.process_time()
    for _ in range(IMAGES):
        await make()
    return (time.process_time() - started) / IMAGES


async def measure(google_url: str) -> None:
    from google import genai
    from google.genai import types

    pictures = [photo("PNG" if n % 2 else "JPEG", n) for n in range(8)]
    mimes = ["image/png" if n % 2 else "image/jpeg" for n in range(8)]
    total = sum(map(len, pictures)) / 1e6
    references = [
        {"image_base64": base64.b64encode(data).decode(), "mime_type": mime}
        for data, mime in zip(pictures, mimes, strict=True)
    ]
    async with httpx2.AsyncClient(timeout=None) as http:
        sdk = genai.Client(
            api_key="k",
            vertexai=False,
            http_options=types.HttpOptions(base_url=google_url, httpx_async_client=http),
        )

        async def bare() -> object:
            parts: list[types.PartUnionDict] = [
                types.Part.from_bytes(data=base64.b64decode(one["image_base64"]), mime_type=mime)
                for one, mime in zip(references, mimes, strict=True)
            ]
            return await sdk.aio.models.generate_content(
                model="gemini-3-pro-image",
                contents=[types.Part(text="a scene"), *parts],
                config=types.GenerateContentConfig(
                    response_modalities=["TEXT", "IMAGE"],
                    image_config=types.ImageConfig(aspect_ratio="9:16", image_size="2K"),
                ),
            )

        settings = Settings(
            google_api_key="k", google_base_url=google_url, ipm=100_000,
            routes="google:gemini-3-pro-image",
        )  # fmt: skip
        async with ImageClient(settings) as client:

            async def ours() -> object:
                return await client.generate("a scene", references=references)

            rows = [(await cpu_per_image(bare), await cpu_per_image(ours)) for _ in range(ROUNDS)]
    ratios = [mine / theirs for theirs, mine in rows]
    print(f"8 references, {total:.0f} MB in all, {os.cpu_count()} cores, {ROUNDS} rounds")
    print(f"bare SDK   {statistics.median(row[0] for row in rows) * 1e3:7.0f} ms CPU per image")
    print(f"this one   {statistics.median(row[1] for row in rows) * 1e3:7.0f} ms CPU per image")
    print(f"ratio      {statistics.median(ratios):7.2f}  ({min(ratios):.2f} to {max(ratios):.2f})")


def main() -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    google_url, _ = ours.recv()
    asyncio.run(measure(google_url))
    ours.send("done")
    server.join(5)


if __name__ == "__main__":
    main()
