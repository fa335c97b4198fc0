"""Image drawing: images that show the request. Only this module of the emulator loads Pillow."""

from __future__ import annotations

import colorsys
import contextlib
import hashlib
import io
import random
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

if TYPE_CHECKING:
    from resilient_imagen.emulator.vendor_api import ImageSize, ParsedRequest

__all__ = ["draw", "flat", "is_plain", "mask_size", "size_of"]

_Colour = tuple[int, int, int]
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_HUES: Final = {"google": 0.61, "openai": 0.44}
"""Blue and green; other vendors get violet."""
_OTHER_HUE: Final = 0.78
_LONG_EDGE: Final = 1024
"""Pixels of the longer side of a drawing, which is then scaled to the requested size."""
_SHORTEST: Final = 256
"""Minimum pixels of the shorter side of a drawing, so that the text in a banner is readable."""
_MAX_THUMBNAILS: Final = 16
_MAX_THUMBNAIL_PIXELS: Final = 50_000_000
_SOFTNESS: Final = 4
"""Factor by which the backdrop is smaller than the page before it is enlarged."""
_WHITE: Final = (255, 255, 255)
_EFFORT: Final = {
    "JPEG": {"quality": 88},
    "PNG": {"compress_level": 1},
    "WEBP": {"quality": 85, "method": 0},
}
"""Encoder settings: speed before size."""


