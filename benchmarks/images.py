"""Images from request to result over loopback: time, CPU, stalls of the event loop, memory.

    python benchmarks/images.py        # one round, as a table
    python benchmarks/images.py bare | ours LOAD GOOGLE_URL OPENAI_URL REFERENCES    # JSON

Each design runs in a separate process, the emulator in the first one, and the designs take turns.
Google's images end as base64 to hand on, OpenAI's as bytes to store: the form that the vendor's SDK
does not return by itself.
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
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stopwatch import Figures, medians
from table import Rows, markdown, result_rows

References = list[dict[str, str]]
Make = Callable[[str, References], Awaitable[object]]
"""Makes the image of a prompt with reference images."""
SMALL, LARGE = "a lighthouse", "a large lighthouse"
"""Prompts; the emulator's image for the second one is 20 MB."""


FIGURES = {
    "first_s": "the first of a process, imports included, s of CPU",
    "wall_ms": "time, ms an image",
    "cpu_ms": "CPU, ms an image",
    "stall_ms": "longest stall of the event loop, ms",
    "peak_mb": "additional memory, MB",
    "left_mb": "of that still held without the images, MB",
}


@dataclass(frozen=True)
class Load:
    """The images of one measurement."""

    title: str
    figures: tuple[str, ...] = ("wall_ms", "cpu_ms", "stall_ms", "peak_mb")
    """The figures that are shown."""
    vendor: str = "google"
    prompt: str = LARGE
    references: bool = False
    """Whether eight 2K references are sent."""
    at_once: int = 1
    times: int = 1


EIGHT = ("wall_ms", "stall_ms", "peak_mb", "left_mb")
LOADS = {
    "small": Load("a small image", ("first_s", "wall_ms", "cpu_ms"), prompt=SMALL, times=20),
    "google": Load("20 MB from Google"),
    "google8": Load("20 MB from Google, eight at once", EIGHT, at_once=8),
    "openai": Load("20 MB from OpenAI", vendor="openai"),
    "openai8": Load("20 MB from OpenAI, eight at once", EIGHT, vendor="openai", at_once=8),
    "references": Load("eight 2K references", prompt=SMALL, references=True),
}


# -- the emulator ----------------------------------------------------------------------------------


def noisy(width: int, height: int, noise: int, kind: str = "PNG") -> bytes:
    """Return an image with this many bytes of noise at the top, and black below."""
    from PIL import Image  # not at the top: a measured process loads it only if its design does

    out, pixels = io.BytesIO(), os.urandom(noise).ljust(3 * width * height, b"\0")
    image = Image.frombytes("RGB", (width, height), pixels)
    image.save(out, kind, quality=92, compress_level=1)
    return out.getvalue()


def references() -> References:
    """Return eight 2K images of about a photograph's size, 5 MB as PNG and 1.8 MB as JPEG."""
    return [
        {
            "image_base64": base64.b64encode(noisy(2048, 2048, 5_000_000, kind)).decode(),
            "mime_type": f"image/{kind.lower()}",
        }
        for kind in ("PNG", "JPEG") * 4
    ]


@contextlib.contextmanager
def emulator() -> Iterator[list[str]]:
    """Provide Google's address, OpenAI's and the file with the references."""
    from resilient_imagen.emulator import BackgroundEmulator, Emulator
    from resilient_imagen.emulator.renderer import ImageRenderer

    class BySize(ImageRenderer):
        """Small or large images, by the prompt."""

        async def render(self, vendor: str, call: Any, canvas: Any, variant: int) -> Any:
            """Return the image."""
            if LARGE in call.prompt:
                return await super().render(vendor, call, canvas, variant)
            return await small.render(vendor, call, canvas, variant)

    app, small = Emulator(), ImageRenderer("tiny")
    app.renderer = BySize(noisy(3072, 5504, 20_000_000))
    with tempfile.NamedTemporaryFile("w", suffix=".json") as given, BackgroundEmulator(app) as run:
        json.dump(references(), given)
        given.flush()
        yield [run.google_url, run.openai_url, given.name]


