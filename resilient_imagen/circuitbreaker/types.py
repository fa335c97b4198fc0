"""The breaker's value types: states, metrics, rejections, settlements, transitions, snapshots.

Types that are created for every call are named tuples, which cost a third of a frozen dataclass.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple, NotRequired, TypeAlias, TypedDict

__all__ = [
    "BreakerMetrics",
    "BreakerSnapshot",
    "BreakerState",
    "Counted",
    "Hold",
    "Rejection",
    "Settlement",
    "ShadowModeSnapshot",
    "SharedBreakerSnapshot",
    "StateChange",
    "Transition",
    "WindowSnapshot",
]

Counted: TypeAlias = Literal["success", "failure", "throttled", "slow", "ignored", "stale"]
"""How one call was counted. `ignored`: it has no vote. `stale`: the state in which it was admitted
has ended, so it has no vote either; a hint or a fatal failure may still have lengthened an open
period."""

StateChange: TypeAlias = Literal["closed_to_open", "half_open_to_open", "half_open_to_closed"]
"""The transition that one call caused. No call causes the one from open to closed at the end of a
server's hint; only listeners receive it."""


class BreakerState(StrEnum):
    """The state that callers see."""

    CLOSED = "closed"
    """All calls are admitted."""
    OPEN = "open"
    """All calls are rejected until the open period ends. Then the next call is a probe; after a
    server's hint, the breaker closes instead."""
    HALF_OPEN = "half_open"
    """Only probes are admitted."""
    FORCED_OPEN = "forced_open"
    """All calls are rejected until an operator ends it."""


class Hold(NamedTuple):
    """An operator's order to keep a breaker open or closed for its callers."""

    opens: bool
    """Whether it is kept open; otherwise closed."""
    until: float
    """Loop time at which the order is expected to end, for `retry_after`."""
    even_if_fatal: bool = False
    """Whether it is kept closed also after a fatal failure, such as a used-up quota."""


class BreakerMetrics(NamedTuple):
    """Counts, thresholds and times of a breaker at one moment."""

    state: BreakerState
    failure_rate: float
    """Failed share of `window_calls`, 0 to 1; 0 if there are no calls."""
    window_calls: int
    """Calls that ended within the last `BreakerConfig.window` seconds."""
    consecutive: int
    """Consecutive failures."""
    failure_threshold: int
    """`BreakerConfig.fail_max`."""
    open_for: float | None
    """Total length of the current open period in seconds; None unless open."""
    retry_after: float | None
    """Seconds until a call may be admitted; None if one is admitted now, or if forced open."""
    failure_rate_threshold: float = 0.5
    """`BreakerConfig.failure_rate`."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """The answer to a caller that is not admitted."""

    name: str
    state: BreakerState
    retry_after: float | None
    """Seconds after which a call may be admitted; None only if forced open. While probes are in
    flight, the maximum time until the first of them is decided."""
    probing: bool
    """Whether only probes in flight are in the way: await `wait_for_change`."""
    cause: str | None
    """Reason of the failure that opened the breaker."""
    summary: str | None
    """Short text of that failure (`503 UNAVAILABLE`)."""
    origin: object | None
    """The object that was passed with that failure, such as a span context to link to."""
    metrics: BreakerMetrics


class Settlement(NamedTuple):
    """The result of settling one permit."""

    counted: Counted
    transition: StateChange | None
    """The transition that callers see; None in shadow mode and while forced open."""
    metrics: BreakerMetrics
    """Metrics after this call was counted."""


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of state, as listeners receive it."""

    name: str
    from_state: BreakerState
    to_state: BreakerState
    at: float
    """Loop time, seconds."""
    cause: str | None
    summary: str | None
    retry_after: float | None
    """Seconds until the next probe, if the breaker opened."""
    metrics: BreakerMetrics
    origin: object | None
    shadow: bool
    """Whether it is a transition of shadow mode, which callers do not see."""


class WindowSnapshot(TypedDict):
    """The window from which a breaker's failure rate is computed."""

    calls: int
    failures: int
    failure_rate: float
    """Failed share of the calls, 0 to 1; 0 if there are no calls."""
    seconds: float
    """Length of the window."""


class ShadowModeSnapshot(TypedDict):
    """The decisions of a breaker in shadow mode, which admits all calls."""

    state: str | None
    """The state in which it would be; None in any other mode."""
    would_reject: int
    """Calls that it would have rejected."""


class SharedBreakerSnapshot(TypedDict):
    """The state of a breaker that several processes share."""

    joined: bool
    """Whether this process is connected to the others."""
    state: str
    openings_in_a_row: int
    why: str | None


class BreakerSnapshot(TypedDict):
    """The state of one circuit breaker, ready for JSON; times in seconds."""

    name: str
    state: str
    """closed, open, half_open or forced_open: the state that callers see."""
    mode: str
    """on, off or shadow."""
    since_s: float
    """Seconds since the last change of state."""
    why: str | None
    """Reason of the failure that opened it; None while closed."""
    retry_after: float | None
    """Seconds until a call may be admitted; None if one is admitted now, or if forced open."""
    window: WindowSnapshot
    consecutive: int
    """Consecutive failures."""
    fail_max: int
    """Consecutive failures that open it."""
    probes_in_flight: int
    openings_in_a_row: int
    shadow: ShadowModeSnapshot
    held: NotRequired[str]
    """open or closed, while an operator's order keeps it so; absent otherwise."""
    fleet: NotRequired[SharedBreakerSnapshot]
    """Present when breakers are shared between processes."""
