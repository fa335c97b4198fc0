"""``resilient-imagen tune``: recommend breaker thresholds from recorded traffic."""

from __future__ import annotations

import json
import signal
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from resilient_imagen.cli.command_errors import CommandError, warn
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
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from resilient_imagen.settings import Settings
    from resilient_imagen.tuning.fidelity import Fidelity
    from resilient_imagen.tuning.recommendation import Recommendation
    from resilient_imagen.tuning.recording import Recording
    from resilient_imagen.tuning.result import Metrics
    from resilient_imagen.tuning.settings_in_effect import SettingsInEffect
    from resilient_imagen.tuning.sweep import Sweep

__all__ = ["tune"]

_WHAT_IF: Final = "what-if"
_INTERRUPTED: Final = 130
"""The exit code of shells after Ctrl-C."""


def tune(
    recording: Source = "",
    compared: Annotated[str, typer.Argument(hidden=True)] = "",
    jaeger: FromJaeger = "",
    service: Service = "",
    lookback: Lookback = "24h",
    assigned: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="NAME=VALUE: a setting of the application that the recording does not have. With "
            "what-if, the setting to compare. May be repeated.",
        ),
    ] = None,
    env_file: Annotated[
        Path | None,
        typer.Option(help="The application's settings, as NAME=VALUE lines."),
    ] = None,
    settings: Annotated[int, typer.Option(help="Settings to try.", min=2)] = 200,
    workers: Annotated[
        int, typer.Option(help="Processes; 0 takes one for each processor.", min=0)
    ] = 0,
    skip_broken: SkipBroken = False,
    save: Save = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a report here: one page, needs no network.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the results here, for programs.")
    ] = None,
) -> None:
    """Replay recorded calls through other settings, and recommend.

    The production pipeline and breaker run on virtual time against what was recorded, first under
    the settings of the recording. If that does not give what was recorded, nothing is recommended.

    tune what-if RECORDING --set NAME=VALUE compares one setting with what was recorded.

    The logger imagegen at INFO writes all that is needed, whatever the formatter.
    """
    single = recording == _WHAT_IF
    if single:
        recording = compared
    elif compared:
        raise CommandError(f"{compared}: name one recording, or tune what-if RECORDING")
    _check_outputs(None if single else html, json_file)
    changes = _assignments(assigned or ())
    if single and not changes:
        raise CommandError("what-if needs --set NAME=VALUE, the setting to compare")
    given = None if env_file is None else _variables_in(env_file)
    loaded = recorded(recording, jaeger, service, lookback, skip_broken=skip_broken, save=save)
    used = _in_effect(loaded, given, {} if single else changes)
    if single:
        _show_what_if(used, changes, json_file)
    else:
        _recommend(used, settings, workers, html, json_file)


def _recommend(
    used: SettingsInEffect, settings: int, workers: int, html: Path | None, json_file: Path | None
) -> None:
    with _interruptible() as stopped:
        found = _swept(used.recording, used.settings, settings, workers, stopped)
        _show(found, used)
        if json_file is not None:
            _write(json_file, _as_json(found, used))
        if html is not None:
            from resilient_imagen.tuning.report_html import page

            _write(html, page(found, used))
            echo(f"report: {html}", err=True)
        if stopped():
            warn(f"stopped after {len(found.trials)} of {found.wanted} settings")
            raise SystemExit(_INTERRUPTED)


def _check_outputs(html: Path | None, json_file: Path | None) -> None:
    from resilient_imagen.cli.files import check_target

    for option, path in (("--html", html), ("--json", json_file)):
        if path is not None:
            check_target(option, path)


# -- settings -------------------------------------------------------------------------------------


def _assignments(given: Sequence[str]) -> Mapping[str, str]:
    found = {}
    for each in given:
        name, separator, value = each.partition("=")
        if not separator or not name.strip():
            raise CommandError(f"--set {each}: it is NAME=VALUE, as in an environment")
        found[name.strip()] = value.strip()
    return found


def _variables_in(path: Path) -> Mapping[str, str]:
    """Return the settings in a file of NAME=VALUE lines; keys and other programs' are left out."""
    from dotenv import dotenv_values

    from resilient_imagen.effective_settings import is_known

    if not path.is_file():
        raise CommandError(f"--env-file {path}: there is no such file")
    found = {name: value or "" for name, value in dotenv_values(path, interpolate=False).items()}
    return {name: value for name, value in found.items() if is_known(name, found)}


def _in_effect(
    loaded: Recording, given: Mapping[str, str] | None, changes: Mapping[str, str]
) -> SettingsInEffect:
    """Return the settings to replay: given ones, else recorded ones, else the environment's."""
    from resilient_imagen.effective_settings import variables_of
    from resilient_imagen.settings import Settings
    from resilient_imagen.tuning.settings_in_effect import settings_in_effect

    environment: Mapping[str, str] = {}
    if given is None and not loaded.settings:
        present = Settings()
        for warning in present.warnings:
            warn(warning)
        environment = variables_of(_suited(present, loaded))
    return settings_in_effect(loaded, environment, given=given, changes=changes)


