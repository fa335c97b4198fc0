"""``resilient-imagen status``: the breakers and rate limits that all processes share."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.text import Text

from resilient_imagen.cli.orders import (
    FleetUrl,
    fleet_orders,
    settings_with,
    span,
    warn_of_distrusted,
)
from resilient_imagen.cli.terminal import echo_json, folding_table, table_console

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from resilient_imagen.cli.terminal import Console
    from resilient_imagen.control.fleet import PastOrder, SharedOrder, StoredOrders
    from resilient_imagen.distributed.fleet_status import FleetStatus, RouteStatus

__all__ = ["status"]

_PAST: Final = 100
"""Past orders that are kept."""
_COLOURS = {"closed": "green", "open": "red", "half_open": "yellow"}


def status(
    redis_url: FleetUrl = None,
    history: Annotated[
        bool, typer.Option("--history", help="Also the last 100 orders, given within a week.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Show every route as the fleet sees it, from Redis. Changes nothing."""
    from resilient_imagen.distributed.fleet_status import read_status

    settings = settings_with(redis_url)
    fleet = fleet_orders(settings)
    view = asyncio.run(read_status(fleet.address))
    steps = {
        account.key: str(step)
        for step in settings.routes
        for account in step.accounts
        if len(step.accounts) > 1
    }
    stored = asyncio.run(fleet.read_all(_PAST if history else 0))
    warn_of_distrusted(stored.distrusted)
    if as_json:
        document = _document(view, stored, steps)
        if history:
            document["history"] = [each.to_json() for each in stored.history]
        echo_json(document, indent=2)
        return
    console = table_console()
    console.print(f"Redis at {view.redis}, keys {view.namespace}:*", soft_wrap=True)
    for each in stored.orders:
        console.print(_sentence(each), soft_wrap=True)
    if view.routes or view.paces:
        _show_routes(console, view, stored, steps)
    else:
        console.print("No process has shared anything within the last hour.")
    if history:
        console.print(
            "Orders of the last week, the latest first:"
            if stored.history
            else "No order was given within a week."
        )
    for past in stored.history:
        console.print(_past_sentence(past), soft_wrap=True)


def _document(view: FleetStatus, stored: StoredOrders, steps: Mapping[str, str]) -> dict[str, Any]:
    """Return the status with orders and steps as plain JSON."""
    document = view.to_json()
    document["orders"] = [each.to_json() for each in stored.orders]
    for route in document["routes"]:
        hold = stored.hold_on(route["name"])
        route["ordered"] = None if hold is None else hold.order.action
        if (step := steps.get(route["name"])) is not None:
            route["step"] = step
    return document


def _show_routes(
    console: Console, view: FleetStatus, stored: StoredOrders, steps: Mapping[str, str]
) -> None:
    console.print(_routes(view, stored, steps))
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


def _sentence(shared: SharedOrder) -> str:
    """Return a sentence: order, author, remaining time, and the workers that obey."""
    order = shared.order
    why = f" ({order.why})" if order.why else ""
    names = ", ".join(worker for worker, code in shared.codes.items() if code != "ok")
    left = span(shared.left_s)
    found = f"{order}, ordered by {order.by}{why}, {left} left: {shared.answer}"
    return f"{found} ({names})" if names else found


def _past_sentence(past: PastOrder) -> str:
    order = past.order
    given = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(order.serial / 1e6))
    lasts = f" for {span(order.ttl)}" if order.lasts else ""
    why = f" ({order.why})" if order.why else ""
    unsigned = "" if past.is_trusted else "; not signed with the secret of this shell"
    return f"{given} {order.by}: {order}{lasts}{why}{unsigned}"


def _routes(view: FleetStatus, stored: StoredOrders, steps: Mapping[str, str]) -> Table:
    # Steps that a route shares with other accounts by this machine's settings.
    shared = [steps.get(route.name) for route in view.routes]
    more = ["step"] if any(shared) else []
    table = folding_table(
        "route", "state", "for", "why", "in a row", "window", "probes", "workers", *more
    )
    for route, step in zip(view.routes, shared, strict=True):
        table.add_row(
            route.route,
            _state(route, stored.hold_on(route.name)),
            span(route.since_s),
            route.summary or route.why or "",
            str(route.failures_in_a_row),
            f"{route.window_failures}/{route.window_calls}",
            str(route.probes),
            str(route.workers),
            *([step or ""] if more else []),
        )
    return table


def _state(route: RouteStatus, hold: SharedOrder | None) -> Text:
    """Return the state of a circuit: that of an operator's order, with its author, if any."""
    if hold is not None:
        is_open = hold.order.action == "open"
        words = "forced open" if is_open else "held closed"
        words = f"{words} by {hold.order.by}, {span(hold.left_s)} left"
        obey, total = hold.workers
        if obey < total:
            words = f"{words}, in {obey} of {total} workers"
        return Text(words, _COLOURS["open" if is_open else "closed"])
    if route.state != "open":
        return Text(route.state.replace("_", "-"), _COLOURS.get(route.state, "default"))
    left = f"{span(route.left_s)} left" if route.left_s else "probe due"
    return Text(f"open, {left}", _COLOURS["open"])
