"""Pictures as files: the right extension, a free name, and the type that a name asks for."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from resilient_imagen.images.faults import UnusableImageError
from resilient_imagen.images.limits import ImageLimits
from resilient_imagen.images.offload import off_loop

if TYPE_CHECKING:
    from PIL.Image import Image

    from resilient_imagen import ImageResult

__all__ = ["TYPICAL", "as_named", "extension", "free_name", "misnamed"]

_EXTENSIONS: Final = {
    "image/png": (".png",),
    "image/jpeg": (".jpg", ".jpeg"),
    "image/webp": (".webp",),
    "image/gif": (".gif",),
    "image/avif": (".avif",),
    "image/heic": (".heic",),
}
TYPICAL: Final = (".jpg", ".png", ".webp")
"""Extensions of what vendors deliver."""
_MADE: Final = ("image/png", "image/jpeg", "image/webp")
"""Types that a picture can be converted to."""


def extension(mime_type: str) -> str:
    """The usual extension of a type, with its dot."""
    return _EXTENSIONS.get(mime_type, (".img",))[0]


def misnamed(path: Path, mime_type: str) -> bool:
    """Whether the path's extension promises another type."""
    return path.suffix.lower() not in _EXTENSIONS.get(mime_type, (path.suffix.lower(),))


def free_name(stem: Path, suffix: str) -> Path:
    """``stem`` with the suffix, or with -2, -3 ... before it where that is taken."""
    path, number = stem.with_name(stem.name + suffix), 1
    while path.exists():
        number += 1
        path = stem.with_name(f"{stem.name}-{number}{suffix}")
    return path


async def as_named(result: ImageResult, path: Path) -> ImageResult:
    """The result in the type that the path's extension names, with a note if that took converting.

    It comes back as it is if the extension names no type that can be made, or if it cannot be
    converted: it is paid for, and better misnamed than lost.
    """
    wanted = next((mime for mime in _MADE if path.suffix.lower() in _EXTENSIONS[mime]), None)
    if wanted is None or wanted == result.mime_type:
        return result
    try:
        data = await off_loop(partial(_converted, result.image_bytes, wanted))
    except UnusableImageError:
        return result
    note = f"converted from {result.mime_type} to {wanted}, as its name asks"
    notes = (*result.adjustments, note)
    return replace(result, image_bytes=data, mime_type=wanted, adjustments=notes)


def _converted(data: bytes, mime: str) -> bytes:
    from resilient_imagen.images import pillow

    picture = pillow.open_picture(data, ImageLimits().max_pixels)
    with pillow.pillow_errors():
        whole = pillow.plain(pillow.upright(picture))
        if mime == "image/jpeg" and whole.mode == "RGBA":
            whole = _on_white(whole)
        return pillow.encode(whole, mime, style=pillow.Style(subsampling=0))


def _on_white(picture: Image) -> Image:
    """A JPEG knows no transparency."""
    from PIL import Image

    page = Image.new("RGB", picture.size, "white")
    page.paste(picture, mask=picture)
    page.info = dict(picture.info)
    return page
