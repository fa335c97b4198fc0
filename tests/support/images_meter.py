"""Image meter: measure the cost of single calls in separate processes; prints JSON.

python tests/support/images_meter.py GROUP
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import PIL.AvifImagePlugin
import PIL.GifImagePlugin
import PIL.JpegImagePlugin
import PIL.PngImagePlugin
import PIL.WebPImagePlugin  # noqa: F401 - loaded once, not in each child
from images_hostile import HARMLESS, REFUSED, TURNED, flat, narrow_png
from images_samples import encoded, noise, raw_png
from PIL import Image

from resilient_imagen import ImageClient, Settings
from resilient_imagen.testing import FakeProvider

if TYPE_CHECKING:
    from collections.abc import Callable

    Maker = Callable[[], bytes]

MOST_CPU_SECONDS: Final = 40
"""CPU seconds after which the system ends a measured process."""
MOST_ADDRESSES: Final = 8_000_000_000
"""Maximum bytes of address space of a measured process."""


def stored_noise(width: int, height: int) -> bytes:
    """Return an uncompressed PNG of noise."""
    pixels = os.urandom(2**20) * (3 * width * height // 2**20 + 1)
    picture = Image.frombytes("RGB", (width, height), pixels[: 3 * width * height])
    return encoded(picture, "PNG", compress_level=0)


def deep(side: int) -> bytes:
    """Return a PNG in 16-bit grey."""
    return raw_png(side, side, 16, 0, bytes((1 + 2 * side) * side))


AT_LIMITS: Final[dict[str, Maker]] = {
    "png": lambda: narrow_png(16_000, 15_600),
    "deep png": lambda: deep(9990),
    "heavy png": lambda: stored_noise(8100, 8100),
    "jpeg": lambda: encoded(flat(16_000, 15_600), "JPEG", exif=TURNED),
    "progressive jpeg": lambda: encoded(
        flat(9990, 9990), "JPEG", progressive=True, subsampling=0, exif=TURNED
    ),
    "webp": lambda: encoded(flat(7050, 7050), "WEBP", lossless=True, method=0, exif=TURNED),
    "gif": lambda: encoded(flat(9990, 9990, "P"), "GIF"),
    "bmp": lambda: encoded(flat(8150, 8150), "BMP"),
    "avif": lambda: encoded(flat(7050, 7050), "AVIF", speed=10),
}
RESULTS: Final[dict[str, Maker]] = {
    "png": lambda: encoded(flat(9990, 9990), "PNG", compress_level=1),
}
MANY: Final[dict[str, Maker]] = {
    "14 references to normalize": lambda: encoded(noise(2048, 2048), "JPEG", exif=TURNED),
    "a prompt of a megabyte": lambda: b"a fox " * 175_000,
}
GROUPS: Final[dict[str, dict[str, Maker]]] = {
    "refused": {name: make for name, (make, _) in REFUSED.items()},
    "harmless": dict(HARMLESS),
    "at limits": AT_LIMITS,
    "results": RESULTS,
    "many": MANY,
}


async def call(group: str, name: str, data: bytes) -> str:
    """Process one image by the measured function, and return the outcome."""
    provider = FakeProvider("google", latency=0)
    asked: dict[str, Any] = {"prompt": "a fox"}
    if group == "results":
        provider.image = data
        asked["aspect_ratio"] = "16:9"
    elif name.startswith("a prompt"):
        asked["prompt"] = data.decode()
    elif group == "many":
        asked["references"] = [base64.b64encode(data).decode()] * 14
    else:
        asked["references"] = [data]
    async with ImageClient(Settings(fit="crop"), providers=[provider]) as client:
        result = await client.generate(**asked)
    dropped = [each["why"] for each in result.dropped_references]
    return f"{len(provider.sent[0].request.references)} sent, {dropped}, {result.adjustments}"


def measure(group: str, name: str, make: Maker, folder: Path) -> dict[str, Any]:
    """Create the image in one child process, and measure the call in another."""
    file, outcome = folder / "picture", folder / "outcome"
    in_child(lambda: file.write_bytes(make()))

    def run() -> None:
        data = file.read_bytes()
        before = resident()
        resource.setrlimit(resource.RLIMIT_CPU, (MOST_CPU_SECONDS, MOST_CPU_SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (MOST_ADDRESSES, MOST_ADDRESSES))
        said = asyncio.run(call(group, name, data))
        outcome.write_text(json.dumps([before, said]), encoding="utf-8")

    outcome.write_text('[0, "nothing: it was ended"]', encoding="utf-8")
    used = in_child(run)
    before, said = json.loads(outcome.read_text("utf-8"))
    return {
        "cpu": round(used.ru_utime + used.ru_stime, 2),
        "megabytes": round(used.ru_maxrss * 1024 / 1e6 - before),
        "outcome": said,
    }


def in_child(work: Callable[[], object]) -> resource.struct_rusage:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.wait4(child, 0)[2]


def resident() -> float:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * resource.getpagesize() / 1e6


if __name__ == "__main__":
    chosen = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        for case, make in GROUPS[chosen].items():
            figures = measure(chosen, case, make, Path(folder))
            sys.stdout.write(json.dumps({"case": case, **figures}) + "\n")
            sys.stdout.flush()
