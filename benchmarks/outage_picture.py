"""Draw the duration of each image and the wasted requests of an outage, under three designs.

    python benchmarks/outage_picture.py [FILE]     # .github/outage.svg, or FILE (.svg or .png)

``python -m benchmarks --write`` draws it, too. The designs are those of ``outage``, in the outage
of 30 minutes with the default limits.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import vl_convert
from outage import DEFAULT, DESIGNS, LOST, figures, is_wasted

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


def chart() -> dict[str, Any]:
    """Return a Vega-Lite chart: a column per design, images above and wasted requests below."""
    (span,) = DEFAULT.outcomes(SEED).incidents()
    images: list[dict[str, Any]] = []
    wasted: list[dict[str, Any]] = []
    for name, label in LABELS.items():
        result = DESIGNS[name](DEFAULT, SEED)
        found = figures(DEFAULT, result, SEED)
        mean, count = f"{found['mean']:.0f}", f"{found['wasted']:.0f}"
        design = f"{label}|{mean} s an image while Google is down,|{count} wasted requests"
        calls = zip(result.started, result.seconds, result.served, strict=True)
        images += [
            {"design": design, "minute": at / 60, "seconds": seconds, "by": [*VENDORS][route]}
            for at, seconds, route in calls
            if route != LOST and FROM <= at / 60 < TO
        ]
        wasted += [
            {"design": design, "minute": each.at / 60}
            for each in result.sent
            if is_wasted(result, each) and FROM <= each.at / 60 < TO
        ]

    order = list(dict.fromkeys(each["design"] for each in images))
    minute = {
        "field": "minute",
        "type": "quantitative",
        "scale": {"domain": [FROM, TO], "nice": False},
        "axis": {"title": "minute", "grid": False, "values": [30, 45, 60, 75]},
    }
    colours = {"domain": [*VENDORS], "range": [*VENDORS.values()]}
    legend = {"title": None, "orient": "top", "symbolSize": 90, "symbolOpacity": 1}
    points = {
        "mark": {"type": "point", "filled": True, "size": 11, "opacity": 0.8, "aria": False},
        "encoding": {
            "x": minute,
            "y": {"field": "seconds", "type": "quantitative", "title": "seconds to each image"},
            "color": {"field": "by", "scale": colours, "legend": legend},
        },
    }
    bars = {
        "mark": {"type": "bar", "color": "#c03a2b", "binSpacing": 0, "aria": False},
        "encoding": {
            "x": {**minute, "bin": {"step": 1}},
            "y": {"aggregate": "count", "title": "wasted a minute"},
        },
    }
    down = {
        "data": {"values": [{"minute": span.start / 60, "until": span.end / 60}]},
        "mark": {"type": "rect", "color": "#f9e0dc"},
        "encoding": {"x": minute, "x2": {"field": "until"}},
    }

    def row(values: list[dict[str, Any]], marks: Any, height: int, header: Any) -> dict[str, Any]:
        header = {"title": None, "labelAnchor": "start", "labelFontSize": 12, **header}
        return {
            "data": {"values": values},
            "facet": {"column": {"field": "design", "sort": order, "header": header}},
            "spec": {"width": 190, "height": height, "layer": [down, marks]},
            "bounds": "flush",
        }

    lines, none = {"labelExpr": "split(datum.label, '|')"}, {"labels": False}
    font = {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "tickCount": 5}
    return {
        "background": "white",
        "spacing": 30,
        "config": {"axis": font, "legend": {"labelFontSize": 13}},
        "vconcat": [row(images, points, 200, lines), row(wasted, bars, 70, none)],
    }


def draw(path: Path = PICTURE) -> None:
    """Simulate the outage once, and write its picture: an SVG, or a PNG by its ending."""
    found = chart()
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
