"""One picture from beginning to end over loopback: time, CPU, loop stall and memory.

    python benchmarks/images.py        # a table

Each design runs in a process of its own, the emulator in another, in turn for several rounds. All
end with the same thing, the picture in base64. Loads: a small picture; one of 20 MB (4K); a small
one guided by eight 2K references; and a Google that hangs, with twelve callers at once.
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

from guide import Guide, GuideOverSdks
from PIL import Image
from watch import LOADS, TIMEOUT, Figures, Make, per_picture, while_hanging

LOADS_ALL = (*LOADS, "hang")
References = list[dict[str, str]]


def four_k() -> bytes:
    """A 3072x5504 PNG of 20 MB: noise at the top, black below."""
    width, height = 3072, 5504
    noise = os.urandom(20_000_000)
    picture = Image.frombytes("RGB", (width, height), noise.ljust(3 * width * height, b"\0"))
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=1)
    return out.getvalue()


def references() -> list[dict[str, str]]:
    """Eight 2K pictures, half of them PNG, half JPEG."""
    from references_cpu import photo

    return [
        {
            "image_base64": base64.b64encode(photo("PNG" if n % 2 else "JPEG", n)).decode(),
            "mime_type": "image/png" if n % 2 else "image/jpeg",
        }
        for n in range(8)
    ]


# -- the emulator, in a process of its own ---------------------------------------------------------


async def serve() -> None:
    """Three emulators: their addresses go to stdout; until stdin is closed."""
    from resilient_imagen.emulator import Emulator, EmulatorServer, faults

    hanging = Emulator(picture="tiny")
    hanging.google.set(faults.hang())
    apps = {
        "small": Emulator(picture="tiny"),
        "4K": Emulator(picture=four_k()),
        "hang": hanging,
    }
    async with contextlib.AsyncExitStack() as stack:
        urls = {}
        for name, app in apps.items():
            server = await stack.enter_async_context(EmulatorServer(app))
            urls[name] = (server.google_url, server.openai_url)
        urls["references"] = urls["small"]
        print(json.dumps(urls), flush=True)
        await asyncio.to_thread(sys.stdin.read)


Urls = dict[str, tuple[str, str, str]]
"""Google's and OpenAI's address and the file with the references, per load."""


@contextlib.contextmanager
def emulators() -> Iterator[Urls]:
    """What a measurement of each load is told."""
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
    """Google's async SDK, used as its documentation says, and nothing else."""
    from google import genai
    from google.genai import types

    client = genai.Client(
        api_key="k", vertexai=False, http_options=types.HttpOptions(base_url=urls[0])
    )

    async def make() -> object:
        parts: list[types.PartUnionDict] = [
            types.Part.from_bytes(
                data=base64.b64decode(one["image_base64"]), mime_type=one["mime_type"]
            )
            for one in given
        ]
        async with asyncio.timeout(TIMEOUT if load == "hang" else None):
            answer = await client.aio.models.generate_content(
                model="gemini-3-pro-image",
                contents=[types.Part(text="a lighthouse"), *parts],
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

    yield make


@contextlib.asynccontextmanager
async def guide(urls: tuple[str, str], load: str, given: References) -> AsyncIterator[Make]:
    """Retries, then the other vendor, in threads."""
    design = Guide(ipm=1e9, timeout=TIMEOUT if load == "hang" else 60.0)
    over_sdks = GuideOverSdks(*urls, design)
    yield lambda: over_sdks.generate("a lighthouse", given)


@contextlib.asynccontextmanager
async def ours(urls: tuple[str, str], load: str, given: References) -> AsyncIterator[Make]:
    """This library."""
    from resilient_imagen import ImageClient, Settings
    from resilient_imagen.images.base64s import encode_base64_async

    settings = Settings(
        google_api_key="k", openai_api_key="k", google_base_url=urls[0], openai_base_url=urls[1],
        ipm=1_000_000, per_call_timeout=TIMEOUT if load == "hang" else 60.0,
    )  # fmt: skip
    async with ImageClient(settings) as client:

        async def make() -> object:
            result = await client.generate("a lighthouse", references=given)
            return await encode_base64_async(result.image_bytes)

        yield make


DESIGNS = {"bare": bare, "guide": guide, "ours": ours}


# -- measuring -------------------------------------------------------------------------------------


async def child(design: str, load: str, urls: tuple[str, str], given: References) -> None:
    """Measure one design in this process; the figures go to stdout."""
    async with DESIGNS[design](urls, load, given if load == "references" else []) as make:
        if load == "hang":
            found = await while_hanging(make)
        else:
            found = await per_picture(make, load)
        print(json.dumps(found), flush=True)
        if load == "hang":
            os._exit(0)  # threads that hang would keep the process


def once(command: list[str], *arguments: str) -> Figures:
    """One measurement in a fresh process."""
    done = subprocess.run(
        [*command, *arguments], check=True, capture_output=True, text=True, timeout=300
    )
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure(
    rounds: int, loads: tuple[str, ...], commands: dict[str, list[str]]
) -> dict[str, dict[str, Figures]]:
    """Medians per load and design. ``commands`` start a measurement of each design."""
    with emulators() as urls:
        found: dict[str, dict[str, Figures]] = {}
        for load in loads:
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


def main() -> None:
    for load, designs in measure(3, LOADS_ALL, own_commands()).items():
        for name, figures in designs.items():
            print(f"{load:12}{name:8}", *(f"{key} {each:9.1f}" for key, each in figures.items()))


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        asyncio.run(serve())
    elif sys.argv[1:]:
        _, which, what, google_url, openai_url, file = sys.argv
        loaded = json.loads(Path(file).read_text("utf-8"))
        asyncio.run(child(which, what, (google_url, openai_url), loaded))
    else:
        main()
