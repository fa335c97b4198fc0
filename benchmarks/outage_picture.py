"""Draws what an outage costs each image, and how many requests are in vain, under three designs.

    python benchmarks/outage_picture.py [FILE]     # .github/outage.svg, or FILE (.svg or .png)

Needs the ``tuning`` extra. ``python -m benchmarks`` draws it, too. The designs are those of
``outage``; the world is that with the default limits.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outage import outcomes
from outage_scenarios import DEFAULT, SEEDS

if TYPE_CHECKING:
    from outage_scenarios import Case, Outcome

PICTURE = Path(__file__).parents[1] / ".github" / "outage.svg"
LABELS = {
    "guide": "retries, then the other vendor",
    "cooldown": "cooldown, no probe",
    "ours": "resilient_imagen",
}
MARKS: dict[str, dict[str, Any]] = {
    "guide": {"color": "#a8a8a8", "filled": True, "size": 12},
    "cooldown": {"color": "#e07b00", "filled": False, "size": 34, "strokeWidth": 1},
    "ours": {"color": "#1668b0", "filled": True, "size": 9},
}
"""A ring lets the dot in it be seen."""
FROM, TO = 25, 80
"""Minutes that are shown."""
MINUTE = {
    "field": "minute",
    "type": "quantitative",
    "scale": {"domain": [FROM, TO], "nice": False},
}
COLOUR = {
    "field": "by",
    "type": "nominal",
    "scale": {
        "domain": [LABELS[name] for name in MARKS],
        "range": [mark["color"] for mark in MARKS.values()],
    },
    "legend": {"title": None, "orient": "top", "symbolType": "circle", "columnPadding": 40},
}


def picture(case: Case, found: dict[str, Outcome]) -> dict[str, Any]:
    """A Vega-Lite chart: above time to image, image by image, below requests in vain so far."""
    return {
        "background": "white",
        "vconcat": [
            _panel(
                case,
                [
                    {
                        "data": {"values": _images(found[name], LABELS[name])},
                        "mark": {"type": "point", "opacity": 0.8, "aria": False, **mark},
                        "encoding": {
                            "x": MINUTE | {"axis": {"title": None, "grid": False}},
                            "y": _log("seconds to the image", [10, 20, 30, 60, 120, 300, 600], 5),
                            "color": COLOUR,
                        },
                    }
                    for name, mark in MARKS.items()
                ],
                240,
            ),
            _panel(
                case,
                [
                    {
                        "data": {"values": _doomed(found[name], LABELS[name])},
                        "mark": {"type": "line", "interpolate": "step-after", "aria": False},
                        "encoding": {
                            "x": MINUTE
                            | {
                                "axis": {
                                    "title": "minute; Google is down where it is red",
                                    "grid": False,
                                }
                            },
                            "y": _log("requests in vain", [1, 3, 10, 30, 100, 300], 0.8),
                            "color": COLOUR,
                        },
                    }
                    for name in MARKS
                ],
                120,
            ),
        ],
    }


def _panel(case: Case, layers: list[dict[str, Any]], height: int) -> dict[str, Any]:
    (span,) = case.truth.incidents()
    red = {
        "data": {"values": [{"from": span.start / 60, "to": span.end / 60}]},
        "mark": {"type": "rect", "color": "#fbe9e7"},
        "encoding": {"x": MINUTE | {"field": "from"}, "x2": {"field": "to"}},
    }
    return {"width": 720, "height": height, "layer": [red, *layers]}


def _log(title: str, values: list[int], lowest: float) -> dict[str, Any]:
    return {
        "field": "y",
        "type": "quantitative",
        "scale": {"type": "log", "domain": [lowest, 700]},
        "axis": {"title": title, "values": values},
    }


def _images(outcome: Outcome, label: str) -> list[dict[str, Any]]:
    return [
        {"minute": round(image.asked / 60, 2), "y": round(image.seconds, 1), "by": label}
        for image in sorted(outcome.images, key=lambda each: each.asked)
        if FROM <= image.asked / 60 < TO
    ]


def _doomed(outcome: Outcome, label: str) -> list[dict[str, Any]]:
    shown = sorted(round(at / 60, 2) for at, _ in outcome.doomed if FROM <= at / 60 < TO)
    steps = [*enumerate(shown, 1), (len(shown), TO)]
    return [{"minute": minute, "y": number, "by": label} for number, minute in steps]


def draw(path: Path = PICTURE) -> None:
    """Play the outage once, and write its picture: an SVG, or a PNG by its ending."""
    import vl_convert

    chart = picture(DEFAULT, outcomes(DEFAULT, SEEDS[0]))
    if path.suffix == ".png":
        path.write_bytes(vl_convert.vegalite_to_png(chart, scale=2))
    else:
        path.write_text(_smaller(vl_convert.vegalite_to_svg(chart)), encoding="utf-8")


def _smaller(svg: str) -> str:
    """Tenths of a pixel are enough, circles may be called so, and nobody reads the parts' names."""
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
