"""Draw the duration of each image and the wasted requests of an outage, under three designs.

    python benchmarks/outage_picture.py [FILE]     # .github/outage.svg, or FILE (.svg or .png)

``python -m benchmarks --write`` draws it, too. The designs are those of ``outage``, in the outage
of 30 minutes with the default limits.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from outage import DEFAULT, DESIGNS, figures, is_wasted

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
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text instead of outlines
    "svg.hashsalt": "outage",  # equal names of its parts in each run
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.axisbelow": True,
    "axes.edgecolor": "#dddddd",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "grid.color": "#dddddd",
}


def chart() -> Figure:
    """Return a column of plots per design: images above, and wasted requests below."""
    (span,) = DEFAULT.outcomes(SEED).incidents()
    figure = Figure((9.5, 5.5), layout="constrained")
    rows = figure.subplots(2, len(LABELS), sharex=True, sharey="row", height_ratios=(3, 1))
    for column, (name, label) in enumerate(LABELS.items()):
        images, requests = rows[:, column]
        result = DESIGNS[name](DEFAULT, SEED)
        found = figures(DEFAULT, result, SEED)
        images.set_title(
            f"{label}\n{found['mean']:.0f} s an image while Google is down,"
            f"\n{found['wasted']:.0f} wasted requests"
        )
        for route, (vendor, colour) in enumerate(VENDORS.items()):
            calls = zip(result.started, result.seconds, result.served, strict=True)
            shown = [(at / 60, s) for at, s, by in calls if by == route and at >= FROM * 60]
            images.plot(*zip(*shown, strict=True), ".", color=colour, markersize=4, label=vendor)
        wasted = [sent.at / 60 for sent in result.sent if is_wasted(result, sent)]
        requests.hist(wasted, range(FROM, TO + 1), color="#c03a2b")
        for plot in (images, requests):
            plot.axvspan(span.start / 60, span.end / 60, color="#f9e0dc", zorder=0)
            plot.set(xlim=(FROM, TO), ylim=(0, None))
        requests.set_xlabel("minute")
    rows[0, 0].set_ylabel("seconds to each image")
    rows[1, 0].set_ylabel("wasted a minute")
    handles, labels = rows[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2, markerscale=2, frameon=False)
    return figure


def draw(path: Path = PICTURE) -> None:
    """Simulate the outage once, and write its picture: an SVG, or a PNG by its ending."""
    with mpl.rc_context(STYLE):
        chart().savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if sys.argv[1:] else PICTURE)
