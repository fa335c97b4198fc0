"""``resilient-imagen tune``: recommend breaker thresholds from recorded traffic."""

from __future__ import annotations

import signal
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from resilient_imagen.cli.command_errors import warn
from resilient_imagen.cli.recordings import (
    FromJaeger,
    Lookback,
    Save,
    Service,
    SkipBroken,
    Source,
    recorded,
)
from resilient_imagen.cli.terminal import Console, echo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from resilient_imagen.settings import Settings
    from resilient_imagen.tuning.recording import Recording
    from resilient_imagen.tuning.sweep import Sweep

__all__ = ["tune"]


def tune(
    recording: Source = "",
    jaeger: FromJaeger = "",
    service: Service = "",
    lookback: Lookback = "24h",
    settings: Annotated[int, typer.Option(help="Settings to try.", min=2)] = 200,
    workers: Annotated[
        int, typer.Option(help="Processes; 0 takes one for each processor.", min=0)
    ] = 0,
    skip_broken: SkipBroken = False,
    save: Save = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a report here: one page, needs no network.")
    ] = None,
) -> None:
    """Replay recorded calls through other settings, and recommend.

    The production pipeline and breaker run on virtual time against what was recorded. Today's
    settings are read from the environment, as the application reads them.

    The logger imagegen at INFO writes all that is needed, whatever the formatter.
    """
    from resilient_imagen.cli.files import check_target, write_whole
    from resilient_imagen.settings import Settings

    if html is not None:
        check_target("--html", html)
        import_module("vl_convert")  # report a missing one before the sweep
    loaded = recorded(recording, jaeger, service, lookback, skip_broken=skip_broken, save=save)
    today = _suited(Settings(), loaded)
    for warning in today.warnings:
        warn(warning)
    with _interruptible() as go_on:
        found = _swept(loaded, today, settings, workers, go_on)
        report = None if html is None else _report(found, loaded, today)
    _show(found, loaded, today)
    if html is not None and report is not None:
        write_whole(html, report.encode())
        echo(f"report: {html}", err=True)


@contextmanager
def _interruptible() -> Iterator[Callable[[], None]]:
    """Yield a function that raises KeyboardInterrupt if Ctrl-C was pressed.

    During a simulation the exception could be raised in a callback that swallows it. A second
    Ctrl-C raises it at once.
    """
    asked = False
    before = signal.getsignal(signal.SIGINT)

    def note(_number: int, _frame: object) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, before)

    def go_on() -> None:
        if asked:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield go_on
        go_on()
    finally:
        signal.signal(signal.SIGINT, before)


def _suited(today: Settings, recording: Recording) -> Settings:
    """Return the settings, with the recorded routes if none of their own was recorded."""
    if any(route.key in recording.routes for route in today.accounts):
        return today
    from resilient_imagen.settings import RouteName

    routes = tuple(RouteName(name) for name in recording.routes)
    echo(f"none of today's routes was recorded; taking {', '.join(routes)}", err=True)
    return today.model_copy(update={"routes": routes})


def _report(found: Sweep, recording: Recording, today: Settings) -> str:
    from resilient_imagen.tuning.report_html import page

    return page(found, recording, today)


def _swept(
    recording: Recording, today: Settings, count: int, workers: int, go_on: Callable[[], None]
) -> Sweep:
    from resilient_imagen.tuning.sweep import sweep

    columns = ("settings", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    bar = Progress(*columns, console=console, transient=True)
    # A disabled bar would leave an empty line behind.
    with bar if console.is_terminal else nullcontext():
        task = bar.add_task("", total=count)

        def show(done: int, total: int) -> None:
            go_on()
            bar.update(task, completed=done, total=total)

        return sweep(recording, today, count=count, workers=workers or None, progress=show)


def _show(found: Sweep, recording: Recording, today: Settings) -> None:
    from resilient_imagen.tuning import report_text
    from resilient_imagen.tuning.recommendation import Objective

    console = Console()
    table = Table("")
    trials = report_text.shown(found)
    for name in trials:
        table.add_column(name, justify="right")
    rows = zip(
        report_text.columns(found.today.whole.share),
        *(report_text.cells(trial.whole) for trial in trials.values()),
        strict=True,
    )
    for row in rows:
        table.add_row(*row)
    for line in (*report_text.seen_line(recording), *report_text.set_aside(today)):
        console.print(line)
    console.print(table)
    for leaning in Objective:
        advice = found.advice[leaning]
        echo(f"\n# {leaning}: {report_text.advice_line(advice)}")
        echo(f"# {report_text.rest_line(found, leaning)}")
        if advice.generalizes:
            knobs, live = advice.trial.knobs, found.today.knobs
            echo("\n".join(knobs.env_lines(live)))
            if (shadow := knobs.shadow_line(live)) is not None:
                echo(f"# to watch its breaker beside the live one first: {shadow}")
