"""Recordings that ``tune`` and ``cost`` read: from a file or a Jaeger, optionally saved as well."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import typer

from resilient_imagen.cli.command_errors import CommandError, system_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resilient_imagen.tuning.recording import Recording
    from resilient_imagen.tuning.rows import Row

__all__ = [
    "FromJaeger",
    "Lookback",
    "Save",
    "Service",
    "SkipBroken",
    "Source",
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
    """Read the recording that the command line names.

    Raises:
        CommandError: It cannot be used, or the command line does not name one.
        ConfigurationError: Jaeger's address is not valid.
    """
    from resilient_imagen._validation import checked, shown_address
    from resilient_imagen.cli.files import check_target, writing
    from resilient_imagen.tuning.gather import gather
    from resilient_imagen.tuning.load import kept, refused, rows_of_file
    from resilient_imagen.tuning.rows import RecordingError

    if bool(source) == bool(jaeger):
        raise CommandError("name a recording, or --jaeger and --service")
    notes: Counter[str] = Counter()
    rows: Iterator[Row]
    if jaeger:
        rows = _from_jaeger(jaeger, service, lookback, notes)
        shown = checked("--jaeger", shown_address, jaeger)
    else:
        rows, shown = rows_of_file(source, notes, skip_broken=skip_broken), source
    try:
        if save is None:
            return gather(rows, notes)
        if save.exists() and source not in {"", "-"} and save.samefile(source):
            raise CommandError(f"--save {save} is the recording itself; name another file")
        check_target("--save", save)
        with writing(save) as file:
            return gather(kept(rows, file), notes)
    except RecordingError as error:
        raise CommandError(str(refused(shown, error, notes))) from None
    except OSError as error:
        raise CommandError(system_words(error)) from None


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
