"""What a batch has done so far: one line a row, on the disk before anybody is told.

A picture is written under a temporary name that says which row it is of, then its line, then it
gets its own name: whatever breaks off in between, the next run finds nothing, or a whole picture
that it can put in place.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Self

from resilient_imagen.cli.files import check_writable, digest_of, naming, obstacle, write_synced
from resilient_imagen.cli.guard import CommandError, warn

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from resilient_imagen.cli.prompts import Row

__all__ = ["DONE", "FAILED", "Entry", "Journal", "unsaved"]

DONE: Final = "done"
FAILED: Final = "failed"
_REFUSED: Final = "content_blocked"
"""Asking the same again would only be refused, and perhaps charged, again."""
_NOT_SAVED: Final = "not_saved"
"""Beside the library's reasons: there is, or was to be, a picture, and no place for it."""
_PART: Final = re.compile(r"\.(.+)\.([0-9a-f]{16})\.([0-9a-f]{64})(\.\w+)\.part")
"""Of a picture: its row's id and fingerprint, its digest, its extension."""

Entry = dict[str, Any]


def unsaved(row: Row, why: str) -> Entry:
    """What is told of a row whose picture has no place; not written down, so it is tried again."""
    return {"id": row.id, "line": row.line, "status": FAILED, "reason": _NOT_SAVED, "error": why}


class Journal:
    """The file results.jsonl of a directory; one run at a time may hold it.

    Args:
        folder: Where pictures and journal lie; made if missing.

    Raises:
        CommandError: On entering, when another run holds it, or nothing can be written there.
        OSError: On entering, when it cannot be read or made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "results.jsonl"
        self._entries: dict[str, Entry] = {}
        self._parts: dict[tuple[str, str], Path] = {}
        """Whole pictures without their names, by their row's id and fingerprint."""
        self._file: io.FileIO | None = None

    def __enter__(self) -> Self:
        """Read what earlier runs did."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = io.FileIO(self.path, "a+")
        try:
            _lock(self._file, self.path)
            check_writable(self.path)
            self._read()
            self._find_parts()
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
        """The row's entry if there is nothing to ask for: it is done, was refused, or has no place.

        A picture that a crash left without its name gets it.

        Raises:
            OSError: Something cannot be read or written.
        """
        entry = self._entries.get(row.id, {})
        if entry.get("asked") != row.asked:
            entry = {}
        current = {**entry, "line": row.line}
        if entry.get("status") == DONE and self._is_there(entry):
            return current
        if part := self._parts.pop((row.id, row.asked), None):
            return self._adopt(row, part, current)
        if entry.get("reason") == _REFUSED:
            return current
        in_the_way = obstacle(self.folder / row.id)
        return unsaved(row, f"{in_the_way} is in the way: it is no file") if in_the_way else None

    def done(self, row: Row, suffix: str, picture: bytes, details: Entry) -> Entry:
        """Keep a picture, with its line.

        Args:
            row: What it is of.
            suffix: Its type's extension, with the dot.
            picture: The encoded picture.
            details: For its line.

        Raises:
            OSError: It cannot be written; the error names the picture.
        """
        name, digest = row.id + suffix, hashlib.sha256(picture).hexdigest()
        part = self.folder / f".{row.id}.{row.asked}.{digest}{suffix}.part"
        told = {"status": DONE, "file": name, "sha256": digest, **details}
        with naming(self.folder / name):
            write_synced(part, picture)
            entry = self._append(row, told)
        return self._name(row, part, entry)

    def failed(self, row: Row, details: Entry) -> Entry:
        """Note why there is no picture.

        Raises:
            OSError: It cannot be written.
        """
        with naming(self.path):
            return self._append(row, {"status": FAILED, **details})

    def _is_there(self, entry: Entry) -> bool:
        path = self.folder / entry["file"]
        if not path.is_file():
            return False
        if digest_of(path) == entry.get("sha256"):
            return True
        warn(f"{path} is not the picture that was kept; it is made again")
        return False

    def _adopt(self, row: Row, part: Path, entry: Entry) -> Entry:
        _, _, digest, suffix = _parsed(part)
        if entry.get("sha256") != digest:
            told = {"status": DONE, "file": row.id + suffix, "sha256": digest, "adopted": True}
            with naming(self.path):
                entry = self._append(row, told)
        return self._name(row, part, entry)

    def _name(self, row: Row, part: Path, entry: Entry) -> Entry:
        """Give a picture its name; the rest goes on if something is in the way."""
        path = self.folder / entry["file"]
        try:
            part.replace(path)
        except OSError as error:
            return unsaved(row, f"{path} cannot be written: {error.strerror}; it is kept in {part}")
        return entry

    def _append(self, row: Row, details: Entry) -> Entry:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        entry = {"id": row.id, "line": row.line, "asked": row.asked, **details, "at": at}
        self._write(json.dumps(entry).encode() + b"\n")
        self._entries[row.id] = entry
        return entry

    def _write(self, line: bytes) -> None:
        """All of it, or nothing: the next line must not hang on to half of this one."""
        assert self._file is not None  # noqa: S101 - entered before
        file = self._file.fileno()
        before = os.fstat(file).st_size
        try:
            while line:
                line = line[os.write(file, line) :]
            os.fsync(file)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(file, before)
            raise

    def _read(self) -> None:
        assert self._file is not None  # noqa: S101 - entered before
        self._file.seek(0)
        content = self._file.readall()
        for number, line in enumerate(content.splitlines(), start=1):
            entry = _entry(line)
            if entry is not None:
                self._entries[entry["id"]] = entry
            elif line.strip():
                warn(f"{self.path}: line {number} is damaged and left out")
        if content and not content.endswith(b"\n"):
            self._write(b"\n")  # the last run broke off in the middle of its line

    def _find_parts(self) -> None:
        for path in self.folder.iterdir():
            if not _PART.fullmatch(path.name):
                continue
            name, asked, digest, _ = _parsed(path)
            if digest_of(path) == digest:
                self._parts[name, asked] = path
            else:
                path.unlink()  # half a picture


def _parsed(part: Path) -> tuple[str, ...]:
    found = _PART.fullmatch(part.name)
    assert found is not None  # noqa: S101 - only such names are kept
    return found.groups()


def _entry(line: bytes) -> Entry | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
        return None
    needed = {DONE: "file", FAILED: "reason"}.get(str(entry.get("status")))
    return entry if needed and isinstance(entry.get(needed), str) else None


def _lock(file: io.FileIO, path: Path) -> None:
    """Two runs at once would pay for everything twice."""
    try:
        import fcntl
    except ImportError:  # Windows; nothing there is as simple, and as surely let go of
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise CommandError(f"{path}: another run is at work here") from None
