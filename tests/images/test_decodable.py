"""Decoders receive only pixel data, so no image costs more than its pixels."""

from __future__ import annotations

import asyncio
import struct
import subprocess
import sys
import time
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from images_hostile import (
    HARMLESS,
    REFUSED,
    bad_tiff,
    flat,
    gif_frame,
    many_scans,
    narrow_png,
    png_with,
    segment,
    with_segments,
)
from images_samples import encoded, exif, noise, opened, picture, png_chunk

from resilient_imagen.images.avif import simple_avif
from resilient_imagen.images.decodable import decodable
from resilient_imagen.images.fit import fit
from resilient_imagen.images.image_errors import UnusableImageError
from resilient_imagen.images.inspect import pixel_size, sniff_mime
from resilient_imagen.images.limits import ImageLimits
from resilient_imagen.references.loading import LoadedReferences, load_references

if TYPE_CHECKING:
    from collections.abc import Callable

PLAIN: dict[str, Callable[[], bytes]] = {
    "png": lambda: encoded(picture(), "PNG"),
    "jpeg": lambda: encoded(picture(), "JPEG"),
    "progressive jpeg": lambda: encoded(noise(300, 200), "JPEG", progressive=True),
    "webp": lambda: encoded(picture(), "WEBP"),
    "bmp": lambda: encoded(picture(), "BMP"),
    "avif": lambda: encoded(picture(), "AVIF"),
}


@cache
def refused(case: str) -> bytes:
    return REFUSED[case][0]()


def load(*items: object) -> LoadedReferences:
    return asyncio.run(
        load_references(items, limits=ImageLimits(), fetch=None, strict=False, seconds=600)
    )


@pytest.mark.no_cover
@pytest.mark.parametrize("case", REFUSED)
def test_a_hostile_reference_is_dropped_with_its_reason(case: str) -> None:
    """A hostile reference is dropped without decoding a pixel."""
    (dropped,) = load(refused(case)).dropped

    assert REFUSED[case][1] in dropped["why"]


@pytest.mark.no_cover
@pytest.mark.parametrize("case", HARMLESS)
def test_an_image_with_hostile_metadata_is_still_used(case: str) -> None:
    """Only the pixels are decoded, and no warning is emitted."""
    data = HARMLESS[case]()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (reference,) = load(data).references

    assert pixel_size(reference.data) in {(48, 80), (8, 8), (4, 4), (1, 1)}


@pytest.mark.no_cover
@pytest.mark.parametrize("case", ["many scans", "many scans of a plain jpeg", "narrow png", "tiff",
                                  "gif frame", "avif that claims little"])  # fmt: skip
@pytest.mark.parametrize("mode", ["none", "crop"])
def test_a_hostile_result_is_refused(case: str, mode: Any) -> None:
    """A hostile image from a provider is rejected, also if it need not be decoded."""
    with pytest.raises(UnusableImageError):
        asyncio.run(fit(refused(case), ratio="9:16", mode=mode))


@pytest.mark.parametrize("case", PLAIN)
def test_an_image_without_metadata_is_not_copied(case: str) -> None:
    """An image without metadata is passed to its decoder as the same object."""
    data = PLAIN[case]()

    assert decodable(data, sniff_mime(data) or "", 10**8) is data


def test_a_progressive_jpeg_as_encoders_write_it_passes() -> None:
    """A progressive JPEG of about ten scans is accepted at any allowed size."""
    data = encoded(noise(1500, 1000), "JPEG", progressive=True, quality=95)

    assert load(data).references[0].data is data


def test_a_small_jpeg_may_have_32_scans() -> None:
    """A small JPEG may have 22 scans beyond its own ten."""
    assert load(many_scans(100, 22)).dropped == ()
    assert "scans" in load(many_scans(100, 23)).dropped[0]["why"]


def test_scans_outside_the_image_are_not_counted() -> None:
    """Scan markers in metadata and after the end of the image are not counted."""
    data = encoded(noise(64, 64), "JPEG", progressive=True)
    looks = b"\xff\xda\0\x08" * 500
    decorated = with_segments(data, segment(0xE5, looks)) + looks

    assert load(decorated).references[0].data is decorated


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_the_exif_orientation_is_applied_without_exif_in_the_decoder(form: str, turn: int) -> None:
    """The image is upright although its decoder gets no EXIF data."""
    data = encoded(picture(48, 80), form, exif=exif(turn))

    (reference,) = load(data).references

    assert opened(reference.data).size == ((80, 48) if turn >= 5 else (48, 80))


def test_a_colour_profile_is_kept_unless_it_is_huge() -> None:
    """A color profile of 3 MB is kept, and one of 5 MB is dropped."""
    for size, kept in ((3_000_000, True), (5_000_000, False)):
        data = encoded(picture(), "JPEG", icc_profile=bytes(size), exif=exif(6))
        (reference,) = load(data).references
        assert ("icc_profile" in opened(reference.data).info) == kept


