"""Draws what an outage costs each image, under three designs, for the README.

    python benchmarks/outage_picture.py [FILE]     # .github/outage.svg, or FILE (.svg or .png)

Needs the ``tuning`` extra. The world and the designs are those of ``outage``; the limits are the
defaults.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outage import SEEDS, cases, outcomes, truth_of

if TYPE_CHECKING:
    from outage import Case, Outcome

PICTURE = Path(__file__).parents[1] / ".github" / "outage.svg"
COLOURS = {"guide": "#b8b8b8", "cooldown": "#e0a030", "ours": "#1668b0"}
LABELS = {
    "guide": "retries, then the other vendor",
    "cooldown": "cooldown, no probe",
    "ours": "resilient_imagen",
}


def picture(case: Case, found: dict[str, Outcome]) -> dict[str, Any]:
    """A Vega-Lite chart: time to image, image by image."""
    rows = [
        {"minute": round(image.asked / 60, 2), "s": round(image.seconds, 1), "by": LABELS[name]}
        for name, outcome in found.items()
        for image in sorted(outcome.images, key=lambda each: each.asked)
        if 1500 <= image.asked < 4800
    ]
    span = truth_of(case).troubles()[0]
    out = [{"from": span.start / 60, "to": span.end / 60}]
    minutes = {
        "field": "minute",
        "type": "quantitative",
        "scale": {"domain": [25, 80], "nice": False},
        "axis": {"title": "minute; Google is down where it is red", "grid": False},
    }
    return {
        "width": 720,
        "height": 260,
        "background": "white",
        "layer": [
            {
                "data": {"values": out},
                "mark": {"type": "rect", "color": "#fbe9e7"},
                "encoding": {"x": minutes | {"field": "from"}, "x2": {"field": "to"}},
            },
            {
                "data": {"values": rows},
                "mark": {"type": "circle", "size": 12, "opacity": 0.8, "aria": False},
                "encoding": {
                    "x": minutes,
                    "y": {
                        "field": "s",
                        "type": "quantitative",
                        "scale": {"type": "log", "domain": [5, 700]},
                        "axis": {
                            "title": "seconds to the image",
                            "values": [10, 20, 30, 60, 120, 300, 600],
                        },
                    },
                    "color": {
                        "field": "by",
                        "type": "nominal",
                        "scale": {
                            "domain": [LABELS[name] for name in COLOURS],
                            "range": list(COLOURS.values()),
                        },
                        "legend": {"title": None, "orient": "top"},
                    },
                },
            },
        ],
    }


def draw(case: Case, found: dict[str, Outcome], path: Path) -> None:
    """Write the picture of a case: an SVG, or a PNG by its ending."""
    import vl_convert

    chart = picture(case, found)
    if path.suffix == ".png":
        path.write_bytes(vl_convert.vegalite_to_png(chart, scale=2))
    else:
        path.write_text(_smaller(vl_convert.vegalite_to_svg(chart)), encoding="utf-8")


def _smaller(svg: str) -> str:
    """Tenths of a pixel are enough, circles may be called so, and nobody reads the parts' names."""
    svg = re.sub(r' (?:class|role|aria-hidden|aria-roledescription)="[^"]*"', "", svg)
    svg = re.sub(r"\d+\.\d{2,}", lambda number: f"{float(number[0]):.1f}", svg)
    return re.sub(
        r'<path transform="translate\(([\d.]+),([\d.]+)\)" d="M([\d.]+),0A[^"]*"'
        r' fill="(#\w+)"[^>]*/>',
        r'<circle cx="\1" cy="\2" r="\3" fill="\4" opacity=".8"/>',
        svg,
    )


if __name__ == "__main__":
    pictured = cases()[1]  # everything as it is by default
    draw(
        pictured, outcomes(pictured, SEEDS[0]), Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE
    )
