"""Results become files of the type in their name, Pillow images and notebook images."""

from __future__ import annotations

import base64
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from images_samples import delivered, encoded, exif, opened, picture
from PIL import Image, ImageOps

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


def test_an_image_is_saved_as_the_type_of_the_extension(tmp_path: Path) -> None:
    """A PNG of the fallback becomes a JPEG in a file with .jpg."""

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
def test_every_type_is_converted_to_that_of_the_extension(
    form: str, name: str, mime: str, tmp_path: Path
) -> None:
    """An image of the right type is written unchanged."""
    data = encoded(picture(), form)
    result = replace(delivered(data), mime_type=f"image/{form.lower()}")

    saved = result.save(str(tmp_path / name)).read_bytes()

    assert sniff_mime(saved) == mime
    assert (saved == data) == (mime == result.mime_type)


def test_a_name_without_extension_gets_the_types_own(tmp_path: Path) -> None:
    """The returned path is that of the written file."""
    result = replace(delivered(JPEG), mime_type="image/jpeg")

    for _ in range(2):
        path = result.save(tmp_path / "lighthouse")
        assert path == tmp_path / "lighthouse.jpg"
        assert path.read_bytes() == JPEG
    assert [each.name for each in tmp_path.iterdir()] == ["lighthouse.jpg"]


@pytest.mark.parametrize("name", ["a.gif", "a.img", "a.tiff", "scene.1", "v1.JPG2"])
def test_an_unknown_extension_is_refused(name: str, tmp_path: Path) -> None:
    """The error names the extension and those that are supported, and no file is written."""
    with pytest.raises(ValueError, match=r"use \.png, \.jpg, \.jpeg, \.webp, or none") as caught:
        delivered(PNG).save(tmp_path / name)

    assert f"the extension {name[name.index('.') :]} is not supported" in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("mime_type", "name"), [("image/gif", "a.GIF"), ("image/avif", "a.avif"), ("image/x", "a.img")]
)
def test_the_extension_of_the_images_type_keeps_the_bytes(
    mime_type: str, name: str, tmp_path: Path
) -> None:
    """This includes types without a converter, and unknown ones."""
    result = replace(delivered(PNG), mime_type=mime_type)

    assert result.save(tmp_path / name).read_bytes() == PNG
    assert result.save(tmp_path / "b").suffix == name[1:].lower()


def test_an_image_that_cannot_be_converted_is_kept(tmp_path: Path) -> None:
    """A damaged image is saved unchanged, because it is paid for."""
    damaged = PNG[: len(PNG) // 2]

    assert delivered(damaged).save(tmp_path / "a.jpg").read_bytes() == damaged


def test_transparency_becomes_white_in_a_jpeg(tmp_path: Path) -> None:
    """A JPEG has white for transparency, and its EXIF orientation is applied."""
    clear = encoded(Image.new("RGBA", (8, 16), (255, 0, 0, 0)), "PNG", exif=exif(6))

    saved = opened(delivered(clear).save(tmp_path / "a.jpg").read_bytes())

    assert saved.size == (16, 8)
    assert saved.getpixel((4, 4)) == (255, 255, 255)


def test_an_existing_file_is_replaced(tmp_path: Path) -> None:
    """No other file is changed."""
    (tmp_path / "a.png").write_bytes(b"old")

    assert delivered(PNG).save(tmp_path / "a.png").read_bytes() == PNG
    assert [each.name for each in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_device_keeps_its_name() -> None:
    """No file is created beside a device."""
    assert str(delivered(PNG).save("/dev/null")) == "/dev/null"


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """The system's error is raised."""
    with pytest.raises(OSError, match="No such file"):
        delivered(PNG).save(tmp_path / "missing" / "a.png")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_result_becomes_a_pillow_image(form: str) -> None:
    """The Pillow image is already decoded."""
    image = delivered(encoded(picture(), form)).to_pil()

    assert isinstance(image, Image.Image)
    assert image.size == (48, 80)
    red, green, _ = image.convert("RGB").getpixel((47, 1))  # type: ignore[misc]
    assert red > 200
    assert green < 50


def test_a_pillow_image_is_turned_upright_once() -> None:
    """The EXIF orientation is applied, and removed from the result."""
    turned = encoded(picture(8, 16), "JPEG", exif=exif(6))

    image = delivered(turned).to_pil()

    assert image.size == (16, 8)
    assert ImageOps.exif_transpose(image).size == (16, 8)


@pytest.mark.parametrize(
    ("data", "message"),
    [(PNG[: len(PNG) // 2], "google is damaged"), (b"no picture", "google is not an image")],
)
def test_data_other_than_an_image_raises_an_error(data: bytes, message: str) -> None:
    """The error names the provider and the cause."""
    with pytest.raises(ValueError, match=message):
        delivered(data).to_pil()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_notebook_shows_every_type(form: str) -> None:
    """Notebooks get a PNG; a delivered PNG is unchanged."""
    data = encoded(picture(), form)
    shown = replace(delivered(data), mime_type=f"image/{form.lower()}")._repr_png_()

    assert shown is not None
    assert sniff_mime(shown) == "image/png"
    assert opened(shown).size == (48, 80)
    assert (shown == data) == (form == "PNG")


def test_a_notebook_shows_text_for_an_image_that_cannot_be_converted() -> None:
    """Notebooks interpret None as "no image", and print the result instead."""
    result = replace(delivered(JPEG[: len(JPEG) // 2]), mime_type="image/jpeg")

    assert result._repr_png_() is None


def test_several_images_are_saved_beside_each_other(tmp_path: Path) -> None:
    """The first file has the given name, others a number; each is converted separately."""
    result = replace(delivered(PNG), more_images=(JPEG, PNG), n=3)

    assert result.save(tmp_path / "fox.webp") == tmp_path / "fox.webp"
    assert result.save(tmp_path / "plain") == tmp_path / "plain.png"

    saved = {path.name: sniff_mime(path.read_bytes()) for path in tmp_path.iterdir()}
    assert saved == {
        **dict.fromkeys(("fox.webp", "fox-2.webp", "fox-3.webp"), "image/webp"),
        **dict.fromkeys(("plain.png", "plain-3.png"), "image/png"),
        "plain-2.jpg": "image/jpeg",
    }
    with pytest.raises(ValueError, match="cannot save 3 images to"):
        result.save(os.devnull)


def test_each_of_several_images_becomes_a_pillow_image_and_a_notebook_shows_all() -> None:
    """The notebook's image has them side by side, all as high as the lowest."""
    wide = encoded(picture(200, 40), "JPEG")
    result = replace(delivered(encoded(picture(48, 80), "PNG")), more_images=(wide,), n=2)

    assert result.to_pil().size == (48, 80)
    assert result.to_pil(1).size == (200, 40)
    with pytest.raises(IndexError):
        result.to_pil(2)
    shown = opened(result._repr_png_() or b"")
    assert shown.size == (24 + 200, 40)
    assert replace(result, more_images=(b"rubbish",))._repr_png_() is None


def test_the_dict_of_several_images_has_each_ones_type() -> None:
    """The dict has the type of each image."""
    found = replace(delivered(PNG), more_images=(JPEG,), n=3).to_dict()
    assert [each["mime_type"] for each in found["images"]] == ["image/png", "image/jpeg"]
    assert base64.b64decode(found["images"][1]["image_base64"]) == JPEG
