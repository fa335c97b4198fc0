"""Delivered images are fitted to the requested ratio."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from images_samples import encoded, exif, noise, opened, picture, raw_png
from PIL import Image, ImageCms, ImageFile
from PIL.JpegImagePlugin import get_sampling

from resilient_imagen.images.fit import Encoding, FitMode, Fitted, fit
from resilient_imagen.images.image_errors import UnusableImageError
from resilient_imagen.images.inspect import sniff_mime
from resilient_imagen.images.limits import ImageLimits
from resilient_imagen.request import ASPECT_RATIOS

SIZES = ((64, 64), (90, 160), (160, 90), (61, 97), (127, 40), (17, 200), (101, 101))


def fitted(data: bytes, **options: Any) -> Fitted:
    return asyncio.run(fit(data, **options))


def numbers(ratio: str) -> tuple[int, int]:
    across, down = ratio.split(":")
    return int(across), int(down)


@pytest.mark.no_cover
@pytest.mark.parametrize("ratio", ASPECT_RATIOS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_ratio_is_reached_from_every_size(ratio: str, size: tuple[int, int]) -> None:
    """Crop and pad come within a pixel, exact hits it; crop only removes, pad only adds."""
    data = encoded(picture(*size), "PNG")
    across, down = numbers(ratio)

    for mode in ("crop", "pad", "exact"):
        result = fitted(data, ratio=ratio, mode=mode)
        width, height = result.width, result.height

        assert opened(result.data).size == (width, height)
        if mode == "exact":
            assert width * down == height * across
        elif result.data is data:
            assert abs(width * down / (height * across) - 1) < 0.0201
        else:
            assert abs(width * down - height * across) <= max(across, down)
        if mode == "pad":
            assert (width >= size[0], height >= size[1]) == (True, True)
        else:
            assert (width <= size[0], height <= size[1]) == (True, True)
        assert (width in size or height in size) or mode == "exact"


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from(ASPECT_RATIOS))
def test_exact_gives_the_largest_exact_size(width: int, height: int, ratio: str) -> None:
    """`exact` gives the largest exact size; an image too small for any is cropped."""
    across, down = numbers(ratio)
    result = fitted(encoded(picture(width, height), "PNG"), ratio=ratio, mode="exact")

    times = min(width * 7 // (across * 7), height // down)
    if ratio == "21:9":
        times = min(width // 7, height // 3)
        across, down = 7, 3
    if times:
        assert (result.width, result.height) == (times * across, times * down)
    else:
        assert min(result.width, result.height) >= 1


@pytest.mark.parametrize(
    ("size", "passes"), [((768, 1376), True), ((900, 1600), True), ((918, 1600), True),
                         ((919, 1600), False), ((880, 1600), False), ((1024, 1536), False)],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["crop", "pad"])
def test_an_image_within_two_percent_is_unchanged(
    size: tuple[int, int], passes: bool, mode: FitMode
) -> None:
    """An image within 2 % of the ratio is returned unchanged."""
    data = encoded(Image.new("RGB", size), "PNG")

    result = fitted(data, ratio="9:16", mode=mode)

    assert (result.data is data) == passes
    assert (not result.notes) == passes


def test_an_image_that_passes_is_not_decoded() -> None:
    """A PNG with invalid pixels passes, because only its header is read."""
    data = raw_png(90, 160, 8, 2, b"rubbish")

    assert fitted(data, ratio="9:16", mode="crop").data is data
    with pytest.raises(UnusableImageError):
        fitted(data, ratio="16:9", mode="crop")


def test_none_changes_nothing() -> None:
    """With fit=none, the same bytes are returned with their size."""
    data = encoded(picture(50, 50), "JPEG")

    result = fitted(data, ratio="9:16", mode="none", target=(9, 16))

    assert result.data is data
    assert (result.width, result.height, result.mime_type) == (50, 50, "image/jpeg")


def test_cropping_is_centred_and_exact_to_the_pixel() -> None:
    """Cropping keeps the center, and every kept pixel is unchanged."""
    source = noise(100, 60)

    result = opened(fitted(encoded(source, "PNG"), ratio="1:1", mode="crop").data)

    assert result.tobytes() == source.crop((20, 0, 80, 60)).tobytes()


@pytest.mark.parametrize("size", [(100, 60), (60, 100)])
def test_padding_keeps_the_whole_image_in_the_middle(size: tuple[int, int]) -> None:
    """Padding surrounds the image and resembles its edges rather than black."""
    source = picture(*size)

    result = opened(fitted(encoded(source, "PNG"), ratio="1:1", mode="pad").data)

    left, top = (100 - size[0]) // 2, (100 - size[1]) // 2
    assert result.size == (100, 100)
    assert result.crop((left, top, left + size[0], top + size[1])).tobytes() == source.tobytes()
    assert result.getpixel((0, 0)) != (0, 0, 0)


def test_padding_of_a_transparent_image_is_transparent() -> None:
    """The padding of a translucent image is fully transparent."""
    data = encoded(Image.new("RGBA", (60, 100), (9, 8, 7, 200)), "PNG")

    result = opened(fitted(data, ratio="1:1", mode="pad").data)

    assert result.getpixel((0, 50)) == (0, 0, 0, 0)
    assert result.getpixel((50, 50)) == (9, 8, 7, 200)


def test_padding_beyond_the_pixel_limit_becomes_cropping() -> None:
    """An extreme ratio is cropped instead of exceeding the memory limit."""
    data = encoded(picture(100, 60), "PNG")

    result = fitted(data, ratio="1:8", mode="pad", limits=ImageLimits(max_pixels=10_000))

    assert (result.width, result.height) == (8, 60)
    assert result.notes == ("image cropped from 100x60 to 8x60",)


@pytest.mark.parametrize(
    ("form", "mode", "options"),
    [("PNG", "RGB", {}), ("PNG", "RGBA", {}), ("PNG", "L", {}), ("PNG", "LA", {}),
     ("PNG", "P", {}), ("PNG", "1", {}), ("PNG", "I;16", {}), ("JPEG", "RGB", {}),
     ("JPEG", "L", {}), ("JPEG", "CMYK", {}), ("WEBP", "RGB", {}),
     ("WEBP", "RGBA", {"lossless": True})],
)  # fmt: skip
@pytest.mark.parametrize("how", ["crop", "exact", "pad"])
def test_type_and_mode_are_kept(
    form: str, mode: str, options: dict[str, Any], how: FitMode
) -> None:
    """Fitting keeps type and mode, except that a padded palette image becomes RGB."""
    source = picture(61, 97, mode=mode)
    if mode == "RGBA":
        source.putalpha(77)

    result = fitted(encoded(source, form, **options), ratio="3:2", mode=how)

    assert result.mime_type == f"image/{form.lower()}"
    assert opened(result.data).format == form
    assert opened(result.data).mode == ("RGB" if (mode, how) == ("P", "pad") else mode)


@pytest.mark.parametrize("form", ["GIF", "BMP", "AVIF"])
def test_other_types_become_png(form: str) -> None:
    """An image of a type that is not written becomes a PNG."""
    result = fitted(encoded(picture(), form), ratio="1:1", mode="crop")

    assert result.mime_type == "image/png"
    assert opened(result.data).size == (48, 48)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_a_jpeg_keeps_subsampling_profile_and_quality(subsampling: int) -> None:
    """A fitted JPEG keeps subsampling and profile, and its colors hardly change."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encoded(picture(), "JPEG", subsampling=subsampling, quality=95, icc_profile=profile)

    result = opened(fitted(data, ratio="1:1", mode="crop").data)

    assert get_sampling(result) == subsampling
    assert result.info["icc_profile"] == profile
    before = opened(data).convert("RGB").crop((0, 16, 48, 64)).tobytes()
    after = result.convert("RGB").tobytes()
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) <= 12


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [True, False])
@pytest.mark.parametrize("quality", [40, 75, 92, 100])
def test_a_jpeg_keeps_its_own_quality(mode: str, progressive: bool, quality: int) -> None:
    """A fitted JPEG keeps its quantization tables and stays progressive."""
    source = picture(mode=mode)
    data = encoded(source, "JPEG", quality=quality, progressive=progressive)

    result = opened(fitted(data, ratio="1:1", mode="crop").data)

    assert result.quantization == opened(data).quantization  # type: ignore[attr-defined]
    assert ("progressive" in result.info) == progressive


