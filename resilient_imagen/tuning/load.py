"""Recording loader: read a recording from a file of any supported format."""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections import Counter
from contextlib import ExitStack, contextmanager
from typing import IO, TYPE_CHECKING, Final, cast

from resilient_imagen.tuning.gather import gather
from resilient_imagen.tuning.import_logs import SKIPPED, bounded, read_rows
from resilient_imagen.tuning.rows import RecordingError, to_json

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator

    from resilient_imagen.tuning.recording import Recording
    from resilient_imagen.tuning.rows import Row

__all__ = ["kept", "load", "refused", "rows_of_file"]

_GZIP: Final = b"\x1f\x8b"
"""The first bytes of a gzip file."""


def load(path: str | os.PathLike[str], *, skip_broken: bool = False) -> Recording:
    """Load a recording from a file of log lines, OTLP lines or our format, line by line.

    Args:
        path: The file; ``-`` means standard input. Gzip is decompressed.
        skip_broken: Count broken lines instead of raising for the first one.

    Raises:
        RecordingError: A line of ours is broken, or the file has no request. The text has the
            line's number.
        OSError: The file cannot be read.
    """
    notes: Counter[str] = Counter()
    try:
        return gather(rows_of_file(path, notes, skip_broken=skip_broken), notes)
    except RecordingError as error:
        raise refused(str(path), error, notes) from None


def refused(source: str, error: RecordingError, notes: Counter[str]) -> RecordingError:
    """Return the error with the name of its source, and the counts of skipped data."""
    others = "".join(f"; {what}: {count}" for what, count in notes.items())
    return RecordingError(f"{source}: {error}{others}")


def rows_of_file(
    path: str | os.PathLike[str], notes: Counter[str], *, skip_broken: bool = False
) -> Iterator[Row]:
    """Yield the rows of a file, as `load` reads them."""
    try:
        with _lines(path) as lines:
            yield from read_rows(bounded(lines), notes, skip_broken=skip_broken)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        if not skip_broken:
            raise RecordingError("the gzip file is cut off or damaged") from None
        notes[SKIPPED] += 1


def kept(rows: Iterable[Row], target: IO[bytes]) -> Iterator[Row]:
    """Yield the rows, and write each to ``target`` in our format."""
    for row in rows:
        target.write(to_json(row).encode() + b"\n")
        yield row


@contextmanager
def _lines(path: str | os.PathLike[str]) -> Iterator[IO[str]]:
    with ExitStack() as stack:
        if str(path) == "-":
            if sys.stdin is None:  # closed by the shell: <&-
                raise RecordingError("standard input is closed")
            raw = cast("io.BufferedReader", sys.stdin.buffer)
        else:
            raw = stack.enter_context(open(path, "rb"))  # noqa: PTH123 - str or Path
        packed = raw.peek(len(_GZIP)).startswith(_GZIP)
        # Lines of other programs may contain bytes that are not UTF-8.
        lines = io.TextIOWrapper(
            gzip.GzipFile(fileobj=raw) if packed else raw, encoding="utf-8", errors="replace"
        )
        stack.callback(lines.detach)  # standard input must not be closed
        yield lines
