"""Fleet source: the page of all processes that share one Redis, from their data in it."""

from __future__ import annotations

import asyncio
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

from resilient_imagen.dashboard.activity import as_rows
from resilient_imagen.dashboard.view import headline, minute_notices
from resilient_imagen.distributed.fleet_status import read_status
from resilient_imagen.errors import ConfigurationError
from resilient_imagen.health import assess
from resilient_imagen.telemetry import events
from resilient_imagen.telemetry.minutes import Minute
from resilient_imagen.telemetry.summaries import summary

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from resilient_imagen.control import Order
    from resilient_imagen.control.fleet import FleetOrders, PastOrder, SharedOrder, StoredOrders
    from resilient_imagen.dashboard.view import RouteView, View
    from resilient_imagen.distributed.fleet_status import FleetStatus, RouteStatus, WorkerStatus
    from resilient_imagen.settings import RouteName

__all__ = ["FleetSource"]

_SILENT: Final = 25.0
"""Seconds without a registration after which a notice reports it; workers register every ten."""


_PAST: Final = 20
"""Past orders that the page shows."""


class FleetSource:
    """The page of all processes that share one Redis. Reading it changes nothing there.

    Args:
        fleet: The Redis with the state, to which orders are written.
        steps: The configured routes of each step, in the order of calls. Redis does not contain it.
    """

    def __init__(self, fleet: FleetOrders, steps: Sequence[Sequence[RouteName]]) -> None:
        self._fleet = fleet
        self._order = [each.key for step in steps for each in step]
        self._primary = {each.key for each in steps[0]}

    async def read(self) -> View:
        """Return the shared state.

        Raises:
            ConfigurationError: Redis cannot be read.
        """
        status, stored = await asyncio.gather(
            read_status(self._fleet.address), self._fleet.read_all(history=_PAST)
        )
        orders = stored.orders
        found = sorted(status.routes, key=self._place)
        routes = [_route(each, stored.hold_on(each.name)) for each in found]
        primary = {each.route for each in found if each.name in self._primary}
        health = _health(routes, primary)
        minutes = None if status.minutes is None else [_minute(each) for each in status.minutes]
        address = self._fleet.address
        place = f"Redis at {address.shown}, keys {address.namespace}:*"
        return {
            "scope": f"{len(status.workers)} processes at {place}",
            "orders_reach": f"all processes of {place}",
            "status": health,
            "headline": headline(health, routes)
            if routes
            else "No process has shared anything within the last hour.",
            "notices": [*_notices(status, stored), *minute_notices(minutes or ())],
            "routes": routes,
            "minutes": None if minutes is None else as_rows(minutes),
            "fallbacks": None,
            "changes": _changes(stored.history),
            "queues": [
                {
                    "provider": pace.provider,
                    "waiting": pace.waiting,
                    "in_flight": None,
                    "max_concurrent": None,
                    "per_minute": pace.per_minute or None,
                    "next_s": pace.wait_s,
                }
                for pace in status.paces
            ],
            "hedging": None,
            "orders": [
                {
                    "order": str(each.order),
                    "action": each.order.action,
                    "target": each.order.target,
                    "by": each.order.by,
                    "why": each.order.why,
                    "left_s": each.left_s,
                    "obeyed": each.answer,
                }
                for each in orders
            ],
            "workers": _described(status.workers),
        }

    async def give(self, order: Order) -> str:
        """Give the order to all processes, and wait until they obey.

        Raises:
            ConfigurationError: Not every process obeys, or Redis cannot be used.
        """
        given = await self._fleet.give(order)
        if not given.is_obeyed:
            raise ConfigurationError(f"{given.order}: {given.answer}")
        return given.answer

    def _place(self, route: RouteStatus) -> tuple[int, str]:
        """Return the position of a route in the order of calls; unconfigured routes are last."""
        place = self._order.index(route.name) if route.name in self._order else len(self._order)
        return place, route.route


