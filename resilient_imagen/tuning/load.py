"""Loads a recording from a file, whatever it holds."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from resilient_imagen.tuning.readers import FOREIGN, read_rows
from resilient_imagen.tuning.recording import RecordingError, gather, to_json

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator

    from resilient_imagen.tuning.recording import Recording, Row

__all__ = ["load", "rows_of_file"]


def load(path: str | os.PathLike[str], *, skip_broken: bool = False) -> Recording:
    """The recording in a file: JSON log lines, OTLP lines, or our own; read line by line.

    Args:
        path: ``-`` for standard input.
        skip_broken: Count broken lines instead of ending with the first.

    Raises:
        RecordingError: A line of ours is broken, or there is no request in the file. The text
            names the line.
        OSError: The file cannot be read.
    """
    notes: Counter[str] = Counter()
    try:
        return gather(rows_of_file(path, notes, skip_broken=skip_broken), notes)
    except RecordingError as error:
        others = f" ({notes[FOREIGN]} lines of others in it)" if notes[FOREIGN] else ""
        raise RecordingError(f"{path}: {error}{others}") from None


def rows_of_file(
    path: str | os.PathLike[str], notes: Counter[str], *, skip_broken: bool = False
) -> Iterator[Row]:
    """The rows in a file, as `load` reads them."""
    with _lines(path) as lines:
        yield from read_rows(lines, notes, skip_broken=skip_broken)


def kept(rows: Iterable[Row], target: IO[str]) -> Iterator[Row]:
    """The rows as they come, written down in our own format on the way."""
    for row in rows:
        target.write(to_json(row) + "\n")
        yield row


@contextmanager
def _lines(path: str | os.PathLike[str]) -> Iterator[IO[str]]:
    if str(path) == "-":
        yield sys.stdin
        return
    # What is no UTF-8 in a line of others' is no reason to stop.
    with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - str or Path
        yield file
