"""Images from request to result over loopback: time, CPU, stalls of the event loop, memory.

Each design runs in a separate process, the emulator in this one, and the designs take turns.
Google's images end as base64 to hand on, OpenAI's as bytes to store: the form that the vendor's SDK
does not return by itself.

    python benchmarks/images.py bare | ours LOAD GOOGLE_URL OPENAI_URL FILE    # JSON
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

Figures = dict[str, float]
Make = Callable[[str], Awaitable[object]]
References = list[dict[str, str]]
SMALL, LARGE = "a lighthouse", "a large lighthouse"
"""Prompts; the emulator's image for the second one is 20 MB."""


@dataclass(frozen=True)
class Load:
    """The images of one measurement."""

    vendor: str = "google"
    prompt: str = LARGE
    references: bool = False
    """Whether eight 2K references are sent."""
    at_once: int = 1
    times: int = 1


LOADS = {
    "small": Load(prompt=SMALL, times=20),
    "4K google": Load(),
    "4K google, 8": Load(at_once=8),
    "4K openai": Load("openai"),
    "4K openai, 8": Load("openai", at_once=8),
    "references": Load(prompt=SMALL, references=True),
}


def four_k() -> bytes:
    """Return a 3072x5504 PNG of 20 MB: noise at the top, black below."""
    from PIL import Image  # not at the top: a measured process loads it only if its design does

    width, height = 3072, 5504
    noise = os.urandom(20_000_000)
    return encoded(Image.frombytes("RGB", (width, height), noise.ljust(3 * width * height, b"\0")))


def photo(kind: str, seed: int) -> bytes:
    """Return a 2048x2048 image that compresses about as badly as a photograph."""
    from PIL import Image

    noise = Image.effect_noise((512, 512), 60).resize((2048, 2048), Image.Resampling.BICUBIC)
    gradient = Image.linear_gradient("L").resize((2048, 2048)).rotate(seed * 20)
    return encoded(Image.merge("RGB", (noise, gradient, Image.blend(noise, gradient, 0.5))), kind)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **({"quality": 92} if kind == "JPEG" else {"compress_level": 1}))
    return out.getvalue()


def references() -> References:
    """Return eight 2K images, half of them PNG, half JPEG."""
    return [
        {
            "image_base64": base64.b64encode(photo(kind, n)).decode(),
            "mime_type": f"image/{kind.lower()}",
        }
        for n, kind in enumerate(["JPEG", "PNG"] * 4)
    ]


class BySize:
    """A renderer of small or large images, by the prompt."""

    def __init__(self) -> None:
        from resilient_imagen.emulator.renderer import ImageRenderer

        self._small, self._large = ImageRenderer("tiny"), ImageRenderer(four_k())

    async def render(self, vendor: str, call: Any, canvas: Any, variant: int) -> Any:
        """Return the image."""
        renderer = self._large if LARGE in call.prompt else self._small
        return await renderer.render(vendor, call, canvas, variant)


@contextlib.contextmanager
def emulator() -> Iterator[list[str]]:
    """Provide Google's address, OpenAI's and the file with the references."""
    from resilient_imagen.emulator import BackgroundEmulator, Emulator

    app = Emulator()
    app.studio = BySize()  # type: ignore[assignment]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as given, BackgroundEmulator(app) as run:
        json.dump(references(), given)
        given.flush()
        yield [run.google_url, run.openai_url, given.name]


# -- the designs -----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def bare(load: Load, google_url: str, openai_url: str) -> AsyncIterator[Callable[..., Any]]:
    """The async SDKs, used as their documentation says, and nothing else."""
    yield bare_openai(openai_url) if load.vendor == "openai" else bare_google(google_url)


def bare_google(url: str) -> Callable[..., Any]:
    from google import genai
    from google.genai import types

    client = genai.Client(api_key="k", vertexai=False, http_options=types.HttpOptions(base_url=url))
    config = types.GenerateContentConfig(
        response_modalities=["TEXT", "IMAGE"],
        image_config=types.ImageConfig(aspect_ratio="9:16", image_size="2K"),
    )

    async def make(prompt: str, given: References) -> object:
        parts: list[types.PartUnionDict] = [
            types.Part.from_bytes(
                data=base64.b64decode(one["image_base64"]), mime_type=one["mime_type"]
            )
            for one in given
        ]
        answer = await client.aio.models.generate_content(
            model="gemini-3-pro-image", contents=[types.Part(text=prompt), *parts], config=config
        )
        assert answer.parts
        image = answer.parts[0].inline_data
        assert image
        assert image.data
        return base64.b64encode(image.data).decode()

    return make


