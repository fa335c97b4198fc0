"""Pictures as files: the right extension, a free name, and the type that a name asks for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from resilient_imagen.images import convert
from resilient_imagen.images.convert import EXTENSIONS, extension, numbered
from resilient_imagen.images.inspect import sniff_mime
from resilient_imagen.images.worker_pool import off_loop

if TYPE_CHECKING:
    from pathlib import Path

    from resilient_imagen import ImageResult

__all__ = [
    "TYPICAL",
    "as_named",
    "extension",
    "free_name",
    "misnamed",
    "numbered",
]

TYPICAL: Final = (".jpg", ".png", ".webp")
"""Extensions of what vendors deliver."""


def misnamed(path: Path, mime_type: str) -> bool:
    """Whether the path's extension promises another type."""
    return path.suffix.lower() not in EXTENSIONS.get(mime_type, (path.suffix.lower(),))


def free_name(stem: Path, suffix: str) -> Path:
    """``stem`` with the suffix, or with -2, -3 ... before it where that is taken."""
    path, number = stem.with_name(stem.name + suffix), 1
    while path.exists():
        number += 1
        path = stem.with_name(f"{stem.name}-{number}{suffix}")
    return path


async def as_named(result: ImageResult, path: Path) -> ImageResult:
    """Return the result in the type that the path's extension names, with a note on a conversion.

    Images stay as they are if the extension names no type that can be made, or if they cannot be
    converted.
    """
    before = result.mime_type
    data, mime = await off_loop(convert.as_named, result.image_bytes, before, path)
    more = [
        (await off_loop(convert.as_named, each, sniff_mime(each) or before, path))[0]
        for each in result.more_images
    ]
    if mime == before and tuple(more) == result.more_images:
        return result
    notes = result.adjustments
    if mime != before:
        notes = (*notes, f"converted from {before} to {mime}, as its name asks")
    return replace(
        result, image_bytes=data, mime_type=mime, adjustments=notes, more_images=tuple(more)
    )
