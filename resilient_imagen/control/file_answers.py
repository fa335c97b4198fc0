"""File answers: each process that reads a control file states which of its orders it obeys.

Each client has one file in a folder beside the control file. It keeps that file locked as long as
it runs, so that a command can count the running processes, and remove the files of killed ones.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import stat
from typing import IO, TYPE_CHECKING, Final
from uuid import uuid4
from weakref import WeakSet

from resilient_imagen.distributed.order_board import WorkerReport, parse_report

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["AnswerFile", "answer_folder", "read_answers"]

_LARGEST: Final = 100_000
"""Bytes of an answer."""
_NAME: Final = re.compile(r"[\w.-]{1,60}-[0-9]+-[0-9a-f]{6}", re.ASCII)
"""The name of an answer file: host, process and a random number."""


def answer_folder(control_file: Path) -> Path:
    """Return the folder of the answers: beside the file, or beside the target of a link."""
    path = control_file.resolve()
    return path.with_name(f"{path.name}.answers")


class AnswerFile:
    """The answers of one client. Methods are called in one thread.

    Args:
        control_file: The control file.
    """

    def __init__(self, control_file: Path) -> None:
        host = re.sub(r"[^\w.-]", "-", socket.gethostname(), flags=re.ASCII)[:60]
        self._path = answer_folder(control_file) / f"{host}-{os.getpid()}-{uuid4().hex[:6]}"
        self._file: IO[bytes] | None = None
        self._written = b""
        _held.add(self)

    def write(self, known: int, report: Mapping[str, Mapping[int, str]]) -> None:
        """State the answers. Does nothing if they are as before.

        Args:
            known: The highest serial that was read.
            report: The other fields, as ``Controller.report`` returns them.

        Raises:
            OSError: The file cannot be written or locked.
        """
        if self._file is None or not os.fstat(self._file.fileno()).st_nlink:  # it was removed
            self._open()
        text = json.dumps({"known": known, **report}).encode()
        if self._file is not None and text != self._written:
            self._file.seek(0)
            self._file.write(text)
            self._file.truncate()
            self._written = text

    def _open(self) -> None:
        import fcntl

        self.leave()
        _check_folder(self._path.parent)
        self._path.parent.mkdir(exist_ok=True)
        file = self._path.open("wb", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            file.close()
            raise
        self._file, self._written = file, b""

    def leave(self) -> None:
        """Close the file without removing it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        """Remove the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # it was removed, or the folder cannot be changed
                self._path.unlink()
        self.leave()


_held: Final[WeakSet[AnswerFile]] = WeakSet()


def _leave_to_parent() -> None:
    """Close the files in a forked process, which would keep them locked after its parent's end."""
    for each in list(_held):
        each.leave()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


def _check_folder(folder: Path) -> None:
    """Refuse a link, by which the user of a process could choose where operators remove files.

    Raises:
        OSError: The folder is a symbolic link.
    """
    if folder.is_symlink():
        raise OSError(errno.ELOOP, "is a symbolic link, but must be a folder", str(folder))


def read_answers(control_file: Path) -> list[WorkerReport]:
    """Return the answers of the processes that run, and remove those of others.

    Other files in the folder are left alone.

    Raises:
        OSError: The folder cannot be read, or is a symbolic link.
    """
    folder = answer_folder(control_file)
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        _check_folder(folder)
        return []  # no process could write there
    try:
        found = os.listdir(opened)  # noqa: PTH208 - pathlib cannot list an open folder
        names = sorted(name for name in found if _NAME.fullmatch(name))
        return [report for name in names if (report := _read_answer(name, opened)) is not None]
    finally:
        os.close(opened)


def _read_answer(name: str, folder: int) -> WorkerReport | None:
    """Return the answer in a file of an open folder; None, and remove it, if its process ended."""
    import fcntl

    try:
        # A pipe would block without O_NONBLOCK.
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError:
        return None  # it has just been removed, or is another user's or a link
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return None
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.unlink(name, dir_fd=folder)
    except BlockingIOError:
        return parse_report(name, os.read(file, _LARGEST), 0.0)
    except OSError:
        return None  # it has just been removed, or the folder cannot be changed
    finally:
        os.close(file)
    return None
