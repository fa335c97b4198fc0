"""The JSON of ``ImageClient.snapshot()``: a TypedDict for each object in it."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from resilient_imagen.circuitbreaker.types import BreakerSnapshot

__all__ = [
    "BreakerSnapshot",
    "FallbackSnapshot",
    "FleetSnapshot",
    "MaybeBilled",
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
    """Whether the pace is shared at present; missing when no Redis is configured."""


class FallbackSnapshot(TypedDict):
    """The last time a call left a route for the next one."""

    reason: str
    seconds_ago: float


class RouteSnapshot(TypedDict):
    """One route."""

    route: str
    """provider:model."""
    provider: str
    model: str
    off: str | None
    """Why no call takes this configured route, such as a key that is not set; None if calls do."""
    breaker: BreakerSnapshot
    """Its circuit breaker; forced open if the route is off."""
    queue: QueueSnapshot
    """Its provider's queue."""
    usual_latency_s: dict[str, float | None]
    """Measured seconds of a success, by resolution; None while there are too few of them."""
    last_fallback: FallbackSnapshot | None


class MaybeBilled(TypedDict):
    """Requests that brought no picture and may be billed as if they had."""

    requests: int
    cost_usd: float
    unpriced: int
    """How many of them have no known price."""


class SpendingSnapshot(TypedDict):
    """What was spent."""

    images: int
    cost_usd: float
    unpriced_images: int
    maybe_billed: MaybeBilled


class FleetSnapshot(TypedDict):
    """The processes that share breakers and pace over Redis."""

    redis: str
    """The server's address, without credentials."""
    namespace: str
    joined: bool
    worker: str
    """This process' name."""
    workers: int
    """Processes that take part."""


class ShadowSnapshot(TypedDict):
    """Breaker settings of IMAGE_GEN_SHADOW, run beside the live ones without effect."""

    settings: dict[str, object]
    would_reject: int
    would_allow: int
    routes: list[BreakerSnapshot]


class Snapshot(SpendingSnapshot):
    """The state of a client, and what it spent."""

    routes: list[RouteSnapshot]
    """In the order of calls: configured routes, models that callers named, routes that are off."""
    process: SpendingSnapshot
    """What all clients of this process spent."""
    fleet: FleetSnapshot | None
    shadow: ShadowSnapshot | None
