"""``resilient-imagen tune``: which thresholds to take, from what really happened."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from resilient_imagen.cli.guard import CommandError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resilient_imagen.settings import Settings
    from resilient_imagen.tuning.recording import Recording, Row
    from resilient_imagen.tuning.sweep import Sweep

__all__ = ["recorded", "tune"]

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def tune(
    recording: Annotated[
        str,
        typer.Argument(
            help="JSON log lines, OTLP lines of a collector, or a saved recording; - is standard"
            " input.",
            show_default=False,
        ),
    ] = "",
    jaeger: Annotated[str, typer.Option(help="Read from this Jaeger instead.")] = "",
    service: Annotated[str, typer.Option(help="The service's name there.")] = "",
    lookback: Annotated[str, typer.Option(help="How far back: 90m, 24h, 7d.")] = "24h",
    settings: Annotated[int, typer.Option(help="Settings to try.", min=2)] = 200,
    workers: Annotated[
        int, typer.Option(help="Processes; 0 takes one for each processor.", min=0)
    ] = 0,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Count broken lines instead of ending.")
    ] = False,
    save: Annotated[
        Path | None, typer.Option(help="Write the recording here, in our own format.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a report here: one page, needs no network.")
    ] = None,
) -> None:
    """Replay recorded calls through other settings, and recommend.

    The production pipeline and breaker run on virtual time against what was recorded. Today's
    settings are read from the environment, as the application reads them.
    """
    from resilient_imagen.settings import Settings

    loaded = recorded(recording, jaeger, service, lookback, skip_broken=skip_broken, save=save)
    today = _suited(Settings(), loaded)
    found = _swept(loaded, today, settings, workers)
    _show(found, loaded)
    if html is not None:
        from resilient_imagen.tuning.page import page

        html.write_text(page(found, loaded, today), encoding="utf-8")
        typer.echo(f"report: {html}", err=True)


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
    from resilient_imagen.tuning.load import kept, rows_of_file
    from resilient_imagen.tuning.recording import RecordingError, gather

    if bool(source) == bool(jaeger):
        raise CommandError("name a recording, or --jaeger and --service")
    notes: Counter[str] = Counter()
    with ExitStack() as stack:
        rows: Iterator[Row]
        if jaeger:
            rows = _from_jaeger(jaeger, service, lookback, notes)
        else:
            rows = rows_of_file(source, notes, skip_broken=skip_broken)
        if save is not None:
            rows = kept(rows, stack.enter_context(save.open("w", encoding="utf-8")))
        try:
            return gather(rows, notes)
        except RecordingError as error:
            others = "".join(f"; {what}: {count}" for what, count in notes.items())
            raise CommandError(f"{source or jaeger}: {error}{others}") from None


def _from_jaeger(url: str, service: str, lookback: str, notes: Counter[str]) -> Iterator[Row]:
    from resilient_imagen.tuning.jaeger import rows_of_service

    if not service:
        raise CommandError("--jaeger needs --service")
    return rows_of_service(url, service, _seconds(lookback), notes)


def _seconds(text: str) -> float:
    number, unit = text[:-1], text[-1:]
    if unit not in _SECONDS or not number.replace(".", "", 1).isdigit():
        raise CommandError("--lookback is a number and s, m, h or d, such as 24h")
    return float(number) * _SECONDS[unit]


def _suited(today: Settings, recording: Recording) -> Settings:
    """Today's settings; where none of their routes was recorded, with the recorded ones."""
    if any(route in recording.routes for route in today.routes):
        return today
    from resilient_imagen.settings import Route

    routes = tuple(Route(name) for name in recording.routes)
    typer.echo(f"none of today's routes was recorded; taking {', '.join(routes)}", err=True)
    return today.model_copy(update={"routes": routes})


def _swept(recording: Recording, today: Settings, count: int, workers: int) -> Sweep:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from resilient_imagen.tuning.sweep import sweep

    columns = ("settings", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=count)
        return sweep(
            recording,
            today,
            count=count,
            workers=workers or None,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def _show(found: Sweep, recording: Recording) -> None:
    from rich.console import Console
    from rich.table import Table

    from resilient_imagen.tuning.rank import Leaning
    from resilient_imagen.tuning.words import COLUMNS, advice_line, cells, rest_line, seen_line

    console = Console()
    table = Table()
    table.add_column("")
    tried = {"today": found.today, **{str(k): each.trial for k, each in found.advice.items()}}
    for name in tried:
        table.add_column(name, justify="right")
    for row in zip(COLUMNS, *(cells(trial.whole) for trial in tried.values()), strict=True):
        table.add_row(*row)
    for line in seen_line(recording):
        console.print(line, highlight=False, markup=False)
    console.print(table)
    for leaning in Leaning:
        advice = found.advice[leaning]
        typer.echo(f"\n# {leaning}: {advice_line(advice)}")
        typer.echo(f"# {rest_line(found, leaning)}")
        if advice.holds:
            typer.echo("\n".join(advice.trial.knobs.env_lines(found.today.knobs)))
