"""Image codec: open images within limits, orient, convert and encode them with Pillow.

This is the only module that imports Pillow, on first use. Pillow's process-wide settings belong to
the application, so they are neither changed nor used: the limit on pixels is checked here before
decoding. Decoders get no metadata except the colour profile, because Pillow's metadata parsers may
take any time and memory on hostile data, and warn about broken data. Decoders that write to the
standard error, such as the TIFF decoder, are not used.

All functions take time; call them off the event loop.
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
    "to_mode_of",
    "to_supported_mode",
]

# Only the decoder of the sniffed type is used: Pillow has dozens, and some start other programs.
_DECODERS: Final = {
    "image/png": ("PNG", "PngImagePlugin"),
    "image/jpeg": ("JPEG", "JpegImagePlugin"),
    "image/webp": ("WEBP", "WebPImagePlugin"),
    "image/gif": ("GIF", "GifImagePlugin"),
    "image/bmp": ("BMP", "BmpImagePlugin"),
    "image/avif": ("AVIF", "AvifImagePlugin"),
    # Pillow has no decoder for these types; an application may have registered one.
    "image/heic": ("HEIF", "Image"),
    "image/heif": ("HEIF", "Image"),
}
# The default level 6 takes over three times as long for 5 % smaller images.
_PNG_LEVEL: Final = 4
_WEBP_HEAD: Final = 2**16
"""First bytes of a WebP that contain its encoding, possibly after a colour profile."""
_MAX_PROFILE_BYTES: Final = 4_000_000
"""Maximum size of a colour profile; a larger one is removed."""
_PROFILE_PROGRAM: Final = b"mpet"
"""Tag of a colour profile's multi-process table, whose cost is not bounded by its size."""
_STRIP_PIXELS: Final = 2**22
_GREY: Final = frozenset(("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"))
_TURNED_SIDEWAYS: Final = frozenset((5, 6, 7, 8))


@contextmanager
def pillow_errors() -> Iterator[None]:
    """Convert every exception of a decoder on a damaged image to UnusableImageError.

    Raises:
        UnusableImageError: The block raised an exception.
    """
    try:
        yield
    except UnusableImageError:
        raise
    except Exception:  # noqa: BLE001 - decoders raise nearly anything on hostile bytes
        raise UnusableImageError("is damaged and cannot be decoded") from None


def open_picture(data: bytes, max_pixels: int) -> ImageFile:
    """Open an image whose decoding has a bounded cost; only its header is read.

    Raises:
        UnusableImageError: The data are not an image, too large, or of an unsupported type.
    """
    mime = sniff_mime(data)
    if mime is None:
        raise UnusableImageError("is not an image of a known type")
    if mime not in _DECODERS:
        raise UnusableImageError(f"is {mime}, which is not supported")
    size = pixel_size(data)
    if size is not None:  # checked before Pillow reads anything
        check_size(size, max_pixels)
    name, plugin = _DECODERS[mime]
    with pillow_errors():
        needed = decodable(data, mime, max_pixels)
        import_module(f"PIL.{plugin}")
        from PIL import Image

        decoder = Image.OPEN.get(name)
        if decoder is None:
            raise UnusableImageError(f"is {mime}, which cannot be read here")
        # Not Image.open, which warns or fails by the application's own limit on pixels.
        picture = decoder[0](io.BytesIO(needed), "")
        picture.info.setdefault("exif", exif_of(data))
        if len(picture.info.get("icc_profile") or b"") > _MAX_PROFILE_BYTES:
            del picture.info["icc_profile"]
    check_size(picture.size, max_pixels)
    return picture


def orientation(picture: Image) -> int:
    """Return the EXIF orientation, from 1 (upright) to 8, without decoding."""
    return exif_orientation(picture.info.get("exif", b""))


def shown_size(picture: Image) -> tuple[int, int]:
    """Return width and height in pixels, with the EXIF orientation applied."""
    width, height = picture.size
    return (height, width) if orientation(picture) in _TURNED_SIDEWAYS else (width, height)


