"""Hedging: when the next route starts beside a request in flight, and at what price."""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from functools import partial
from statistics import quantiles
from typing import TYPE_CHECKING, Final

from resilient_imagen.pipeline.deadline import CLOCK_TOLERANCE
from resilient_imagen.pipeline.overlap import CancelCause, OverlapKind
from resilient_imagen.reasons import BreakerOutcome, Reason

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    from resilient_imagen.circuitbreaker import Permit
    from resilient_imagen.pipeline.deadline import AttemptLimit
    from resilient_imagen.pipeline.route import Route
    from resilient_imagen.pipeline.state import CallState, RouteState
    from resilient_imagen.ratelimit.limiter import Slot
    from resilient_imagen.settings import Settings

__all__ = [
    "HedgeBudget",
    "OverlapPolicy",
    "RequestTimers",
]

KEPT_FOR: Final = 2.0
"""Multiple of its time limit after which a kept request is ended."""
_FACTOR_OF_USUAL: Final = 1.5
_MIN_SAMPLES: Final = 20
"""Successes that a 95th percentile needs."""


class HedgeBudget:
    """The share of the last hour's calls that may be hedged because a request is slow.

    Args:
        share: From 0 to 1. One hedge in an hour is always allowed, unless the share is 0.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._minutes: deque[list[int]] = deque()
        """Minute of the loop's time, calls and hedges in it; oldest first."""
        self._calls = 0
        self._hedges = 0

    def count_call(self, now: float) -> None:
        """Count a call that starts at loop time ``now``."""
        self._minute(now)[1] += 1
        self._calls += 1

    def try_spend(self, now: float) -> bool:
        """Count a hedge and return True, or return False if the budget is used up."""
        minute = self._minute(now)
        if self._share <= 0 or self._hedges >= max(1.0, self._share * self._calls):
            return False
        minute[2] += 1
        self._hedges += 1
        return True

    def snapshot(self, now: float) -> tuple[int, int]:
        """Return the calls and the hedges of the last hour."""
        self._minute(now)
        return self._calls, self._hedges

    def _minute(self, now: float) -> list[int]:
        current = int(now // 60)
        if self._minutes and self._minutes[-1][0] > current:
            self._minutes.clear()  # another event loop, whose clock started later
            self._calls = self._hedges = 0
        while self._minutes and self._minutes[0][0] <= current - 60:
            _, calls, hedges = self._minutes.popleft()
            self._calls -= calls
            self._hedges -= hedges
        if not self._minutes or self._minutes[-1][0] != current:
            self._minutes.append([current, 0, 0])
        return self._minutes[-1]


class RequestTimers:
    """Actions at moments in the life of a request in flight, on one timer of the event loop."""

    __slots__ = ("_actions", "_handle", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._actions: list[tuple[float, Callable[[], None]]] = []
        self._handle: asyncio.TimerHandle | None = None

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Call ``action`` at loop time ``when``, unless the request ends before."""
        self._actions.append((when, action))

    def start(self) -> None:
        """Set the timer for the first action."""
        if self._actions:
            self._actions.sort(key=lambda each: each[0], reverse=True)
            self._handle = self._loop.call_at(self._actions[-1][0], self._fire)

    def stop(self) -> None:
        """Forget the actions that are left."""
        self._actions.clear()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _fire(self) -> None:
        self._handle = None
        now = self._loop.time()
        while self._actions and self._actions[-1][0] - now <= CLOCK_TOLERANCE:
            self._actions.pop()[1]()
        if self._actions:
            self._handle = self._loop.call_at(self._actions[-1][0], self._fire)


class OverlapPolicy:
    """When a request that is in flight lets the next route start, votes, and returns its slot.

    Args:
        settings: The settings for hedging and for requests past their time limit.
    """

    def __init__(self, settings: Settings) -> None:
        self._probe_after = settings.hedge_probe_after
        self._slow_after = settings.hedge_after
        self.keeps: bool = settings.on_timeout == "keep"
        """Whether a request goes on past its time limit."""
        self._max_kept = settings.max_concurrent
        self._kept: dict[str, list[RouteState]] = {}
        """Requests past their time limit, by provider, in the order in which they passed it."""

    def ends_at(
        self, limit: AttemptLimit, started: float, call: CallState, timeout: float
    ) -> float | None:
        """Return the loop time at which a request is ended; None if the call's timer does it."""
        if not self.keeps:
            return limit.timer_at
        end = started + KEPT_FOR * timeout
        return None if end >= call.deadline.at else end

    @contextmanager
    def watch(
        self,
        call: CallState,
        state: RouteState,
        slot: Slot,
        permit: Permit,
        timer: asyncio.Timeout,
    ) -> Iterator[None]:
        """Count a request as in flight during the block, and act at its moments."""
        timers = self._timers(call, state, slot, permit)
        state.timer = timer
        call.in_flight.append(state)
        timers.start()
        try:
            yield
        finally:
            timers.stop()
            state.timer = None
            if state in call.in_flight:
                call.in_flight.remove(state)
            kept = self._kept.get(state.route.provider.name)
            if kept and state in kept:
                kept.remove(state)

    def _timers(
        self, call: CallState, state: RouteState, slot: Slot, permit: Permit
    ) -> RequestTimers:
        started, timers = state.sent_at, RequestTimers(call.loop)
        if state.later_routes:
            for delay, kind in self._overlaps(state, permit):
                timers.at(started + delay, partial(state.ask_for_overlap, kind))
        if self.keeps:
            own_limit = started + state.route.timeout
            moment = min(own_limit, state.deadline.at)
            if state.later_routes and moment < call.deadline.at:
                timers.at(moment, partial(state.ask_for_overlap, OverlapKind.TIMEOUT))
            if own_limit < call.deadline.at:
                timers.at(own_limit, partial(self._pass_limit, state, slot))
                timers.at(self._votes_at(state, permit, started), partial(_vote, call, permit))
        return timers

    def _overlaps(self, state: RouteState, permit: Permit) -> list[tuple[float, OverlapKind]]:
        found = []
        if permit.probe and self._probe_after is not None:
            found.append((self._probe_after, OverlapKind.PROBE))
        delay = self.slow_delay(state.route, state.adapted.request.resolution)
        if delay is not None:
            found.append((delay, OverlapKind.SLOW))
        return found

    def slow_delay(self, route: Route, resolution: str) -> float | None:
        """Return the seconds after which a request counts as slow; None if that is not known."""
        if self._slow_after != "p95":
            return self._slow_after
        latencies = route.latencies.get(resolution, ())
        if len(latencies) < _MIN_SAMPLES:
            return None
        return quantiles(latencies, n=20, method="inclusive")[-1]

    def _votes_at(self, state: RouteState, permit: Permit, started: float) -> float:
        """Return when a kept request counts as a failure for the breaker."""
        limit = state.route.timeout
        usual = None if permit.probe else state.measured_latency
        return started + (limit if usual is None else max(limit, _FACTOR_OF_USUAL * usual))

    def _pass_limit(self, state: RouteState, slot: Slot) -> None:
        """Return the slot of a request at its time limit; the provider keeps only so many."""
        state.past_limit = True
        kept = self._kept.setdefault(state.route.provider.name, [])
        kept.append(state)
        state.route.limiter.release(slot)
        if len(kept) > self._max_kept:
            kept.pop(0).cancel(CancelCause.DISPLACED)


def _vote(call: CallState, permit: Permit) -> None:
    permit.settle(BreakerOutcome.FAILURE, cause=Reason.TIMEOUT, summary="timed out", origin=call.id)