def test_a_profile_with_many_steps_is_ignored() -> None:
    """A CMYK image with such a profile is converted by the plain formula."""
    data = encoded(picture(mode="CMYK"), "JPEG", icc_profile=b"acsp mpet" * 100)

    (reference,) = load(data).references

    assert opened(reference.data).mode == "RGB"


def test_a_gif_shows_its_first_frame_with_its_transparency() -> None:
    """The first frame is used, with its transparency, after any extensions."""
    first = flat(8, 8, "P")
    data = encoded(first, "GIF", save_all=True, append_images=[picture(8, 8)], transparency=0,
                   comment=b"hello", duration=100)  # fmt: skip
    stray = data[:-1] + b"\0\0;"

    for each in (data, stray):
        (reference,) = load(each).references
        shown = opened(reference.data)
        assert (shown.mode, shown.size) == ("RGBA", (8, 8))
        assert shown.getpixel((4, 4)) == (0, 0, 0, 0)


def test_a_gif_frame_larger_than_its_screen_is_read() -> None:
    """A frame within the limits is read even if the GIF claims a smaller screen."""
    assert "damaged" in load(gif_frame(20, 30)).dropped[0]["why"]  # it holds one pixel only


@pytest.mark.parametrize("size", [(1, 65_500), (65_500, 1), (2, 40_000)])
def test_long_images_are_read_up_to_the_longest_side(size: tuple[int, int]) -> None:
    """Images of extreme ratio are read up to the maximum side."""
    (reference,) = load(narrow_png(*size)).references

    assert opened(reference.data).size == size


def test_an_animated_avif_is_refused() -> None:
    """An AVIF with several frames is rejected."""
    two = [picture(64, 64), picture(64, 64).rotate(90)]
    data = encoded(two[0], "AVIF", save_all=True, append_images=two[1:])

    assert "animated AVIF" in load(data).dropped[0]["why"]


@pytest.mark.parametrize("kind", [b"grid", b"iovl"])
def test_an_avif_put_together_from_others_is_refused(kind: bytes) -> None:
    """A grid AVIF is rejected, because it may refer to one tile any number of times."""
    data = encoded(picture(), "AVIF").replace(b"av01", kind, 2)
    item = data.index(b"infe")
    data = data[:item] + data[item:].replace(b"av01", kind, 1)

    with pytest.raises(UnusableImageError, match="unsupported kind"):
        simple_avif(data, 10**8)


AVIF = encoded(picture(), "AVIF", exif=exif(6))


@given(st.data())
def test_a_damaged_avif_is_handled(data: st.DataObject) -> None:
    """A damaged AVIF gives an image within the limits, or the documented error."""
    damaged = bytearray(AVIF)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged_data = bytes(damaged[: data.draw(st.integers(12, len(damaged)))])

    try:
        result = simple_avif(damaged_data, 10_000)
    except UnusableImageError:
        return
    assert len(result) == len(damaged_data)


def test_an_avif_with_too_many_extents_is_refused() -> None:
    """Parsing stops even if the extents take no space in the file."""
    at = AVIF.index(b"iloc")
    (size,) = struct.unpack_from(">I", AVIF, at - 4)
    empty = struct.pack(">IBBH", 0, 0, 0, 65_535) + struct.pack(">HHH", 1, 0, 65_535) * 10
    body = empty.ljust(size - 8, b"\0")[: size - 8]
    began = time.process_time()

    with pytest.raises(UnusableImageError):
        simple_avif(AVIF[: at + 4] + body + AVIF[at - 4 + size :], 10**8)

    assert time.process_time() - began < 1


def test_decoders_write_nothing_to_standard_error(tmp_path: Path) -> None:
    """Neither decoders nor warnings write to standard error."""
    damaged = {
        "tiff": bad_tiff("group4"),
        "deflated tiff": bad_tiff("tiff_deflate"),
        "jpeg": encoded(noise(64, 64), "JPEG", exif=exif(6))[:-400] + b"\xff\xd9",
        "png": png_with(png_chunk(b"eXIf", b"MM\0*" + bytes(20))),
        "webp": encoded(noise(64, 64), "WEBP", exif=exif(6))[:-100] + bytes(100),
        "avif": AVIF[:-30] + bytes(30),
        "exif": HARMLESS["exif that repeats"](),
        "index": HARMLESS["index that repeats"](),
    }
    for name, data in damaged.items():
        (tmp_path / name).write_bytes(data)
    script = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from resilient_imagen.images.limits import ImageLimits\n"
        "from resilient_imagen.references.loading import load_references\n"
        "paths = [path for path in sorted(Path(sys.argv[1]).iterdir())]\n"
        "loaded = asyncio.run(load_references(\n"
        "    paths, limits=ImageLimits(), fetch=None, strict=False))\n"
        "print(len(loaded.references) + len(loaded.dropped))\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, timeout=120, check=True
    )

    assert (int(done.stdout), done.stderr) == (len(damaged), b"")