def apply_exif_orientation(picture: Image) -> Image:
    """Decode an image and apply its EXIF orientation."""
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
    """Convert to L, RGB or RGBA with eight bits, whichever keeps the image's channels."""
    if picture.mode == "CMYK":
        return _from_cmyk(picture)
    clear = "transparency" in picture.info or picture.mode in {"LA", "La", "PA", "RGBa", "RGBA"}
    wanted = {"RGBA"} if clear else {"L", "RGB"}
    if picture.mode in wanted:
        return picture
    eight_bit = _scaled_to_eight_bits(picture) if picture.mode.startswith("I;16") else picture
    coloured = eight_bit.convert("RGBA" if clear else "RGB")
    if picture.mode in _GREY:
        coloured.info.pop("icc_profile", None)  # it is a profile for grey
    return coloured


def to_mode_of(picture: Image, mime: str) -> Image:
    """Convert to a mode that image/png, image/jpeg or image/webp supports.

    Transparency becomes white in a JPEG.
    """
    whole = to_supported_mode(picture)
    return _on_white(whole) if mime == "image/jpeg" and whole.mode == "RGBA" else whole


def _on_white(picture: Image) -> Image:
    from PIL import Image

    page = Image.new("RGB", picture.size, "white")
    page.paste(picture, mask=picture)
    page.info = dict(picture.info)
    return page


def reduced(picture: Image, max_pixels: int) -> Image:
    """Decode an image with its sides divided by the smallest integer that fits ``max_pixels``.

    A JPEG is never decoded at full size. For other types there is only one copy at full size.
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
    assert canvas is not None  # noqa: S101 - an image has at least one row
    return canvas


def crop(picture: Image, box: tuple[int, int, int, int]) -> Image:
    """Crop to a box of left, top, right and bottom in pixels.

    This does not use Image.crop, which warns by the application's own limit on pixels.
    """
    from PIL.Image import Resampling

    left, top, right, bottom = box
    return picture.resize((right - left, bottom - top), Resampling.NEAREST, box=box)


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """The encoding of an image, for encoding another image in the same way."""

    subsampling: int = -1
    """JPEG: chroma subsampling, in Pillow's numbering; -1 means the encoder's default."""
    tables: tuple[list[int], ...] = ()
    """JPEG: quantization tables, which define the quality; empty means the encoder's default."""
    progressive: bool = False
    """JPEG: whether it is progressive."""
    lossless: bool = False
    """WebP: whether it is lossless. A WebP does not contain its quality."""


def encoder_settings_of(picture: Image, data: bytes) -> EncoderSettings:
    """Return the encoder settings of an opened image that was read from ``data``."""
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

    The colour profile is kept; all other metadata (camera, place, signatures) are removed.

    Args:
        picture: The image, in a mode that the type supports.
        mime: The type to encode as.
        style: Encoder settings to keep from the source image.
        quality: Quality up to 100 of a JPEG without tables in ``style``, and of a lossy WebP.
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
        # Pillow's buffer for progressive JPEGs is too small for very dense images.
        return _saved(picture, form, options | {"progressive": False})


def _saved(picture: Image, form: str, options: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def _tables(picture: JpegImageFile) -> tuple[list[int], ...]:
    """Return the quantization tables of an opened JPEG; empty if they cannot be reused."""
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
    """Scale 16-bit values to 8 bits; Pillow's conversion would clip values above 255."""
    return picture.convert("I").point(lambda value: value * (1 / 256)).convert("L")


def _from_cmyk(picture: Image) -> Image:
    """Convert by the image's colour profile if it has one: the formula gives garish colours."""
    profile = picture.info.get("icc_profile")
    rgb = _through_profile(picture, profile) if profile else None
    rgb = rgb or picture.convert("RGB")
    rgb.info.pop("icc_profile", None)  # it is a profile for CMYK
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
