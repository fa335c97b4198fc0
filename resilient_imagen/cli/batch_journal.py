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
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from io import FileIO
from typing import TYPE_CHECKING, Any

from resilient_imagen import ImageGenerationError, ImageResult
from resilient_imagen.cli.command_errors import CommandError, advised, system_words, warn
from resilient_imagen.cli.files import check_writable, remove_abandoned, write_whole
from resilient_imagen.cli.image_spec import is_file
from resilient_imagen.images.convert import extension
from resilient_imagen.images.inspect import sniff_mime
from resilient_imagen.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(FileIO(os.open(path, flags, 0o666), "r+"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system unlocks it after any end
        except BlockingIOError:
            raise CommandError(f"{path}: another run is at work here") from None
        except OSError as error:
            raise CommandError(f"-o {system_words(error)}") from None
        check_writable(path)
        remove_abandoned(folder)
        yield Journal(path, file)


class Journal:
    """The outcomes of rows, of this run and of earlier ones."""

    def __init__(self, path: Path, file: FileIO) -> None:
        self._path = path
        self._file = file
        self._done: dict[str, Entry] = {}
        """The latest line with images of each row, by id: its files are those in the directory."""
        self._refused: set[tuple[str, str]] = set()
        """Ids and fingerprints of the requests that were refused because of their prompt."""
        for number, line in enumerate(file.readall().splitlines(), start=1):
            try:
                entry = json.loads(line)
                if entry["status"] == "done":
                    self._done[entry["id"]] = entry
                elif entry["reason"] == Reason.CONTENT_BLOCKED:
                    self._refused.add((entry["id"], entry["asked"]))
            except (ValueError, TypeError, LookupError, RecursionError):
                warn(f"{path}: ignoring the damaged line {number}")

    def settled(self, row: PromptRow) -> str | None:
        """Return "kept" if a row has its images, "failed" if its prompt was refused, else None.

        Neither is requested: the same prompt would be refused again, and perhaps charged.
        """
        match self._done.get(row.id):
            case {"asked": row.asked, "files": [_, *_] as files}:
                saved = all(is_file(self._path.parent / str(file)) for file in files)
                return "kept" if saved else None
        return "failed" if (row.id, row.asked) in self._refused else None

    def record(self, row: PromptRow, outcome: ImageResult | ImageGenerationError) -> Entry:
        """Save a row's images, if any, and append its line; return when both are on the disk.

        Raises:
            OSError: They cannot be written; the error names the file.
        """
        at = datetime.now(UTC).isoformat(timespec="seconds")
        entry: Entry = {"id": row.id, "line": row.line, "asked": row.asked, "at": at}
        if isinstance(outcome, ImageGenerationError):
            attempts = [asdict(attempt) for attempt in outcome.attempts]
            failure = {"reason": outcome.reason, "error": advised(str(outcome), outcome)}
            entry |= {"status": "failed", **failure, "attempts": attempts}
        else:
            files = []
            for name, data in zip(row.names, outcome.images, strict=False):
                files.append(name + extension(sniff_mime(data) or outcome.mime_type))
                write_whole(self._path.with_name(files[-1]), data)
            images = {"image_base64", "images"}
            fields = {key: value for key, value in outcome.to_dict().items() if key not in images}
            entry |= {"status": "done", "files": files, **fields}
        line = json.dumps(entry).encode() + b"\n"
        size = self._file.seek(0, os.SEEK_END)
        if size and os.pread(self._file.fileno(), 1, size - 1) != b"\n":
            line = b"\n" + line  # a crash or a full disk cut off the line before
        try:
            while line:
                line = line[self._file.write(line) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from None
        return entry
