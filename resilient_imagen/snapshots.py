"""The JSON of ``ImageClient.snapshot()``: a TypedDict for each object in it."""

from __future__ import annotations

from typing import NotRequired, TypedDict

__all__ = [
    "BreakerSnapshot",
    "FallbackSnapshot",
    "FleetSnapshot",
    "MaybeBilled",
    "QueueSnapshot",
    "RouteSnapshot",
    "ShadowModeSnapshot",
    "ShadowSnapshot",
    "SharedBreakerSnapshot",
    "Snapshot",
    "SpendingSnapshot",
    "WindowSnapshot",
]


class WindowSnapshot(TypedDict):
    """The calls by which a breaker's failure rate is computed."""

    calls: int
    failures: int
    failure_rate: float
    """Failed share of the calls, 0 to 1; 0 when there were none."""
    seconds: float
    """Length of the window."""


class ShadowModeSnapshot(TypedDict):
    """What a breaker in shadow mode would do; it lets everything through."""

    state: str | None
    """The state it would be in; None in any other mode."""
    would_reject: int
    """Calls that it would have refused."""


class SharedBreakerSnapshot(TypedDict):
    """A breaker's state as all processes share it."""

    joined: bool
    """Whether this process takes part at present."""
    state: str
    openings_in_a_row: int
    why: str | None


class BreakerSnapshot(TypedDict):
    """One circuit breaker."""

    name: str
    state: str
    """closed, open, half_open or forced_open: what a caller meets."""
    mode: str
    """on, off or shadow."""
    since_s: float
    """Seconds that it has been in this state."""
    why: str | None
    """The reason that opened it; None while closed."""
    retry_after: float | None
    """Seconds until a caller may be let through; None if that is now, or if it is forced open."""
    window: WindowSnapshot
    consecutive: int
    """Failures in a row."""
    fail_max: int
    """Failures in a row that open it."""
    probes_in_flight: int
    openings_in_a_row: int
    shadow: ShadowModeSnapshot
    fleet: NotRequired[SharedBreakerSnapshot]
    """Present when breakers are shared between processes."""


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
