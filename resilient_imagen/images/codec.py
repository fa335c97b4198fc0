"""All that is asked of Pillow directly: opening within limits, turning, converting, encoding.

The one place that imports it, on first use. Its process-wide settings are the application's and
are neither changed nor relied on: the limit on pixels is ours, checked before anything is decoded.
Its decoders see no metadata but the colour profile: their readers of it take any time and memory
on hostile data, and warn of broken ones. Nor is any decoder run that writes to the standard error,
as the one for TIFF does.
Everything here takes time; call it off the event loop.
"""

from __future__ import annotations

import io
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from math import ceil, sqrt
from typing import TYPE_CHECKING, Any, Final

from resilient_imagen.images.decodable import decodable
from resilient_imagen.images.image_errors import UnusableImageError
from resilient_imagen.images.inspect import exif_of, exif_orientation, pixel_size, sniff_mime
from resilient_imagen.images.limits import MAX_COPIED_PIXELS, check_size
from resilient_imagen.images.worker_pool import mark_large_allocation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL.Image import Image
    from PIL.ImageFile import ImageFile
    from PIL.JpegImagePlugin import JpegImageFile

__all__ = [
    "EncoderSettings",
    "apply_exif_orientation",
    "crop",
    "encode",
    "encoder_settings_of",
    "open_picture",
    "orientation",
    "pillow_errors",
    "reduced",
    "shown_size",
    "to_supported_mode",
]

# Only the decoder of the sniffed type is ever run: Pillow has dozens, some start other programs.
_DECODERS: Final = {
    "image/png": ("PNG", "PngImagePlugin"),
    "image/jpeg": ("JPEG", "JpegImagePlugin"),
    "image/webp": ("WEBP", "WebPImagePlugin"),
    "image/gif": ("GIF", "GifImagePlugin"),
    "image/bmp": ("BMP", "BmpImagePlugin"),
    "image/avif": ("AVIF", "AvifImagePlugin"),
    # Pillow has none for these; an application may have registered one.
    "image/heic": ("HEIF", "Image"),
    "image/heif": ("HEIF", "Image"),
}
# Level 6, the usual one, takes over three times as long for pictures 5 % smaller.
_PNG_LEVEL: Final = 4
_WEBP_HEAD: Final = 2**16
"""Bytes in which a WebP names its way of encoding, behind a colour profile at most."""
_MAX_PROFILE_BYTES: Final = 4_000_000
"""Of a colour profile; a larger one is left out."""
_PROFILE_PROGRAM: Final = b"mpet"
"""Marks a table of a colour profile that may have any number of steps, each taken many times."""
_STRIP_PIXELS: Final = 2**22
_GREY: Final = frozenset(("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"))
_TURNED_SIDEWAYS: Final = frozenset((5, 6, 7, 8))


@contextmanager
def pillow_errors() -> Iterator[None]:
    """Turn whatever a decoder raises on a damaged picture into UnusableImageError.

    Raises:
        UnusableImageError: Something was raised within.
    """
    try:
        yield
    except UnusableImageError:
        raise
    except Exception:  # noqa: BLE001 - decoders raise nearly anything on hostile bytes
        raise UnusableImageError("is damaged and cannot be decoded") from None


def open_picture(data: bytes, max_pixels: int) -> ImageFile:
    """Read a picture's header; nothing is decoded yet, and decoding it has a bounded cost.

    Raises:
        UnusableImageError: It is no picture, too large, or of a type that is not read here.
    """
    mime = sniff_mime(data)
    if mime is None:
        raise UnusableImageError("is not an image of a known type")
    if mime not in _DECODERS:
        raise UnusableImageError(f"is {mime}, which is not read")
    size = pixel_size(data)
    if size is not None:  # before Pillow sees it at all
        check_size(size, max_pixels)
    name, plugin = _DECODERS[mime]
    with pillow_errors():
        needed = decodable(data, mime, max_pixels)
        import_module(f"PIL.{plugin}")
        from PIL import Image

        decoder = Image.OPEN.get(name)
        if decoder is None:
            raise UnusableImageError(f"is {mime}, which cannot be read here")
        # Not Image.open: it warns of, or refuses, sizes by the application's own limit.
        picture = decoder[0](io.BytesIO(needed), "")
        picture.info.setdefault("exif", exif_of(data))
        if len(picture.info.get("icc_profile") or b"") > _MAX_PROFILE_BYTES:
            del picture.info["icc_profile"]
    check_size(picture.size, max_pixels)
    return picture


def orientation(picture: Image) -> int:
    """Read the turn that EXIF asks for, from 1 (upright) to 8; nothing is decoded."""
    return exif_orientation(picture.info.get("exif", b""))


def shown_size(picture: Image) -> tuple[int, int]:
    """Width and height in pixels as a viewer shows it: after the turn that EXIF asks for."""
    width, height = picture.size
    return (height, width) if orientation(picture) in _TURNED_SIDEWAYS else (width, height)


