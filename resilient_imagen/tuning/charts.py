"""Charts of a sweep as SVG inside HTML: timelines of runs on shared axes, and trade-offs.

The shapes stretch with the page, and labels are HTML beside them, so text has the same size on a
phone. Colours are CSS classes of the page.
"""

from __future__ import annotations

from collections import Counter
from html import escape
from typing import TYPE_CHECKING, Final, NamedTuple

from resilient_imagen.circuitbreaker import BreakerState
from resilient_imagen.tuning.chart_axes import Axis, numbers, times
from resilient_imagen.tuning.outcome_model import fails
from resilient_imagen.tuning.recommendation import mean_with_missed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from resilient_imagen.tuning.outcome_model import Incident
    from resilient_imagen.tuning.recommendation import Evaluation
    from resilient_imagen.tuning.run_metrics import Measures
    from resilient_imagen.tuning.simulation_run import SimulationResult
    from resilient_imagen.tuning.sweep import Sweep

__all__ = ["Bin", "Timeline", "binned", "blocked_periods", "timelines", "trade_off"]

_BINS: Final = 120
_SHORTEST_BIN: Final = 30.0
_ONE_PERIOD: Final = 90.0
"""Maximum seconds between two rejected calls of one period."""
_NARROWEST: Final = 0.25
"""Minimum width of a band, in percent of the plot."""
_MOST_STRETCHED: Final = 3.0
"""Maximum factor on the recorded times to the image up to which another run stretches the axis."""
_MAX_DOTS: Final = 300
_MARGIN: Final = 0.15
"""Space around the points between which to decide, as a share of their range."""


class Timeline(NamedTuple):
    """One run, and the periods in which its first route was blocked by the breaker."""

    title: str
    run: SimulationResult
    blocked: Sequence[tuple[float, float]]


class Bin(NamedTuple):
    """The calls that started, and the wasted requests that were sent, in one part of the time."""

    images: tuple[int, int]
    """Images by the first route, and by others."""
    wasted: int
    median_s: float
    """Median time to the image; 0 without images."""
    slow_s: float
    """95th percentile of it."""


# -- timelines ------------------------------------------------------------------------------------


def blocked_periods(
    run: SimulationResult, end: float, rejected: Sequence[float] = ()
) -> Sequence[tuple[float, float]]:
    """Return the periods in which the first route's breaker was not closed.

    Args:
        run: The run; one that was recorded does not know its breaker's changes.
        end: The end of the run.
        rejected: The times at which calls were rejected, in order; only of a recorded run.
    """
    found: list[tuple[float, float]] = []
    for at in rejected:
        if found and at - found[-1][1] <= _ONE_PERIOD:
            found[-1] = (found[-1][0], at)
        else:
            found.append((at, at))
    since: float | None = None
    for change in run.changes:
        if change.route == 0 and change.state is BreakerState.CLOSED and since is not None:
            found.append((since, change.at))
            since = None
        elif change.route == 0 and change.state is not BreakerState.CLOSED and since is None:
            since = change.at
    return found if since is None else [*found, (since, end)]


