"""What the breaker's tests share: a clock set by hand and short ways to make outcomes."""

from __future__ import annotations

from typing import Any

from resilient_imagen.breaker import (
    BreakerConfig,
    CircuitBreaker,
    Permit,
    Rejection,
    Settlement,
    Transition,
)
from resilient_imagen.reasons import BreakerOutcome


class HandClock:
    """Seconds that pass when told to."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


def make_gate(
    clock: HandClock | None = None, *, jitter: float = 0.0, **numbers: Any
) -> tuple[CircuitBreaker, HandClock]:
    """A gate on a hand clock; `jitter` is what its random source always returns."""
    clock = clock or HandClock()
    return CircuitBreaker(
        "google:pro", BreakerConfig(**numbers), random=lambda: jitter, clock=clock
    ), clock


def let_in(gate: CircuitBreaker) -> Permit:
    """A permit whose request was just sent."""
    permit = gate.acquire()
    assert isinstance(permit, Permit), permit
    permit.begin()
    return permit


def refused(gate: CircuitBreaker) -> Rejection:
    rejection = gate.acquire()
    assert isinstance(rejection, Rejection), rejection
    return rejection


def outcome(gate: CircuitBreaker, verdict: BreakerOutcome, **details: Any) -> Settlement:
    """One request, sent and settled at once."""
    return let_in(gate).settle(verdict, **details)


def succeed(gate: CircuitBreaker, times: int = 1) -> None:
    for _ in range(times):
        outcome(gate, BreakerOutcome.SUCCESS)


def fail(gate: CircuitBreaker, times: int = 1, **details: Any) -> None:
    for _ in range(times):
        outcome(gate, BreakerOutcome.FAILURE, **details)


def opened(clock: HandClock | None = None, **numbers: Any) -> tuple[CircuitBreaker, HandClock]:
    """A gate that failures have just opened."""
    gate, clock = make_gate(clock, **numbers)
    fail(gate, gate.metrics().failure_threshold, cause="overloaded", brief="503 UNAVAILABLE")
    assert gate.metrics().state == "open"
    return gate, clock


def half_open(
    clock: HandClock | None = None, **numbers: Any
) -> tuple[CircuitBreaker, HandClock, Permit]:
    """A gate in its first half-open round, with one probe sent."""
    gate, clock = opened(clock, **numbers)
    until = gate.blocked_until()
    assert until is not None
    clock.now = until
    return gate, clock, let_in(gate)


def changes(gate: CircuitBreaker) -> list[tuple[str, str]]:
    """A list that grows with every transition callers meet."""
    seen: list[tuple[str, str]] = []

    def listen(transition: Transition) -> None:
        if not transition.shadow:
            seen.append((transition.from_state.value, transition.to_state.value))

    gate.subscribe(listen, inline=True)
    return seen
