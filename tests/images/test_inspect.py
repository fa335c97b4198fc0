"""Type and size of an image from its header."""

from __future__ import annotations

import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from images_samples import encoded, exif, picture, png_chunk

from resilient_imagen.images.completeness import is_complete, is_intact
from resilient_imagen.images.inspect import exif_orientation, pixel_size, sniff_mime

ENCODINGS = {
    "png": (encoded(picture(), "PNG"), "image/png"),
    "png palette": (encoded(picture(mode="P"), "PNG"), "image/png"),
    "jpeg": (encoded(picture(), "JPEG"), "image/jpeg"),
    "jpeg progressive": (encoded(picture(), "JPEG", progressive=True), "image/jpeg"),
    "jpeg exif": (encoded(picture(), "JPEG", exif=exif(6)), "image/jpeg"),
    "webp lossy": (encoded(picture(), "WEBP"), "image/webp"),
    "webp lossless": (encoded(picture(), "WEBP", lossless=True), "image/webp"),
    "webp extended": (encoded(picture(), "WEBP", exif=exif(1)), "image/webp"),
    "gif": (encoded(picture(), "GIF"), "image/gif"),
    "bmp": (encoded(picture(), "BMP"), "image/bmp"),
}
JPEG = ENCODINGS["jpeg"][0]
ENCODINGS |= {
    "jpeg with padding and a lone marker": (
        JPEG[:2] + b"\xff\xff\xff\x01" + JPEG[2:],
        "image/jpeg",
    ),
    "bmp of the oldest kind": (
        b"BM" + bytes(12) + struct.pack("<IHHHH", 12, 48, 80, 1, 24) + bytes(200),
        "image/bmp",
    ),
}
SIZELESS = {
    "tiff": (encoded(picture(), "TIFF"), "image/tiff"),
    "tiff big-endian": (b"MM\x00*" + bytes(40), "image/tiff"),
    "avif": (encoded(picture(), "AVIF"), "image/avif"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "image/heic"),
    "heic by its second brand": (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "image/heic"),
    "heif": (b"\0\0\0\x14ftypmif1\0\0\0\0msf1", "image/heif"),
}


@pytest.mark.parametrize("case", [*ENCODINGS, *SIZELESS])
def test_type_is_detected_from_the_bytes(case: str) -> None:
    """Every known type is detected."""
    data, mime = (ENCODINGS | SIZELESS)[case]

    assert mime == sniff_mime(data)


@pytest.mark.parametrize("case", ENCODINGS)
def test_size_is_read_from_the_header(case: str) -> None:
    """Width and height are read as stored, even if the header is cut off after them."""
    data, _ = ENCODINGS[case]

    assert pixel_size(data) == (48, 80)


@pytest.mark.parametrize("case", SIZELESS)
def test_types_without_a_plain_header_have_no_size(case: str) -> None:
    """The size is None for containers that only a decoder can read."""
    assert pixel_size(SIZELESS[case][0]) is None


@pytest.mark.parametrize(
    "data",
    [b"", b"\x89PNG", b"<svg/>", b"<html>", b"BM and other words", b"RIFF\0\0\0\0WAVE",
     b"\xff\xd8\0", b"%PDF-1.7", b"\0\0\0\x18ftypisom\0\0\0\0mp42"],
)  # fmt: skip
def test_data_other_than_images_has_no_type(data: bytes) -> None:
    """Text, sound, video and truncated headers are not detected as images."""
    assert sniff_mime(data) is None
    assert pixel_size(data) is None


@given(st.sampled_from([data for data, _ in ENCODINGS.values()]), st.data())
def test_a_damaged_header_raises_no_error(good: bytes, data: st.DataObject) -> None:
    """A truncated or overwritten header gives a size or None, never an error."""
    cut = data.draw(st.integers(0, min(len(good), 700)))
    at = data.draw(st.integers(0, cut))
    damaged = good[:at] + data.draw(st.binary(max_size=12)) + good[at:cut]

    size = pixel_size(damaged)
    is_intact(damaged)

    assert size is None or min(size) > 0


@given(st.binary(max_size=200))
def test_any_bytes_give_an_answer(data: bytes) -> None:
    """No bytes make the readers raise an error."""
    assert pixel_size(data) is None or sniff_mime(data) is not None