def binned(run: SimulationResult, width: float) -> Mapping[int, Bin]:
    """Return a run in parts of ``width`` seconds; parts in which nothing happened are left out."""
    times_by_bin: dict[int, list[float]] = {}
    first: Counter[int] = Counter()
    for start, seconds, served in zip(run.started, run.seconds, run.served, strict=True):
        if served >= 0:
            times_by_bin.setdefault(int(start / width), []).append(seconds)
            first[int(start / width)] += served == 0
    wasted = Counter(int(sent.at / width) for sent in run.sent if fails(sent.reason))
    found = {}
    for index in sorted({*times_by_bin, *wasted}):
        took = sorted(times_by_bin.get(index, ()))
        found[index] = Bin(
            images=(first[index], len(took) - first[index]),
            wasted=wasted[index],
            median_s=took[len(took) // 2] if took else 0.0,
            slow_s=took[int(0.95 * len(took))] if took else 0.0,
        )
    return found


def timelines(
    lines: Sequence[Timeline], incidents: Sequence[Incident], origin: float, seconds: float
) -> str:
    """Return runs one above the other, with the same axes, as HTML.

    Args:
        lines: The runs, the recorded one first. Times to the image that are far beyond it are cut.
        incidents: The incidents of the first route.
        origin: The start of the runs, in seconds since the epoch.
        seconds: Their length.
    """
    width = max(_SHORTEST_BIN, seconds / _BINS)
    bins = [binned(each.run, width) for each in lines]
    each_bin = [one for found in bins for one in found.values()]
    up = max((sum(one.images) for one in each_bin), default=1)
    down = max((one.wasted for one in each_bin), default=0)
    counts = numbers(-down, max(up, 1), 5)
    counts = counts._replace(ticks=[(at, label.lstrip("-")) for at, label in counts.ticks])
    highest = [max((one.slow_s for one in found.values()), default=1.0) for found in bins]
    slow = numbers(0.0, min(max(highest), max(highest[0], 1.0) * _MOST_STRETCHED), 3)
    time = times(origin, seconds)
    down_bands = _bands(((each.start, each.end) for each in incidents), time)
    return "".join(
        f"<figure><figcaption>{escape(each.title)}</figcaption>"
        + _plot(time, None, 14, _path("blocked", _bands(each.blocked, time)), down_bands)
        + _plot(time, counts, 150, "".join(_bars(found, width, time, counts)), down_bands)
        + _plot(time, slow, 80, "".join(_times(found, width, time, slow)), down_bands, labels=True)
        + "</figure>"
        for each, found in zip(lines, bins, strict=True)
    )


def _bars(found: Mapping[int, Bin], width: float, time: Axis, counts: Axis) -> Iterator[str]:
    parts: dict[str, list[str]] = {"first": [], "other": [], "wasted": []}
    for index, one in found.items():
        left, right = time.percent(index * width), time.percent((index + 1) * width)
        both = sum(one.images)
        for name, low, high in (
            ("first", 0, one.images[0]), ("other", one.images[0], both), ("wasted", -one.wasted, 0),
        ):  # fmt: skip
            if high > low:
                top, bottom = 100 - counts.percent(high), 100 - counts.percent(low)
                parts[name].append(_rectangle(left, right, top, bottom))
    for name, shapes in parts.items():
        yield _path(name, "".join(shapes))


def _times(found: Mapping[int, Bin], width: float, time: Axis, slow: Axis) -> Iterator[str]:
    area, line = [], []
    for index, one in found.items():
        if one.slow_s:
            left, right = time.percent(index * width), time.percent((index + 1) * width)
            area.append(_rectangle(left, right, 100 - slow.percent(one.slow_s), 100.0))
            middle = 100 - slow.percent(one.median_s)
            line.append(f"M{left:.2f} {middle:.1f}H{right:.2f}")
    yield _path("slow", "".join(area))
    yield _path("median", "".join(line))


def _bands(periods: Iterable[tuple[float, float]], time: Axis) -> str:
    """Return periods as shapes of the whole height; those nearer than a hair are joined."""
    joined: list[tuple[float, float]] = []
    for start, end in sorted(periods):
        left = time.percent(start)
        right = max(time.percent(end), left + _NARROWEST)
        if joined and left <= joined[-1][1] + _NARROWEST / 2:
            joined[-1] = (joined[-1][0], max(right, joined[-1][1]))
        else:
            joined.append((left, right))
    return "".join(
        _rectangle(max(0.0, left), min(100.0, right), 0, 100)
        for left, right in joined
        if left < 100  # noqa: PLR2004 - percent
    )


# -- trade-offs -----------------------------------------------------------------------------------


class _Scale(NamedTuple):
    title: str
    value: Callable[[Measures], float]
    least: float
    """Minimum range, so that differences that do not matter look small."""
    factor: float = 1.0
    """Factor on values in labels."""


_SECONDS: Final = _Scale("seconds a call, on average", mean_with_missed, 1.0)
_DOLLARS: Final = _Scale("dollars an image", lambda each: each.cost_usd_per_image, 0.004)
_SHARE: Final = _Scale("% of images by {first}", lambda each: each.primary_share, 0.02, 100)
_WASTED: Final = _Scale("wasted requests", lambda each: each.wasted_requests, 6.0)
_PAIRS: Final = ((_SHARE, _WASTED), (_SECONDS, _DOLLARS))


def trade_off(sweep: Sweep, named: Mapping[str, Evaluation], first: str) -> str:
    """Return two charts of all settings as HTML, scaled to those between which to decide.

    These are the named ones, and those of the Pareto front that lose no more calls than the present
    settings.

    Args:
        sweep: The sweep.
        named: Evaluations to mark, by name; the present settings are the first one.
        first: A short name of the first route.
    """
    return "".join(_traded(sweep, named, first, across, along) for across, along in _PAIRS)


def _traded(
    sweep: Sweep, named: Mapping[str, Evaluation], first: str, across: _Scale, along: _Scale
) -> str:
    most = sweep.today.whole.lost_calls
    deciding = [*named.values(), *(each for each in sweep.front if each.whole.lost_calls <= most)]
    x, y = (_around([one.value(each.whole) for each in deciding], one) for one in (across, along))
    on_front = {each.knobs for each in sweep.front}
    dots: list[str] = []
    hidden = 0
    for trial in sorted(sweep.trials, key=lambda each: each.knobs not in on_front):
        at, height = across.value(trial.whole), along.value(trial.whole)
        if not (x.contains(at) and y.contains(height)):
            hidden += 1
        elif len(dots) < _MAX_DOTS:
            kind = "front" if trial.knobs in on_front else "beaten"
            changed = "\n".join(trial.knobs.env_lines(sweep.today.knobs)) or "your settings"
            place = f"M{x.percent(at):.2f} {100 - y.percent(height):.2f}h0"
            dots.append(f'<path class="{kind}" d="{place}"><title>{escape(changed)}</title></path>')
    marks = "".join(
        f'<b class="mark m{number}" style="left:{x.percent(across.value(each.whole)):.2f}%;'
        f'top:{100 - y.percent(along.value(each.whole)):.2f}%"></b>'
        for number, each in enumerate(named.values())
    )
    keys = "".join(
        f'<li><b class="mark m{number}"></b> {escape(name)}</li>'
        for number, name in enumerate(named)
    )
    outside = f"<li>Outside of this range: {hidden} of {len(sweep.trials)}</li>" if hidden else ""
    below = escape(across.title.format(first=first))
    plot = _plot(x, y, 240, "".join(reversed(dots)), marks=marks, labels=True)
    return (
        f'<figure class="trade"><figcaption>{escape(along.title)}</figcaption>{plot}'
        f'<p class="axis">{below}</p><ul class="keys">{keys}{outside}</ul></figure>'
    )


def _around(values: Sequence[float], scale: _Scale) -> Axis:
    low, high = min(values), max(values)
    margin = (high - low) * _MARGIN
    margin = max(margin, (scale.least - (high - low)) / 2)
    return numbers(low - margin, high + margin, 5, scale=scale.factor)


# -- shapes ---------------------------------------------------------------------------------------


def _plot(
    x: Axis,
    y: Axis | None,
    height: int,
    shapes: str,
    background: str = "",
    *,
    marks: str = "",
    labels: bool = False,
) -> str:
    """Return a plot: shapes in percent of its width and height, with labels of the axes."""
    grid = "".join(f"M{x.percent(at):.2f} 0V100" for at, _ in x.ticks)
    texts = []
    if y is not None:
        grid += "".join(f"M0 {100 - y.percent(at):.2f}H100" for at, _ in y.ticks)
        texts += [
            f'<i class="y" style="top:{100 - y.percent(at):.2f}%">{label}</i>'
            for at, label in y.ticks
        ]
    if labels:
        texts += [
            f'<i class="x" style="left:{x.percent(at):.2f}%">{label}</i>' for at, label in x.ticks
        ]
    bottom = " labelled" if labels else ""
    return (
        f'<div class="plot{bottom}" style="height:{height}px">'
        '<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">'
        f"{_path('down', background)}{_path('grid', grid)}{shapes}</svg>"
        f"{marks}{''.join(texts)}</div>"
    )


def _path(kind: str, shape: str) -> str:
    return f'<path class="{kind}" d="{shape}"/>' if shape else ""


def _rectangle(left: float, right: float, top: float, bottom: float) -> str:
    return f"M{left:.2f} {top:.1f}H{right:.2f}V{bottom:.1f}H{left:.2f}z"
