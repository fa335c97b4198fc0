"""View: the page's content as plain JSON, from a client or from a fleet's shared state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol, TypedDict

from resilient_imagen.dashboard.activity import Activity, as_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from resilient_imagen.client import ImageClient
    from resilient_imagen.control import Order
    from resilient_imagen.snapshots import HedgingSnapshot, RouteSnapshot
    from resilient_imagen.telemetry.minutes import Minute

__all__ = [
    "ClientSource",
    "OrderView",
    "QueueView",
    "RouteView",
    "Source",
    "View",
    "headline",
    "minute_notices",
]

_RECENT: Final = 5
"""Number of minutes that notices cover."""
_NOTABLE_SHARE: Final = 0.2
"""Share of images from the fallback from which a notice mentions them."""
_NOTABLE_WAIT: Final = 10.0
"""Seconds of a call's wait from which a notice mentions it."""


class RouteView(TypedDict):
    """One route."""

    route: str
    state: str
    """closed, open, half_open, forced_open, off or unknown."""
    since_s: float | None
    """Seconds since the last change of state; None if the route is off."""
    cause: str | None
    """The cause for which it does not serve."""
    next_probe_s: float | None
    """Seconds until a request may be sent; None if one may be sent now, or an operator decides."""
    held: str | None
    """open or closed, while an operator's order keeps it so."""
    window_calls: int
    window_failures: int
    in_a_row: int
    """Consecutive failures."""
    fail_max: int | None
    """Consecutive failures that open the circuit; None if unknown."""


class QueueView(TypedDict):
    """The queue of one provider."""

    provider: str
    waiting: int
    in_flight: int | None
    max_concurrent: int | None
    per_minute: float | None
    """Images per minute at most."""
    next_s: float | None
    """Seconds until the next place; None if unknown."""


class OrderView(TypedDict):
    """An operator's order in force."""

    order: str
    action: str
    """open, hold or set."""
    target: str
    by: str
    why: str
    left_s: float
    obeyed: str | None
    """The number of workers that obey, in words; None in a single process."""


class View(TypedDict):
    """Everything that the page shows."""

    scope: str
    """The subject of the page, in words: one process or a fleet."""
    orders_reach: str
    """The processes that an order from this page reaches, in words."""
    status: str
    """ok, degraded, down or unknown."""
    headline: str
    """One sentence with the problem and the serving route. It changes only with the state."""
    notices: list[str]
    routes: list[RouteView]
    minutes: list[dict[str, Any]] | None
    """The last hour, see ``Minute``; None if nobody has counted."""
    fallbacks: list[dict[str, Any]] | None
    changes: list[dict[str, Any]] | None
    """Changes of circuits, orders and warnings; of a fleet, the last orders of operators."""
    queues: list[QueueView]
    hedging: HedgingSnapshot | None
    orders: list[OrderView]
    workers: list[str]


class Source(Protocol):
    """The source of the page's content, which also receives orders."""

    async def read(self) -> View:
        """Return the present content."""
        ...

    async def give(self, order: Order) -> str:
        """Give an order, and return how it is obeyed, in words.

        Raises:
            ConfigurationError: It is not obeyed; the text has the cause.
        """
        ...


class ClientSource:
    """The page of one client.

    Args:
        client: The client; the page is served on its event loop.
    """

    def __init__(self, client: ImageClient) -> None:
        self._client = client
        self._activity = Activity()
        client.add_sink(self._activity)

    async def read(self) -> View:
        """Return the client's present state and its last hour."""
        snapshot, health = self._client.snapshot(), self._client.health()
        fleet, minutes = snapshot["fleet"], self._activity.minutes()
        routes = [_route(row) for row in snapshot["routes"]]
        return {
            "scope": "this process" if fleet is None else f"process {fleet['worker']}",
            "orders_reach": "this process only",
            "status": health["status"],
            "headline": headline(health["status"], routes, health["reasons"]),
            "notices": [
                *_order_notice(len(snapshot["control"]["orders"])),
                *minute_notices(minutes),
            ],
            "routes": routes,
            "minutes": as_rows(minutes),
            "fallbacks": self._activity.fallbacks(),
            "changes": self._activity.changes(),
            "queues": list(_queues(snapshot["routes"])),
            "hedging": snapshot["hedging"],
            "orders": [
                {
                    "order": each["order"],
                    "action": each["action"],
                    "target": each["target"],
                    "by": each["by"],
                    "why": each["why"],
                    "left_s": each["left_s"],
                    "obeyed": None,
                }
                for each in snapshot["control"]["orders"]
            ],
            "workers": [],
        }

    async def give(self, order: Order) -> str:
        """Let the client obey."""
        self._client.obey(order)
        return "obeyed by this process"