@pytest.mark.parametrize(
    "data", [b"RIFF\x20\0\0\0WEBPABCD" + bytes(30), b"\xff\xd8\xff\xd9", b"\xff\xd8\xff\xe0\0\4ab",
             b"GIF89a" + bytes(10), b"\x89PNG\r\n\x1a\n" + bytes(30), b"\xff\xd8\xff\xe0\0\4abcd"],
)  # fmt: skip
def test_a_nonsensical_header_has_no_size(data: bytes) -> None:
    """A nonsensical header may have a type, but has no size."""
    assert sniff_mime(data) is not None
    assert pixel_size(data) is None


def test_parsing_a_jpeg_of_endless_segments_stops() -> None:
    """A JPEG of millions of empty segments takes no longer than one of a few thousand."""
    segments = b"\xff\xe0\x00\x02" * 2_000_000
    frame = b"\xff\xc0" + struct.pack(">HBHH", 17, 8, 80, 48)

    assert pixel_size(b"\xff\xd8" + segments + frame) is None
    assert pixel_size(b"\xff\xd8" + segments[:400] + frame) == (48, 80)


@pytest.mark.parametrize("case", ENCODINGS)
def test_a_complete_image_is_detected_as_complete(case: str) -> None:
    """Every valid encoding is complete, also with bytes after its end."""
    data, _ = ENCODINGS[case]

    assert is_intact(data)
    assert is_intact(data + b"trailing bytes")


@pytest.mark.parametrize("case", [name for name in ENCODINGS if name[:3] in {"png", "jpe", "web"}])
def test_a_truncated_image_is_detected(case: str) -> None:
    """One or nearly all missing bytes at the end are detected without decoding."""
    data, mime = ENCODINGS[case]

    damaged_data = [data[:at] for at in range(len(data)) if sniff_mime(data[:at]) == mime]

    assert len(damaged_data) > len(data) - 13  # the type of fewer bytes is unknown
    assert not any(is_complete(each) or is_intact(each) for each in damaged_data)


def test_finding_the_end_of_an_image_is_fast() -> None:
    """Only a few chunks or segments are read, because the event loop does it."""
    steps = 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1

    chunk = png_chunk(b"IDAT", bytes(2**20))
    png = ENCODINGS["png"][0]
    jpeg = ENCODINGS["jpeg"][0]
    large = (png[:33] + chunk * 20 + png[33:], jpeg[:-2] + bytes(20 * 2**20) + jpeg[-2:])
    sys.setprofile(count)
    try:
        whole = [is_complete(data) for data in large]
    finally:
        sys.setprofile(None)

    assert whole == [True, True]
    assert steps < 500


def test_a_thumbnails_end_is_not_the_images_end() -> None:
    """A truncated JPEG with a complete thumbnail is detected as truncated."""
    thumbnail = encoded(picture(8, 8), "JPEG")
    whole = encoded(picture(), "JPEG", exif=b"Exif\0\0" + thumbnail)

    assert is_intact(whole)
    assert not is_intact(whole[:-30])


def test_a_flipped_bit_in_a_png_is_noticed() -> None:
    """A flipped bit in the middle of a PNG is detected by its checksum."""
    data = bytearray(ENCODINGS["png"][0])
    data[len(data) // 2] ^= 1

    assert not is_intact(bytes(data))


@pytest.mark.parametrize("turn", range(1, 9))
def test_the_exif_orientation_is_read_in_both_byte_orders(turn: int) -> None:
    """Little-endian and big-endian EXIF data are read."""
    big = b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 0x0112, 3, 1, turn, 0) + bytes(4)

    assert exif_orientation(exif(turn)) == turn
    assert exif_orientation(b"Exif\0\0" + big) == turn


@given(st.binary(max_size=80), st.sampled_from([b"", b"II*\0", b"MM\0*", b"Exif\0\0II*\0"]))
def test_broken_exif_gives_some_orientation(data: bytes, start: bytes) -> None:
    """No EXIF data make the reader raise an error."""
    assert exif_orientation(start + data) in range(1, 9)


@pytest.mark.parametrize("header", [12, 40, 52, 56, 108, 124])
def test_every_bmp_header_that_pillow_reads_is_known(header: int) -> None:
    """All BMP header sizes that Pillow reads are known, Photoshop's 56 bytes too."""
    data = b"BM" + bytes(12) + header.to_bytes(4, "little") + bytes(header)
    assert sniff_mime(data) == "image/bmp"
