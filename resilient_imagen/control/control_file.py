"""Control file: orders for the processes of one machine, in a JSON file that they re-read.

A thread checks the file once a second, so a slow disk does not delay calls. The file contains
``{"orders": [...]}``, each as in ``Order.to_json``; their ends are computed by the system's clock.
The answers of the processes are in a folder beside it (see ``file_answers``).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import stat
import tempfile
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from resilient_imagen.control.file_answers import AnswerFile, answer_folder
from resilient_imagen.control.issue import trusted
from resilient_imagen.control.order import CLOCKS_DIFFER, Order
from resilient_imagen.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["NAMESPACE", "ControlFile", "FileContent", "read_orders", "write_order"]

NAMESPACE: Final = "file"
"""The namespace of signatures in control files."""
PERIOD: float = 1.0
"""Seconds between two checks of the file."""
_LARGEST: Final = 1_000_000
"""Maximum bytes of a control file."""


class FileContent(NamedTuple):
    """The content of a control file."""

    orders: list[Order]
    problems: list[str]
    """Descriptions of the parts that could not be read."""

    def complaint(self, path: Path) -> str:
        """Return a message for the operator about the first problem of the file at a path."""
        return (
            f"{path}: {self.problems[0]}; correct or delete the file: running processes keep the "
            "orders that they have read until these end, and processes that start later do not "
            "know them"
        )


def read_orders(path: Path) -> FileContent:
    """Read a control file; a file that does not exist has no orders.

    Raises:
        OSError: The file cannot be read.
    """
    try:
        kind = path.stat().st_mode
        if stat.S_ISFIFO(kind) or stat.S_ISCHR(kind):  # reading could block for ever
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
        with path.open("rb") as file:
            text = file.read(_LARGEST + 1)
    except FileNotFoundError:
        return FileContent([], [])
    if len(text) > _LARGEST:
        return FileContent([], [f"the file has more than {_LARGEST} bytes"])
    try:
        found = json.loads(text)
        entries: Any = found["orders"] if isinstance(found, dict) else None
    except (ValueError, KeyError, RecursionError):
        entries = None
    if not isinstance(entries, list):
        return FileContent([], ['the file must be JSON: {"orders": [...]}'])
    orders, problems = [], []
    for number, entry in enumerate(entries):
        try:
            orders.append(Order.from_dict(entry))
        except ConfigurationError as error:
            problems.append(f"orders[{number}]: {error}")
    return FileContent(orders, problems)


def write_order(
    path: Path, issue: Callable[[Iterable[Order], int], Order], secret: str | None = None
) -> Order:
    """Add an order to a control file, in one step for its readers.

    Orders that have ended, or are replaced, are removed. An order that is signed with another
    secret, or not signed, is never replaced: some processes may believe it.

    Args:
        path: The file; it is created if it does not exist.
        issue: Returns the order, given those in the file and the time in microseconds since 1970.
        secret: The secret with which the order is signed.

    Raises:
        OSError: The file cannot be read or written.
        ConfigurationError: The file has a part that is not an order, which would be lost.
    """
    import fcntl

    path = path.resolve()  # a symbolic link stays one, and its target is replaced
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # concurrent commands must not lose each other's orders
        found = read_orders(path)
        if found.problems:
            raise ConfigurationError(found.complaint(path))
        known = found.orders
        now = time.time_ns() // 1000
        order = issue(known, now)
        unsigned = [each for each in known if not each.signature]
        ours = unsigned if secret is None else trusted(known, secret, NAMESPACE)
        replaced = [each for each in ours if order.replaces(each)]
        kept = [each for each in known if each.ends_at > now and each not in replaced]
        text = json.dumps({"orders": [each.to_dict() for each in (*kept, order)]}, indent=1)
        _replace(path, text)
    finally:
        os.close(folder)
    return order


def _replace(path: Path, text: str) -> None:
    """Replace a file's content in one step; its permissions and, where possible, its owner stay."""
    number, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(text)
        if path.exists():
            before = path.stat()
            with contextlib.suppress(PermissionError):  # only root may give a file to another user
                os.chown(name, before.st_uid, before.st_gid)
            Path(name).chmod(before.st_mode & 0o7777)
        else:
            Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


