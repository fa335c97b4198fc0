"""``resilient-imagen cost``: the cost of images, and of requests that delivered none."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.table import Table

from resilient_imagen.cli.recordings import (
    FromJaeger,
    Lookback,
    Save,
    Service,
    SkipBroken,
    Source,
    recorded,
)
from resilient_imagen.cli.terminal import Console

if TYPE_CHECKING:
    from resilient_imagen.tuning.recording import RouteLog

__all__ = ["cost"]

_ROWS = ("requests", "images", "wasted", "seconds on them", "dollars", "$/image", "up to $")


def cost(
    recording: Source = "",
    jaeger: FromJaeger = "",
    service: Service = "",
    lookback: Lookback = "24h",
    skip_broken: SkipBroken = False,
    save: Save = None,
) -> None:
    """Add up the costs of each route, from logs or traces.

    The last line includes requests that were given up, which may be billed, at the price of an
    image.
    """
    from resilient_imagen.tuning.report_text import left_out

    loaded = recorded(recording, jaeger, service, lookback, skip_broken=skip_broken, save=save)
    table = Table("")
    for name in loaded.routes:
        provider, _, model = name.partition(":")
        table.add_column(f"{provider}:\n{model}", justify="right", overflow="fold")
    for row in zip(_ROWS, *map(_cells, loaded.routes.values()), strict=True):
        table.add_row(*row)
    console = Console()
    console.print(f"{len(loaded.asked)} calls in {loaded.duration / 3600:.1f} hours")
    console.print(table)
    for line in left_out(loaded):
        console.print(line)


def _cells(log: RouteLog) -> tuple[str, ...]:
    from resilient_imagen.tuning.recording import IMAGE

    images = [cost for cost, reason in zip(log.cost, log.reason, strict=True) if reason == IMAGE]
    priced = [cost for cost in images if not math.isnan(cost)]
    wasted = [log.latency[index] for index in range(len(log)) if log.failed(index)]
    counts = str(len(log)), str(len(images)), str(len(wasted)), f"{sum(wasted):.0f}"
    if not priced:
        return *counts, "-", "-", "-"
    spent, each = sum(priced), sum(priced) / len(priced)
    given_up = sum(map(bool, log.given_up))
    return *counts, f"{spent:.2f}", f"{each:.4f}", f"{spent + given_up * each:.2f}"
