"""Image inspection: read type, size and orientation from the header, without Pillow.

File names and claimed types are not trusted: the Gemini 3 models send JPEG, their predecessors PNG,
and tools store files with the wrong extension.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "JPEG_END",
    "JPEG_FRAMES",
    "JPEG_LONE",
    "JPEG_SCAN",
    "exif_of",
    "exif_orientation",
    "ifd_entries",
    "jpeg_segments",
    "pixel_size",
    "png_chunks",
    "riff_chunks",
    "sniff_mime",
]

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_BMP_HEADER_SIZES: Final = frozenset((12, 40, 52, 56, 108, 124))
_MAGIC: Final[tuple[tuple[bytes, str], ...]] = (
    (_PNG, "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
)
_HEIC_BRANDS: Final = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"))
_HEIF_BRANDS: Final = frozenset((b"mif1", b"msf1", b"heif"))
_AVIF_BRANDS: Final = frozenset((b"avif", b"avis"))

_MARKER: Final = 0xFF
JPEG_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JPEG_END: Final = 0xD9
JPEG_SCAN: Final = 0xDA
JPEG_LONE: Final = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a length
_JPEG_EXIF: Final = 0xE1
# 50 MB in chunks of 1 kB. A hostile file could have millions, which would keep a thread busy.
_MAX_PNG_CHUNKS: Final = 50_000
_ORIENTATION_TAG: Final = 0x0112
_SHORT: Final = 3
"""The EXIF type of two-byte values."""
# Real files have a few dozen; a hostile file of 50 MB could have twelve million.
_MAX_JPEG_SEGMENTS: Final = 4096


def sniff_mime(data: bytes) -> str | None:
    """Return the MIME type of an encoded image; None if it is unknown.

    Known types are image/png, image/jpeg, image/webp, image/gif, image/bmp, image/tiff, image/heic,
    image/heif and image/avif.
    """
    for magic, mime in _MAGIC:
        if data.startswith(magic):
            return mime
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[4:8] == b"ftyp":
        return _iso_mime(data)
    # Two letters are not sufficient: also require a valid size of the BMP header.
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADER_SIZES:
        return "image/bmp"
    return None


def pixel_size(data: bytes) -> tuple[int, int] | None:
    """Read width and height in pixels from a PNG, JPEG, WebP, GIF or BMP header.

    Takes microseconds for files of any length. It is the stored size: EXIF orientation is not
    applied. Return None for other types and for invalid headers.
    """
    reader = {
        "image/png": _png_size,
        "image/jpeg": _jpeg_size,
        "image/webp": _webp_size,
        "image/gif": _gif_size,
        "image/bmp": _bmp_size,
    }.get(sniff_mime(data) or "")
    if reader is None:
        return None
    try:
        width, height = reader(data)
    except (struct.error, IndexError):  # the header ends too early
        return None
    return (width, height) if width > 0 and height > 0 else None


def _iso_mime(data: bytes) -> str | None:
    """Return the type of a HEIC, HEIF or AVIF container by the brands in its first box."""
    box = data[: min(int.from_bytes(data[:4], "big"), 256)]
    brands = {box[8:12], *(box[at : at + 4] for at in range(16, len(box), 4))}
    if brands & _AVIF_BRANDS:
        return "image/avif"
    if brands & _HEIC_BRANDS:
        return "image/heic"
    return "image/heif" if brands & _HEIF_BRANDS else None


def _png_size(data: bytes) -> tuple[int, int]:
    if data[12:16] != b"IHDR":
        return 0, 0
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _gif_size(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height


def _bmp_size(data: bytes) -> tuple[int, int]:
    if data[14] == 12:  # noqa: PLR2004 - the oldest header is 12 bytes long and has 16-bit sizes
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = struct.unpack_from("<ii", data, 18)
    return width, abs(height)  # a negative height means top-down


def _webp_size(data: bytes) -> tuple[int, int]:
    chunk = data[12:16]
    if chunk == b"VP8X":
        return _uint24(data, 24) + 1, _uint24(data, 27) + 1
    if chunk == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return 0, 0


def _uint24(data: bytes, at: int) -> int:
    low, high = struct.unpack_from("<HB", data, at)
    return int(low | high << 16)


def _jpeg_size(data: bytes) -> tuple[int, int]:
    for code, at in jpeg_segments(data):
        if code in JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
    return 0, 0


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield code and offset of a JPEG's markers, up to the first scan, the end or invalid data."""
    at = 2
    for _ in range(_MAX_JPEG_SEGMENTS):
        marker = data[at : at + 2]
        if len(marker) < 2 or marker[0] != _MARKER:  # noqa: PLR2004 - a marker is two bytes
            return
        code = marker[1]
        if code == _MARKER:  # padding before a marker
            at += 1
            continue
        yield code, at
        if code in {JPEG_SCAN, JPEG_END}:
            return
        length = data[at + 2 : at + 4]
        at += 2 if code in JPEG_LONE else 2 + int.from_bytes(length, "big")


def exif_of(data: bytes) -> bytes:
    """Return the EXIF data of a JPEG or PNG; empty if there are none."""
    mime = sniff_mime(data)
    if mime == "image/jpeg":
        for code, at in jpeg_segments(data):
            end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            if code == _JPEG_EXIF and data[at + 4 : at + 8] == b"Exif":
                return data[at + 4 : end]
    elif mime == "image/png":
        for kind, at, end in png_chunks(data):
            if kind == b"eXIf":
                return data[at + 8 : end - 4]
    return b""


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield type, offset and end of a PNG's chunks, up to the last complete one."""
    at = 8
    for _ in range(_MAX_PNG_CHUNKS):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        if end > len(data):
            return
        yield kind, at, end
        if kind == b"IEND":
            return
        at = end


def riff_chunks(data: bytes, most: int) -> Iterator[tuple[bytes, int]]:
    """Yield type and offset of a WebP's chunks, up to ``most`` of them."""
    at = 12
    for _ in range(most):
        if at + 8 > len(data):
            return
        yield data[at : at + 4], at
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + length + length % 2


def exif_orientation(exif: bytes) -> int:
    """Return the EXIF orientation from 1 to 8; 1 (upright) if it is missing or invalid.

    This does not use Pillow, which warns about other broken data and may decode the image.
    """
    turns = (value for tag, value in ifd_entries(exif) if tag == _ORIENTATION_TAG)
    turn = next(turns, 1)
    return turn if turn in range(1, 9) else 1


def ifd_entries(exif: bytes) -> Iterator[tuple[int, int]]:
    """Yield tag and value of the entries in the first directory of EXIF or TIFF-like data.

    A value is correct only if the directory itself contains it; for larger values it is an offset.
    """
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, directory)
        for at in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", tiff, at)
            (value,) = struct.unpack_from(order + ("H" if kind == _SHORT else "I"), tiff, at + 8)
            yield tag, value
    except struct.error:  # it ends too early
        return
