"""Sample images for tests: small, in many encodings, with content that shows turns and crops."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

from PIL import Image

from resilient_imagen import ImageResult


def picture(width: int = 48, height: int = 80, mode: str = "RGB") -> Image.Image:
    """Return a gradient: red increases to the right, green to the bottom, blue is constant."""
    red = Image.linear_gradient("L").rotate(90).resize((width, height))
    green = Image.linear_gradient("L").resize((width, height))
    rgb = Image.merge("RGB", (red, green, Image.new("L", (width, height), 90)))
    return rgb if mode == "RGB" else rgb.convert(mode)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Return an image that compresses badly, like a photo."""
    bands = [Image.effect_noise((width, height), 90) for _ in mode]
    return Image.merge(mode, bands) if len(bands) > 1 else bands[0]


def encoded(source: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    source.save(out, form, **options)
    return out.getvalue()


def delivered(data: bytes) -> ImageResult:
    """Return a result with these bytes, declared as PNG, and without usage."""
    return ImageResult(
        image_bytes=data,
        mime_type="image/png",
        provider="google",
        model="m",
        attempts=1,
        fallback_reason=None,
        dropped_references=(),
        usage={
            "provider": "google",
            "model": "m",
            "input_tokens": None,
            "output_tokens": None,
            "total_tokens": None,
            "cost_usd": None,
        },
        latency_s=1.0,
    )


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def raw_png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """Return a PNG with the given header fields; ``rows`` are its filtered bytes."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def png(width: int = 64, height: int = 64) -> bytes:
    """Return a red PNG of this size in pixels."""
    return encoded(Image.new("RGB", (width, height), (200, 30, 60)), "PNG")


def as_dict(data: bytes, mime_type: str = "image/png") -> dict[str, Any]:
    """Return the image as the application passes it."""
    return {"image_base64": base64.b64encode(data).decode(), "mime_type": mime_type}