# -- the designs -----------------------------------------------------------------------------------


def bare(load: Load, google_url: str, openai_url: str) -> Make:
    """The async SDKs, used as their documentation says, and nothing else."""
    return bare_openai(openai_url) if load.vendor == "openai" else bare_google(google_url)


def bare_google(url: str) -> Make:
    from google import genai
    from google.genai import types

    client = genai.Client(api_key="k", vertexai=False, http_options=types.HttpOptions(base_url=url))
    config = types.GenerateContentConfig(
        response_modalities=["TEXT", "IMAGE"],
        image_config=types.ImageConfig(aspect_ratio="9:16", image_size="2K"),
    )

    async def make(prompt: str, given: References) -> object:
        contents: Any = [types.Part(text=prompt)]
        for one in given:
            data = base64.b64decode(one["image_base64"])
            contents.append(types.Part.from_bytes(data=data, mime_type=one["mime_type"]))
        answer: Any = await client.aio.models.generate_content(
            model="gemini-3-pro-image", contents=contents, config=config
        )
        return base64.b64encode(answer.parts[0].inline_data.data).decode()

    return make


def bare_openai(url: str) -> Make:
    from openai import AsyncOpenAI

    client = AsyncOpenAI(api_key="k", base_url=url, max_retries=0)

    async def make(prompt: str, _: References) -> object:
        answer: Any = await client.images.generate(model="gpt-image-2.5-flare", prompt=prompt)
        return base64.b64decode(answer.data[0].b64_json)

    return make


def ours(load: Load, google_url: str, openai_url: str) -> Make:
    """This library, with the one route whose SDK the other design loads."""
    from resilient_imagen import ImageClient, Settings
    from resilient_imagen.images.base64_codec import encode_base64_async

    google = load.vendor == "google"
    settings = Settings(
        google_api_key="k", openai_api_key="k", google_base_url=google_url,
        openai_base_url=openai_url, ipm=1_000_000, max_concurrent=64,
        routes="google:gemini-3-pro-image" if google else "openai:gpt-image-2.5-flare",
    )  # fmt: skip
    client = ImageClient(settings)

    async def make(prompt: str, given: References) -> object:
        result = await client.generate(prompt, references=given)
        return await encode_base64_async(result.image_bytes) if google else result.image_bytes

    return make


DESIGNS = {"bare": bare, "ours": ours}


# -- measuring -------------------------------------------------------------------------------------


async def resource_probe(make: Make, load: Load, given: References) -> Figures:
    """Return time and CPU per image, the longest stall of the loop, and memory.

    A small image comes first: it pays for the connection and for lazy imports (``first_s``, CPU
    from the start of the process). Memory is counted from there.
    """
    await make(SMALL, given)
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
        images = await asyncio.gather(*(make(load.prompt, given) for _ in range(load.at_once)))
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


def measure_here(design: str, name: str, google_url: str, openai_url: str, file: str) -> Figures:
    """Measure one design in this process."""
    load = LOADS[name]
    given = json.loads(Path(file).read_text("ascii")) if load.references else []
    make = DESIGNS[design](load, google_url, openai_url)
    return asyncio.run(resource_probe(make, load, given))


def measure(rounds: int) -> Rows:
    """Return the table's rows: medians of several rounds, in which the designs take turns."""
    made: Rows = {}
    with emulator() as given:
        for name, load in LOADS.items():
            commands = {each: [sys.executable, __file__, each, name, *given] for each in DESIGNS}
            titles = {figure: f"{load.title}: {FIGURES[figure]}" for figure in load.figures}
            made |= result_rows(medians(commands, rounds), titles)
    return made


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure_here(*sys.argv[1:])))
    else:
        print(markdown(measure(1)))
