"""Whether an encoded picture is all there, told from its structure: no pixel is decoded.

A provider answers a torn picture with an error that blames the whole request, so it is worth
knowing beforehand; decoding each reference to find out would cost a hundred times more.
"""

from __future__ import annotations

import zlib
from typing import Final

from resilient_imagen.images.inspect import JPEG_SCAN, jpeg_segments, png_chunks, sniff_mime

__all__ = ["is_complete", "is_intact"]

_JPEG_EOI: Final = b"\xff\xd9"


def is_intact(data: bytes) -> bool:
    """Tell whether a PNG, JPEG or WebP is complete; True for other types, which get decoded anyway.

    A PNG's checksums are verified too. Takes some 15 ms for 20 MB: call it off the event loop.
    """
    return is_complete(data) and (sniff_mime(data) != "image/png" or _png(data, checksums=True))


def is_complete(data: bytes) -> bool:
    """Tell whether a PNG, JPEG or WebP goes on to its end, by its structure alone; else True.

    Takes a millisecond or two for 20 MB.
    """
    check = {"image/png": _png, "image/jpeg": _jpeg, "image/webp": _webp}.get(
        sniff_mime(data) or ""
    )
    return check is None or check(data)


def _png(data: bytes, *, checksums: bool = False) -> bool:
    view = memoryview(data)
    last = b""
    for kind, at, end in png_chunks(data):
        last = kind
        if checksums and zlib.crc32(view[at + 4 : end - 4]) != _uint32(view, end - 4):
            return False
    return last == b"IEND"


def _uint32(view: memoryview, at: int) -> int:
    return int.from_bytes(view[at : at + 4], "big")


def _jpeg(data: bytes) -> bool:
    """An end marker must follow the scan; a thumbnail in the header has one of its own."""
    scan = next((at for code, at in jpeg_segments(data) if code == JPEG_SCAN), None)
    return scan is not None and data.rfind(_JPEG_EOI, scan) >= 0


def _webp(data: bytes) -> bool:
    return 8 + int.from_bytes(data[4:8], "little") <= len(data)
