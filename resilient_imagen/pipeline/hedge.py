"""Hedging: when the next route starts beside a request in flight, and at what price."""

from __future__ import annotations

import math
from collections import deque
from functools import partial
from operator import itemgetter
from statistics import quantiles
from typing import TYPE_CHECKING, Final

from resilient_imagen.pipeline.deadline import CLOCK_TOLERANCE
from resilient_imagen.pipeline.overlap import OverlapKind
from resilient_imagen.pipeline.route import FACTOR_OF_USUAL
from resilient_imagen.reasons import BreakerOutcome, Reason

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from resilient_imagen.circuitbreaker import Permit
    from resilient_imagen.pipeline.call_state import CallState
    from resilient_imagen.pipeline.route import Route
    from resilient_imagen.pipeline.route_state import RouteState
    from resilient_imagen.ratelimit.limiter import Slot
    from resilient_imagen.settings import Settings

__all__ = [
    "HedgeBudget",
    "OverlapPolicy",
    "RequestClock",
]

KEPT_FOR: Final = 2.0
"""Multiple of its time limit after which a kept request is ended."""
_MIN_SAMPLES: Final = 20
"""Successes that a 95th percentile needs."""


class HedgeBudget:
    """The share of the last hour's calls that may be hedged because a request is slow.

    Args:
        share: From 0 to 1. One hedge in an hour is always allowed, unless the share is 0.
    """

    def __init__(self, share: float) -> None:
        self.share: float = share
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
        if self.share <= 0 or self._hedges + 1 > max(1.0, self.share * self._calls):
            return False
        minute[2] += 1
        self._hedges += 1
        return True

    def snapshot(self, now: float) -> tuple[int, int]:
        """Return the calls and the hedges of the last hour; may be called from any thread."""
        first = int(now // 60) - 59
        latest = [minute for minute in tuple(self._minutes) if minute[0] >= first]
        return sum(calls for _, calls, _ in latest), sum(hedges for _, _, hedges in latest)

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


class OverlapPolicy:
    """When a request that is in flight lets the next route start, votes, and returns its slot.

    Args:
        settings: The settings for hedging and for requests past their time limit.
    """

    def __init__(self, settings: Settings) -> None:
        self.reconfigure(settings)
        self.keeps: bool = settings.on_timeout == "keep"
        """Whether a request continues past its time limit."""

    def reconfigure(self, settings: Settings) -> None:
        """Use other delays, for requests that are sent from now on."""
        self._probe_after = settings.hedge_probe_after
        self._slow_after = settings.hedge_after

    def first_moment(self, call: CallState, state: RouteState, permit: Permit) -> float:
        """Return the loop time at which the first of ``moments`` is due; infinite if none is."""
        started, first = state.sent_at, math.inf
        if self.keeps:
            first = min(started + state.time_limit, state.deadline.at)
            if first >= call.deadline.at:
                first = math.inf
        if (permit.probe or self._slow_after is not None) and state.may_lead_on:
            if permit.probe and self._probe_after is not None:
                first = min(first, started + self._probe_after)
            slow = self.slow_delay(state.route, state.adapted.request.resolution)
            if slow is not None:
                first = min(first, started + slow)
        return first

    def moments(
        self, call: CallState, state: RouteState, slot: Slot, permit: Permit
    ) -> list[tuple[float, Callable[[], None]]]:
        """Return what happens while a request is in flight, and when; the earliest last."""
        started, found = state.sent_at, []
        if state.may_lead_on:
            if permit.probe and self._probe_after is not None:
                found.append((started + self._probe_after, OverlapKind.PROBE))
            slow = self.slow_delay(state.route, state.adapted.request.resolution)
            if slow is not None:
                found.append((started + slow, OverlapKind.SLOW))
        own_limit = started + state.time_limit
        ends_reserve = min(own_limit, state.deadline.at)
        if self.keeps and state.may_lead_on and ends_reserve < call.deadline.at:
            found.append((ends_reserve, OverlapKind.TIMEOUT))
        due: list[tuple[float, Callable[[], None]]] = [
            (when, partial(state.ask_for_overlap, kind)) for when, kind in found
        ]
        if self.keeps and own_limit < call.deadline.at:
            due.append((own_limit, partial(_pass_limit, state, slot)))
            due.append((self._votes_at(state, permit, started), partial(_vote, state, permit)))
        due.sort(key=itemgetter(0), reverse=True)
        return due

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
        limit = state.time_limit
        usual = None if permit.probe else state.measured_latency
        return started + (limit if usual is None else max(limit, FACTOR_OF_USUAL * usual))


def _pass_limit(state: RouteState, slot: Slot) -> None:
    """Return the slot of a request at its time limit, and set the time at which it is ended.

    A detached probe keeps its slot: its own timer ends it now.

    No more than IMAGE_GEN_MAX_CONCURRENT requests of a provider are kept: all of them held a slot
    when the oldest of them reached its limit, because it is kept no longer than for another limit.
    """
    if state.detached:
        return
    state.past_limit = True
    if state.timer is not None:
        state.timer.reschedule(state.sent_at + KEPT_FOR * state.time_limit)
    state.route.limiter.release(slot)


def _vote(state: RouteState, permit: Permit) -> None:
    """Count a request beyond its time limit as a failure; a detached probe counts when it ends."""
    if not state.detached:
        permit.settle(BreakerOutcome.FAILURE, cause=Reason.TIMEOUT, summary="timed out")


class RequestClock:
    """A context manager for a request in flight: acts at its moments, on one timer of the loop."""

    __slots__ = ("_call", "_due", "_handle", "_permit", "_policy", "_slot", "_state", "_timer")

    def __init__(
        self,
        policy: OverlapPolicy,
        call: CallState,
        state: RouteState,
        slot: Slot,
        permit: Permit,
        timer: asyncio.Timeout,
    ) -> None:
        self._policy = policy
        self._call = call
        self._state = state
        self._slot = slot
        self._permit = permit
        self._timer = timer
        self._due: list[tuple[float, Callable[[], None]]] | None = None
        """The moments that are left; None until the first one has come."""
        self._handle: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        """Count the request as in flight."""
        call, state = self._call, self._state
        state.timer, state.past_limit = self._timer, False
        call.in_flight.append(state)
        first = self._policy.first_moment(call, state, self._permit)
        if first < math.inf:
            self._handle = call.loop.call_at(first, self._fire)

    def __exit__(self, *_: object) -> None:
        """Forget the request and the moments that are left."""
        if self._handle is not None:
            self._handle.cancel()
        state, in_flight = self._state, self._call.in_flight
        state.timer = None
        state.overlaps_due.clear()
        if state in in_flight:
            in_flight.remove(state)

    def _fire(self) -> None:
        """Act at all moments that have come, and wait for the next one."""
        if self._due is None:
            self._due = self._policy.moments(self._call, self._state, self._slot, self._permit)
        now = self._call.loop.time()
        while self._due and self._due[-1][0] - now <= CLOCK_TOLERANCE:
            self._due.pop()[1]()
        self._handle = self._call.loop.call_at(self._due[-1][0], self._fire) if self._due else None
