"""Journal of ``generate --from``: which rows are finished, so that no image is paid for twice.

The directory of the images has one line of JSON for each row that ended, in results.jsonl. An image
is written before its line, and both are flushed to the disk; the line finishes the row. After the
process was killed, the next run requests the rows without a line: those that were not sent, those
in flight, and those whose image was being saved at that moment.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from io import FileIO
from typing import TYPE_CHECKING, Any

from resilient_imagen.cli.command_errors import CommandError, advised, system_words, warn
from resilient_imagen.cli.files import check_writable, remove_abandoned, write_whole
from resilient_imagen.cli.image_spec import is_file
from resilient_imagen.images.convert import extension
from resilient_imagen.images.inspect import sniff_mime
from resilient_imagen.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from resilient_imagen import ImageGenerationError, ImageResult
    from resilient_imagen.cli.batch_prompts import PromptRow

__all__ = ["Entry", "Journal", "open_journal"]

Entry = dict[str, Any]
"""Outcome of a row: ``id``, ``line``, ``asked`` and ``status`` (done or failed). One that is done
has ``files`` and the fields of ImageResult, a failed one ``reason`` and ``error``."""


@contextmanager
def open_journal(folder: Path) -> Iterator[Journal]:
    """Open the journal of a directory, which is created if missing. One run at a time can.

    Raises:
        CommandError: Another run has it open, or nothing can be written there.
    """
    path = folder / "results.jsonl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = FileIO(
            path, "a+", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666)
        )
    except OSError as error:
        raise CommandError(f"-o {system_words(error)}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system unlocks it after any end
        except OSError:
            raise CommandError(f"{path}: another run is at work here") from None
        check_writable(path)
        remove_abandoned(folder)
        yield Journal(folder, file)


class Journal:
    """The outcomes of rows, of this run and of earlier ones."""

    def __init__(self, folder: Path, file: FileIO) -> None:
        self._folder = folder
        self._file = file
        self._entries: dict[str, Entry] = {}
        damaged = []
        file.seek(0)
        for number, line in enumerate(file.read().splitlines(), start=1):
            try:
                entry = json.loads(line)
                self._entries[entry["id"]] = entry
            except (ValueError, TypeError, LookupError, RecursionError):
                damaged.append(number)
        if damaged:
            warn(f"{file.name}: ignoring damaged lines: {len(damaged)}, first line {damaged[0]}")

    def settled(self, row: PromptRow) -> Entry | None:
        """Return the entry of a row that needs no request, else None.

        Such a row has its images, or was refused: the same request would be refused again, and
        perhaps charged.
        """
        entry = self._entries.get(row.id)
        match entry:
            case {"asked": row.asked, "status": "done", "files": [_, *_] as files}:
                return entry if all(is_file(self._folder / str(file)) for file in files) else None
            case {"asked": row.asked, "status": "failed", "reason": Reason.CONTENT_BLOCKED}:
                return entry
        return None

    def done(self, row: PromptRow, result: ImageResult) -> Entry:
        """Save a row's images, then record them.

        Raises:
            OSError: They cannot be written; the error names the file.
        """
        files = []
        for name, data in zip(row.names, result.images, strict=False):
            files.append(name + extension(sniff_mime(data) or result.mime_type))
            write_whole(self._folder / files[-1], data)
        images = {"image_base64", "images"}
        details = {key: value for key, value in result.to_dict().items() if key not in images}
        return self._append(row, {"status": "done", "files": files, **details})

    def failed(self, row: PromptRow, error: ImageGenerationError) -> Entry:
        """Record why a row has no image.

        Raises:
            OSError: The journal cannot be written.
        """
        attempts = [asdict(attempt) for attempt in error.attempts]
        details = {"reason": error.reason, "error": advised(str(error), error)}
        return self._append(row, {"status": "failed", **details, "attempts": attempts})

    def _append(self, row: PromptRow, details: Entry) -> Entry:
        """Write a line, and return once it is on the disk."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        entry = {"id": row.id, "line": row.line, "asked": row.asked, **details, "at": at}
        line = json.dumps(entry).encode() + b"\n"
        size = self._file.seek(0, os.SEEK_END)
        if size and os.pread(self._file.fileno(), 1, size - 1) != b"\n":
            line = b"\n" + line  # a crash or a full disk cut off the line before
        try:
            while line:
                line = line[self._file.write(line) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            error.filename = self._file.name
            raise
        return entry
