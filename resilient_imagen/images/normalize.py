"""Reference normalization: convert images to a form that every provider accepts.

Providers reject some formats of cameras and old tools: JPEGs with several images (MPO), CMYK,
palettes, 16 bits a channel, GIF, BMP. They also ignore the EXIF orientation. An image that needs no
conversion is not changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from resilient_imagen.images.codec import (
    apply_exif_orientation,
    encode,
    encoder_settings_of,
    open_picture,
    orientation,
    pillow_errors,
    reduced,
    to_supported_mode,
)
from resilient_imagen.images.completeness import is_intact
from resilient_imagen.images.decodable import has_more_pictures
from resilient_imagen.images.image_errors import UnusableImageError
from resilient_imagen.images.inspect import sniff_mime
from resilient_imagen.images.worker_pool import trim_heap

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["NormalizedImage", "normalize"]

_PLAIN_MODES: Final = {
    "image/png": frozenset(("L", "RGB", "RGBA")),
    "image/jpeg": frozenset(("L", "RGB")),
    "image/webp": frozenset(("RGB", "RGBA")),
}
_LOSSY: Final = frozenset(("image/jpeg", "image/heic", "image/heif", "image/avif"))
_PNG_DEPTH_AT: Final = 24
_PNG_PLAIN_DEPTH: Final = 8


@dataclass(frozen=True, slots=True)
class NormalizedImage:
    """An image ready to be sent."""

    data: bytes = field(repr=False)
    """The encoded image; the same object as the input if no change was necessary."""
    mime_type: str
    """image/png, image/jpeg or image/webp."""
    note: str | None
    """The cause of a conversion and the new type, or None."""


def normalize(
    data: bytes, *, max_pixels: int, max_read_pixels: int | None = None
) -> NormalizedImage:
    """Check an image by its header and structure, and convert it only if necessary.

    An image that is oriented or converted to another mode keeps its type, and a JPEG its quality.
    Of several frames the first is used. Animated, palette and uncompressed images become PNG; lossy
    types that providers do not support become JPEG, or PNG if they are transparent. A converted
    image keeps its colour profile and loses EXIF and other metadata.

    Converting a large image takes up to seconds: call it off the event loop.

    Args:
        data: The encoded image.
        max_pixels: Maximum of width times height; the sides of a larger image are reduced.
        max_read_pixels: Maximum of width times height to read; None means max_pixels.

    Raises:
        UnusableImageError: The data are not an image, too large, truncated or damaged.
    """
    mime = sniff_mime(data)
    if mime is None:
        raise UnusableImageError("is not an image of a known type")
    if not is_intact(data):
        raise UnusableImageError("is truncated or damaged")
    picture: Image = open_picture(data, max_read_pixels or max_pixels)
    giant = picture.width * picture.height > max_pixels
    with pillow_errors():
        flaws = _flaws(picture, mime, data)
        if giant:
            flaws.append(f"more than {max_pixels / 1e6:g} megapixels")
        if not flaws:
            return NormalizedImage(data, mime, None)
        style = encoder_settings_of(picture, data)
        # One variable for all steps, so that each step's input is freed.
        if giant:
            picture = reduced(picture, max_pixels)
            trim_heap()
        picture = apply_exif_orientation(picture)
        picture = to_supported_mode(picture)
        target = _target(mime, picture, animated="animated" in flaws)
        encoded = encode(picture, target, style=style)
    return NormalizedImage(encoded, target, f"{', '.join(flaws)}: sent as {target}")


def _flaws(picture: Image, mime: str, data: bytes) -> list[str]:
    """Return the properties of an image that a provider may reject, by its header."""
    modes = _PLAIN_MODES.get(mime)
    if modes is None:
        return [mime]
    flaws = []
    if has_more_pictures(data, mime):
        flaws.append("several images in one JPEG" if mime == "image/jpeg" else "animated")
    elif getattr(picture, "is_animated", False):
        flaws.append("animated")
    if picture.mode not in modes:
        flaws.append(f"mode {picture.mode}")
    elif mime == "image/png" and data[_PNG_DEPTH_AT] != _PNG_PLAIN_DEPTH:
        flaws.append(f"{data[_PNG_DEPTH_AT]} bits a channel")
    if orientation(picture) != 1:
        flaws.append("turned by EXIF")
    return flaws


def _target(mime: str, picture: Image, *, animated: bool) -> str:
    if mime in _LOSSY and picture.mode != "RGBA":
        return "image/jpeg"
    return "image/webp" if mime == "image/webp" and not animated else "image/png"
