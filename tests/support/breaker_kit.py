"""Breaker test kit: a manual clock, and helpers for outcomes."""

from __future__ import annotations

from typing import Any

from resilient_imagen.circuitbreaker import (
    BreakerConfig,
    CircuitBreaker,
    Permit,
    Rejection,
    Settlement,
    Transition,
)
from resilient_imagen.reasons import BreakerOutcome


class ManualClock:
    """A clock that advances only on request."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def make_breaker(
    clock: ManualClock | None = None, *, jitter: float = 0.0, **numbers: Any
) -> tuple[CircuitBreaker, ManualClock]:
    """Return a breaker and its manual clock; its random source always returns `jitter`."""
    clock = clock or ManualClock()
    return CircuitBreaker(
        "google:pro", BreakerConfig(**numbers), random=lambda: jitter, clock=clock
    ), clock


def send_call(breaker: CircuitBreaker) -> Permit:
    """Acquire a permit and send its request."""
    permit = breaker.acquire()
    assert isinstance(permit, Permit), permit
    permit.begin()
    return permit


def refused(breaker: CircuitBreaker) -> Rejection:
    rejection = breaker.acquire()
    assert isinstance(rejection, Rejection), rejection
    return rejection


def outcome(breaker: CircuitBreaker, verdict: BreakerOutcome, **details: Any) -> Settlement:
    """Send one request and settle it at once."""
    return send_call(breaker).settle(verdict, **details)


def succeed(breaker: CircuitBreaker, times: int = 1) -> None:
    for _ in range(times):
        outcome(breaker, BreakerOutcome.SUCCESS)


def fail(breaker: CircuitBreaker, times: int = 1, **details: Any) -> None:
    for _ in range(times):
        outcome(breaker, BreakerOutcome.FAILURE, **details)


def opened(clock: ManualClock | None = None, **numbers: Any) -> tuple[CircuitBreaker, ManualClock]:
    """Return a breaker that failures have just opened."""
    breaker, clock = make_breaker(clock, **numbers)
    fail(
        breaker, breaker.metrics().failure_threshold, cause="overloaded", summary="503 UNAVAILABLE"
    )
    assert breaker.metrics().state == "open"
    return breaker, clock


def half_open(
    clock: ManualClock | None = None, **numbers: Any
) -> tuple[CircuitBreaker, ManualClock, Permit]:
    """Return a breaker in its first half-open round, with one probe sent."""
    breaker, clock = opened(clock, **numbers)
    until = breaker.blocked_until()
    assert until is not None
    clock.now = until
    return breaker, clock, send_call(breaker)


def changes(breaker: CircuitBreaker) -> list[tuple[str, str]]:
    """Return a list to which every transition is added, except those of shadow mode."""
    seen: list[tuple[str, str]] = []

    def listen(transition: Transition) -> None:
        if not transition.shadow:
            seen.append((transition.from_state.value, transition.to_state.value))

    breaker.subscribe(listen, inline=True)
    return seen