def apply_exif_orientation(picture: Image) -> Image:
    """Decode and turn as EXIF asks for."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    _decode(picture)
    turn = turns.get(orientation(picture))
    return picture if turn is None else picture.transpose(turn)


def to_supported_mode(picture: Image) -> Image:
    """Convert to eight bits of L, RGB or RGBA, whichever holds all that the picture has."""
    if picture.mode == "CMYK":
        return _from_cmyk(picture)
    clear = "transparency" in picture.info or picture.mode in {"LA", "La", "PA", "RGBa", "RGBA"}
    wanted = {"RGBA"} if clear else {"L", "RGB"}
    if picture.mode in wanted:
        return picture
    eight_bit = _scaled_to_eight_bits(picture) if picture.mode.startswith("I;16") else picture
    coloured = eight_bit.convert("RGBA" if clear else "RGB")
    if picture.mode in _GREY:
        coloured.info.pop("icc_profile", None)  # it describes greys
    return coloured


def reduced(picture: Image, max_pixels: int) -> Image:
    """Decode a picture of too many pixels at half, a third ... of its sides, whichever fits.

    A JPEG is never decoded at full size. Of other types no second copy of that size is made.
    """
    from PIL import Image

    factor = ceil(sqrt(picture.width * picture.height / max_pixels))
    picture.draft(None, (picture.width // factor, picture.height // factor))
    factor = ceil(sqrt(picture.width * picture.height / max_pixels))
    _decode(picture)
    if factor == 1:
        return picture
    rows = max(factor, _STRIP_PIXELS // picture.width // factor * factor)
    canvas: Image.Image | None = None
    for top in range(0, picture.height, rows):
        box = (0, top, picture.width, min(top + rows, picture.height))
        strip = to_supported_mode(crop(picture, box)).reduce(factor)
        if canvas is None:
            canvas = Image.new(strip.mode, (strip.width, -(-picture.height // factor)))
            canvas.info = strip.info
        canvas.paste(strip, (0, top // factor))
    assert canvas is not None  # noqa: S101 - a picture has at least one row
    return canvas


def crop(picture: Image, box: tuple[int, int, int, int]) -> Image:
    """Cut out left, top, right, bottom, in pixels.

    Not Image.crop, which warns of sizes by the application's own limit.
    """
    from PIL.Image import Resampling

    left, top, right, bottom = box
    return picture.resize((right - left, bottom - top), Resampling.NEAREST, box=box)


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """How a picture is encoded, so that another one can be made alike."""

    subsampling: int = -1
    """Of a JPEG's colours, in Pillow's numbering; -1 leaves it to the encoder."""
    tables: tuple[list[int], ...] = ()
    """A JPEG's quantization, which is its quality; empty leaves it to the encoder."""
    progressive: bool = False
    """Of a JPEG."""
    lossless: bool = False
    """Of a WebP, which does not tell its quality."""


def encoder_settings_of(picture: Image, data: bytes) -> EncoderSettings:
    """Tell how an opened picture, read from ``data``, is encoded."""
    from PIL.JpegImagePlugin import JpegImageFile, get_sampling

    if isinstance(picture, JpegImageFile):
        return EncoderSettings(
            subsampling=get_sampling(picture),
            tables=_tables(picture),
            progressive="progressive" in picture.info,
        )
    return EncoderSettings(lossless=b"VP8L" in data[:_WEBP_HEAD])


def encode(
    picture: Image, mime: str, *, style: EncoderSettings | None = None, quality: int = 95
) -> bytes:
    """Encode as image/png, image/jpeg or image/webp.

    The colour profile is kept, all other metadata (camera, place, signatures) is not.

    Args:
        picture: What to encode, in a mode that the type knows.
        mime: The type to encode as.
        style: The details to keep of the picture's source.
        quality: For JPEG without tables of its own, and lossy WebP; up to 100.
    """
    style = style or EncoderSettings()
    options: dict[str, Any] = {"icc_profile": picture.info.get("icc_profile")}
    if mime == "image/jpeg":
        options |= {"qtables": list(style.tables)} if style.tables else {"quality": quality}
        options |= {"subsampling": style.subsampling, "progressive": style.progressive}
    elif mime == "image/webp":
        options |= {"quality": quality, "lossless": style.lossless}
    else:
        options |= {"compress_level": _PNG_LEVEL}
    form = mime.removeprefix("image/")
    try:
        return _saved(picture, form, options)
    except OSError:
        if not options.get("progressive"):
            raise
        # Pillow's buffer for these is too small for a very dense one.
        return _saved(picture, form, options | {"progressive": False})


def _saved(picture: Image, form: str, options: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def _tables(picture: JpegImageFile) -> tuple[list[int], ...]:
    """The quantization of an opened JPEG; empty if it is not one that can be written again."""
    found = [list(picture.quantization[key]) for key in sorted(picture.quantization)]
    coefficients = 64
    whole = all(len(table) == coefficients for table in found)
    return tuple(found) if whole and picture.mode in {"L", "RGB"} else ()


def _decode(picture: Image) -> None:
    if picture.format in {"WEBP", "AVIF"}:
        check_size(picture.size, MAX_COPIED_PIXELS)
    mark_large_allocation()
    picture.load()


def _scaled_to_eight_bits(picture: Image) -> Image:
    """Pillow's own conversion would cut off what is over 255."""
    return picture.convert("I").point(lambda value: value * (1 / 256)).convert("L")


def _from_cmyk(picture: Image) -> Image:
    """By the picture's own profile if it has one: the plain formula gives garish colours."""
    profile = picture.info.get("icc_profile")
    rgb = _through_profile(picture, profile) if profile else None
    rgb = rgb or picture.convert("RGB")
    rgb.info.pop("icc_profile", None)  # it describes CMYK
    return rgb


def _through_profile(picture: Image, profile: bytes) -> Image | None:
    from PIL import ImageCms

    if _PROFILE_PROGRAM in profile:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        srgb = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(picture, source, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):  # a broken profile
        return None
