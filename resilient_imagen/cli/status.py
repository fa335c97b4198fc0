"""``resilient-imagen status``: the breakers and the pace that all processes share."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from resilient_imagen.cli.command_errors import CommandError
from resilient_imagen.cli.orders import span, warn_of_distrusted
from resilient_imagen.cli.terminal import Console, echo_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resilient_imagen.control.fleet import SharedOrder
    from resilient_imagen.distributed import Address
    from resilient_imagen.distributed.fleet_status import FleetStatus, RouteStatus

__all__ = ["status"]

_COLOURS = {"closed": "green", "open": "red", "half_open": "yellow"}


def status(
    redis_url: Annotated[
        str | None,
        typer.Option(help="Where Redis is; IMAGE_GEN_REDIS_URL if not given.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Show every route as the fleet sees it, from Redis. Changes nothing."""
    from resilient_imagen.control.fleet import FleetOrders
    from resilient_imagen.distributed import Address
    from resilient_imagen.settings import Settings

    settings = Settings(redis_url=redis_url) if redis_url else Settings()
    url = settings.redis_url
    if url is None:
        raise CommandError("nothing is shared: set IMAGE_GEN_REDIS_URL, or give --redis-url")
    address = Address.parse(url.get_secret_value())
    view = _read(address)
    steps = {
        account.key: str(step)
        for step in settings.routes
        for account in step.accounts
        if len(step.accounts) > 1
    }
    secret = settings.control_secret
    fleet = FleetOrders(address, None if secret is None else secret.get_secret_value())
    orders, distrusted = asyncio.run(fleet.read_all())
    warn_of_distrusted(distrusted)
    if as_json:
        document = view.to_json()
        document["orders"] = [each.to_json() for each in orders]
        for route in document["routes"]:
            if (step := _step_of(route["route"], steps)) is not None:
                route["step"] = step
        echo_json(document, indent=2)
        return
    console = Console()
    console.print(f"Redis at {view.redis}, keys {view.namespace}:*", soft_wrap=True)
    for each in orders:
        console.print(_sentence(each), soft_wrap=True)
    if not view.routes and not view.paces:
        console.print("No process has shared anything within the last hour.")
        return
    console.print(_routes(view, steps))
    for pace in view.paces:
        console.print(
            f"{pace.provider}: {pace.per_minute:g} images a minute, next place in "
            f"{pace.wait_s:.1f} s, {pace.waiting} processes waiting"
        )
    for worker in view.workers:
        console.print(
            f"worker {worker.name}: version {worker.version}, protocol {worker.protocol}",
            soft_wrap=True,
        )
        for resource, words in worker.settings.items():
            console.print(f"  {resource}: {words}", soft_wrap=True)


def _read(address: Address) -> FleetStatus:
    from resilient_imagen.distributed.fleet_status import read_status

    try:
        return asyncio.run(read_status(address))
    except (ValueError, ArithmeticError, LookupError):  # a number that is none, a missing part
        raise CommandError(
            f"Redis at {address.shown} holds a record that this library did not write, below "
            f"{address.namespace}:"
        ) from None


def _sentence(shared: SharedOrder) -> str:
    """Return an order, its author, what is left of it, and which workers obey."""
    order = shared.order
    why = f" ({order.why})" if order.why else ""
    names = ", ".join(worker for worker, code in shared.codes.items() if code != "ok")
    left = span(shared.left_s)
    found = f"{order}, ordered by {order.by}{why}, {left} left: {shared.answer}"
    return f"{found} ({names})" if names else found


def _step_of(route: str, steps: Mapping[str, str]) -> str | None:
    """Return the step that a route shares with other accounts by this machine's settings."""
    return steps.get(route) or steps.get(route.rpartition("@")[0])


def _routes(view: FleetStatus, steps: Mapping[str, str]) -> Table:
    table = Table("route", "state", "for", "why", "in a row", "window", "probes", "workers")
    shared = [_step_of(route.route, steps) for route in view.routes]
    if any(shared):
        table.add_column("step")
    for route, step in zip(view.routes, shared, strict=True):
        colour = _COLOURS.get(route.state, "default")
        table.add_row(
            route.route,
            Text(_state(route), colour),
            span(route.since_s),
            route.summary or route.why or "",
            str(route.failures_in_a_row),
            f"{route.window_failures}/{route.window_calls}",
            str(route.probes),
            str(route.workers),
            *([step or ""] if any(shared) else []),
        )
    return table


def _state(route: RouteStatus) -> str:
    if route.state != "open":
        return route.state.replace("_", "-")
    left = f"{span(route.left_s)} left" if route.left_s else "probe due"
    return f"open, {left}"
