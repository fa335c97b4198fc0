"""Files that commands write: written completely or not at all, and checked beforehand.

A file is written under a random name beside its path and then renamed, so that no other file is
touched and no symbolic link is followed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from typing import IO, TYPE_CHECKING, Final

from resilient_imagen.cli.command_errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = [
    "check_target",
    "check_writable",
    "is_device",
    "is_output",
    "remove_abandoned",
    "write_whole",
    "writing",
]

_PROBE: Final = 2**20
"""Bytes of a small image; the size of the real one is not known beforehand."""
_PART: Final = ".part"
_ABANDONED_AFTER: Final = 60.0
"""Seconds without a write after which a temporary file is certain to be of a killed process."""
_OUTPUT: Final = frozenset({"/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"})


def check_target(option: str, path: Path) -> None:
    """Check that a file can be written, before it is paid for or computed.

    Args:
        option: The option that names the path, for messages.
        path: The file.

    Raises:
        CommandError: It cannot be written.
    """
    try:
        if path.is_dir():
            raise CommandError(f"{option} {path} is a directory; name a file")
        if not path.parent.is_dir():
            raise CommandError(f"{option}: {path.parent} is not a directory; create it first")
    except OSError as error:  # such as a name that is too long
        raise CommandError(f"{path} cannot be written: {error.strerror}") from None
    if not is_device(path):
        check_writable(path)
    elif not os.access(path, os.W_OK):
        raise CommandError(f"{option}: no permission to write to {path}")


def check_writable(path: Path) -> None:
    """Write a small file beside the path and remove it again.

    Raises:
        CommandError: It cannot be written.
    """
    try:
        with _temporary(path) as (file, _):
            file.write(bytes(_PROBE))
            _sync(file)
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}") from None


def is_device(path: Path) -> bool:
    """Return whether the path is a device, a pipe or the standard output, also if that is a file.

    Bytes are appended to it; it is not replaced.
    """
    if path.is_file():
        return is_output(path) or (path.is_symlink() and path.is_relative_to("/dev"))
    return path.exists() or is_output(path)


def is_output(path: Path) -> bool:
    """Return whether the path is the standard output, to which nothing else may be written then."""
    return str(path) in _OUTPUT


def write_whole(path: Path, data: bytes) -> None:
    """Write a file: see ``writing``."""
    with writing(path) as file:
        file.write(data)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that replaces the one at the path when the block ends without an error.

    It is on the disk in full by then. After any error, Ctrl-C included, the path is unchanged. A
    symbolic link is replaced, not followed. A device takes the bytes as they are written.

    Raises:
        OSError: It cannot be written; the error names the path.
    """
    try:
        if is_device(path):
            with path.open("ab") as device:
                yield device
        else:
            with _temporary(path) as (file, part):
                yield file
                _sync(file)
                file.close()  # Windows renames no open file
                part.replace(path)
    except OSError as error:
        if error.filename is not None and not str(error.filename).endswith(_PART):
            raise  # of another file, which the block reads
        raise OSError(error.errno, error.strerror, str(path)) from None


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[tuple[IO[bytes], Path]]:
    """Open a new file beside the path, which is removed unless it is renamed."""
    part = path.with_name(f".{secrets.token_hex(8)}{_PART}")
    file = part.open("xb")  # fails at any existing file or link
    try:
        yield file, part
    finally:
        with contextlib.suppress(OSError):
            file.close()
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def remove_abandoned(folder: Path) -> None:
    """Remove temporary files that killed processes left in a directory.

    Raises:
        OSError: The directory cannot be read, or a file cannot be removed.
    """
    for path in folder.glob(f".{'[0-9a-f]' * 16}{_PART}"):
        with contextlib.suppress(FileNotFoundError):  # renamed by the process that writes it
            if time.time() - path.lstat().st_mtime > _ABANDONED_AFTER:
                path.unlink()


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