def _health(routes: Sequence[RouteView], primary: set[str]) -> str:
    if not routes:
        return "unknown"
    rows: Any = [
        {
            "route": each["route"],
            "off": None,
            "breaker": {
                "state": each["state"],
                "why": each["cause"],
                # An operator's order ends at its time, and no probe is due before.
                "retry_after": each["next_probe_s"],
            },
        }
        for each in routes
    ]
    names = {each["route"] for each in routes}
    return assess(rows, primary or {routes[0]["route"]}, names)["status"]


def _route(status: RouteStatus, hold: SharedOrder | None) -> RouteView:
    """Return a route as it is shown; its record does not have the order that holds it."""
    shown: RouteView = {
        "route": status.route,
        "state": status.state,
        "since_s": status.since_s,
        "cause": None if status.why is None else status.why.replace("_", " "),
        "next_probe_s": status.left_s or None,
        "held": None,
        "window_calls": status.window_calls,
        "window_failures": status.window_failures,
        "in_a_row": status.failures_in_a_row,
        "fail_max": None,
    }
    if hold is None:
        return shown
    if hold.order.action == "hold":
        return {**shown, "state": "closed", "held": "closed", "next_probe_s": None}
    return {
        **shown,
        "state": "forced_open",
        "since_s": max(0.0, hold.order.ttl - hold.left_s),
        "cause": f"by {hold.order.by}",
        "held": "open",
        "next_probe_s": hold.left_s,
    }


def _minute(counters: Mapping[str, float]) -> Minute:
    """Return the counters that this version knows."""
    found = Minute()
    for each in fields(Minute):
        number = type(getattr(found, each.name))
        setattr(found, each.name, number(counters.get(each.name, 0)))
    return found


def _notices(status: FleetStatus, stored: StoredOrders) -> Iterable[str]:
    if not status.workers:
        yield "No process is connected; this is the last shared state."
    for each in stored.orders:
        if not each.is_obeyed:
            yield f"{each.order}: {each.answer}."
    if stored.distrusted:
        orders = "order is" if stored.distrusted == 1 else "orders are"
        yield (
            f"{stored.distrusted} stored {orders} not shown: not signed with the "
            "IMAGE_GEN_CONTROL_SECRET of this page."
        )
    silent = sum(worker.silent_s > _SILENT for worker in status.workers)
    if silent:
        yield f"{silent} of {len(status.workers)} processes are silent."
    versions = {worker.version for worker in status.workers}
    if len(versions) > 1:
        yield f"Processes have different versions: {', '.join(sorted(versions))}."


def _changes(history: Sequence[PastOrder]) -> list[dict[str, Any]]:
    """Return a sentence for each past order, the latest first; equal ones are counted."""
    found: dict[str, dict[str, Any]] = {}
    for past in history:
        order, age_s = past.order, past.age_s
        lasts = float(order.ttl) if order.lasts else None
        event = events.OrderApplied(order=str(order), by=order.by, why=order.why, lasts_s=lasts)
        sentence = summary(event) + _why_ignored(past)
        row = found.setdefault(
            sentence, {"age_s": age_s, "sentence": sentence, "count": 0, "traces": []}
        )
        row["count"] += 1
        row["first_age_s"] = age_s
    return list(found.values())


def _why_ignored(past: PastOrder) -> str:
    """Return in brackets why workers ignored an order, or may have; empty without a cause."""
    if past.refusals:
        return f" ({past.refusals})"
    # Workers that have no secret, or another one than this page, may have obeyed it.
    return "" if past.is_trusted else " (not signed with the IMAGE_GEN_CONTROL_SECRET of this page)"


def _described(workers: Iterable[WorkerStatus]) -> list[str]:
    """Return a sentence for each set of settings, with the processes that have it."""
    groups: dict[str, list[str]] = {}
    for worker in workers:
        settings = [f"{name}: {words}" for name, words in sorted(worker.settings.items())]
        groups.setdefault("; ".join([f"version {worker.version}", *settings]), []).append(
            worker.name
        )
    return [
        f"{len(names)} {'process' if len(names) == 1 else 'processes'} "
        f"({', '.join(names)}): {words}"
        for words, names in groups.items()
    ]
