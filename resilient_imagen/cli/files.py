"""Files that are there in full or not at all, and that are known to be writable beforehand."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from resilient_imagen.cli.guard import CommandError
from resilient_imagen.cli.pictures import TYPICAL

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "check_target",
    "check_writable",
    "digest_of",
    "is_device",
    "is_output",
    "naming",
    "obstacle",
    "write_synced",
    "write_whole",
]

_PROBE: Final = 2**20
"""Bytes of a small picture; there is no telling how large the real one is going to be."""
_OUTPUT: Final = frozenset({"/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"})


def check_target(path: Path) -> None:
    """See that a picture can be written there, before one is paid for.

    Args:
        path: The file; without an extension it is going to get one.

    Raises:
        CommandError: It cannot.
    """
    with _refusing(path):
        if path.is_dir():
            raise CommandError(f"{path} is a directory; -o needs a file's name")
        if not path.parent.is_dir():
            raise CommandError(f"{path.parent} is no directory; make it first")
        if not path.suffix and (in_the_way := obstacle(path)):
            raise CommandError(f"{in_the_way} is in the way: it is no file")
    if not is_device(path):
        check_writable(path)
    elif not os.access(path, os.W_OK):
        raise CommandError(f"{path} may not be written to")


def check_writable(path: Path) -> None:
    """Write a little beside where the file is going to be, and take it away again.

    Raises:
        CommandError: That did not work.
    """
    part = _part(path)
    with _refusing(path):
        write_synced(part, bytes(_PROBE))
        part.unlink()


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}") from None


def obstacle(stem: Path) -> Path | None:
    """What stands where a picture of that name may have to go, and is no file; None if nothing."""
    for suffix in TYPICAL:
        path = stem.with_name(stem.name + suffix)
        if path.exists() and not path.is_file():
            return path
    return None


def is_device(path: Path) -> bool:
    """Whether it is there and takes bytes as they come: /dev/null, a pipe, the standard output."""
    if is_output(path):
        return True
    if path.is_file():  # led into a file, a stream is still none that may be replaced
        return path.is_symlink() and path.is_relative_to("/dev")
    return path.exists()


def is_output(path: Path) -> bool:
    """Whether it is this process' standard output, where nothing else may then be said."""
    return str(path) in _OUTPUT


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there in full or not at all, even if the power fails.

    Raises:
        OSError: It cannot be written.
    """
    with naming(path):
        if is_device(path):
            with path.open("ab") as device:
                device.write(data)
            return
        part = _part(path)
        write_synced(part, data)
        part.replace(path)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have errors name this file: writing names none, and a temporary one says little.

    Raises:
        OSError: The one raised within.
    """
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk; nothing is left of one that cannot be.

    Raises:
        OSError: It cannot be written.
    """
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def digest_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")
