"""Draw the duration of each image and the wasted requests of an outage, under three designs.

    python benchmarks/outage_picture.py [FILE]     # .github/outage.svg, or FILE (.svg or .png)

``python -m benchmarks --write`` draws it, too. The designs are those of ``outage``, in the outage
of 30 minutes with the default limits.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import vl_convert
from outage import DEFAULT, DESIGNS, Outcome, figures

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
SEED = 5
"""The variant of 30 minutes."""


def chart(found: dict[str, Outcome]) -> dict[str, Any]:
    """Return a Vega-Lite chart: a column per design, images above and wasted requests below."""
    (span,) = DEFAULT.outcomes(SEED).incidents()
    images, wasted = [], []
    titles = {name: title(name, outcome) for name, outcome in found.items()}
    for name, outcome in found.items():
        images += [
            {"design": titles[name], "minute": round(call.asked / 60, 2),
             "seconds": round(call.seconds, 1), "by": [*VENDORS][call.route]}
            for call in outcome.calls
            if call.route is not None and FROM <= call.asked / 60 < TO
        ]  # fmt: skip
        wasted += [
            {"design": titles[name], "minute": minute, "until": minute + 1, "count": count}
            for minute, count in per_minute(outcome).items()
        ]
    points = {
        "mark": {"type": "point", "filled": True, "size": 11, "opacity": 0.8, "aria": False},
        "encoding": {
            "x": minute(),
            "y": vertical("seconds", "seconds to each image"),
            "color": {
                "field": "by",
                "scale": {"domain": [*VENDORS], "range": [*VENDORS.values()]},
                "legend": {"title": None, "orient": "top", "symbolSize": 90, "symbolOpacity": 1},
            },
        },
    }
    bars = {
        "mark": {"type": "bar", "color": "#c03a2b", "aria": False},
        "encoding": {
            "x": minute(),
            "x2": {"field": "until"},
            "y": vertical("count", "wasted a minute"),
            "y2": {"datum": 0},
        },
    }
    down = {
        "data": {"values": [{"minute": span.start / 60, "until": span.end / 60}]},
        "mark": {"type": "rect", "color": "#f9e0dc"},
        "encoding": {"x": minute(), "x2": {"field": "until"}},
    }

    def row(marks: dict[str, Any], values: list[Any], height: int, header: Any) -> dict[str, Any]:
        column = {
            "field": "design",
            "sort": [*titles.values()],
            "header": {"title": None, **header},
        }
        return {
            "data": {"values": values},
            "facet": {"column": column},
            "spec": {"width": 190, "height": height, "layer": [down, marks]},
            "bounds": "flush",
        }

    lines = {"labelExpr": "split(datum.label, '|')", "labelFontSize": 12, "labelAnchor": "start"}
    return {
        "background": "white",
        "spacing": 30,
        "config": {
            "axis": {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"},
            "legend": {"labelFontSize": 13},
        },
        "vconcat": [row(points, images, 200, lines), row(bars, wasted, 70, {"labels": False})],
    }


def title(name: str, outcome: Outcome) -> str:
    """Return the design's name and its figures."""
    mean = figures(DEFAULT, outcome, SEED)["mean"]
    wasted = sum(per_minute(outcome).values())
    return f"{LABELS[name]}|{mean:.0f} s an image while Google is down,|{wasted} wasted requests"


def per_minute(outcome: Outcome) -> Counter[int]:
    wasted = Counter(int(each.at // 60) for each in outcome.sent if each.wasted)
    return Counter({minute: wasted[minute] for minute in range(FROM, TO) if wasted[minute]})


def minute() -> dict[str, Any]:
    axis = {"title": "minute", "grid": False, "values": [30, 45, 60, 75]}
    scale = {"domain": [FROM, TO], "nice": False}
    return {"field": "minute", "type": "quantitative", "scale": scale, "axis": axis}


def vertical(field: str, title: str) -> dict[str, Any]:
    return {"field": field, "type": "quantitative", "axis": {"title": title, "tickCount": 5}}


def draw(path: Path = PICTURE) -> None:
    """Simulate the outage once, and write its picture: an SVG, or a PNG by its ending."""
    found = chart({name: DESIGNS[name](DEFAULT, SEED) for name in LABELS})
    if path.suffix == ".png":
        path.write_bytes(vl_convert.vegalite_to_png(found, scale=2))
    else:
        path.write_text(smaller(vl_convert.vegalite_to_svg(found)), encoding="utf-8")


def smaller(svg: str) -> str:
    """Round to tenths of a pixel, write circles as circles, and drop the names of the parts."""
    svg = re.sub(r' (?:class|role|aria-[\w-]+)="[^"]*"', "", svg)
    svg = re.sub(r"\d+\.\d{2,}", lambda number: f"{float(number[0]):.1f}", svg)
    return re.sub(
        r'<path transform="translate\(([\d.]+),([\d.]+)\)" d="M([\d.]+),0A[^"]*"([^>]*)/>',
        r'<circle cx="\1" cy="\2" r="\3"\4/>',
        svg,
    )


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if sys.argv[1:] else PICTURE)
