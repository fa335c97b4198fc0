"""What the breaker says: its states, its numbers, a refusal, a settlement, a transition.

What is made for every call is a named tuple, which costs a third of a frozen dataclass.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple, TypeAlias

__all__ = [
    "BreakerMetrics",
    "BreakerState",
    "Counted",
    "Rejection",
    "Settlement",
    "StateChange",
    "Transition",
]

Counted: TypeAlias = Literal["success", "failure", "throttled", "slow", "ignored", "stale"]
"""How one request was counted. `ignored`: it says nothing. `stale`: the state it was admitted in
is over, so it may not vote on the one that followed; a hint or a fatal failure may still have
lengthened an opening."""

StateChange: TypeAlias = Literal["closed_to_open", "half_open_to_open", "half_open_to_closed"]
"""What counting one request did to the breaker. The end of a server's hint, from open to closed, is
the work of time alone: listeners are told it, and no request is."""


class BreakerState(StrEnum):
    """What a caller meets."""

    CLOSED = "closed"
    """Everybody is let through."""
    OPEN = "open"
    """Nobody is, until the opening has lasted its time. Then the next caller is a probe or, after
    a mere hint of the server, the breaker is closed again."""
    HALF_OPEN = "half_open"
    """Only probes are."""
    FORCED_OPEN = "forced_open"
    """Nobody is, until an operator says otherwise."""


class BreakerMetrics(NamedTuple):
    """The breaker's numbers at one moment."""

    state: BreakerState
    failure_rate: float
    """Failed share of `window_calls`, 0 to 1; 0 when there were none."""
    window_calls: int
    """Calls of the last `BreakerConfig.window` seconds."""
    consecutive: int
    """Failures in a row, up to now."""
    failure_threshold: int
    """`BreakerConfig.fail_max`."""
    open_for: float | None
    """Seconds that the present opening lasts in all; None unless open."""
    retry_after: float | None
    """Seconds until a caller may be let through; None when it would be now, or forced open."""
    failure_rate_threshold: float = 0.5
    """`BreakerConfig.failure_rate`."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """The answer to a caller that is not let through."""

    name: str
    state: BreakerState
    retry_after: float | None
    """Seconds after which asking again may help; None only when forced open. While probes are in
    flight it is the longest that the wait for a verdict can be."""
    probing: bool
    """True when only probes in flight stand in the way: await `wait_for_change`."""
    cause: str | None
    """Reason word of the failure that opened it."""
    summary: str | None
    """Short text of that failure (`503 UNAVAILABLE`)."""
    origin: object | None
    """Whatever was given with that failure: a span context to link to."""
    metrics: BreakerMetrics


class Settlement(NamedTuple):
    """What became of one request's vote."""

    counted: Counted
    transition: StateChange | None
    """What this vote changed for callers: None in shadow mode and while forced open."""
    metrics: BreakerMetrics
    """After counting."""


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of state, told to listeners."""

    name: str
    from_state: BreakerState
    to_state: BreakerState
    at: float
    """Loop time, seconds."""
    cause: str | None
    summary: str | None
    retry_after: float | None
    """Seconds until the next probe, when it opened."""
    metrics: BreakerMetrics
    origin: object | None
    shadow: bool
    """True when it only would have happened."""
