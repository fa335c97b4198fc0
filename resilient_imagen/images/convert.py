"""Converts a picture to the type that a file's name asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from resilient_imagen.images.codec import (
    EncoderSettings,
    apply_exif_orientation,
    encode,
    open_picture,
    pillow_errors,
    to_supported_mode,
)
from resilient_imagen.images.image_errors import UnusableImageError
from resilient_imagen.images.limits import ImageLimits

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

__all__ = ["EXTENSIONS", "as_named", "extension"]

EXTENSIONS: Final[dict[str, tuple[str, ...]]] = {
    "image/png": (".png",),
    "image/jpeg": (".jpg", ".jpeg"),
    "image/webp": (".webp",),
    "image/gif": (".gif",),
    "image/avif": (".avif",),
    "image/heic": (".heic",),
}
"""Of files of each type, the usual one first."""
_MADE: Final = ("image/png", "image/jpeg", "image/webp")
"""Types that a picture can be converted to."""


def extension(mime_type: str) -> str:
    """Return the usual extension of a type, with its dot."""
    return EXTENSIONS.get(mime_type, (".img",))[0]


def as_named(data: bytes, mime_type: str, path: Path) -> tuple[bytes, str]:
    """Return the picture, and its type, as the path's extension asks for: png, jpg, jpeg or webp.

    It comes back as it is if the extension names another type or none, or if it cannot be
    converted: it is paid for, and better misnamed than lost. What is transparent becomes white in
    a JPEG. Takes up to seconds for a large picture: call it off the event loop.
    """
    suffix = path.suffix.lower()
    wanted = next((mime for mime in _MADE if suffix in EXTENSIONS[mime]), mime_type)
    if wanted == mime_type:
        return data, mime_type
    try:
        return _converted(data, wanted), wanted
    except UnusableImageError:
        return data, mime_type


def _converted(data: bytes, mime: str) -> bytes:
    picture = open_picture(data, ImageLimits().max_pixels)
    with pillow_errors():
        whole = to_supported_mode(apply_exif_orientation(picture))
        if mime == "image/jpeg" and whole.mode == "RGBA":
            whole = _on_white(whole)
        return encode(whole, mime, style=EncoderSettings(subsampling=0))


def _on_white(picture: Image) -> Image:
    """A JPEG knows no transparency."""
    from PIL import Image

    page = Image.new("RGB", picture.size, "white")
    page.paste(picture, mask=picture)
    page.info = dict(picture.info)
    return page
