"""HTML report: one page without scripts, for people who have one minute. It needs no network."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from shlex import quote
from typing import TYPE_CHECKING, Final, NamedTuple

from resilient_imagen.tuning.charts import Timeline, blocked_periods, timelines, trade_off
from resilient_imagen.tuning.headline import first_route, headline, trade
from resilient_imagen.tuning.recommendation import Objective
from resilient_imagen.tuning.recorded_outcomes import RecordedOutcomes
from resilient_imagen.tuning.recorded_run import recorded_run
from resilient_imagen.tuning.replay import replay
from resilient_imagen.tuning.report_text import (
    advice_line,
    compared,
    limit_lines,
    rest_line,
    seen_line,
    set_aside,
    source_line,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from resilient_imagen.settings import Settings
    from resilient_imagen.tuning.prediction import Estimate
    from resilient_imagen.tuning.recommendation import Evaluation, Recommendation
    from resilient_imagen.tuning.recording import Recording
    from resilient_imagen.tuning.settings_in_effect import SettingsInEffect, SettingsSource
    from resilient_imagen.tuning.sweep import Sweep
    from resilient_imagen.tuning.tunable_settings import TunableSettings

__all__ = ["page"]


class _Row(NamedTuple):
    title: str
    meaning: str
    style: str
    wanted: int
    """1 if more is better, -1 if less is, 0 if neither."""


_ROWS: Final[Mapping[str, _Row]] = {
    "mean_s": _Row("Mean time", "seconds from the call to the image", ".1f", -1),
    "p50_s": _Row("Median time", "half of the images take longer", ".1f", -1),
    "p95_s": _Row("Slowest 5 %", "seconds; one of 20 images takes longer", ".1f", -1),
    "primary_share": _Row("By {first}", "share of the images", ".1%", 1),
    "fallback_share": _Row("By other routes", "share of the images", ".1%", 0),
    "wasted_requests": _Row("Wasted requests", "they failed because of the service", ".0f", -1),
    "cost_usd_per_image": _Row("Dollars an image", "with wasted requests", ".4f", -1),
    "lost_calls": _Row("Lost calls", "their callers got no image", ".0f", -1),
}
_COLUMNS: Final = {
    "recorded": "What happened.",
    "replayed": "The same settings, replayed: it should be near what was recorded.",
    "breaker on": "The recorded settings with the breaker on, which others are compared with.",
    "recommended": "The lines above, replayed.",
    str(Objective.FAST): "The settings with the shortest time to the image, replayed.",
    str(Objective.CHEAP): "The settings with the lowest cost, replayed.",
    str(Objective.STAY): "The settings with most images by the first route, replayed.",
}
_AIMS: Final = {
    Objective.FAST: "Fast: the shortest time to the image",
    Objective.CHEAP: "Cheap: the lowest cost",
    Objective.STAY: "Stay: most images by the first route",
}
_GAINS: Final = {
    Objective.FAST: "in seconds a call",
    Objective.CHEAP: "in dollars an image",
    Objective.STAY: "in images by other routes",
}
_LEGEND: Final = (
    ("first", "images by {first}"), ("other", "images by other routes"),
    ("wasted", "wasted requests (below the line)"), ("blocked", "the breaker blocks {first}"),
    ("down", "{first} fails"), ("median", "median time, s"), ("slow", "up to the slowest 5 %"),
)  # fmt: skip
_DOTS: Final = (
    ("front", "a setting that no other one beats in everything"), ("beaten", "other settings"),
)  # fmt: skip


def page(sweep: Sweep, used: SettingsInEffect) -> str:
    """Return the report as HTML.

    Args:
        sweep: The sweep.
        used: Its recording, and the settings under which it was made.
    """
    style = files("resilient_imagen.tuning").joinpath("report.css").read_text(encoding="utf-8")
    body = "\n".join(_body(sweep, used))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<link rel="icon" href="data:,">'  # a browser would request one from the network
        f"<title>Settings for image generation</title><style>{style}</style></head><body>\n"
        f"{body}\n</body></html>\n"
    )


def _body(sweep: Sweep, used: SettingsInEffect) -> Iterator[str]:
    recording, settings, chosen = used.recording, used.settings, _chosen(sweep)
    yield from _verdict(sweep, recording, chosen)
    if not sweep.fidelity.matches:
        yield from _what_to_do(sweep, used.source)
    yield from _lines(sweep, chosen)
    for line in limit_lines(sweep):
        yield f"<p>{escape(line)}</p>"
    yield from _table(sweep)
    yield from _over_time(sweep, recording, settings, chosen)
    if sweep.fidelity.matches and sweep.evidence.is_enough:
        yield "<h2>What is traded for what</h2>"
        yield (
            '<p class="note">Each dot is a setting that was tried, by one replay of it; the table'
            " has the average of several.</p>"
        )
        yield _legend(_DOTS)
        marked: dict[str, Evaluation] = {"your settings": sweep.today}
        marked |= {name: advice.trial for name, advice in chosen.items()}
        yield f'<div class="trades">{trade_off(sweep, marked, first_route(sweep))}</div>'
        yield "<h2>Each objective</h2>"
        for objective in Objective:
            advice = sweep.advice[objective]
            yield f"<p><b>{_AIMS[objective]}.</b> {escape(_sentence(advice_line(advice)))}"
            if advice.recommended:
                yield f' <span class="note">{escape(rest_line(sweep, objective))}</span>'
            yield "</p>"
    yield "<h2>What was recorded</h2>"
    for line in (*used.notes, *seen_line(recording), *set_aside(settings)):
        yield f'<p class="note">{escape(line)}</p>'


def _chosen(sweep: Sweep) -> Mapping[str, Recommendation]:
    """Return each recommended setting once, by the objectives that it is for."""
    names: dict[TunableSettings, list[str]] = {}
    best: dict[TunableSettings, Recommendation] = {}
    for objective, advice in sweep.recommended.items():
        knobs = advice.trial.knobs
        names.setdefault(knobs, []).append(str(objective))
        if knobs not in best or advice.gain.value > best[knobs].gain.value:
            best[knobs] = advice
    if len(best) == 1:
        return {"recommended": next(iter(best.values()))}
    return {", ".join(names[knobs]): advice for knobs, advice in best.items()}


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


# -- the answer -----------------------------------------------------------------------------------


def _verdict(
    sweep: Sweep, recording: Recording, chosen: Mapping[str, Recommendation]
) -> Iterator[str]:
    if not (sweep.fidelity.matches and sweep.evidence.is_enough):
        look, kind = "stop", "No recommendation"
    elif chosen:
        look, kind = "change", "Change your settings"
    else:
        look, kind = "keep", "Stopped early" if sweep.interrupted else "Nothing to do"
    start = datetime.fromtimestamp(recording.origin, UTC)
    outages = sweep.evidence.incidents
    found = f"{outages} {'outage' if outages == 1 else 'outages'} of {first_route(sweep)}"
    yield f'<div class="verdict {look}"><p class="kind">{kind}</p>'
    yield f"<h1>{escape(headline(sweep))}</h1>"
    yield (
        f"<p>{len(recording.asked):,} calls in {_length(recording.duration)} from {start.day}"
        f" {start:%B %Y %H:%M} UTC, with {escape(found)}, {_tried(sweep)}.</p></div>"
    )


def _tried(sweep: Sweep) -> str:
    if not sweep.fidelity.matches:
        return "replayed under your settings"
    return f"replayed under {len(sweep.trials)} settings"


def _length(seconds: float) -> str:
    for unit, name in ((86400.0, "days"), (3600.0, "hours")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds / 60:.0f} minutes"


def _what_to_do(sweep: Sweep, source: SettingsSource) -> Iterator[str]:
    yield "<h2>What to do</h2>"
    values: dict[str, str] = {}
    for hint in sweep.fidelity.hints:  # of several providers, the highest limit
        if hint.value and _number(hint.value) >= _number(values.get(hint.variable, "")):
            values[hint.variable] = hint.value
    options = [f"--set {quote(f'{name}={value}')}" for name, value in values.items()] or [
        "--env-file FILE"
    ]
    command = " \\\n  ".join(["resilient-imagen tune RECORDING --html REPORT", *options])
    yield (
        "<p>The replayed settings are probably not those of the application, so advice would be"
        " about another system. Repeat the command with the settings of the application:</p>"
    )
    yield f"<pre>{escape(command)}</pre><ul>"
    for hint in sweep.fidelity.hints:
        yield f"<li><b>{escape(hint.variable)}</b>: {escape(hint.why)}.</li>"
    yield f"<li>{escape(source_line(source))}</li></ul>"


def _number(text: str) -> float:
    """Return a value to compare; words come before all numbers."""
    try:
        return float(text)
    except ValueError:
        return -math.inf


def _lines(sweep: Sweep, chosen: Mapping[str, Recommendation]) -> Iterator[str]:
    """Yield the lines to paste, and the part of each in the gain."""
    present = sweep.today.knobs.variables()
    if chosen:
        yield "<h2>Put this into the environment</h2>"
    for name, advice in chosen.items():
        if len(chosen) > 1:
            yield f"<h3>{escape(_sentence(name))}: {escape(trade(sweep, advice))}</h3>"
        lines = advice.trial.knobs.env_lines(sweep.today.knobs)
        yield f"<pre>{escape(chr(10).join(lines))}</pre>"
        yield '<table class="stack"><thead><tr><th>Line</th><th>Now</th>'
        yield (
            f"<th>Improvement lost without it<small>{_GAINS[advice.objective]}</small></th>"
            "</tr></thead><tbody>"
        )
        most = max((each.gain for each in advice.contributions), default=0.0)
        for part in advice.contributions:
            width = round(90 * max(0.0, part.gain) / most) if most > 0 else 0
            bar = f'<span class="gain" style="width:{width}px"></span>'
            now = present.get(part.variable) or "not set"
            yield (
                f"<tr><th>{escape(part.variable)}={escape(part.value)}</th>"
                f'<td data-column="now">{escape(now)}</td>'
                f'<td data-column="improvement lost without it">{bar}{part.gain:.1%}</td></tr>'
            )
        yield "</tbody></table>"
        shadow = advice.trial.knobs.shadow_line(sweep.today.knobs)
        if shadow is not None:
            yield "<p>To watch the breaker beside the live one first, without effect:</p>"
            yield f"<pre>{escape(shadow)}</pre>"


# -- the table ------------------------------------------------------------------------------------


def _table(sweep: Sweep) -> Iterator[str]:
    columns = compared(sweep)
    present = dict(sweep.present.items())
    allowed = {each.metric: each.allowed for each in sweep.fidelity.deviations}
    yield "<h2>Recorded and replayed</h2><dl>"
    for name in columns:
        yield f"<dt>{escape(name)}</dt><dd>{escape(_COLUMNS.get(name, ''))}</dd>"
    yield "</dl>"
    judged = " Better and worse are compared with your settings, beyond chance."
    yield (
        '<p class="note">The small numbers are the range that should contain the true value in nine'
        f" of ten cases.{judged if sweep.recommended else ''}</p>"
    )
    head = "".join(f"<th>{escape(name)}</th>" for name in ("", *columns))
    yield f'<table class="stack"><thead><tr>{head}</tr></thead><tbody>'
    measures = {name: dict(each.items()) for name, each in columns.items()}
    for key, row in _ROWS.items():
        cells = "".join(
            _cell(name, each[key], row, present[key], allowed.get(key))
            for name, each in measures.items()
        )
        title = escape(row.title.format(first=first_route(sweep)))
        yield f"<tr><th>{title}<small>{row.meaning}</small></th>{cells}</tr>"
    yield "</tbody></table>"


def _cell(column: str, found: Estimate, row: _Row, present: Estimate, allowed: float | None) -> str:
    """Return a cell. ``allowed`` is the difference that is exceeded between the first columns."""
    value, low, high = (format(each, row.style) for each in found)
    between = f"<small>{low} to {high}</small>" if low != high else ""
    look = ""
    if column not in {"recorded", "replayed", "breaker on"}:
        more = (found.low > present.high) - (found.high < present.low)
        look = {1: "better", -1: "worse"}.get(more * row.wanted, "")
    word = f"<small>{look}</small>" if look else ""
    if column == "replayed" and allowed is not None:
        look, word = "worse", f"<small>more than {allowed:{row.style}} away</small>"
    return f'<td data-column="{escape(column)}" class="{look}">{value} {word}{between}</td>'


# -- timelines ------------------------------------------------------------------------------------


def _over_time(
    sweep: Sweep,
    recording: Recording,
    settings: Settings,
    chosen: Mapping[str, Recommendation],
) -> Iterator[str]:
    log = recording.routes.get(settings.accounts[0].key)
    happened = recorded_run(recording, settings)
    shown: dict[str, TunableSettings] = {
        f"With the {name} settings" if name == "recommended" else f"With the settings for {name}":
        advice.trial.knobs
        for name, advice in chosen.items()
    }  # fmt: skip
    if not sweep.fidelity.matches:
        shown = {"The replayed settings": sweep.today.knobs}
    runs = {name: replay(recording, knobs.applied(settings))[0] for name, knobs in shown.items()}
    end = max([recording.duration, *(each.at + each.seconds for each in happened.sent)])
    rejected: Sequence[float] = () if log is None else sorted(log.rejected)
    lines = [Timeline("What was recorded", happened, blocked_periods(happened, end, rejected))]
    lines += [Timeline(name, run, blocked_periods(run, end)) for name, run in runs.items()]
    yield "<h2>Over time</h2>"
    yield (
        '<p class="note">Upper part: number of images and of requests. Lower part: seconds to the'
        f" image. {_span(recording.origin, end)}</p>"
    )
    yield _legend([(kind, text.format(first=first_route(sweep))) for kind, text in _LEGEND])
    yield timelines(lines, RecordedOutcomes(recording, settings).incidents(), recording.origin, end)


def _span(origin: float, seconds: float) -> str:
    first, last = (datetime.fromtimestamp(at, UTC) for at in (origin, origin + seconds))
    return f"UTC, {first.day} {first:%b %H:%M} to {last.day} {last:%b %H:%M}."


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    items = "".join(f'<li><b class="{name}"></b>{escape(text)}</li>' for name, text in entries)
    return f'<ul class="legend">{items}</ul>'
