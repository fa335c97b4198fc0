"""``resilient-imagen dashboard``: the live page of all processes that share one Redis."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from typing import TYPE_CHECKING, Annotated, Final

import typer

from resilient_imagen.cli.command_errors import CommandError, system_words, warn
from resilient_imagen.cli.orders import FleetUrl, fleet_orders, settings_with
from resilient_imagen.cli.terminal import echo
from resilient_imagen.errors import ConfigurationError

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

    from resilient_imagen import Settings
    from resilient_imagen.control.fleet import FleetOrders

__all__ = ["dashboard"]

_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
_VARIABLE: Final = "DASHBOARD_TOKEN"


def dashboard(
    redis_url: FleetUrl = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8484,
    controls: Annotated[
        bool,
        typer.Option(
            "--controls",
            help="Allow orders with a token: that of DASHBOARD_TOKEN, or one that is printed.",
        ),
    ] = False,
    jaeger_url: Annotated[
        str | None,
        typer.Option(help="Where Jaeger's pages are.", envvar="JAEGER_URL", show_default=False),
    ] = None,
) -> None:
    """Serve a page with the routes, paces and orders of all processes, from Redis.

    The page is read-only without [bold]--controls[/bold]. Everybody who reaches the address can
    read it. Ctrl-C ends it.
    """
    token = _token() if controls else None
    settings = settings_with(redis_url)
    fleet = fleet_orders(settings)
    server = _server(_application(settings, fleet, host, token, jaeger_url))
    try:
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as error:
        raise CommandError(f"{host}:{port} cannot be used: {system_words(error)}") from None
    with listener:
        shown = f"[{host}]" if ":" in host else host
        echo(f"http://{shown}:{listener.getsockname()[1]}/")
        if controls and not os.environ.get(_VARIABLE):
            echo(f"token for orders: {token}", err=True)
        try:
            _warn_if_unreadable(fleet)
            echo("serving; Ctrl-C ends it", err=True)
            server.run(sockets=[listener])
        except KeyboardInterrupt:
            echo("stopped", err=True)  # Ctrl-C is how this command is meant to end


def _token() -> str:
    return os.environ.get(_VARIABLE) or secrets.token_urlsafe(24)


def _warn_if_unreadable(fleet: FleetOrders) -> None:
    """Warn if Redis cannot be read now; the page shows its data once it can."""
    from resilient_imagen.distributed.fleet_status import read_status

    try:
        asyncio.run(read_status(fleet.address))
    except ConfigurationError as error:
        warn(str(error))


def _application(
    settings: Settings,
    fleet: FleetOrders,
    host: str,
    token: str | None,
    jaeger_url: str | None,
) -> ASGIApp:
    from resilient_imagen.dashboard.application import serve
    from resilient_imagen.dashboard.fleet import FleetSource

    return serve(
        FleetSource(fleet, [step.accounts for step in settings.routes]),
        token=token,
        jaeger_url=jaeger_url,
        # On this machine's own address, no other name is right; see Security in the guide.
        hosts=_LOOPBACK if host in _LOOPBACK else None,
    )


def _server(app: ASGIApp) -> uvicorn.Server:
    import uvicorn

    return uvicorn.Server(
        uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            log_level="error",
            server_header=False,
            timeout_graceful_shutdown=1,
        )
    )
