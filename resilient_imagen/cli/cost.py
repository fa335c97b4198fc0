"""``resilient-imagen cost``: what images, and requests that brought none, cost."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resilient_imagen.cli.tune import recorded

if TYPE_CHECKING:
    from resilient_imagen.tuning.recording import RouteLog

__all__ = ["cost"]


def cost(
    recording: Annotated[
        str,
        typer.Argument(
            help="JSON log lines, OTLP lines of a collector, or a saved recording; - is standard"
            " input.",
            show_default=False,
        ),
    ] = "",
    jaeger: Annotated[str, typer.Option(help="Read from this Jaeger instead.")] = "",
    service: Annotated[str, typer.Option(help="The service's name there.")] = "",
    lookback: Annotated[str, typer.Option(help="How far back: 90m, 24h, 7d.")] = "24h",
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Count broken lines instead of ending.")
    ] = False,
    save: Annotated[
        Path | None, typer.Option(help="Write the recording here, in our own format.")
    ] = None,
) -> None:
    """Add up what was spent, route by route, from logs or traces.

    A request that was given up may be billed all the same: it counts at the price of an image in
    the last column.
    """
    from rich.console import Console
    from rich.table import Table

    loaded = recorded(recording, jaeger, service, lookback, skip_broken=skip_broken, save=save)
    table = Table()
    table.add_column("route")
    for column in ("requests", "images", "doomed", "s on them", "dollars", "$/image", "up to $"):
        table.add_column(column, justify="right")
    for name, log in loaded.routes.items():
        table.add_row(name, *_cells(log))
    console = Console()
    console.print(
        f"{len(loaded.asked)} calls in {loaded.duration / 3600:.1f} hours", highlight=False
    )
    console.print(table)
    for what, count in sorted(loaded.notes.items()):
        console.print(f"{what}: {count}", highlight=False, markup=False)


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
