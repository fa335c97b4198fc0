"""Pictures on disk: the right extension, a free name, and never half a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from resilient_imagen.cli.guard import CommandError

__all__ = ["check_target", "extension", "free_name", "misnamed", "write_whole"]

_EXTENSIONS: Final = {
    "image/png": (".png",),
    "image/jpeg": (".jpg", ".jpeg"),
    "image/webp": (".webp",),
    "image/gif": (".gif",),
    "image/avif": (".avif",),
    "image/heic": (".heic",),
}


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


def check_target(path: Path) -> None:
    """See that a picture could be written there, before one is paid for.

    Raises:
        CommandError: It could not.
    """
    folder = path.parent
    if path.is_dir():
        raise CommandError(f"{path} is a directory; -o needs a file's name")
    if not folder.is_dir():
        raise CommandError(f"{folder} is no directory; make it first")
    if not os.access(folder, os.W_OK):
        raise CommandError(f"{folder} may not be written to")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there in full or not at all, even if the power fails.

    Raises:
        OSError: It cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    write_synced(part, data)
    part.replace(path)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk.

    Raises:
        OSError: It cannot be written.
    """
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