def is_plain(data: bytes) -> bool:
    """Return whether the bytes are a PNG, JPEG or WebP that OpenAI accepts: no MPO, no CMYK."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.format in ("PNG", "JPEG", "WEBP") and image.mode not in ("CMYK", "YCCK")
    except Exception:  # noqa: BLE001 - any exception of Pillow means that it is not an image
        return False


def size_of(data: bytes) -> tuple[int, int]:
    """Return the width and height of an image in pixels."""
    with Image.open(io.BytesIO(data)) as image:
        return image.size


def mask_size(data: bytes) -> tuple[int, int] | None:
    """Return the size of a mask in pixels; None if it is not a PNG with an alpha channel."""
    with contextlib.suppress(Exception), Image.open(io.BytesIO(data)) as image:
        if image.format == "PNG" and image.mode in {"RGBA", "LA"}:
            return image.size
    return None


@lru_cache(maxsize=128)
def flat(size: tuple[int, int], vendor: str, canvas: ImageSize, variant: int) -> bytes:
    """Return an image of one colour; ``size`` is in pixels."""
    shade = variant + (canvas.seed or 0)
    colour = _tone(_hue(vendor), 0.55, 0.75 - 0.15 * (shade % 4))
    return _encode(Image.new("RGB", size, colour), canvas)


def draw(vendor: str, call: ParsedRequest, canvas: ImageSize, variant: int) -> bytes:
    """Return an image that shows vendor and request; the same for equal requests."""
    scale = max(_LONG_EDGE / max(canvas.width, canvas.height),
                _SHORTEST / min(canvas.width, canvas.height))  # fmt: skip
    size = (round(canvas.width * scale), round(canvas.height * scale))
    identity = f"{vendor}\0{call.model}\0{call.prompt}\0{variant}"
    if canvas.seed is not None:
        identity += f"\0{canvas.seed}"
    seed = hashlib.blake2b(identity.encode()).digest()
    rng = random.Random(seed)
    image = _backdrop(size, _hue(vendor) + rng.uniform(-0.03, 0.03), rng)
    page = _Page(image, ImageDraw.Draw(image, "RGBA"), min(size))
    top = _write_head(page, vendor, call, canvas, variant)
    bottom = _place_thumbnails(page, call)
    _write_prompt(page, call.prompt, top, bottom)
    return _encode(image.resize((canvas.width, canvas.height), Image.Resampling.BICUBIC), canvas)


@dataclass(frozen=True, slots=True)
class _Page:
    image: Image.Image
    pen: ImageDraw.ImageDraw
    unit: int
    """The shorter side in pixels; all sizes on the page are relative to it."""

    @property
    def margin(self) -> int:
        return self.unit // 16

    @property
    def width(self) -> int:
        return self.image.width - 2 * self.margin


def _hue(vendor: str) -> float:
    return _HUES.get(vendor, _OTHER_HUE)


def _tone(hue: float, saturation: float, value: float) -> _Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _backdrop(size: tuple[int, int], hue: float, rng: random.Random) -> Image.Image:
    """Return a diagonal gradient with lights, drawn small so that enlarging softens it."""
    small = (size[0] // _SOFTNESS, size[1] // _SOFTNESS)
    down = Image.linear_gradient("L").resize(small)
    across = Image.linear_gradient("L").rotate(90).resize(small)
    slope = Image.blend(down, across, rng.uniform(0.25, 0.6))
    light, dark = _tone(hue - rng.uniform(0.01, 0.05), 0.62, 0.85), _tone(hue, 0.85, 0.25)
    image = Image.composite(Image.new("RGB", small, dark), Image.new("RGB", small, light), slope)
    for _ in range(9):
        radius = rng.uniform(0.08, 0.42) * min(small)
        x, y = rng.uniform(0, small[0]), rng.uniform(0, small[1])
        spot = Image.new("L", small)
        box = (x - radius, y - radius, x + radius, y + radius)
        ImageDraw.Draw(spot).ellipse(box, fill=rng.randrange(30, 85))
        tone = _tone(hue + rng.uniform(-0.14, 0.14), rng.uniform(0.25, 0.6), 1.0)
        image.paste(tone, mask=spot.filter(ImageFilter.GaussianBlur(1.2)))
    return image.resize(size, Image.Resampling.BICUBIC)


@lru_cache(maxsize=64)
def _font(size: int) -> _Font:
    return ImageFont.load_default(max(8, size))


def _write_head(
    page: _Page, vendor: str, call: ParsedRequest, canvas: ImageSize, variant: int
) -> int:
    """Draw the vendor's badge and the request's parameters; return the lower edge."""
    x = y = page.margin
    badge, small = _font(page.unit // 18), _font(page.unit // 28)
    label = vendor.upper() + (f"  #{variant + 1}" if variant else "")
    left, above, right, below = page.pen.textbbox((x, y), label, font=badge)
    pad = page.unit // 45
    page.pen.rounded_rectangle(
        (left, above, right + 2 * pad, below + 2 * pad), pad * 2, fill=(*_WHITE, 235)
    )
    page.pen.text((x + pad, y + pad), label, font=badge, fill=_tone(_hue(vendor), 0.9, 0.45))
    facts = " \N{MIDDLE DOT} ".join(
        (call.model, f"{canvas.width} x {canvas.height}", call.operation)
    )
    at = (x, below + 3 * pad)
    for line in _wrap(facts, small, page, page.width, 2):
        page.pen.text(at, line, font=small, fill=(*_WHITE, 225))
        at = (x, at[1] + page.unit // 22)
    return int(at[1])


def _place_thumbnails(page: _Page, call: ParsedRequest) -> int:
    """Draw the references along the bottom; return their upper edge."""
    count = min(len(call.references), _MAX_THUMBNAILS)
    floor = page.image.height - page.margin
    if not count:
        return floor
    gap = page.unit // 60
    side = min(page.unit // 4, (page.width + gap) // count - gap)
    for index, reference in enumerate(call.references[:count]):
        at = (page.margin + index * (side + gap), floor - side)
        frame = (at[0] - 2, at[1] - 2, at[0] + side + 1, at[1] + side + 1)
        page.pen.rectangle(frame, fill=(*_WHITE, 230))
        page.image.paste(_thumbnail(reference.data, side), at)
    return floor - side - gap


def _thumbnail(data: bytes, side: int) -> Image.Image:
    """Return a thumbnail of a reference; an empty frame if it is broken or huge."""
    with contextlib.suppress(Exception), Image.open(io.BytesIO(data)) as image:
        if image.width * image.height <= _MAX_THUMBNAIL_PIXELS:
            image.draft("RGB", (side, side))
            return ImageOps.fit(image.convert("RGB"), (side, side))
    return Image.new("RGB", (side, side), (90, 90, 90))


def _write_prompt(page: _Page, prompt: str, top: int, bottom: int) -> None:
    """Draw the prompt in the largest font size that fits, on a darker panel."""
    room = bottom - top - page.margin
    for size in (page.unit // 14, page.unit // 18, page.unit // 24, page.unit // 32):
        font, step = _font(size), round(size * 1.35)
        most = max(1, room // step)
        lines = _wrap(prompt, font, page, page.width - size, most + 1)
        if len(lines) <= most:
            break
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1] + " ..."]
    start = bottom - page.margin // 2 - len(lines) * step
    panel = (page.margin // 2, start - size // 2, page.image.width - page.margin // 2, bottom)
    page.pen.rounded_rectangle(panel, size // 2, fill=(0, 0, 0, 95))
    for index, line in enumerate(lines):
        page.pen.text((page.margin, start + index * step), line, font=font, fill=_WHITE)


def _wrap(text: str, font: _Font, page: _Page, width: int, most: int) -> list[str]:
    """Return at most ``most`` lines of at most ``width`` pixels; split words that are too long."""
    # Longer lines cannot fit and need not be measured.
    limit = int(width / page.pen.textlength(".", font=font))

    def fits(line: str) -> bool:
        return len(line) <= limit and page.pen.textlength(line, font=font) <= width

    lines: list[str] = []
    line = ""
    for word in text.split():
        rest = word
        while rest and len(lines) < most:
            tried = f"{line} {rest}" if line else rest
            if fits(tried):
                line, rest = tried, ""
            elif line:
                lines.append(line)
                line = ""
            else:
                ends = range(1, limit + 1)
                end = max(1, bisect_left(ends, True, key=lambda end: not fits(rest[:end])))
                lines.append(rest[:end])
                rest = rest[end:]
    return [*lines, line][:most] if line else lines


def _encode(image: Image.Image, canvas: ImageSize) -> bytes:
    kind = canvas.mime_type.removeprefix("image/").upper()
    options = dict(_EFFORT[kind])
    if canvas.compression is not None and "quality" in options:
        options["quality"] = canvas.compression
    if canvas.transparent:
        shape = Image.new("L", image.size)
        ImageDraw.Draw(shape).ellipse((0, 0, image.width - 1, image.height - 1), fill=255)
        image.putalpha(shape)
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()
