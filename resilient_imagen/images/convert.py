"""Image conversion: to the type of a file's extension, or to a Pillow image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from resilient_imagen.images.codec import (
    EncoderSettings,
    apply_exif_orientation,
    encode,
    open_picture,
    pillow_errors,
    to_mode_of,
)
from resilient_imagen.images.image_errors import UnusableImageError
from resilient_imagen.images.limits import MAX_SIDE, ImageLimits

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from PIL.Image import Image

__all__ = [
    "EXTENSIONS",
    "WRITABLE",
    "as_named",
    "as_type",
    "decoded",
    "extension",
    "numbered",
    "path_for",
    "side_by_side",
]

EXTENSIONS: Final[dict[str, tuple[str, ...]]] = {
    "image/png": (".png",),
    "image/jpeg": (".jpg", ".jpeg"),
    "image/webp": (".webp",),
    "image/gif": (".gif",),
    "image/avif": (".avif",),
    "image/heic": (".heic",),
}
"""File extensions of each type, the usual one first."""
_MADE: Final = ("image/png", "image/jpeg", "image/webp")
"""Types that an image can be converted to."""
WRITABLE: Final = tuple(suffix for mime in _MADE for suffix in EXTENSIONS[mime])
"""Extensions of those types."""


def extension(mime_type: str) -> str:
    """Return the usual extension of a type, with its dot."""
    return EXTENSIONS.get(mime_type, (".img",))[0]


def path_for(path: Path, mime_type: str) -> Path:
    """Return the path for an image of this type; a path without an extension gets one.

    Raises:
        ValueError: The image neither has nor can be converted to the extension's type.
    """
    if not path.suffix:
        return path.with_name(path.name + extension(mime_type))
    if path.suffix.lower() not in {*WRITABLE, *EXTENSIONS.get(mime_type, (".img",))}:
        raise ValueError(
            f"cannot save an {mime_type} as {path.name!r}: the extension {path.suffix} is not "
            f"supported; use {', '.join(WRITABLE)}, or none"
        )
    return path


def numbered(path: Path, number: int) -> Path:
    """Return the path of one of several images: ``fox.png`` for 1, ``fox-2.png`` for 2."""
    return path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")


def as_named(data: bytes, mime_type: str, path: Path) -> tuple[bytes, str]:
    """Return the image and its type, converted to the type of the extension png, jp(e)g or webp.

    With another extension, or none, the image is returned unchanged; see also ``as_type``.
    """
    suffix = path.suffix.lower()
    wanted = next((mime for mime in _MADE if suffix in EXTENSIONS[mime]), mime_type)
    return as_type(data, mime_type, wanted)


def as_type(data: bytes, mime_type: str, wanted: str) -> tuple[bytes, str]:
    """Return the image and its type, converted to image/png, image/jpeg or image/webp.

    An image that cannot be converted is returned unchanged, because it is already paid for.
    Transparency becomes white in a JPEG. Takes up to seconds for a large image: call it off the
    event loop.
    """
    if wanted == mime_type:
        return data, mime_type
    try:
        return _converted(data, wanted), wanted
    except UnusableImageError:
        return data, mime_type


def decoded(data: bytes) -> Image:
    """Decode an image and apply its EXIF orientation.

    Takes up to seconds: call it off the event loop.

    Raises:
        UnusableImageError: The image is damaged, too large, or of an unsupported type.
    """
    picture = open_picture(data, ImageLimits().max_pixels)
    with pillow_errors():
        upright = apply_exif_orientation(picture)
    upright.info.pop("exif", None)  # its orientation would be applied again
    return upright


def side_by_side(images: Sequence[bytes]) -> bytes:
    """Return one PNG that shows the images from left to right, all as high as the lowest.

    Takes up to seconds: call it off the event loop.

    Raises:
        UnusableImageError: An image is damaged, too large, or of an unsupported type.
    """
    from PIL import Image

    pictures = [to_mode_of(decoded(data), "image/png").convert("RGBA") for data in images]
    height = min(picture.height for picture in pictures)
    for picture in pictures:
        picture.thumbnail((MAX_SIDE, height))
    page = Image.new("RGBA", (sum(picture.width for picture in pictures), height))
    left = 0
    for picture in pictures:
        page.paste(picture, (left, 0))
        left += picture.width
    return encode(page, "image/png")


def _converted(data: bytes, mime: str) -> bytes:
    picture = decoded(data)
    with pillow_errors():
        return encode(to_mode_of(picture, mime), mime, style=EncoderSettings(subsampling=0))
