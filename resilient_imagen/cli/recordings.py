"""Recordings that a command line names: a file or a Jaeger, and the copy that is kept of one."""

from __future__ import annotations

import io
import os
import re
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Final, TypeAlias

import typer

from resilient_imagen.cli.command_errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resilient_imagen.tuning.recording import Recording, Row

__all__ = [
    "FromJaeger",
    "Lookback",
    "Save",
    "Service",
    "SkipBroken",
    "Source",
    "check_writable",
    "recorded",
]

Source: TypeAlias = Annotated[
    str,
    typer.Argument(
        help="A log file, OTLP lines of a collector, or a saved recording, also packed by gzip;"
        " - is standard input.",
        show_default=False,
    ),
]
FromJaeger: TypeAlias = Annotated[
    str, typer.Option("--jaeger", help="Read from this Jaeger instead.")
]
Service: TypeAlias = Annotated[str, typer.Option(help="The service's name there.")]
Lookback: TypeAlias = Annotated[str, typer.Option(help="How far back: 90m, 24h, 7d.")]
SkipBroken: TypeAlias = Annotated[
    bool, typer.Option("--skip-broken", help="Count broken lines instead of ending.")
]
Save: TypeAlias = Annotated[
    Path | None, typer.Option(help="Write the recording here, in our own format.")
]

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LOOKBACK: Final = re.compile(r"(\d+(?:\.\d+)?)([smhd])", re.ASCII)
_LONGEST: Final = 366


def recorded(
    source: str,
    jaeger: str,
    service: str,
    lookback: str,
    *,
    skip_broken: bool,
    save: Path | None = None,
) -> Recording:
    """The recording that the command line names.

    Raises:
        CommandError: It cannot be used, or the command line names none.
    """
    from resilient_imagen.tuning.load import kept, refused, rows_of_file
    from resilient_imagen.tuning.recording import RecordingError, gather

    if bool(source) == bool(jaeger):
        raise CommandError("name a recording, or --jaeger and --service")
    notes: Counter[str] = Counter()
    rows: Iterator[Row]
    if jaeger:
        rows = _from_jaeger(jaeger, service, lookback, notes)
    else:
        rows = rows_of_file(source, notes, skip_broken=skip_broken)
    try:
        if save is None:
            return gather(rows, notes)
        with _written(save, source) as target:
            return gather(kept(rows, target), notes)
    except RecordingError as error:
        raise CommandError(str(refused(source or jaeger, error, notes))) from None
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        raise CommandError(f"{place}{error.strerror}") from None


def _from_jaeger(url: str, service: str, lookback: str, notes: Counter[str]) -> Iterator[Row]:
    from resilient_imagen.tuning.import_jaeger import rows_of_service

    if not service:
        raise CommandError("--jaeger needs --service")
    return rows_of_service(url, service, _seconds(lookback), notes)


def _seconds(text: str) -> float:
    match = _LOOKBACK.fullmatch(text)
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if not 0 < seconds <= _LONGEST * _SECONDS["d"]:
        raise CommandError(
            f"--lookback is a number and s, m, h or d, such as 24h, and at most {_LONGEST}d"
        )
    return seconds


@contextmanager
def _written(path: Path, source: str) -> Iterator[IO[str]]:
    """A file that takes the path's place when all has been read, and not before."""
    if path.exists() and source not in {"", "-"} and path.samefile(source):
        raise CommandError(f"--save {path} is the recording itself; name another file")
    from resilient_imagen.cli.output_files import writing

    check_writable("--save", path)
    try:
        with writing(path) as file:
            target = io.TextIOWrapper(file, encoding="utf-8", write_through=True)
            try:
                yield target
            finally:
                target.detach()
    except OSError as error:
        if error.filename is not None:  # of what is read
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


def check_writable(option: str, path: Path) -> None:
    """See that a file could be written there, before any work is done for it.

    Raises:
        CommandError: It could not.
    """
    from resilient_imagen.cli import output_files

    folder = path.parent
    if path.is_dir():
        raise CommandError(f"{option} {path} is a directory; name a file")
    if not folder.is_dir():
        raise CommandError(f"{option}: {folder} is no directory; make it first")
    if not output_files.is_device(path):
        output_files.check_writable(path)
    elif not os.access(path, os.W_OK):
        raise CommandError(f"{option}: {path} may not be written to")
