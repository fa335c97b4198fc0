"""``resilient-imagen monitoring``: alert rules for Prometheus and a dashboard for Grafana."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resilient_imagen.cli.command_errors import CommandError
from resilient_imagen.cli.terminal import echo

__all__ = ["monitoring"]


def monitoring(
    write: Annotated[
        Path,
        typer.Option(
            help="Directory for [bold]alerts.yml[/bold] and [bold]dashboard.json[/bold].",
            file_okay=False,
        ),
    ],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that were edited.")
    ] = False,
) -> None:
    """Write alert rules for Prometheus and a dashboard for Grafana, to be edited and installed.

    Prometheus reads the rules (rule_files); Grafana imports the dashboard.
    """
    from resilient_imagen.monitoring import write_files

    try:
        for path in write_files(write, overwrite=overwrite):
            echo(str(path))
    except FileExistsError as error:
        raise CommandError(
            f"{error.args[0]} was edited; choose another directory, or replace it with --overwrite"
        ) from None
