"""Decoding cost: bound the cost of decoding an image by its structure, before it is decoded.

A file's size does not bound the time and memory of decoding it: a JPEG may have scans for hours, a
GIF or an AVIF may contain frames larger than the stated size, and metadata may refer to the same
bytes thousands of times. So a decoder gets a single image without metadata, and only if the cost is
bounded by its pixels. The checks themselves are linear in the bytes, and bounded.
"""

from __future__ import annotations

import re
import struct
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from resilient_imagen.images.avif import simple_avif
from resilient_imagen.images.image_errors import UnusableImageError
from resilient_imagen.images.inspect import (
    JPEG_END,
    JPEG_FRAMES,
    JPEG_LONE,
    JPEG_SCAN,
    ifd_entries,
    jpeg_segments,
    png_chunks,
    riff_chunks,
)
from resilient_imagen.images.limits import LARGE_PIXELS, MAX_COPIED_PIXELS, check_size

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["decodable", "has_more_pictures", "is_multi_scan"]

_MAX_SCANS: Final = 32
"""Maximum scans of one JPEG; encoders write about ten."""
_MAX_SCANNED_PIXELS: Final = 3_000_000_000
"""Maximum of a JPEG's scans times its pixels: some two nanoseconds each, even in an empty scan."""
_MAX_COEFFICIENT_BYTES: Final = 1_000_000_000
"""Maximum memory for a JPEG with several scans, which is decoded after all of them are read."""
_MAX_MARKERS: Final = 4096
"""Maximum markers between the scans of one JPEG."""
_MAX_RIFF_CHUNKS: Final = 10_000
"""Maximum chunks of a WebP; an animation has one for each frame."""
_WINDOW: Final = 2**18
"""Bytes searched with the interpreter lock held."""

_MARKER: Final = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""A marker other than stuffing, a restart or padding."""
_APP0, _APP1, _APP2, _APP14, _APP15, _COMMENT = 0xE0, 0xE1, 0xE2, 0xEE, 0xEF, 0xFE
_SOF_BASELINE, _SOF_PROGRESSIVE = 0xC0, 0xC2
_SOF_DECODED: Final = frozenset((_SOF_BASELINE, 0xC1, _SOF_PROGRESSIVE))
_MPF_COUNT_TAG: Final = 0xB001
_ULTRA_HDR: Final = b' hdrgm:Version="'
_PNG_KEPT: Final = frozenset((b"tRNS", b"iCCP"))
_GIF_BLOCK: Final = re.compile(rb"[!,;]")
"""An extension, a frame or the end; decoders skip other bytes between them."""
_GIF_CONTROL: Final = 0xF9
_BMP_PLAIN: Final = frozenset((0, 3, 6))
"""Compression values of uncompressed images, with or without bit masks."""
_BMP_OLDEST: Final = 12
"""Bytes of the oldest header, which has no compression field."""


def decodable(data: bytes, mime: str, max_pixels: int) -> bytes:
    """Return the parts of an image that a decoder needs; the same object if it needs all of it.

    Takes milliseconds for 20 MB: call it off the event loop.

    Args:
        data: The encoded image.
        mime: Its type by `sniff_mime`.
        max_pixels: Maximum of width times height of a frame.

    Raises:
        UnusableImageError: The image is damaged, or the cost of decoding is not bounded.
    """
    match mime:
        case "image/jpeg":
            return _jpeg(data)
        case "image/png":
            kept = [(at, end) for kind, at, end in png_chunks(data) if _is_kept(kind)]
            return _spliced(data, [(0, 8), *kept])
        case "image/gif":
            return _gif(data, max_pixels)
        case "image/avif":
            return simple_avif(data, min(max_pixels, MAX_COPIED_PIXELS))
        case "image/webp":
            if sum(1 for _ in riff_chunks(data, _MAX_RIFF_CHUNKS)) == _MAX_RIFF_CHUNKS:
                raise UnusableImageError("is an animation of too many frames")
        case "image/bmp":
            if data[14] != _BMP_OLDEST and data[30] not in _BMP_PLAIN:
                raise UnusableImageError("is a compressed BMP, which is not supported")
    return data


def has_more_pictures(data: bytes, mime: str) -> bool:
    """Return whether a JPEG or PNG contains more images than the one that ``decodable`` returns.

    A second image that is only a JPEG's gain map does not count; such a JPEG is sent unchanged.
    """
    if mime == "image/png":
        animations = (at for kind, at, _ in png_chunks(data) if kind == b"acTL")
        return any(int.from_bytes(data[at + 8 : at + 12], "big") > 1 for at in animations)
    if mime != "image/jpeg":
        return False
    bodies = [(code, _body(data, at)) for code, at in jpeg_segments(data) if code in {_APP1, _APP2}]
    if any(code == _APP1 and _ULTRA_HDR in body for code, body in bodies):
        return False
    indexes = (body[4:] for code, body in bodies if code == _APP2 and body.startswith(b"MPF\0"))
    entries = (entry for index in indexes for entry in ifd_entries(index))
    return any(tag == _MPF_COUNT_TAG and value > 1 for tag, value in entries)


def is_multi_scan(data: bytes) -> bool:
    """Return whether a JPEG has several scans, so that it is decoded after all are read."""
    segments = list(jpeg_segments(data))
    frame = next((at for code, at in segments if code in JPEG_FRAMES), None)
    if frame is None or segments[-1][0] != JPEG_SCAN or segments[-1][1] + 4 >= len(data):
        return False
    return _is_multi_scan(data, frame, segments[-1][1])


# -- JPEG ------------------------------------------------------------------------------------------


def _jpeg(data: bytes) -> bytes:
    """Remove all metadata except the colour profile, and check the number of scans."""
    segments = list(jpeg_segments(data))
    frames = [at for code, at in segments if code in JPEG_FRAMES]
    if len(frames) != 1 or segments[-1][0] != JPEG_SCAN:
        raise UnusableImageError("is damaged and cannot be decoded")
    (frame,), scan = frames, segments[-1][1]
    if data[frame + 1] not in _SOF_DECODED:
        raise UnusableImageError("is a JPEG of an unsupported kind")
    if _is_multi_scan(data, frame, scan):
        _check_scans(data, frame, scan)
    ends = [at for _, at in segments[1:]]
    kept = [
        (at, end)
        for (code, at), end in zip(segments[:-1], ends, strict=True)
        if _is_needed(code, _body(data, at))
    ]
    return _spliced(data, [(0, 2), *kept, (scan, len(data))])


def _is_multi_scan(data: bytes, frame: int, scan: int) -> bool:
    components, in_first_scan = data[frame + 9], data[scan + 4]
    return data[frame + 1] == _SOF_PROGRESSIVE or in_first_scan < components


def _check_scans(data: bytes, frame: int, scan: int) -> None:
    height, width = (int.from_bytes(data[at : at + 2], "big") for at in (frame + 5, frame + 7))
    sampling = [data[at] for at in range(frame + 11, frame + 10 + 3 * data[frame + 9], 3)]
    blocks = [(each >> 4) * (each & 15) for each in sampling]
    widest, tallest = (max((f(each) for each in sampling), default=0) for f in (_high, _low))
    # Each sample of each component is a coefficient of two bytes.
    if 2 * width * height * sum(blocks) > _MAX_COEFFICIENT_BYTES * max(1, widest * tallest):
        raise UnusableImageError("is a progressive JPEG of too many pixels")
    most = min(_MAX_SCANS, _MAX_SCANNED_PIXELS // max(1, width * height))
    if _scans(data, scan, most + 1) > most:
        raise UnusableImageError(f"is a JPEG of more than {most} scans, too many for its pixels")


def _high(sampling: int) -> int:
    return sampling >> 4


def _low(sampling: int) -> int:
    return sampling & 15


def _scans(data: bytes, at: int, enough: int) -> int:
    """Count a JPEG's scans from the first one on, up to ``enough`` of them.

    Every scan that libjpeg could find is counted, and possibly scans that it would reject.
    """
    scans = 0
    for _ in range(_MAX_MARKERS):
        at = _next_marker(data, at)
        code = data[at + 1] if at + 1 < len(data) else JPEG_END
        if code == JPEG_END or scans == enough:
            return scans
        scans += code == JPEG_SCAN
        # libjpeg may resume right after an unknown marker, whatever length follows it.
        lone = code < _SOF_BASELINE or code in JPEG_LONE
        at += 2 if lone else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise UnusableImageError("is a JPEG of too many segments")


def _next_marker(data: bytes, at: int) -> int:
    """Return the position of a JPEG's next marker, or its end; other threads run in between."""
    for start in range(at, len(data), _WINDOW):
        found = _MARKER.search(data, start, start + _WINDOW + 1)
        if found is not None:
            return found.start()
        time.sleep(0)
    return len(data)


