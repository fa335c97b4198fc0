"""``resilient-imagen cost``: what images, and requests that brought none, cost."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from resilient_imagen.cli.recordings import (
    FromJaeger,
    Lookback,
    Save,
    Service,
    SkipBroken,
    Source,
    recorded,
)

if TYPE_CHECKING:
    from resilient_imagen.tuning.recording import RouteLog

__all__ = ["cost"]

_ROWS = ("requests", "images", "doomed", "seconds on them", "dollars", "$/image", "up to $")


def cost(
    recording: Source = "",
    jaeger: FromJaeger = "",
    service: Service = "",
    lookback: Lookback = "24h",
    skip_broken: SkipBroken = False,
    save: Save = None,
) -> None:
    """Add up what was spent, route by route, from logs or traces.

    A request that was given up may be billed all the same: it counts at the price of an image in
    the last line.
    """
    from rich.table import Table

    from resilient_imagen.cli.terminal import Console
    from resilient_imagen.tuning.report_text import left_out

    loaded = recorded(recording, jaeger, service, lookback, skip_broken=skip_broken, save=save)
    table = Table()
    table.add_column("")
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

    every = range(len(log))
    images = [index for index in every if log.reason[index] == IMAGE]
    priced = [log.cost[index] for index in images if not math.isnan(log.cost[index])]
    doomed = [index for index in every if log.failed(index)]
    each = sum(priced) / len(priced) if priced else math.nan
    maybe = sum(bool(log.given_up[index]) for index in every)
    spent = sum(priced)
    return (
        str(len(log)),
        str(len(images)),
        str(len(doomed)),
        f"{sum(log.latency[index] for index in doomed):.0f}",
        f"{spent:.2f}" if priced else "-",
        f"{each:.4f}" if priced else "-",
        f"{spent + maybe * each:.2f}" if priced else "-",
    )