class ControlFile:
    """Reads a control file again after each change, in a thread, and delivers its orders.

    The thread also writes the answers beside the file, for the command that gives orders.

    Args:
        path: The file.
        deliver: Called on the running event loop with orders, and the seconds until each ends.
        report: Called there afterwards; returns the fields of the answer, as `Controller.report`.
        warn: Called there with a code and a message if a file cannot be read or written.
    """

    def __init__(
        self,
        path: Path,
        deliver: Callable[[list[tuple[Order, float]]], None],
        report: Callable[[], Mapping[str, Mapping[int, str]]],
        warn: Callable[[str, str], None],
    ) -> None:
        self._path = path
        self._deliver = deliver
        self._report = report
        self._warn = warn
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = 0
        self._stop = threading.Event()
        self._seen: object = None
        """Identifies the content that was delivered to the current loop."""
        self._problems: set[str] = set()
        self._answer: tuple[int, Mapping[str, Mapping[int, str]]] = (0, {"orders": {}})
        """The highest serial that was delivered, and the report that followed."""
        self._unwritten: str | None = None
        """The cause for which answers cannot be written; reported once, when there are orders."""
        self._reported = False

    def start(self) -> None:
        """Deliver to the running loop from now on; quick, because every call does it."""
        loop = asyncio.get_running_loop()
        if self._loop is loop and self._process == os.getpid():
            return
        self._loop, self._seen = loop, None
        if self._process != os.getpid():  # on the first call, and in a forked process
            self._process, self._stop = os.getpid(), threading.Event()
            threading.Thread(
                target=_watch,
                args=(weakref.ref(self), self._stop, AnswerFile(self._path)),
                name="resilient_imagen control file",
                daemon=True,
            ).start()

    def close(self) -> None:
        """Stop the thread."""
        self._stop.set()

    def look(self) -> bool:
        """Read the file if it has changed, and deliver its content to the loop.

        Returns:
            Whether there was content to deliver, so that an answer follows.
        """
        loop = self._loop
        now = time.time_ns() // 1000
        try:
            found = self._path.stat()
            seen: object = (found.st_mtime_ns, found.st_size, found.st_ino)
        except OSError as error:
            seen = type(error)
        if seen == self._seen or loop is None:
            return False
        try:
            orders, problems = read_orders(self._path)
            if not orders and not (folder := self._path.resolve().parent).is_dir():
                problems = [f"the folder {folder} does not exist; orders are read once it does"]
        except OSError as error:
            orders, problems = [], [f"cannot be read ({type(error).__name__})"]
            seen = None  # read again: the cause may end without a change of the file
        ages = [(order, (order.ends_at - now) / 1e6) for order in orders]
        try:
            loop.call_soon_threadsafe(self._hand_over, ages, problems)
        except RuntimeError:
            return False  # the loop is closed; the next one gets the content
        if loop is self._loop:
            self._seen = seen
        return seen is not None

    def _hand_over(self, orders: list[tuple[Order, float]], problems: list[str]) -> None:
        for problem in problems:
            if problem not in self._problems:
                self._warn("control_file", f"IMAGE_GEN_CONTROL_FILE: {self._path}: {problem}")
        self._problems = set(problems)
        self._deliver(orders)
        # An order of the future is not obeyed, and must not make later orders count as read.
        read = (order.serial for order, left in orders if left <= order.ttl + CLOCKS_DIFFER)
        self._answer = max(read, default=0), self._report()
        if orders and self._unwritten is not None and not self._reported:
            self._reported = True
            self._warn("control_file", self._unwritten)

    def write_answer(self, file: AnswerFile) -> None:
        """Write the answers, if that is possible."""
        try:
            file.write(*self._answer)
            self._unwritten = None
        except (OSError, ImportError) as error:  # a folder that is read-only; no locks
            self._unwritten = (
                f"IMAGE_GEN_CONTROL_FILE: answers cannot be written to {answer_folder(self._path)} "
                f"({type(error).__name__}), so that commands cannot count this process"
            )


def _watch(file: weakref.ref[ControlFile], stop: threading.Event, answers: AnswerFile) -> None:
    """Check the file until the client is closed or no longer used."""
    while (watched := file()) is not None and not stop.is_set():
        watched.write_answer(answers)
        answer_follows = watched.look()
        del watched
        stop.wait(PERIOD / 10 if answer_follows else PERIOD)
    answers.close()