def test_a_very_dense_progressive_jpeg_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A JPEG that Pillow cannot re-encode alike is still fitted."""
    with monkeypatch.context() as patch:
        patch.setattr(ImageFile, "MAXBLOCK", 2**24)
        data = encoded(noise(400, 400), "JPEG", quality=100, subsampling=0, progressive=True)

    result = opened(fitted(data, ratio="1:2", mode="crop").data)

    assert result.size == (200, 400)
    assert result.quantization == opened(data).quantization  # type: ignore[attr-defined]


def test_a_jpeg_with_many_tables_is_still_fitted() -> None:
    """A JPEG with four quantization tables is fitted."""
    tables = [[each] * 64 for each in (1, 9, 3, 5)]
    data = encoded(picture(), "JPEG", qtables=tables)

    assert opened(fitted(data, ratio="1:1", mode="crop").data).size == (48, 48)


@pytest.mark.parametrize("how", ["crop", "pad"])
def test_a_lossless_webp_stays_lossless(how: FitMode) -> None:
    """The kept pixels of a cropped lossless WebP are unchanged."""
    source = noise(60, 60)
    result = fitted(encoded(source, "WEBP", lossless=True), ratio="2:3", mode=how)

    width, height = result.width, result.height
    box = (width // 2 - 10, height // 2 - 10, width // 2 + 10, height // 2 + 10)
    assert opened(result.data).crop(box).tobytes() == source.crop((20, 20, 40, 40)).tobytes()


def test_a_jpeg_with_exif_orientation_is_fitted_as_displayed() -> None:
    """A stored 160x90 that EXIF rotates is treated as 9:16."""
    data = encoded(picture(160, 90), "JPEG", exif=exif(6))

    assert fitted(data, ratio="9:16", mode="crop").data is data
    square = fitted(data, ratio="1:1", mode="crop")
    assert (square.width, square.height) == opened(square.data).size == (90, 90)


@pytest.mark.parametrize("mode", ["crop", "pad", "exact"])
@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_a_target_is_met_to_the_pixel(mode: FitMode, form: str) -> None:
    """With a target, the delivered size is exact; at that size nothing is changed."""
    data = encoded(picture(200, 200), form)

    result = fitted(data, ratio="9:16", mode=mode, target=(90, 160))
    again = fitted(result.data, ratio="9:16", mode=mode, target=(90, 160))

    assert opened(result.data).size == (result.width, result.height) == (90, 160)
    assert again.data is result.data


@pytest.mark.parametrize(
    "data",
    [b"", b"not an image", encoded(noise(60, 60), "PNG")[:2000],
     encoded(noise(60, 60), "JPEG")[:900], raw_png(60_000, 60_000, 8, 2, b"")],
    ids=["empty", "text", "torn png", "torn jpeg", "bomb"],
)  # fmt: skip
def test_undecodable_data_raises_the_documented_error(data: bytes) -> None:
    """An image that cannot be decoded raises the documented error."""
    with pytest.raises(UnusableImageError):
        fitted(data, ratio="9:16", mode="crop")


@pytest.mark.parametrize(
    "options",
    [{"ratio": "9x16"}, {"ratio": "0:16"}, {"ratio": "9:"}, {"ratio": "-9:16"}, {"ratio": "²:3"},
     {"mode": "stretch"}, {"target": (0, 5)}],
    ids=str,
)  # fmt: skip
def test_senseless_arguments_are_refused(options: dict[str, Any]) -> None:
    """Invalid arguments raise ValueError, not an image error."""
    with pytest.raises(ValueError, match="must") as caught:
        fitted(encoded(picture(), "PNG"), **{"ratio": "9:16", "mode": "crop", **options})

    assert not isinstance(caught.value, UnusableImageError)


def test_the_applications_pillow_limit_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image above the application's Pillow limit is fitted without a warning."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)

    for mode in ("crop", "pad", "exact"):
        assert fitted(encoded(picture(), "PNG"), ratio="1:1", mode=mode).notes


@given(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF"]), st.data())
def test_a_damaged_image_gives_an_image_or_the_documented_error(
    form: str, data: st.DataObject
) -> None:
    """Damaged bytes give an image or the documented error."""
    damaged = bytearray(encoded(picture(40, 60), form))
    for _ in range(data.draw(st.integers(0, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged_data = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])

    try:
        result = fitted(
            damaged_data, ratio="1:1", mode="exact", limits=ImageLimits(max_pixels=100_000)
        )
    except UnusableImageError:
        return
    assert result.width == result.height or min(result.width, result.height) == 1


def test_sixteen_bit_grey_is_cut_losslessly() -> None:
    """A cropped 16-bit grey image keeps 16 bits."""
    rows = b"".join(b"\0" + struct.pack(">HHHH", 1, 40000, 50000, 65535) for _ in range(2))

    result = opened(fitted(raw_png(4, 2, 16, 0, rows), ratio="1:1", mode="crop").data)

    assert [result.getpixel((x, 0)) for x in range(2)] == [40000, 50000]


@pytest.mark.parametrize("ratio", ["1:1", "9:16"])
@pytest.mark.parametrize("wanted", ["image/png", "image/jpeg", "image/webp"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_an_image_is_delivered_in_the_requested_type(kind: str, wanted: str, ratio: str) -> None:
    """It is converted, cropped or not; an image of that type and ratio is unchanged."""
    data = encoded(picture(64, 64), kind)

    result = fitted(data, ratio=ratio, mode="crop", encoding=Encoding(wanted))

    assert sniff_mime(result.data) == result.mime_type == wanted
    assert opened(result.data).size == (result.width, result.height)
    same = wanted == f"image/{kind.lower()}"
    assert (result.data is data) == (same and ratio == "1:1")
    converted = (f"image converted from image/{kind.lower()} to {wanted}",)
    assert result.notes[int(ratio != "1:1") :] == (() if same else converted)


def test_transparency_is_kept_if_the_type_supports_it_and_becomes_white_otherwise() -> None:
    """A WebP keeps the alpha channel of a PNG; in a JPEG it becomes white."""
    data = encoded(Image.new("RGBA", (32, 32), (255, 0, 0, 0)), "PNG")

    webp = fitted(data, ratio="1:1", mode="crop", encoding=Encoding("image/webp"))
    jpeg = fitted(data, ratio="1:1", mode="crop", encoding=Encoding("image/jpeg"))

    assert opened(webp.data).convert("RGBA").getpixel((5, 5))[3] == 0  # type: ignore[index]
    assert opened(jpeg.data).getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_quality_is_that_of_images_encoded_here(kind: str) -> None:
    """An image of the type stays as it is unless it must be encoded again."""
    data, mime = encoded(noise(64, 64), kind), f"image/{kind.lower()}"
    sizes = [
        len(
            fitted(
                data, ratio="1:1", mode="crop", encoding=Encoding(mime, quality, always=True)
            ).data
        )
        for quality in (0, 50, 100)
    ]
    assert sizes == sorted(set(sizes))
    kept = fitted(data, ratio="1:1", mode="crop", encoding=Encoding(mime, 50))
    assert kept.data is data
    assert kept.notes == ()
