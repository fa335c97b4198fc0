"""What a batch has done so far: one line a row, on the disk before anybody is told.

A picture is written under a temporary name, then its line, then it gets its name: whatever breaks
off in between, the next run finds either nothing, or a line whose picture it can put in place.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import IO, TYPE_CHECKING, Any, Final, Self

from resilient_imagen.cli.guard import CommandError, warn
from resilient_imagen.cli.pictures import write_synced

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from resilient_imagen.cli.prompts import Row

__all__ = ["DONE", "FAILED", "Journal"]

DONE: Final = "done"
FAILED: Final = "failed"
_REFUSED: Final = "content_blocked"
"""Asking the same again would only be refused, and perhaps charged, again."""

Entry = dict[str, Any]


class Journal:
    """The file results.jsonl of a directory; one run at a time may hold it.

    Args:
        folder: Where pictures and journal lie; made if missing.

    Raises:
        CommandError: On entering, when another run holds it.
        OSError: On entering, when it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "results.jsonl"
        self._entries: dict[str, Entry] = {}
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        """Read what earlier runs did, and finish what they were about to."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        try:
            _lock(self._file)
            self._read()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let go of it."""
        assert self._file is not None  # noqa: S101 - entered before
        self._file.close()

    def settled(self, row: Row) -> Entry | None:
        """The row's entry if nothing is left to do for it: its picture is there, or was refused."""
        entry = self._entries.get(row.id)
        if entry is None or entry.get("asked") != row.asked:
            return None
        if entry["status"] == DONE:
            return entry if (self.folder / entry["file"]).is_file() else None
        return entry if entry["reason"] == _REFUSED else None

    def done(self, row: Row, name: str, picture: bytes, details: Entry) -> Entry:
        """Keep a picture under this name, with its line."""
        part = self._part(name)
        write_synced(part, picture)
        told = {"status": DONE, "file": name, "sha256": _digest(picture), **details}
        entry = self._append(row, told)
        part.replace(self.folder / name)
        return entry

    def failed(self, row: Row, details: Entry) -> Entry:
        """Note why there is no picture."""
        return self._append(row, {"status": FAILED, **details})

    def _append(self, row: Row, details: Entry) -> Entry:
        assert self._file is not None  # noqa: S101 - entered before
        entry = {"id": row.id, "line": row.line, "asked": row.asked, **details}
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._entries[row.id] = entry
        return entry

    def _part(self, name: str) -> Path:
        return self.folder / f".{name}.part"

    def _read(self) -> None:
        assert self._file is not None  # noqa: S101 - entered before
        self._file.seek(0)
        content = self._file.read()
        for number, line in enumerate(content.splitlines(), start=1):
            entry = _entry(line)
            if entry is not None:
                self._entries[entry["id"]] = entry
            elif line.strip():
                warn(f"{self.path}: line {number} is damaged and left out")
        if content and not content.endswith(b"\n"):
            self._file.write(b"\n")  # the last run broke off in the middle of its line
        for entry in self._entries.values():
            if entry["status"] == DONE:
                self._put_in_place(entry)

    def _put_in_place(self, entry: Entry) -> None:
        part = self._part(entry["file"])
        if part.is_file() and _digest(part.read_bytes()) == entry.get("sha256"):
            part.replace(self.folder / entry["file"])


def _digest(picture: bytes) -> str:
    return hashlib.sha256(picture).hexdigest()


def _entry(line: bytes) -> Entry | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
        return None
    needed = {DONE: "file", FAILED: "reason"}.get(str(entry.get("status")))
    return entry if needed and isinstance(entry.get(needed), str) else None


def _lock(file: IO[bytes]) -> None:
    """Two runs at once would pay for everything twice."""
    try:
        import fcntl
    except ImportError:  # Windows; nothing there is as simple, and as surely let go of
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise CommandError(f"{file.name}: another run is at work here") from None