def headline(status: str, routes: Sequence[RouteView], reasons: Sequence[str] = ()) -> str:
    """Return one sentence: the serving route, and the routes that do not serve, with the causes.

    Args:
        status: ok, degraded, down or unknown.
        routes: In the order of calls.
        reasons: Those of the health, for a state that the routes do not explain.
    """
    described = "; ".join(_out(each, routes) for each in routes if each["state"] not in _QUIET)
    if status == "down":
        return f"No images: {described or '; '.join(reasons) or 'no route can be used'}."
    serving = next((each for each in routes if each["state"] == "closed"), None)
    if serving is None:
        return f"{described}. The next request is a probe."
    if not described and status != "ok":
        described = "the first route is off"
    first = f"Images come from {_short(serving, routes)}"
    if not described:
        return f"{first}."
    return f"{first}{'; ' if status == 'ok' else ': '}{described}."


_QUIET: Final = frozenset({"closed", "off"})


def _short(route: RouteView, routes: Sequence[RouteView]) -> str:
    """Return the provider's name, or the whole route if the provider has several."""
    provider = route["route"].partition(":")[0]
    same = [each for each in routes if each["route"].partition(":")[0] == provider]
    return provider if len(same) == 1 else route["route"]


def _out(route: RouteView, routes: Sequence[RouteView]) -> str:
    name, cause = _short(route, routes), route["cause"]
    if route["held"] == "open" or route["state"] == "forced_open":
        return f"{name} is kept out by an operator"
    if route["state"] == "half_open":
        return f"{name} is being probed" + (f" after {cause}" if cause else "")
    return f"{name} is out" + (f" ({cause})" if cause else "")


def _route(row: RouteSnapshot) -> RouteView:
    breaker, off = row["breaker"], row["off"]
    cause = breaker["why"]
    if off is not None:
        shown: str | None = off
    elif breaker.get("held") == "open" or breaker["state"] == "forced_open":
        shown = "by an operator"
    else:
        shown = None if cause is None else cause.replace("_", " ")
    return {
        "route": row["route"],
        "state": breaker["state"] if off is None else "off",
        "since_s": None if off is not None else breaker["since_s"],
        "cause": shown,
        "next_probe_s": breaker["retry_after"],
        "held": breaker.get("held"),
        "window_calls": breaker["window"]["calls"],
        "window_failures": breaker["window"]["failures"],
        "in_a_row": breaker["consecutive"],
        "fail_max": breaker["fail_max"],
    }


def _queues(rows: Iterable[RouteSnapshot]) -> Iterable[QueueView]:
    """Return the queue of each provider in use; its routes share one."""
    seen: set[str] = set()
    for row in rows:
        if row["provider"] in seen or row["off"] is not None:
            continue
        seen.add(row["provider"])
        queue = row["queue"]
        yield {
            "provider": row["provider"],
            "waiting": queue["waiting"],
            "in_flight": queue["in_flight"],
            "max_concurrent": queue["max_concurrent"],
            "per_minute": round(60 / queue["interval_s"], 1) if queue["interval_s"] else None,
            "next_s": None,
        }


def _order_notice(count: int) -> list[str]:
    if not count:
        return []
    return ["An operator's order is in force." if count == 1 else f"{count} orders are in force."]


def minute_notices(minutes: Sequence[Minute]) -> Iterable[str]:
    """Return sentences about events of the last minutes that the breakers' states do not show."""
    recent = minutes[-_RECENT:]
    failed, calls = sum(each.failed for each in recent), sum(each.calls for each in recent)
    if failed:
        yield f"{failed} of {calls} calls of the last {_RECENT} minutes returned no image."
    images = sum(each.images for each in recent)
    others = sum(each.fallback_images for each in recent)
    if images and others / images >= _NOTABLE_SHARE:
        yield (
            f"{others} of {images} images of the last {_RECENT} minutes came from a fallback route."
        )
    wait = max((each.longest_wait_s for each in recent), default=0.0)
    if wait >= _NOTABLE_WAIT:
        yield f"A call of the last {_RECENT} minutes waited for {wait:.0f} s."
