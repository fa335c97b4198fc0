"""AVIF check: bound the cost of decoding by the boxes and the headers of the AV1 data.

The size in the container does not bound the frames inside: an image of 16 pixels may consist of
hundreds of tiles of 268 megapixels, each of which may repeat its frame thousands of times. Only
images as encoders write them are accepted: one frame for colour and one for transparency, each of
bounded size. Grids, layers and animations are refused.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from resilient_imagen.images.image_errors import UnusableImageError
from resilient_imagen.images.limits import check_size

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["simple_avif"]

_MAX_BOXES: Final = 1000
_MAX_ITEMS: Final = 64
_MAX_CODED_ITEMS: Final = 4
"""Colour, transparency, a gain map and a thumbnail."""
_MAX_UNITS: Final = 5000
"""Maximum units (OBUs) of one item's AV1 data; a frame may have 4096 tiles."""
_HEADER_BYTES: Final = 256
"""Bytes of a sequence header up to its size fields, with at most 32 operating points."""
_REFUSED_ITEMS: Final = frozenset((b"grid", b"iovl", b"iden"))
"""Item types that are composed of other items, each of which may be used any number of times."""

_SEQUENCE_HEADER, _FRAME_HEADER, _FRAME, _TILE_LIST = 1, 3, 6, 8
_RARE: Final = "is an AVIF of an unsupported kind"
_DAMAGED: Final = "is truncated or damaged"


def simple_avif(data: bytes, max_pixels: int) -> bytes:
    """Return a plain AVIF without its EXIF data; the container has the orientation, too.

    Args:
        data: The encoded image.
        max_pixels: Maximum of width times height of each frame.

    Raises:
        UnusableImageError: The image is animated, composed of others, too large or damaged.
    """
    try:
        top = dict(_unique(_boxes(data, 0, len(data)), b"mdat", b"free", b"skip", b"uuid"))
        if b"moov" in top:
            raise UnusableImageError("is an animated AVIF, which is not supported")
        start, end = top[b"meta"]
        parts = dict(_unique(_boxes(data, start + 4, end), b"free", b"skip"))
        kinds = _kinds(data, *parts[b"iinf"])
        places = _places(data, *parts[b"iloc"])
    except (KeyError, IndexError, struct.error):
        raise UnusableImageError(_DAMAGED) from None
    coded = [number for number, (kind, _) in kinds.items() if kind == b"av01"]
    if len(coded) > _MAX_CODED_ITEMS or any(kind in _REFUSED_ITEMS for kind, _ in kinds.values()):
        raise UnusableImageError(_RARE)
    for number in coded:
        at, length = places.get(number, (0, 0))
        _check_frame(memoryview(data)[at : at + length], max_pixels)
    without_exif = bytearray()
    done = 0
    for at in (at for kind, at in kinds.values() if kind == b"Exif"):
        without_exif += data[done:at] + b"skip"
        done = at + 4
    return bytes(without_exif + data[done:]) if done else data


# -- boxes -----------------------------------------------------------------------------------------


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """Yield the type, and the start and end of the content, of each box in a range of the data."""
    for _ in range(_MAX_BOXES):
        if at == end:
            return
        size, kind = struct.unpack_from(">I4s", data, at)
        start = at + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, start)
            start += 8
        elif size == 0:
            size = end - at
        if not start <= at + size <= end:
            raise UnusableImageError(_DAMAGED)
        yield kind, (start, at + size)
        at += size
    raise UnusableImageError(_RARE)


def _unique(
    boxes: Iterator[tuple[bytes, tuple[int, int]]], *repeatable: bytes
) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """Yield boxes; reject repeated types, of which a decoder might use another box."""
    seen: set[bytes] = set()
    for kind, place in boxes:
        if kind in seen and kind not in repeatable:
            raise UnusableImageError(_DAMAGED)
        seen.add(kind)
        yield kind, place


def _kinds(data: bytes, at: int, end: int) -> dict[int, tuple[bytes, int]]:
    """Read the type of each item, and the position of that field."""
    count_bytes = 2 if data[at] == 0 else 4
    kinds: dict[int, tuple[bytes, int]] = {}
    for kind, (start, _) in _boxes(data, at + 4 + count_bytes, end):
        number_bytes = {2: 2, 3: 4}.get(data[start])
        if kind != b"infe" or number_bytes is None or len(kinds) == _MAX_ITEMS:
            raise UnusableImageError(_RARE)
        number = int.from_bytes(data[start + 4 : start + 4 + number_bytes], "big")
        place = start + 4 + number_bytes + 2
        if number in kinds:
            raise UnusableImageError(_DAMAGED)
        kinds[number] = data[place : place + 4], place
    return kinds


