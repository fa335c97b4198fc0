"""Fleet source: the page of all processes that share one Redis, from what they store there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from resilient_imagen.dashboard.view import headline
from resilient_imagen.distributed.fleet_status import read_status
from resilient_imagen.errors import ConfigurationError
from resilient_imagen.health import assess

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from resilient_imagen.control import Order
    from resilient_imagen.control.fleet import FleetOrders, SharedOrder
    from resilient_imagen.dashboard.view import RouteView, View
    from resilient_imagen.distributed.fleet_status import FleetStatus, RouteStatus, WorkerStatus
    from resilient_imagen.settings import RouteName

__all__ = ["FleetSource"]

_SILENT: Final = 25.0
"""Seconds without a registration, which workers repeat every ten, after which a notice says so."""


class FleetSource:
    """The page of all processes that share one Redis. Reading it changes nothing there.

    Args:
        fleet: Where the state is, and where orders go.
        steps: The configured routes of each step, in the order of calls. Redis does not know it.
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
        status, orders = await asyncio.gather(read_status(self._fleet.address), self._fleet.read())
        found = sorted(status.routes, key=self._place)
        routes = [_route(each, _hold(each.route, orders)) for each in found]
        health = self._health(routes)
        address = self._fleet.address
        place = f"Redis at {address.shown}, keys {address.namespace}:*"
        return {
            "scope": f"{len(status.workers)} processes at {place}",
            "orders_reach": f"all processes of {place}",
            "status": health,
            "headline": headline(health, routes)
            if routes
            else "No process has shared anything within the last hour.",
            "notices": list(_notices(status, orders)),
            "routes": routes,
            "minutes": None,
            "fallbacks": None,
            "changes": None,
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
        """Return where a route comes: in the order of calls, those that are not configured last."""
        name = _without_account(route.route)
        return (self._order.index(name) if name in self._order else len(self._order), route.route)

    def _health(self, routes: Sequence[RouteView]) -> str:
        if not routes:
            return "unknown"
        rows: Any = [
            {
                "route": each["route"],
                "off": None,
                "breaker": {
                    "state": each["state"],
                    "why": each["cause"],
                    # An operator's order ends by itself, and no probe is due before.
                    "retry_after": each["next_probe_s"],
                },
            }
            for each in routes
        ]
        primary = {
            each["route"] for each in routes if _without_account(each["route"]) in self._primary
        }
        names = {each["route"] for each in routes}
        return assess(rows, primary or {routes[0]["route"]}, names)["status"]


def _without_account(route: str) -> str:
    return route.partition("@")[0]


def _hold(route: str, orders: Iterable[SharedOrder]) -> SharedOrder | None:
    """Return the latest order that keeps a route open or closed; its record does not show it."""
    held = [
        each
        for each in orders
        if each.order.action in {"open", "hold"} and each.order.applies_to(_without_account(route))
    ]
    return max(held, key=lambda each: each.order.serial, default=None)


def _route(status: RouteStatus, hold: SharedOrder | None) -> RouteView:
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
        "cause": "by an operator",
        "held": "open",
        "next_probe_s": hold.left_s,
    }


def _notices(status: FleetStatus, orders: Sequence[SharedOrder]) -> Iterable[str]:
    if not status.workers:
        yield "No process is connected; this is the last shared state."
    for each in orders:
        if not each.is_obeyed:
            yield f"{each.order}: {each.answer}."
    silent = sum(worker.silent_s > _SILENT for worker in status.workers)
    if silent:
        yield f"{silent} of {len(status.workers)} processes are silent."
    versions = {worker.version for worker in status.workers}
    if len(versions) > 1:
        yield f"Processes have different versions: {', '.join(sorted(versions))}."


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
