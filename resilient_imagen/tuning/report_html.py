"""HTML report: a self-contained page that needs no network."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Any, Final

from resilient_imagen.tuning.charts import pareto, timeline
from resilient_imagen.tuning.recommendation import Objective
from resilient_imagen.tuning.replay import replay
from resilient_imagen.tuning.report_text import (
    advice_line,
    compared,
    metric_rows,
    rest_line,
    seen_line,
    set_aside,
    verdict,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resilient_imagen.settings import Settings
    from resilient_imagen.tuning.recording import Recording
    from resilient_imagen.tuning.sweep import Sweep
    from resilient_imagen.tuning.tunable_settings import TunableSettings

__all__ = ["page"]

_STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem;
color:#222;background:#fff} h1{font-size:1.5rem} h2{font-size:1.15rem;margin-top:2.2rem}
table{border-collapse:collapse;font-size:13px} td,th{padding:.25rem .6rem;text-align:right;
border-bottom:1px solid #ddd} td:first-child,th:first-child{text-align:left}
pre{background:#f4f4f2;padding:.8rem;border-radius:4px;overflow:auto} .no{color:#a33}
.note{color:#666;font-size:13px} .chart{overflow-x:auto}
"""


def page(sweep: Sweep, recording: Recording, settings: Settings) -> str:
    """Return the report as HTML.

    Args:
        sweep: The sweep.
        recording: The recording of the sweep.
        settings: The present settings.

    Raises:
        ImportError: The `tuning` extra is not installed.
    """
    import vl_convert

    library = vl_convert.javascript_bundle(None)  # type: ignore[arg-type]  # its stub is too strict
    charts: list[dict[str, Any]] = []
    body = "\n".join(_body(sweep, recording, settings, charts))
    drawn = "\n".join(
        f'vegaEmbed("#chart{index}", {_script(chart)}, {{actions: false}});'
        for index, chart in enumerate(charts)
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<link rel="icon" href="data:,">'  # a browser would request one from the network
        f"<title>Settings for image generation</title><style>{_STYLE}</style></head><body>\n"
        f"{body}\n<script>{library}</script>\n"
        f"<script>{drawn}</script></body></html>\n"
    )


def _script(chart: dict[str, Any]) -> str:
    """Return a chart as JSON that is safe inside a script element."""
    return json.dumps(chart, separators=(",", ":")).replace("<", "\\u003c")


def _body(
    sweep: Sweep, recording: Recording, settings: Settings, charts: list[dict[str, Any]]
) -> Iterator[str]:
    start = datetime.fromtimestamp(recording.origin, UTC)
    yield "<h1>What other settings would have done</h1>"
    yield (
        f"<p>{len(recording.asked)} calls in {recording.duration / 3600:.1f} hours from"
        f" {start:%d %B %Y %H:%M} UTC, played again under {len(sweep.trials)} settings with the"
        " production pipeline, queue and breaker.</p>"
    )
    for line in (*seen_line(recording), *set_aside(settings)):
        yield f'<p class="note">{escape(line)}</p>'
    yield f"<p><b>{escape(verdict(sweep))}</b></p>"
    yield _table(sweep)
    yield "<h2>Recommended</h2>"
    for leaning in Objective:
        advice = sweep.advice[leaning]
        kind = "" if advice.recommended else ' class="no"'
        lines = advice.trial.knobs.env_lines(sweep.today.knobs) if advice.recommended else []
        yield f"<p{kind}><b>{leaning}</b>: {escape(advice_line(advice))}</p>"
        if lines:
            yield f"<pre>{escape(chr(10).join(lines))}</pre>"
        yield f'<p class="note">{escape(rest_line(sweep, leaning))}</p>'
    yield "<h2>What is traded for what</h2>"
    yield _chart(charts, pareto(sweep))
    for name, knobs in _pictured(sweep):
        played, truth = replay(recording, knobs.applied(settings))
        yield f"<h2>Over time: {escape(name)}</h2>"
        yield (
            '<p class="note">Top: the breaker of the first route; framed where the route was in'
            " trouble. Middle: requests that brought an image, by route, and doomed ones. Bottom:"
            " seconds to the image. Times are UTC.</p>"
        )
        yield _chart(charts, timeline(played, truth.incidents(), recording.origin))


def _pictured(sweep: Sweep) -> Iterator[tuple[str, TunableSettings]]:
    """Yield each recommended setting once, and the present one."""
    names: dict[TunableSettings, list[str]] = {}
    for leaning in Objective:
        advice = sweep.advice[leaning]
        if advice.recommended:
            names.setdefault(advice.trial.knobs, []).append(str(leaning))
    names.setdefault(sweep.today.knobs, []).append("today's settings")
    for knobs, leanings in names.items():
        yield ", ".join(leanings), knobs


def _chart(charts: list[dict[str, Any]], chart: dict[str, Any]) -> str:
    charts.append(chart)
    return f'<div class="chart" id="chart{len(charts) - 1}"></div>'


def _table(sweep: Sweep) -> str:
    columns = compared(sweep)
    head = "".join(f"<th>{escape(name)}</th>" for name in ("", *columns))
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in metric_rows(columns)
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