def _places(data: bytes, at: int, end: int) -> dict[int, tuple[int, int]]:
    """Read the ranges of items that are stored in one extent; other items are left out."""
    reader = _Bytes(data, at, end)
    version = reader.number(1)
    reader.number(3)
    sizes = reader.number(2)
    offset_bytes, length_bytes, base_bytes = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_bytes = sizes & 15 if version else 0
    number_bytes = 4 if version > 1 else 2
    places: dict[int, tuple[int, int]] = {}
    for _ in range(_bounded(reader.number(number_bytes))):
        number = reader.number(number_bytes)
        method = reader.number(2) & 15 if version else 0
        reader.number(2)
        base = reader.number(base_bytes)
        extents = []
        for _ in range(_bounded(reader.number(2))):
            reader.number(index_bytes)
            extents.append((base + reader.number(offset_bytes), reader.number(length_bytes)))
        if number in places:
            raise UnusableImageError(_DAMAGED)
        if len(extents) == 1 and method == 0:
            places[number] = extents[0]
    return places


def _bounded(count: int) -> int:
    if count > _MAX_ITEMS:
        raise UnusableImageError(_RARE)
    return count


@dataclass(slots=True)
class _Bytes:
    data: bytes
    at: int
    end: int

    def number(self, size: int) -> int:
        """Read an integer of ``size`` bytes, big-endian."""
        start, self.at = self.at, self.at + size
        if self.at > self.end:
            raise IndexError
        return int.from_bytes(self.data[start : self.at], "big")


# -- AV1 -------------------------------------------------------------------------------------------


def _check_frame(stream: memoryview, max_pixels: int) -> None:
    """Check that AV1 data contain exactly one frame, and its maximum size."""
    frames, headers = 0, 0
    for kind, content in _units(stream):
        if kind == _SEQUENCE_HEADER:
            headers += 1
            check_size(_coded_size(content), max_pixels)
        elif kind in {_FRAME_HEADER, _FRAME}:
            frames += 1
        elif kind == _TILE_LIST:
            raise UnusableImageError(_RARE)
    if frames != 1 or headers != 1:
        raise UnusableImageError(_RARE)


def _units(stream: memoryview) -> Iterator[tuple[int, bytes]]:
    """Yield the type and first bytes of each unit (OBU) of AV1 data."""
    at = 0
    for _ in range(_MAX_UNITS):
        if at == len(stream):
            return
        head = stream[at]
        at += 2 if head & 4 else 1
        size = len(stream) - at
        if head & 2:
            size, at = _leb128(stream, at)
        if at + size > len(stream):
            break
        yield head >> 3 & 15, bytes(stream[at : at + min(size, _HEADER_BYTES)])
        at += size
    raise UnusableImageError(_RARE)


def _leb128(stream: memoryview, at: int) -> tuple[int, int]:
    """Read a LEB128 integer; return it and its end."""
    value = 0
    for shift in range(0, 56, 7):
        if at >= len(stream):
            break
        value |= (stream[at] & 0x7F) << shift
        at += 1
        if not stream[at - 1] & 0x80:
            return value, at
    raise UnusableImageError(_DAMAGED)


def _coded_size(content: bytes) -> tuple[int, int]:
    """Read the maximum frame size of a sequence header."""
    bits = _Bits(content)
    bits.take(3 + 1)  # profile, whether it is a still image
    reduced = bits.take(1)
    if reduced:
        bits.take(5)
    else:
        if bits.take(1):  # timing, which no still image has
            raise UnusableImageError(_RARE)
        has_delays = bits.take(1)
        for _ in range(bits.take(5) + 1):
            bits.take(12)
            if bits.take(5) > 7:  # noqa: PLR2004 - levels above have a tier
                bits.take(1)
            if has_delays and bits.take(1):
                bits.take(4)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    if reduced:
        return bits.take(width_bits) + 1, bits.take(height_bits) + 1
    return 1 << width_bits, 1 << height_bits  # a frame may override its size


@dataclass(slots=True)
class _Bits:
    data: bytes
    at: int = 0

    def take(self, count: int) -> int:
        """Read an integer of ``count`` bits, most significant bit first."""
        start, self.at = self.at, self.at + count
        if self.at > 8 * len(self.data):
            raise UnusableImageError(_DAMAGED)
        whole = int.from_bytes(self.data, "big") >> 8 * len(self.data) - self.at
        return whole & (1 << self.at - start) - 1
