"""Files that are there in full or not at all, and that are known to be writable beforehand.

A new file is written under a random name beside its target and then takes the target's name, so no
other file is touched and no symbolic link is followed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from resilient_imagen.cli.command_errors import CommandError
from resilient_imagen.cli.image_files import TYPICAL, numbered

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "check_target",
    "check_writable",
    "is_device",
    "is_output",
    "naming",
    "obstacle",
    "refusing",
    "replacing",
    "write_whole",
    "writing",
]

_PROBE: Final = 2**20
"""Bytes of a small picture; there is no telling how large the real one is going to be."""
_OUTPUT: Final = frozenset({"/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"})


def check_target(path: Path, count: int = 1) -> None:
    """Check that pictures can be written there, before they are paid for.

    Args:
        path: The file; without an extension it is going to get one.
        count: Number of pictures. Further ones get numbered names beside the first.

    Raises:
        CommandError: They cannot.
    """
    with refusing(path):
        if path.is_dir():
            raise CommandError(f"{path} is a directory; -o needs a file's name")
        if not path.parent.is_dir():
            raise CommandError(f"{path.parent} is no directory; make it first")
        paths = [numbered(path, number) for number in range(1, count + 1)]
        for each in () if is_device(path) else paths:
            if in_the_way := _obstacle_at(each):
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
    with refusing(path), _temporary(path, ".part") as (file, _):
        file.write(bytes(_PROBE))
        _sync(file)


@contextlib.contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Say that the path cannot be written, where the system says so.

    Raises:
        CommandError: Instead of the OSError raised within.
    """
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


def _obstacle_at(path: Path) -> Path | None:
    """Return what is at the path, or at the path with an extension, and is no file."""
    if not path.suffix:
        return obstacle(path)
    return path if path.exists() and not path.is_file() else None


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

    A symbolic link at the path is replaced by the file, not followed; a device takes the bytes.

    Raises:
        OSError: It cannot be written; the error names the path.
    """
    with naming(path), writing(path) as file:
        file.write(data)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """Open a device, or else a new file that takes the path's place: see `replacing`.

    Raises:
        OSError: It cannot be written.
    """
    if is_device(path):
        with path.open("ab") as device:
            yield device
    else:
        with replacing(path) as file:
            yield file


@contextlib.contextmanager
def replacing(path: Path, suffix: str = ".part") -> Iterator[IO[bytes]]:
    """Open a new file that takes the path's place when the block ends without an error.

    It is on the disk in full by then. After any error, also Ctrl-C, it is removed and the path
    stays as it was.

    Args:
        path: Where it goes. A symbolic link there is replaced, not followed.
        suffix: Ends the random name that it has until then.

    Raises:
        OSError: It cannot be written.
    """
    with _temporary(path, suffix) as (file, part):
        yield file
        _sync(file)
        file.close()  # Windows renames no open file
        with naming(path):
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


@contextlib.contextmanager
def _temporary(path: Path, suffix: str) -> Iterator[tuple[IO[bytes], Path]]:
    """A new file beside the path, under a random name; it is removed unless it was renamed.

    The system gives it the mode that the umask, or the folder's default access list, asks for.
    """
    part = path.with_name(f".{secrets.token_hex(8)}{suffix}")
    ours = True
    try:
        try:
            with naming(path):
                file = part.open("xb")  # fails if anything has the name, also a link to nowhere
        except FileExistsError:
            ours = False
            raise
        with file:
            yield file, part
    finally:
        if ours:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def _sync(file: IO[bytes]) -> None:
    """Wait until it is on the disk."""
    file.flush()
    os.fsync(file.fileno())
