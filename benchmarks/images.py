"""Pictures from beginning to end over loopback: time, CPU, loop stall and memory.

Each design runs in a process of its own, the emulator in another, in turn for several rounds. From
Google all end with base64, to hand on, and from OpenAI with bytes, to store: what the vendor's SDK
does not give by itself. ``watch`` has the loads.

    python benchmarks/images.py bare | guide | ours LOAD GOOGLE_URL OPENAI_URL FILE    # as JSON
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from baseline_previous import GuideClient, GuideOverSdks
from PIL import Image
from resource_probe import LARGE, LOADS, TIMEOUT, Figures, Make, watched

if TYPE_CHECKING:
    from resilient_imagen.emulator.renderer import ImageRenderer

References = list[dict[str, str]]
ROOM = 64
"""Slots, where it is not slots that are measured."""


def four_k() -> bytes:
    """A 3072x5504 PNG of 20 MB: noise at the top, black below."""
    width, height = 3072, 5504
    noise = os.urandom(20_000_000)
    picture = Image.frombytes("RGB", (width, height), noise.ljust(3 * width * height, b"\0"))
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=1)
    return out.getvalue()


def photo(kind: str, seed: int) -> bytes:
    """A 2048x2048 picture that compresses about as badly as a photograph."""
    noise = Image.effect_noise((512, 512), 60).resize((2048, 2048), Image.Resampling.BICUBIC)
    gradient = Image.linear_gradient("L").resize((2048, 2048)).rotate(seed * 20)
    picture = Image.merge("RGB", (noise, gradient, Image.blend(noise, gradient, 0.5)))
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": 92} if kind == "JPEG" else {"compress_level": 1}))
    return buffer.getvalue()


def references() -> References:
    """Eight 2K pictures, half of them PNG, half JPEG."""
    return [
        {
            "image_base64": base64.b64encode(photo(kind, n)).decode(),
            "mime_type": f"image/{kind.lower()}",
        }
        for n, kind in enumerate(["JPEG", "PNG"] * 4)
    ]


# -- the emulator, in a process of its own ---------------------------------------------------------


class BySize:
    """Paints small or large, as the prompt asks."""

    def __init__(self) -> None:
        from resilient_imagen.emulator.renderer import ImageRenderer

        self._small, self._large = ImageRenderer("tiny"), ImageRenderer(four_k())

    async def render(self, vendor: str, call: Any, canvas: Any, variant: int) -> Any:
        """Return the large picture for a large prompt, else the small one."""
        studio: ImageRenderer = self._large if LARGE in call.prompt else self._small
        return await studio.render(vendor, call, canvas, variant)


async def serve() -> None:
    """Two emulators: their addresses go to stdout; until stdin is closed."""
    from resilient_imagen.emulator import Emulator, EmulatorServer, faults

    hanging, app = Emulator(picture="tiny"), Emulator()
    hanging.google.set(faults.hang())
    app.studio = BySize()  # type: ignore[assignment]
    async with EmulatorServer(app) as server, EmulatorServer(hanging) as second:
        urls = (server.google_url, server.openai_url)
        hang = (second.google_url, second.openai_url)
        print(json.dumps({load: hang if load == "hang" else urls for load in LOADS}), flush=True)
        await asyncio.to_thread(sys.stdin.read)


@contextlib.contextmanager
def emulators() -> Iterator[dict[str, tuple[str, str, str]]]:
    """Google's and OpenAI's address and the file with the references, per load."""
    command = [sys.executable, __file__, "serve"]
    with (
        tempfile.NamedTemporaryFile("w", suffix=".json") as given,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
    ):
        json.dump(references(), given)
        given.flush()
        assert process.stdout is not None
        urls = json.loads(process.stdout.readline())
        yield {load: (*both, given.name) for load, both in urls.items()}
        process.communicate()


# -- the designs -----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def bare(urls: tuple[str, str], load: str, given: References) -> AsyncIterator[Make]:
    """The async SDKs, used as their documentation says, and nothing else."""
    yield (
        bare_openai(urls[1])
        if LOADS[load].vendor == "openai"
        else bare_google(urls[0], load, given)
    )


def bare_google(url: str, load: str, given: References) -> Make:
    from google import genai
    from google.genai import types

    client = genai.Client(api_key="k", vertexai=False, http_options=types.HttpOptions(base_url=url))

    async def make(prompt: str) -> object:
        parts: list[types.PartUnionDict] = [
            types.Part.from_bytes(
                data=base64.b64decode(one["image_base64"]), mime_type=one["mime_type"]
            )
            for one in given
        ]
        async with asyncio.timeout(TIMEOUT if load == "hang" else None):
            answer = await client.aio.models.generate_content(
                model="gemini-3-pro-image",
                contents=[types.Part(text=prompt), *parts],
                config=types.GenerateContentConfig(
                    response_modalities=["TEXT", "IMAGE"],
                    image_config=types.ImageConfig(aspect_ratio="9:16", image_size="2K"),
                ),
            )
        assert answer.parts
        picture = answer.parts[0].inline_data
        assert picture
        assert picture.data
        return base64.b64encode(picture.data).decode()

    return make


def bare_openai(url: str) -> Make:
    from openai import AsyncOpenAI

    client = AsyncOpenAI(api_key="k", base_url=url, max_retries=0)

    async def make(prompt: str) -> object:
        answer = await client.images.generate(model="gpt-image-2.5-flare", prompt=prompt)
        assert answer.data
        assert answer.data[0].b64_json
        return base64.b64decode(answer.data[0].b64_json)

    return make


@contextlib.asynccontextmanager
async def guide(urls: tuple[str, str], load: str, given: References) -> AsyncIterator[Make]:
    """Retries, then the other vendor, in threads."""
    hang = load == "hang"
    design = GuideOverSdks(
        *urls, GuideClient(slots=4 if hang else ROOM, ipm=1e9, timeout=TIMEOUT if hang else 60.0)
    )

    async def make(prompt: str) -> object:
        if LOADS[load].vendor == "google":
            return await design.generate(prompt, given)
        return base64.b64decode(await design.by_openai(prompt))

    yield make


@contextlib.asynccontextmanager
async def ours(urls: tuple[str, str], load: str, given: References) -> AsyncIterator[Make]:
    """This library."""
    from resilient_imagen import ImageClient, Settings
    from resilient_imagen.images.base64_codec import encode_base64_async

    google = LOADS[load].vendor == "google"
    hang = load == "hang"
    routes = ["google:gemini-3-pro-image"] * google
    if hang or not google:  # otherwise OpenAI's SDK would be loaded beside the measured images
        routes.append("openai:gpt-image-2.5-flare")
    settings = Settings(
        google_api_key="k", openai_api_key="k", google_base_url=urls[0], openai_base_url=urls[1],
        ipm=1_000_000, routes=",".join(routes), max_concurrent=4 if hang else ROOM,
        per_call_timeout=TIMEOUT if hang else 60.0,
    )  # fmt: skip
    async with ImageClient(settings) as client:

        async def make(prompt: str) -> object:
            result = await client.generate(prompt, references=given)
            if google:
                return await encode_base64_async(result.image_bytes)
            return result.image_bytes

        yield make


DESIGNS = {"bare": bare, "guide": guide, "ours": ours}


# -- measuring -------------------------------------------------------------------------------------


async def child(design: str, load: str, urls: tuple[str, str], given: References) -> None:
    """Measure one design in this process; the figures go to stdout."""
    async with DESIGNS[design](urls, load, given if LOADS[load].guided else []) as make:
        print(json.dumps(await watched(make, load)), flush=True)
        if load == "hang":
            os._exit(0)  # threads that hang would keep the process


def once(command: list[str], *arguments: str) -> Figures:
    """One measurement in a fresh process."""
    done = subprocess.run(
        [*command, *arguments], check=True, capture_output=True, text=True, timeout=300
    )
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure(rounds: int, commands: dict[str, list[str]]) -> dict[str, dict[str, Figures]]:
    """Medians per load and design. ``commands`` start a measurement of each design."""
    with emulators() as urls:
        found: dict[str, dict[str, Figures]] = {}
        for load in LOADS:
            runs: dict[str, list[Figures]] = {name: [] for name in commands}
            for _ in range(rounds):
                for name, command in commands.items():
                    runs[name].append(once(command, load, *urls[load]))
            found[load] = {
                name: {key: median(run[key] for run in each) for key in each[0]}
                for name, each in runs.items()
            }
    return found


def own_commands() -> dict[str, list[str]]:
    """How each of our designs is measured."""
    return {name: [sys.executable, str(Path(__file__)), name] for name in DESIGNS}


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        asyncio.run(serve())
    else:
        _, which, what, google_url, openai_url, file = sys.argv
        loaded = json.loads(Path(file).read_text("utf-8"))
        asyncio.run(child(which, what, (google_url, openai_url), loaded))
