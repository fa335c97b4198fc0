"""Journal of ``generate --from``: which rows are finished, so that no image is paid for twice.

The directory of the images has one line of JSON for each row that ended, in results.jsonl. An image
is on the disk in full before its line is. After a crash at any point, the next run requests the
rows without a line.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from resilient_imagen.cli.command_errors import CommandError, advised, warn
from resilient_imagen.cli.files import check_writable, remove_abandoned, write_whole
from resilient_imagen.images.convert import extension
from resilient_imagen.images.inspect import sniff_mime
from resilient_imagen.reasons import Reason

if TYPE_CHECKING:
    from pathlib import Path

    from resilient_imagen import ImageGenerationError, ImageResult
    from resilient_imagen.cli.batch_prompts import PromptRow

__all__ = ["Entry", "Journal"]

Entry = dict[str, Any]
"""Outcome of a row: ``id``, ``line``, ``asked`` and ``status`` (done or failed). One that is done
has ``files`` and the fields of ImageResult, a failed one ``reason`` and ``error``."""


class Journal:
    """The journal of a directory. One run at a time can have it open.

    Raises:
        CommandError: Another run has it open, or nothing can be written there.
    """

    def __init__(self, folder: Path) -> None:
        if folder.exists() and not folder.is_dir():
            raise CommandError(f"{folder} is not a directory; --from needs one for images")
        self._folder = folder
        self._path = folder / "results.jsonl"
        self._entries: dict[str, Entry] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
            for name in ("O_NOFOLLOW", "O_BINARY"):  # of POSIX and of Windows
                flags |= getattr(os, name, 0)
            self._file = os.open(self._path, flags, 0o666)
        except OSError as error:
            raise CommandError(f"{self._path} cannot be written: {error.strerror}") from None
        try:
            _lock(self._file, self._path)
            check_writable(self._path)
            remove_abandoned(folder)
            self._read()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file, which unlocks it."""
        os.close(self._file)

    def settled(self, row: PromptRow) -> Entry | None:
        """Return the entry of a row that needs no request, else None.

        Such a row has its images, or was refused: the same request would be refused again, and
        perhaps charged.
        """
        entry = self._entries.get(row.id, {})
        if entry.get("asked") != row.asked:
            return None
        if entry["status"] == "done":
            files = entry.get("files") or [entry["file"]]  # as earlier versions wrote it
            settled = all((self._folder / file).is_file() for file in files)
        else:
            settled = entry["reason"] == Reason.CONTENT_BLOCKED
        return {**entry, "line": row.line, "before": True} if settled else None

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
        """Write a line that is on the disk in full, or not at all."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        entry = {"id": row.id, "line": row.line, "asked": row.asked, **details, "at": at}
        size = os.fstat(self._file).st_size
        try:
            line = json.dumps(entry).encode() + b"\n"
            while line:
                line = line[os.write(self._file, line) :]
            os.fsync(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, size)
            raise OSError(error.errno, error.strerror, str(self._path)) from None
        return entry

    def _read(self) -> None:
        content = self._path.read_bytes()
        if content and not content.endswith(b"\n"):
            os.write(self._file, b"\n")  # a crash cut off the last line
        damaged = []
        for number, line in enumerate(content.splitlines(), start=1):
            try:
                entry = json.loads(line)
                self._entries[entry["id"]] = entry
            except (ValueError, TypeError, LookupError, RecursionError):
                damaged.append(number)
        if damaged:
            warn(f"{self._path}: ignoring damaged lines: {len(damaged)}, first line {damaged[0]}")


def _lock(file: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows has no lock that is certain to end with the process
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise CommandError(f"{path}: another run is at work here") from None
