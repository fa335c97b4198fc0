"""``resilient-imagen breaker``: open or close the circuit of a route in running processes."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from resilient_imagen.cli.command_errors import CommandError
from resilient_imagen.cli.orders import ControlFilePath, FleetUrl, Lasts, Why, send

__all__ = ["breaker"]


class Action(StrEnum):
    """The action on a circuit."""

    OPEN = "open"
    CLOSE = "close"
    RESET = "reset"


def breaker(
    action: Annotated[
        Action, typer.Argument(help="open, close, or reset: end what was ordered before.")
    ],
    route: Annotated[
        str, typer.Argument(help="provider:model, or a provider's name for all its routes.")
    ],
    lasts: Lasts = "30m",
    why: Why = "",
    hold: Annotated[bool, typer.Option("--hold", help="Keep it closed until --for ends.")] = False,
    even_account: Annotated[
        bool,
        typer.Option("--even-account", help="Also after a used-up quota or a refused key."),
    ] = False,
    redis_url: FleetUrl = None,
    control_file: ControlFilePath = None,
) -> None:
    """Open or close a circuit in running processes, for a limited time.

    [bold]open[/bold] rejects all calls of the route until --for ends. [bold]close[/bold] closes it
    now, and it may trip again; with --hold it stays closed until --for ends. [bold]reset[/bold]
    ends what was ordered before.
    """
    if action is not Action.CLOSE and (hold or even_account):
        raise CommandError("--hold and --even-account belong to close")
    send(
        redis_url,
        control_file,
        lasts,
        why,
        action="hold" if hold else action.value,
        target=route,
        even_account=even_account,
    )
