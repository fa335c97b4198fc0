"""Charts of a sweep as Vega-Lite JSON: the timeline of a run, and the trade-off of all settings."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from resilient_imagen.circuitbreaker import BreakerState
from resilient_imagen.tuning.outcome_model import fails
from resilient_imagen.tuning.recommendation import mean_with_missed
from resilient_imagen.tuning.report_text import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from resilient_imagen.tuning.outcome_model import Incident
    from resilient_imagen.tuning.recommendation import Evaluation
    from resilient_imagen.tuning.simulation_run import SimulationResult
    from resilient_imagen.tuning.sweep import Sweep

__all__ = ["pareto", "timeline"]

_BINS: Final = 240
_WIDTH: Final = 900
_COLOURS: Final = ("#4c8bd0", "#e0a030", "#7a5ba8", "#4aa37a")
_DOOMED: Final = "#c0392b"
_BANDS: Final = {"open": "#d9534f", "half_open": "#f0ad4e", "closed": "#8cc084"}
_MAX_DOTS: Final = 2000


def timeline(
    played: SimulationResult, troubles: Sequence[Incident], origin: float
) -> dict[str, Any]:
    """Return a chart of images and wasted requests over time, with the first route's breaker.

    Args:
        played: A run.
        troubles: The incidents of the first route.
        origin: The run's start, in seconds since the epoch.
    """
    end = max((sent.at + sent.seconds for sent in played.sent), default=1.0)
    time = {"field": "t", "type": "temporal", "axis": {"title": None, "format": "%d %b %H:%M"}}
    # Not "domain", about which Vega-Lite warns if the end of a bar has no type.
    time["scale"] = {"domainMin": _ms(origin), "domainMax": _ms(origin + end), "type": "utc"}
    bare = time | {"axis": None}
    kinds = [*played.routes, "doomed request"]
    scale = {"domain": kinds, "range": [*_COLOURS[: len(played.routes)], _DOOMED]}
    return {
        "vconcat": [
            {
                "width": _WIDTH,
                "height": 26,
                "layer": [
                    {
                        "data": {"values": list(_states(played, origin, end))},
                        "mark": "rect",
                        "encoding": {
                            "x": bare,
                            "x2": {"field": "until"},
                            "color": {
                                "field": "breaker",
                                "type": "nominal",
                                "scale": {"domain": list(_BANDS), "range": list(_BANDS.values())},
                                "legend": {"title": "breaker of the first route"},
                            },
                            "tooltip": [{"field": "breaker"}, {"field": "seconds"}],
                        },
                    },
                    {
                        "data": {
                            "values": [
                                {"t": _ms(origin + span.start), "until": _ms(origin + span.end)}
                                for span in troubles
                            ]
                        },
                        "mark": {"type": "rect", "fill": None, "stroke": "#333"},
                        "encoding": {
                            "x": {"field": "t", "type": "temporal"},
                            "x2": {"field": "until"},
                        },
                    },
                ],
            },
            {
                "width": _WIDTH,
                "height": 170,
                "data": {"values": list(_bins(played, origin, end))},
                "mark": "rect",
                "encoding": {
                    "x": bare,
                    "x2": {"field": "until"},
                    "y": {"field": "low", "type": "quantitative", "axis": {"title": "requests"}},
                    "y2": {"field": "high"},
                    "color": {
                        "field": "what",
                        "type": "nominal",
                        "scale": scale,
                        "legend": {"title": "images by route; doomed"},
                    },
                    "tooltip": [{"field": "what"}, {"field": "count"}],
                },
            },
            {
                "width": _WIDTH,
                "height": 130,
                "data": {"values": _images(played, origin)},
                "mark": {"type": "circle", "size": 9, "opacity": 0.6},
                "encoding": {
                    "x": time,
                    "y": {
                        "field": "s",
                        "type": "quantitative",
                        "scale": {"type": "log"},
                        "axis": {"title": "seconds to the image"},
                    },
                    "color": {"field": "what", "type": "nominal", "scale": scale, "legend": None},
                },
            },
        ],
        "resolve": {"scale": {"color": "independent"}},
        "spacing": 6,
    }


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _states(played: SimulationResult, origin: float, end: float) -> Iterator[dict[str, Any]]:
    since, state = 0.0, BreakerState.CLOSED
    changes = [(change.at, change.state) for change in played.changes if change.route == 0]
    for at, following in [*changes, (end, state)]:
        yield {
            "t": _ms(origin + since),
            "until": _ms(origin + at),
            "breaker": state.value,
            "seconds": round(at - since),
        }
        since, state = at, following


def _bins(played: SimulationResult, origin: float, end: float) -> Iterator[dict[str, Any]]:
    width = max(60.0, end / _BINS)
    counts: Counter[tuple[int, int]] = Counter()
    for sent in played.sent:
        if sent.reason is None:
            counts[int(sent.at / width), sent.route] += 1
        elif fails(sent.reason):
            counts[int(sent.at / width), len(played.routes)] += 1
    names = [*played.routes, "doomed request"]
    low, before = 0, -1
    for (index, kind), count in sorted(counts.items()):
        low, before = (low if index == before else 0), index
        yield {
            "t": _ms(origin + index * width),
            "until": _ms(origin + (index + 1) * width),
            "what": names[kind],
            "count": count,
            "low": low,
            "high": low + count,
        }
        low += count


def _images(played: SimulationResult, origin: float) -> list[dict[str, Any]]:
    """Return the time of each image; an even sample if there are very many."""
    step = max(1, len(played.started) // _MAX_DOTS)
    return [
        {
            "t": _ms(origin + played.started[call]),
            "s": round(max(played.seconds[call], 0.1), 1),
            "what": played.routes[played.served[call]],
        }
        for call in range(0, len(played.started), step)
        if played.served[call] >= 0
    ]


def pareto(sweep: Sweep) -> dict[str, Any]:
    """Return a chart of all settings by seconds, dollars and the first route's share (colour)."""
    on_front = {trial.knobs for trial in sweep.front}
    names: dict[Any, list[str]] = {}
    for name, trial in shown(sweep).items():
        names.setdefault(trial.knobs, []).append(name)
    points = [_point(trial, trial.knobs in on_front, names) for trial in sweep.trials]
    seconds = {"field": "seconds", "type": "quantitative", "scale": {"zero": False, "nice": True}}
    dollars = {"field": "usd", "type": "quantitative", "scale": {"zero": False, "nice": True}}
    place: dict[str, Any] = {
        "x": seconds | {"axis": {"title": "seconds a call, on average"}},
        "y": dollars | {"axis": {"title": "dollars an image", "format": "$.4f"}},
    }
    return {
        "width": _WIDTH - 120,
        "height": 360,
        "data": {"values": points},
        "layer": [
            {
                "mark": {"type": "point", "filled": True, "size": 60},
                "encoding": place
                | {
                    "color": {
                        "field": "share",
                        "type": "quantitative",
                        "scale": {"scheme": "viridis"},
                        "legend": {"title": "by the first route", "format": ".0%"},
                    },
                    "shape": {
                        "field": "beaten",
                        "type": "nominal",
                        "legend": {"title": None},
                        "scale": {
                            "domain": ["on the front", "beaten by another"],
                            "range": ["diamond", "circle"],
                        },
                    },
                    "opacity": {
                        "condition": {"test": "datum.beaten == 'on the front'", "value": 1},
                        "value": 0.45,
                    },
                    "tooltip": [{"field": name} for name in points[0] if name != "beaten"],
                },
            },
            {
                "transform": [{"filter": "datum.name != ''"}],
                "mark": {"type": "text", "dy": -12, "fontWeight": "bold", "fontSize": 12},
                "encoding": place | {"text": {"field": "name"}},
            },
        ],
    }


def _point(trial: Evaluation, front: bool, names: Mapping[Any, Sequence[str]]) -> dict[str, Any]:  # noqa: FBT001 - private
    whole = trial.whole
    return {
        "seconds": round(mean_with_missed(whole), 3),
        "usd": round(whole.usd_per_image, 5),
        "share": round(whole.first_share, 4),
        "doomed": whole.doomed,
        "failed": whole.failed,
        "beaten": "on the front" if front else "beaten by another",
        "name": ", ".join(names.get(trial.knobs, ())),
        "setting": " ".join(
            line.removeprefix("IMAGE_GEN_").removeprefix("BREAKER_").lower()
            for line in trial.knobs.env_lines()
        ),
    }