def _suited(today: Settings, recording: Recording) -> Settings:
    """Return the settings; if none of their routes was recorded, with the recorded routes."""
    if any(route.key in recording.routes for route in today.accounts):
        return today
    from resilient_imagen.settings import RouteName

    routes = tuple(RouteName(name) for name in recording.routes)
    echo(f"none of today's routes was recorded; taking {', '.join(routes)}", err=True)
    return today.model_copy(update={"routes": routes})


# -- the work -------------------------------------------------------------------------------------


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether Ctrl-C was pressed.

    During a simulation an exception could be raised in a callback that swallows it. A second Ctrl-C
    raises it at once.
    """
    asked = False
    before = signal.getsignal(signal.SIGINT)

    def note(_number: int, _frame: object) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


def _swept(
    recording: Recording, today: Settings, count: int, workers: int, stopped: Callable[[], bool]
) -> Sweep:
    from resilient_imagen.tuning.sweep import sweep

    columns = ("replays", BarColumn(), MofNCompleteColumn(), "time left", TimeRemainingColumn())
    console = Console(stderr=True)
    bar = Progress(*columns, console=console, transient=True)
    # A disabled bar would leave an empty line behind.
    with bar if console.is_terminal else nullcontext():
        task = bar.add_task("", total=count)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return sweep(
            recording, today, count=count, workers=workers or None, progress=show, stop=stopped
        )


# -- results --------------------------------------------------------------------------------------


def _as_json(found: Sweep, used: SettingsInEffect) -> str:
    from resilient_imagen.effective_settings import variables_of
    from resilient_imagen.tuning.report_json import as_json

    return json.dumps(as_json(found, variables_of(used.settings)), indent=1) + "\n"


def _write(path: Path, text: str) -> None:
    from resilient_imagen.cli.files import write_whole

    write_whole(path, text.encode())


def _show(found: Sweep, used: SettingsInEffect) -> None:
    from resilient_imagen.tuning import report_text
    from resilient_imagen.tuning.headline import headline
    from resilient_imagen.tuning.recommendation import Objective

    console = Console()
    console.print(headline(found))
    for line in (*used.notes, *report_text.seen_line(used.recording)):
        console.print(line)
    for line in report_text.set_aside(used.settings):
        console.print(line)
    _show_table(console, report_text.compared(found))
    _show_fidelity(console, found.fidelity, used)
    for line in report_text.limit_lines(found):
        console.print(line)
    if not (found.fidelity.matches and found.evidence.is_enough):
        return  # the same reason for each objective, which is the first line
    agreed = found.agreed is not None
    for objective in Objective:
        advice = found.advice[objective]
        echo(f"\n# {objective}: {report_text.advice_line(advice)}")
        if advice.recommended and not agreed:
            _show_lines(found, advice)
    if agreed:
        echo("\n# one answer for all of them:")
        _show_lines(found, next(iter(found.recommended.values())))


def _show_lines(found: Sweep, advice: Recommendation) -> None:
    from resilient_imagen.tuning import report_text

    echo(f"# {report_text.rest_line(found, advice.objective)}")
    for part in advice.contributions:
        echo(f"{part.variable}={part.value}")
        echo(f"#   without this line {part.gain:.1%} of the score is lost")
    shadow = advice.trial.knobs.shadow_line(found.today.knobs)
    if shadow is not None:
        echo(f"# to watch its breaker beside the live one first: {shadow}")


def _show_what_if(
    used: SettingsInEffect, changes: Mapping[str, str], json_file: Path | None
) -> None:
    from resilient_imagen.effective_settings import as_text, settings_from, variables_of
    from resilient_imagen.tuning import report_text
    from resilient_imagen.tuning.headline import what_if_headline
    from resilient_imagen.tuning.report_json import what_if_as_json
    from resilient_imagen.tuning.sweep import what_if

    present = variables_of(used.settings)
    changed = settings_from({**present, **changes})
    found = what_if(used.recording, used.settings, changed)
    console = Console()
    console.print(what_if_headline(found, changes))
    for line in (*used.notes, *report_text.seen_line(used.recording)):
        console.print(line)
    console.print(f"changed: {as_text(changes)}")
    columns = {"recorded": found.recorded, "replayed": found.replayed, "changed": found.changed}
    _show_table(console, columns)
    _show_fidelity(console, found.fidelity, used)
    if not found.fidelity.matches:
        console.print("So the last column cannot be trusted.")
    if json_file is not None:
        _write(json_file, json.dumps(what_if_as_json(found, present, changes), indent=1) + "\n")


def _show_table(console: Console, columns: Mapping[str, Metrics]) -> None:
    from resilient_imagen.tuning.report_text import INTERVALS, metric_rows

    table = Table()
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right", overflow="fold")
    for row in metric_rows(columns):
        table.add_row(*row)
    console.print(table)
    console.print(INTERVALS)


def _show_fidelity(console: Console, fidelity: Fidelity, used: SettingsInEffect) -> None:
    from resilient_imagen.tuning.report_text import fidelity_lines

    for line in fidelity_lines(fidelity, used.source):
        console.print(line)
