"""The journal of a batch: one line for each row, written to disk before the row is reported.

A picture is written under a temporary name that says which row it is of, then its line, then it
gets its own name: whatever breaks off in between, the next run finds nothing, or a whole picture
that it can put in place.

The directory may come from somebody else. A line is believed only as far as it names the row's own
picture, no symbolic link in the directory is followed, and nothing outside is read or written.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import unicodedata
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any, Final, Self

from resilient_imagen.cli.command_errors import CommandError, warn
from resilient_imagen.cli.image_files import KNOWN_EXTENSIONS
from resilient_imagen.cli.output_files import (
    check_writable,
    naming,
    obstacle,
    open_regular,
    refusing,
    replacing,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from resilient_imagen.cli.prompts import PromptRow

__all__ = ["DONE", "FAILED", "Entry", "Journal", "unsaved"]

DONE: Final = "done"
FAILED: Final = "failed"
_REFUSED: Final = "content_blocked"
"""Asking the same again would only be refused, and perhaps charged, again."""
_NOT_SAVED: Final = "not_saved"
"""Beside the library's reasons: there is, or was to be, a picture, and no place for it."""
_PART: Final = re.compile(r"\.(.+)\.([0-9a-f]{16})\.([0-9a-f]{64})(\.\w+)\.part")
"""Of a picture: its row's id and fingerprint, its digest, its extension."""
_UNFINISHED: Final = ".picture.part"
"""Ends the name of a picture while it is written, by the holder of the journal's lock only."""
_ABANDONED: Final = re.compile(r"\.[0-9a-f]{16}\.picture\.part")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_MAX_LINE: Final = 1_000_000
"""Bytes of a line; ours take some thousands."""
_TOO_DEAR: Final = 1_000_000
"""Dollars that no picture costs."""
_WARNINGS: Final = 5
"""Damaged lines named one by one."""

Entry = dict[str, Any]


def unsaved(row: PromptRow, why: str) -> Entry:
    """Report a row whose image cannot be placed; it is not recorded, so it is tried again."""
    return {"id": row.id, "line": row.line, "status": FAILED, "reason": _NOT_SAVED, "error": why}


class Journal:
    """The file results.jsonl of a directory; one run at a time may hold it.

    Args:
        folder: Where pictures and journal lie; made if missing.

    Raises:
        CommandError: On entering, when another run holds it, or nothing can be written there.
        OSError: On entering, when it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path: Path = folder / "results.jsonl"
        self._entries: dict[str, Entry] = {}
        self._parts: dict[tuple[str, str], Path] = {}
        """Whole pictures without their names, by their row's id and fingerprint."""
        self._file: io.FileIO | None = None

    def __enter__(self) -> Self:
        """Read what earlier runs did."""
        if self.folder.exists() and not self.folder.is_dir():
            raise CommandError(f"{self.folder} is no directory; --from needs one for the images")
        with refusing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with refusing(self.path):
            self._file = open_regular(self.path, "a+")
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

    def settled(self, row: PromptRow) -> Entry | None:
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

    def done(
        self,
        row: PromptRow,
        suffix: str,
        picture: bytes,
        details: Entry,
        more: Sequence[tuple[str, bytes]] = (),
    ) -> Entry:
        """Keep a picture, with its line.

        Further pictures are written before it, so that a row that has a line is complete.

        Args:
            row: What it is of.
            suffix: Its type's extension, with the dot.
            picture: The encoded picture.
            details: For its line.
            more: Further pictures of the row, each with its extension.

        Raises:
            OSError: It cannot be written; the error names the picture.
        """
        name, digest = row.id + suffix, hashlib.sha256(picture).hexdigest()
        part = self.folder / f".{row.id}.{row.asked}.{digest}{suffix}.part"
        fields: Entry = {"status": DONE, "file": name, "sha256": digest, **details}
        if more:
            fields["more"] = [self._write_more(row, *each) for each in enumerate(more, start=2)]
        with naming(self.folder / name):
            with replacing(part, _UNFINISHED) as file:
                file.write(picture)
            entry = self._append(row, fields)
        return self._name(row, part, entry)

    def _write_more(self, row: PromptRow, number: int, each: tuple[str, bytes]) -> Entry:
        """Write a further picture; return what its row's line says about it."""
        suffix, picture = each
        name = f"{row.id}-{number}{suffix}"
        with naming(self.folder / name), replacing(self.folder / name, _UNFINISHED) as file:
            file.write(picture)
        return {"file": name, "sha256": hashlib.sha256(picture).hexdigest()}

    def failed(self, row: PromptRow, details: Entry) -> Entry:
        """Note why there is no picture.

        Raises:
            OSError: It cannot be written.
        """
        with naming(self.path):
            return self._append(row, {"status": FAILED, **details})

    def _is_there(self, entry: Entry) -> bool:
        return all(self._is_kept(each) for each in (entry, *entry.get("more", ())))

    def _is_kept(self, entry: Entry) -> bool:
        path = self.folder / entry["file"]
        if not path.is_file():
            return False
        if _digest(path) == entry["sha256"]:
            return True
        warn(f"{path} is not the picture that was kept; it is made again")
        return False

    def _adopt(self, row: PromptRow, part: Path, entry: Entry) -> Entry:
        found = _parsed(part.name)
        assert found is not None  # noqa: S101 - only such names are kept
        _, _, digest, suffix = found
        if entry.get("sha256") != digest:
            fields = {"status": DONE, "file": row.id + suffix, "sha256": digest, "adopted": True}
            with naming(self.path):
                entry = self._append(row, fields)
        return self._name(row, part, entry)

    def _name(self, row: PromptRow, part: Path, entry: Entry) -> Entry:
        """Give a picture its name; the rest goes on if something is in the way."""
        path = self.folder / entry["file"]
        try:
            part.replace(path)
        except OSError as error:
            return unsaved(row, f"{path} cannot be written: {error.strerror}; it is kept in {part}")
        return entry

    def _append(self, row: PromptRow, details: Entry) -> Entry:
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
        damaged = 0
        with open(self._file.fileno(), "rb", closefd=False) as reader:
            reader.seek(0)
            for number, line in enumerate(_lines(reader), start=1):
                entry = _entry(line)
                if entry is not None:
                    self._entries[entry["id"]] = entry
                elif line.strip():
                    damaged += 1
                    if damaged <= _WARNINGS:
                        warn(f"{self.path}: line {number} is damaged and left out")
            broken_off = _ends_in_the_middle(reader)
        if damaged > _WARNINGS:
            warn(f"{self.path}: {damaged - _WARNINGS} more lines are damaged and left out")
        if broken_off:
            self._write(b"\n")  # the last run stopped in the middle of its line

    def _find_parts(self) -> None:
        for path in self.folder.iterdir():
            if path.is_symlink() or not path.is_file():
                continue  # none of ours
            if _ABANDONED.fullmatch(path.name):
                path.unlink()
            elif found := _parsed(path.name):
                name, asked, digest, _ = found
                if _digest(path) == digest:
                    self._parts[name, asked] = path
                else:
                    path.unlink()  # half a picture


