"""Draw the duration of each image and the wasted requests of an outage, under three designs.

    python benchmarks/outage_picture.py [FILE]     # .github/outage.svg, or FILE (.svg or .png)

It needs the ``tuning`` extra; ``python -m benchmarks`` draws it, too. The designs are those of
``outage``, in the outage of 30 minutes with the default limits, all on the same axes.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from outage import DESIGNS
from outage_scenarios import DEFAULT, MINUTES, SEEDS, Case, Outcome, figures

PICTURE = Path(__file__).parents[1] / ".github" / "outage.svg"
LABELS = {
    "retries": "retries, then fallback",
    "cooldown": "cooldown",
    "ours": "resilient_imagen",
}
VENDORS = {"image by Google": "#1668b0", "image by OpenAI": "#e07b00"}
"""Colours of the images, in the order of the routes."""
FROM, TO = 20, 90
"""Minutes that are shown."""
SEED = SEEDS[MINUTES.index(30)]
WIDTH, HEIGHTS = 190, (200, 70)
AXIS = {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
TITLE = {
    "fontSize": 14, "subtitleFontSize": 12, "subtitleColor": "#333333", "color": "#111111",
    "anchor": "start", "frame": "group",
}  # fmt: skip
LEGEND = {
    "title": None, "orient": "top", "symbolSize": 90, "columnPadding": 30, "symbolOpacity": 1,
}  # fmt: skip


def picture(case: Case, found: dict[str, Outcome]) -> dict[str, Any]:
    """Return a Vega-Lite chart: a column per design, images above and wasted requests below."""
    highest = max(image.seconds for each in found.values() for image in each.images)
    most = max(max(_per_minute(each).values(), default=0) for each in found.values())
    return {
        "background": "white",
        "spacing": 14,
        "config": {"axis": AXIS, "legend": {"labelFontSize": 13}, "view": {"stroke": "#cccccc"}},
        "hconcat": [
            _column(case, found[name], label, highest, most, first=index == 0)
            for index, (name, label) in enumerate(LABELS.items())
        ],
    }


def _column(
    case: Case, outcome: Outcome, label: str, highest: float, most: int, *, first: bool
) -> dict[str, Any]:
    (span,) = case.outcomes.incidents()
    domain = {"domain": [*VENDORS], "range": [*VENDORS.values()]}
    images = {
        "data": {"values": _images(outcome)},
        "mark": {"type": "point", "filled": True, "size": 11, "opacity": 0.8, "aria": False},
        "encoding": {
            "x": _minute(),
            "y": _linear("seconds to each image" if first else None, highest, first=first),
            "color": {"field": "by", "type": "nominal", "scale": domain, "legend": LEGEND},
        },
    }
    wasted = {
        "data": {"values": _bars(outcome)},
        "mark": {"type": "bar", "color": "#c03a2b", "aria": False},
        "encoding": {
            "x": _minute("minute"),
            "x2": {"field": "until"},
            "y": _linear("wasted a minute" if first else None, most, first=first),
            "y2": {"datum": 0},
        },
    }
    background = {
        "data": {"values": [{"from": span.start / 60, "to": span.end / 60}]},
        "mark": {"type": "rect", "color": "#f9e0dc", "aria": False},
    }
    layers = [
        {
            "width": WIDTH,
            "height": height,
            "layer": [
                background
                | {"encoding": {"x": _minute(title) | {"field": "from"}, "x2": {"field": "to"}}},
                marks,
            ],
        }
        for height, title, marks in zip(HEIGHTS, (None, "minute"), (images, wasted), strict=True)
    ]
    subtitle = [
        f"{figures(DEFAULT, outcome, SEED).mean:.0f} s an image while Google is down,",
        f"{sum(_per_minute(outcome).values())} wasted requests",
    ]
    title = {"text": label, "subtitle": subtitle, **TITLE}
    return {"title": title, "spacing": 6, "vconcat": layers}


def _minute(title: str | None = None) -> dict[str, Any]:
    axis = {"title": title, "grid": False, "values": [30, 45, 60, 75], "labels": bool(title)}
    scale = {"domain": [FROM, TO], "nice": False}
    return {"field": "minute", "type": "quantitative", "scale": scale, "axis": axis}


def _linear(title: str | None, highest: float, *, first: bool) -> dict[str, Any]:
    axis = {"title": title, "tickCount": 5, "labels": first}
    scale = {"domain": [0, highest], "nice": True}
    return {"field": "y", "type": "quantitative", "scale": scale, "axis": axis}


def _images(outcome: Outcome) -> list[dict[str, Any]]:
    vendors = [*VENDORS]
    return [
        {
            "minute": round(image.asked / 60, 2),
            "y": round(image.seconds, 1),
            "by": vendors[image.route],
        }
        for image in sorted(outcome.images, key=lambda each: each.asked)
        if FROM <= image.asked / 60 < TO
    ]


def _per_minute(outcome: Outcome) -> Counter[int]:
    minutes = Counter(int(at // 60) for at, _ in outcome.wasted)
    return Counter({minute: minutes[minute] for minute in minutes if FROM <= minute < TO})


def _bars(outcome: Outcome) -> list[dict[str, Any]]:
    counts = sorted(_per_minute(outcome).items())
    return [{"minute": minute, "until": minute + 1, "y": count} for minute, count in counts]


def draw(path: Path = PICTURE) -> None:
    """Simulate the outage once, and write its picture: an SVG, or a PNG by its ending."""
    import vl_convert

    found = {name: DESIGNS[name](DEFAULT, SEED) for name in LABELS}
    chart = picture(DEFAULT.of(SEED), found)
    if path.suffix == ".png":
        path.write_bytes(vl_convert.vegalite_to_png(chart, scale=2))
    else:
        path.write_text(_smaller(vl_convert.vegalite_to_svg(chart)), encoding="utf-8")


def _smaller(svg: str) -> str:
    """Round to tenths of a pixel, write circles as circles, and drop the names of the parts."""
    svg = re.sub(r' (?:class|role|aria-hidden|aria-roledescription)="[^"]*"', "", svg)
    svg = re.sub(r"\d+\.\d{2,}", lambda number: f"{float(number[0]):.1f}", svg)
    svg = re.sub(
        r'<path transform="translate\(([\d.]+),([\d.]+)\)" d="M([\d.]+),0A[^"]*"([^>]*)/>',
        r'<circle cx="\1" cy="\2" r="\3"\4/>',
        svg,
    )
    return re.sub(r'( (?:opacity|stroke-width))="0\.', r'\1=".', svg)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE)