def _is_needed(code: int, body: bytes) -> bool:
    """Return whether a JPEG's segment affects its pixels."""
    if code == _APP2:
        return body.startswith(b"ICC_PROFILE\0")
    return code in {_APP0, _APP14} or not (_APP0 <= code <= _APP15 or code == _COMMENT)


def _body(data: bytes, at: int) -> bytes:
    return data[at + 4 : at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")]


# -- others ----------------------------------------------------------------------------------------


def _is_kept(kind: bytes) -> bool:
    """Return whether a PNG's chunk affects the pixels of its first frame."""
    return kind[:1].isupper() or kind in _PNG_KEPT


def _gif(data: bytes, max_pixels: int) -> bytes:
    """Keep only the header, and the first frame with its transparency."""
    start = 13 + _palette_bytes(data[10])
    control: list[tuple[int, int]] = []
    at = start
    while (found := _GIF_BLOCK.search(data, at)) is not None and found[0] == b"!":
        at = _after_blocks(data, found.start() + 2)
        if data[found.start() + 1] == _GIF_CONTROL:
            control = [(found.start(), at)]
    if found is None or found[0] != b",":
        raise UnusableImageError("is damaged and cannot be decoded")
    at = found.start()
    left, top, width, height = struct.unpack_from("<4H", data, at + 1)
    right, bottom = left + width, top + height
    check_size((right, bottom), max_pixels)
    claimed = struct.unpack_from("<2H", data, 6)
    if right > claimed[0] or bottom > claimed[1]:
        check_size((right, bottom), LARGE_PIXELS)
    end = _after_blocks(data, at + 11 + _palette_bytes(data[at + 9]))
    return _spliced(data, [(0, start), *control, (at, end)]) + b";"


def _palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _after_blocks(data: bytes, at: int) -> int:
    """Return the end of a GIF's chain of blocks, which ends with an empty block."""
    while at < len(data) and (length := data[at]):
        at += length + 1
    return at + 1


def _spliced(data: bytes, spans: Iterable[tuple[int, int]]) -> bytes:
    """Join spans of an image; return the same object if they cover all of it."""
    spans = list(spans)
    whole = spans[-1][1] == len(data) and all(end == at for (_, end), (at, _) in pairwise(spans))
    return data if whole else b"".join(data[at:end] for at, end in spans)