def bare_openai(url: str) -> Callable[..., Any]:
    from openai import AsyncOpenAI

    client = AsyncOpenAI(api_key="k", base_url=url, max_retries=0)

    async def make(prompt: str, _: References) -> object:
        answer = await client.images.generate(model="gpt-image-2.5-flare", prompt=prompt)
        assert answer.data
        assert answer.data[0].b64_json
        return base64.b64decode(answer.data[0].b64_json)

    return make


@contextlib.asynccontextmanager
async def ours(load: Load, google_url: str, openai_url: str) -> AsyncIterator[Callable[..., Any]]:
    """This library, with the one route whose SDK the other design loads."""
    from resilient_imagen import ImageClient, Settings
    from resilient_imagen.images.base64_codec import encode_base64_async

    google = load.vendor == "google"
    settings = Settings(
        google_api_key="k", openai_api_key="k", google_base_url=google_url,
        openai_base_url=openai_url, ipm=1_000_000, max_concurrent=64,
        routes="google:gemini-3-pro-image" if google else "openai:gpt-image-2.5-flare",
    )  # fmt: skip
    async with ImageClient(settings) as client:

        async def make(prompt: str, given: References) -> object:
            result = await client.generate(prompt, references=given)
            if google:
                return await encode_base64_async(result.image_bytes)
            return result.image_bytes

        yield make


DESIGNS = {"bare": bare, "ours": ours}


# -- measuring -------------------------------------------------------------------------------------


async def probe(make: Make, load: Load) -> Figures:
    """Return time and CPU per image, the longest stall of the loop, and memory.

    A small image comes first: it pays for the connection and for lazy imports (``first_s``, CPU
    from the start of the process). Memory is counted from there.
    """
    await make(SMALL)
    first, late = time.process_time(), 0.0
    reset_maximum()

    async def tick() -> None:
        nonlocal late
        while True:
            slept = time.perf_counter()
            await asyncio.sleep(0.001)
            late = max(late, time.perf_counter() - slept - 0.001)

    ticker = asyncio.ensure_future(tick())
    await asyncio.sleep(0.05)
    late, base = 0.0, megabytes("VmRSS")
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(load.times):
        images = await asyncio.gather(*(make(load.prompt) for _ in range(load.at_once)))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    await asyncio.sleep(0.01)  # a stall at the very end counts, too
    ticker.cancel()
    peak = megabytes("VmHWM")
    del images
    await asyncio.sleep(0.01)  # until then the loop holds the last result
    gc.collect()
    count = load.times * load.at_once
    return {
        "first_s": first,
        "wall_ms": wall / count * 1e3,
        "cpu_ms": cpu / count * 1e3,
        "stall_ms": late * 1e3,
        "peak_mb": max(peak - base, 0.0),
        "left_mb": max(megabytes("VmRSS") - base, 0.0),
    }


def reset_maximum() -> None:
    """Let VmHWM start from the present size, where that is allowed."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")


def megabytes(what: str) -> float:
    """Return the memory in use (VmRSS) or the largest value of it (VmHWM)."""
    status = Path("/proc/self/status").read_text("ascii")
    (held,) = re.findall(rf"{what}:\s+(\d+) kB", status)
    return int(held) / 1024


async def child(design: str, name: str, google_url: str, openai_url: str, file: str) -> None:
    """Measure one design in this process, and print its figures."""
    load = LOADS[name]
    given = json.loads(await asyncio.to_thread(Path(file).read_text)) if load.references else []
    async with DESIGNS[design](load, google_url, openai_url) as make:
        print(json.dumps(await probe(lambda prompt: make(prompt, given), load)))


def measure(rounds: int) -> dict[str, dict[str, Figures]]:
    """Return medians by load and design of several rounds, in which the designs take turns."""
    found: dict[str, dict[str, Figures]] = {}
    with emulator() as given:
        for load in LOADS:
            runs: dict[str, list[Figures]] = {name: [] for name in DESIGNS}
            for _ in range(rounds):
                for name in DESIGNS:
                    command = [sys.executable, __file__, name, load, *given]
                    runs[name].append(json.loads(subprocess.check_output(command, timeout=300)))
            found[load] = {
                name: {key: median(run[key] for run in each) for key in each[0]}
                for name, each in runs.items()
            }
    return found


if __name__ == "__main__":
    asyncio.run(child(*sys.argv[1:]))
