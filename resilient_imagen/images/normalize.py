"""Makes a reference image one that every provider takes, and leaves those alone that are.

Providers refuse what cameras and old tools write: JPEGs with several pictures in them (MPO), CMYK,
palettes, 16 bits a channel, GIF, BMP. They also overlook EXIF and see a turned photo lying down.
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
    """A picture ready to be sent."""

    data: bytes = field(repr=False)
    """Encoded; the very bytes that came in, if nothing had to be mended."""
    mime_type: str
    """image/png, image/jpeg or image/webp."""
    note: str | None
    """What was mended and what it became, or None."""


def normalize(
    data: bytes, *, max_pixels: int, max_read_pixels: int | None = None
) -> NormalizedImage:
    """Check a picture by its header and structure; decode and encode it anew only if it must be.

    A picture that is turned upright or made plain keeps its type, a JPEG its quality. Of several
    frames the first is taken. What was animated, palette or uncompressed becomes PNG; lossy types
    that providers do not take become JPEG, or PNG if they are transparent. EXIF and other metadata
    of a mended picture are gone, its colour profile is kept.

    Takes up to seconds for a large picture that has to be mended: call it off the event loop.

    Args:
        data: The encoded picture.
        max_pixels: Width times height; of a picture that has more the sides are halved, or more.
        max_read_pixels: The most it may have to be read at all; as max_pixels when None.

    Raises:
        UnusableImageError: It is no picture, too large, truncated or damaged.
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
        # Under one name, so that nothing of a step is left in memory at the next.
        if giant:
            picture = reduced(picture, max_pixels)
            trim_heap()
        picture = apply_exif_orientation(picture)
        picture = to_supported_mode(picture)
        target = _target(mime, picture, animated="animated" in flaws)
        encoded = encode(picture, target, style=style)
    return NormalizedImage(encoded, target, f"{', '.join(flaws)}: sent as {target}")


def _flaws(picture: Image, mime: str, data: bytes) -> list[str]:
    """Name everything about a picture that a provider may stumble over, from its header alone."""
    modes = _PLAIN_MODES.get(mime)
    if modes is None:
        return [mime]
    flaws = []
    if has_more_pictures(data, mime):
        flaws.append("several pictures in one JPEG" if mime == "image/jpeg" else "animated")
    elif getattr(picture, "is_animated", False):
        flaws.append("animated")
    if picture.mode not in modes:
        flaws.append(f"mode {picture.mode}")
    elif mime == "image/png" and data[_PNG_DEPTH_AT] != _PNG_PLAIN_DEPTH:
        flaws.append(f"{data[_PNG_DEPTH_AT]} bits a channel")
    if orientation(picture) != 1:
        flaws.append("turned by EXIF")
    return flaws


def _target(mime: str, mended: Image, *, animated: bool) -> str:
    if mime in _LOSSY and mended.mode != "RGBA":
        return "image/jpeg"
    return "image/webp" if mime == "image/webp" and not animated else "image/png"
