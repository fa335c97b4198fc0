"""A result's file holds what its name says."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from images_samples import delivered, encoded, exif, opened, picture
from PIL import Image

from resilient_imagen import ImageClient, Settings
from resilient_imagen.images.inspect import sniff_mime
from resilient_imagen.reasons import Reason
from resilient_imagen.testing import FakeProvider, run_virtual

if TYPE_CHECKING:
    from pathlib import Path

PNG = encoded(picture(), "PNG")
JPEG = encoded(picture(), "JPEG")
NAMES = [("a.png", "image/png"), ("a.jpg", "image/jpeg"), ("a.JPEG", "image/jpeg"),
         ("a.webp", "image/webp")]  # fmt: skip


def test_the_fallbacks_picture_is_saved_as_its_name_says(tmp_path: Path) -> None:
    """A PNG from the fallback becomes a JPEG in a file called .jpg."""

    async def run() -> Path:
        google = FakeProvider("google").fail(Reason.QUOTA_EXHAUSTED, status=429)
        providers = [google, FakeProvider("openai", image=PNG)]
        async with ImageClient(Settings(fit="none"), providers=providers) as client:
            result = await client.generate("a lighthouse")
        assert result.provider == "openai"
        return result.save(tmp_path / "lighthouse.jpg")

    path = run_virtual(run())

    assert path == tmp_path / "lighthouse.jpg"
    assert sniff_mime(path.read_bytes()) == "image/jpeg"
    assert opened(path.read_bytes()).size == (48, 80)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize(("name", "mime"), NAMES)
def test_every_type_becomes_what_the_name_says(
    form: str, name: str, mime: str, tmp_path: Path
) -> None:
    """A picture that has the type already is written byte for byte."""
    data = encoded(picture(), form)
    result = replace(delivered(data), mime_type=f"image/{form.lower()}")

    saved = result.save(str(tmp_path / name)).read_bytes()

    assert sniff_mime(saved) == mime
    assert (saved == data) == (mime == result.mime_type)


def test_a_name_without_extension_gets_the_types_own(tmp_path: Path) -> None:
    """The path that is returned is that of the file written, whether or not one was there."""
    result = replace(delivered(JPEG), mime_type="image/jpeg")

    for _ in range(2):
        path = result.save(tmp_path / "lighthouse")
        assert path == tmp_path / "lighthouse.jpg"
        assert path.read_bytes() == JPEG
    assert [each.name for each in tmp_path.iterdir()] == ["lighthouse.jpg"]


@pytest.mark.parametrize("name", ["a.gif", "a.img", "a.tiff", "scene.1"])
def test_other_extensions_keep_the_bytes(name: str, tmp_path: Path) -> None:
    """Types that cannot be made are not promised."""
    assert delivered(PNG).save(tmp_path / name).read_bytes() == PNG


def test_a_picture_that_cannot_be_converted_is_kept(tmp_path: Path) -> None:
    """It is paid for."""
    torn = PNG[: len(PNG) // 2]

    assert delivered(torn).save(tmp_path / "a.jpg").read_bytes() == torn


def test_transparency_becomes_white_in_a_jpeg(tmp_path: Path) -> None:
    """And a turned picture is set upright."""
    clear = encoded(Image.new("RGBA", (8, 16), (255, 0, 0, 0)), "PNG", exif=exif(6))

    saved = opened(delivered(clear).save(tmp_path / "a.jpg").read_bytes())

    assert saved.size == (16, 8)
    assert saved.getpixel((4, 4)) == (255, 255, 255)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_device_keeps_its_name() -> None:
    """No file is made beside it."""
    assert str(delivered(PNG).save("/dev/null")) == "/dev/null"


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """The system's own."""
    with pytest.raises(OSError, match="No such file"):
        delivered(PNG).save(tmp_path / "missing" / "a.png")
