"""Types of ``ImageClient.snapshot()``: a TypedDict for each JSON object in it."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from resilient_imagen.circuitbreaker.types import BreakerSnapshot

__all__ = [
    "BreakerSnapshot",
    "ControlSnapshot",
    "FallbackSnapshot",
    "FleetSnapshot",
    "HedgingSnapshot",
    "MaybeBilled",
    "OrderSnapshot",
    "QueueSnapshot",
    "RouteSnapshot",
    "ShadowSnapshot",
    "Snapshot",
    "SpendingSnapshot",
]


class QueueSnapshot(TypedDict):
    """One provider's queue."""

    waiting: int
    in_flight: int
    max_concurrent: int
    interval_s: float
    """Seconds between two requests."""
    shared: NotRequired[bool]
    """Whether the pace is shared at present; absent if no Redis is configured."""


class FallbackSnapshot(TypedDict):
    """The last fallback from a route to the next one."""

    reason: str
    seconds_ago: float


class RouteSnapshot(TypedDict):
    """One route."""

    route: str
    """provider:model."""
    provider: str
    model: str
    off: str | None
    """The cause for which this configured route is not used, such as a missing key, or None."""
    breaker: BreakerSnapshot
    """Its circuit breaker; forced open if the route is off."""
    queue: QueueSnapshot
    """Its provider's queue."""
    usual_latency_s: dict[str, float | None]
    """Measured seconds of a success, by resolution; None while there are too few successes."""
    last_fallback: FallbackSnapshot | None
    step: NotRequired[str]
    """Its step, as in IMAGE_GEN_ROUTES; absent if the step has one account."""


class MaybeBilled(TypedDict):
    """Requests that delivered no image and may have been billed."""

    requests: int
    cost_usd: float
    unpriced: int
    """Number of these requests without a known price."""


class SpendingSnapshot(TypedDict):
    """Totals of images and costs."""

    images: int
    cost_usd: float
    unpriced_images: int
    maybe_billed: MaybeBilled


class HedgingSnapshot(TypedDict):
    """Calls with two requests in flight."""

    calls_last_hour: int
    """Calls that started within the last hour."""
    hedged_last_hour: int
    """Calls that were hedged because a request was slow (IMAGE_GEN_HEDGE_AFTER)."""
    budget: float
    """Maximum share of such calls, from 0 to 1 (IMAGE_GEN_HEDGE_BUDGET)."""
    in_background: int
    """Requests that continue after their call: probes beside which another route delivered."""


class FleetSnapshot(TypedDict):
    """The processes that share breakers and pace over Redis."""

    redis: str
    """The server's address, without credentials."""
    namespace: str
    joined: bool
    worker: str
    """This process' name."""
    workers: int
    """Number of processes that share them."""


class ShadowSnapshot(TypedDict):
    """Breaker settings of IMAGE_GEN_SHADOW, evaluated beside the live ones without effect."""

    settings: dict[str, object]
    would_reject: int
    would_allow: int
    routes: list[BreakerSnapshot]


class OrderSnapshot(TypedDict):
    """An operator's order that is in force."""

    order: str
    """The order as a command, such as ``breaker open google``."""
    action: str
    """open, hold or set."""
    target: str
    """A route, a provider's name, or a variable."""
    value: str | None
    """The new value of the variable; None for a route."""
    by: str
    why: str
    left_s: float
    """Seconds until it ends."""
    serial: int
    """When it was issued, in microseconds since 1970."""


class ControlSnapshot(TypedDict):
    """Operators' orders."""

    enabled: bool
    """Whether orders are obeyed (IMAGE_GEN_CONTROL)."""
    signed: bool
    """Whether orders from outside need a signature (IMAGE_GEN_CONTROL_SECRET)."""
    orders: list[OrderSnapshot]


class Snapshot(SpendingSnapshot):
    """The state and the costs of a client."""

    routes: list[RouteSnapshot]
    """Configured routes in the order of calls, then routes for ``model=``, then unused routes."""
    process: SpendingSnapshot
    """Totals of all clients of this process."""
    hedging: HedgingSnapshot
    fleet: FleetSnapshot | None
    shadow: ShadowSnapshot | None
    control: ControlSnapshot