def _parsed(name: str) -> tuple[str, str, str, str] | None:
    """Id, fingerprint, digest and extension out of the name of a picture that has no line yet."""
    found = _PART.fullmatch(name)
    if found is None or found[4] not in KNOWN_EXTENSIONS:
        return None
    # Some file systems give names back in another spelling than they were given.
    return unicodedata.normalize("NFC", found[1]), found[2], found[3], found[4]


def _digest(path: Path) -> str | None:
    """SHA-256 of a picture, in hexadecimal; None for what is no ordinary file.

    Raises:
        OSError: It cannot be read.
    """
    if path.is_symlink() or not path.is_file():
        return None
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lines(reader: IO[bytes]) -> Iterator[bytes]:
    """Each line; of one that is longer than any of ours only the beginning."""
    while line := reader.readline(_MAX_LINE):
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = reader.readline(_MAX_LINE)
        yield line


def _ends_in_the_middle(reader: IO[bytes]) -> bool:
    """Whether the last line has no line break."""
    if not reader.seek(0, io.SEEK_END):
        return False
    reader.seek(-1, io.SEEK_END)
    return reader.read() != b"\n"


def _entry(line: bytes) -> Entry | None:
    """The fields of a line that are used, each checked; None if it is none of our lines."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(name := found.get("id"), str):
        return None
    status = found.get("status")
    fields = None
    if status == DONE:
        fields = _picture_fields(name, found)
    elif status == FAILED:
        fields = _failure_fields(found)
    if fields is None:
        return None
    return {"id": name, "asked": found.get("asked"), "status": status, **fields}


def _picture_fields(name: str, found: Entry) -> Entry | None:
    digest, provider = found.get("sha256"), found.get("provider")
    if found.get("file") not in [name + suffix for suffix in KNOWN_EXTENSIONS]:
        return None
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        return None
    more = _more_fields(name, found.get("more", []))
    if more is None:
        return None
    usage = _usage(found.get("usage"))
    fields = {"file": found["file"], "sha256": digest, "usage": usage, "more": more}
    return {**fields, "provider": provider} if isinstance(provider, str) else fields


def _more_fields(name: str, found: object) -> list[Entry] | None:
    """Return the further pictures of a row's line; None if one is not the row's own."""
    more = []
    for number, each in enumerate(found if isinstance(found, list) else [None], start=2):
        if not isinstance(each, dict):
            return None
        file, digest = each.get("file"), each.get("sha256")
        if file not in [f"{name}-{number}{suffix}" for suffix in KNOWN_EXTENSIONS]:
            return None
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            return None
        more.append({"file": file, "sha256": digest})
    return more


def _failure_fields(found: Entry) -> Entry | None:
    fields = {key: found.get(key) for key in ("reason", "error")}
    return fields if all(isinstance(value, str) for value in fields.values()) else None


def _usage(given: object) -> dict[str, float]:
    """What a picture cost in dollars; 0 where its line holds no possible price."""
    cost = given.get("cost_usd") if isinstance(given, dict) else None
    if isinstance(cost, bool) or not isinstance(cost, int | float) or not 0 <= cost < _TOO_DEAR:
        cost = 0.0
    return {"cost_usd": float(cost)}


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
