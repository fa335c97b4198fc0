"""The breaker's state machine: states, in-flight calls, probes and trip rules.

It has no event loop, no lock and no listeners. `catch_up` must be called with the current time
before any other method. It processes the time-outs that have passed, in order and each at its own
time, so that results do not depend on when a timer could run.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from resilient_imagen.circuitbreaker.calls import InFlightCall, InFlightCalls
from resilient_imagen.circuitbreaker.open_period import (
    NO_CAUSE,
    OpenPeriod,
    TripCause,
    hint_duration,
    open_duration,
    trip_duration,
    valid_hint,
)
from resilient_imagen.circuitbreaker.types import BreakerState
from resilient_imagen.circuitbreaker.window import TripRule, trips_at_once
from resilient_imagen.reasons import BreakerOutcome, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from resilient_imagen.circuitbreaker.config import BreakerConfig
    from resilient_imagen.circuitbreaker.types import Counted

__all__ = ["BreakerStateMachine"]

_CLOSED, _OPEN, _HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN
_TRIP, _REFUSED = BreakerOutcome.TRIP, BreakerOutcome.REFUSED

_VOTES: Final[Mapping[BreakerOutcome, Counted]] = {
    BreakerOutcome.SUCCESS: "success",
    BreakerOutcome.REFUSED: "success",
    BreakerOutcome.FAILURE: "failure",
    BreakerOutcome.TRIP: "failure",
    BreakerOutcome.THROTTLED: "throttled",
    BreakerOutcome.NEUTRAL: "ignored",
}


class BreakerStateMachine:
    """The state of one breaker and its transitions. pybreaker holds the state itself.

    Args:
        config: The breaker's settings.
        random: Returns 0 to 1 for the jitter.
        on_state_change: Called after each transition, with the old state and the new one.
        on_place_freed: Called when a probe's place may be free again without a vote.
    """

    def __init__(
        self,
        config: BreakerConfig,
        random: Callable[[], float],
        on_state_change: Callable[[BreakerState, BreakerState], None],
        on_place_freed: Callable[[], None],
    ) -> None:
        # pybreaker is loaded here, so that importing the package stays cheap.
        from resilient_imagen.circuitbreaker.pybreaker_adapter import PybreakerAdapter

        self.config: BreakerConfig = config
        self._random = random
        self._notify = on_state_change
        self._on_place_freed = on_place_freed
        self.now: float = 0.0
        """The current time; while a time-out is processed, the time of that time-out."""
        self.state: BreakerState = _CLOSED
        self.generation: int = 0
        """Number of states so far. A call votes only in the state in which it was admitted."""
        self.consecutive_openings: int = 0
        """Number of openings since it was last closed."""
        self.open_period: OpenPeriod | None = None
        self.rule: TripRule = TripRule(config)
        self.in_flight: InFlightCalls = InFlightCalls(config)
        self._pybreaker = PybreakerAdapter(self.rule, self._on_state_change)
        self._next: OpenPeriod | None = None
        """The open period that starts with the transition that pybreaker is about to make."""
        self._closes_at = math.inf
        """Time at which the current open period ends in the closed state, or infinity."""

    def catch_up(self, now: float) -> None:
        """Process all time-outs up to `now`."""
        if self._closes_at <= now:  # while open, no call in flight has a time limit
            self.now = max(self._closes_at, self.now)
            self._pybreaker.close()
        while self.in_flight.due <= now:
            # A limit that was lowered meanwhile may have passed before the last counted outcome.
            self.now = max(self.in_flight.due, self.now)
            self._on_call_due(*self.in_flight.next_due())
        self.now = now

    @property
    def due(self) -> float:
        """Time of the next time-out, or infinity."""
        due = self.in_flight.due
        return due if due < self._closes_at else self._closes_at  # noqa: FURB136 - runs on each call

    def admit(self) -> InFlightCall | None:
        """Admit a call, or return None. The first one after an open period becomes a probe."""
        if self.state is _CLOSED:
            return InFlightCall(self.generation)
        if self.blocked_until() is not None:
            return None
        if self.state is _OPEN:
            self._pybreaker.half_open()
        probe = InFlightCall(self.generation, probe=True)
        self.in_flight.hold_place(probe, self.now)
        return probe

    def blocked_until(self) -> float | None:
        """Return the time until which no call is admitted, or None.

        While probes take all places, it is the time-out of the first probe.
        """
        period = self.open_period
        if self.state is _OPEN and period is not None and self.now < period.until:
            return period.until
        if self.state is _HALF_OPEN and self.free_places <= 0:
            return self.in_flight.due
        return None

    def send(self, call: InFlightCall) -> None:
        """Start timing a call. A probe that lost its place takes it again if it is still free."""
        if call.counted is None and not self.is_stale(call):
            self.in_flight.send(call, self.now)

    def answered(self, call: InFlightCall) -> None:
        """Record that the response to a call has arrived."""
        self.in_flight.answer(call, self.now)

    def is_stale(self, call: InFlightCall) -> bool:
        """Return whether a call can no longer vote."""
        return self._lost_vote(call) and (
            call.generation != self.generation or self.free_places <= 0
        )

    def count(self, call: InFlightCall, verdict: BreakerOutcome, cause: TripCause) -> Counted:
        """Count the outcome of a call, unless it has timed out in flight or is stale.

        A stale hint or fatal failure may lengthen the current open period, and has no other effect.
        """
        at_once = trips_at_once(verdict, cause.retry_after)
        if self._lost_vote(call):
            if at_once and self.state is _OPEN:
                self._open_at_once(call, verdict, cause)
            return call.counted or "stale"
        self.in_flight.end(call)
        if at_once:
            if verdict is _TRIP and call.counted is None:
                self.rule.failure(self.now)
            self._open_at_once(call, verdict, cause)
            return call.counted or _VOTES[verdict]
        if call.counted is not None:
            return call.counted
        vote = self._vote_of(call, verdict)
        if vote == "success":
            self.rule.success(self.now)
            if self.state is _HALF_OPEN:
                self._pybreaker.succeed()
        elif vote != "ignored":
            self._fail(call, vote, cause)
        elif call.probe:
            self._on_place_freed()
        return vote

    def open(self, seconds: float, cause: TripCause, *, closes: bool = False) -> None:
        """Open for `seconds` from now; if it is open already, until the later of both ends.

        Args:
            seconds: Length of the open period.
            cause: Reported by rejections, if this period ends later than the current one.
            closes: Close at the end instead of admitting a probe. An extended period closes only
                if all its causes agree.
        """
        period = OpenPeriod(self.now, self.now + seconds, cause, closes)
        current = self.open_period
        if self.state is not _OPEN or current is None:
            self._start(period)
            return
        closes = closes and current.closes
        if period.until > current.until:
            self._set_open_period(period._replace(since=current.since, closes=closes))
        else:
            self._set_open_period(current._replace(closes=closes))

    def close(self) -> None:
        """Close now, as after successful probes."""
        if self.state is not _CLOSED:
            self._pybreaker.close()

    def abandon(self) -> None:
        """Forget the calls in flight: their event loop is closed, so they are never settled."""
        probes = bool(self.in_flight.probes)
        self.in_flight.clear()
        if probes:
            self._on_place_freed()

    def reconfigure(self, config: BreakerConfig) -> None:
        """Apply other settings; state, counts and the current open period stay."""
        self.config = config
        self.rule.reconfigure(config, self.now)
        self.in_flight.reconfigure(config)
        self._pybreaker.reconfigure(config)
        if self.state is _HALF_OPEN and self._pybreaker.success_counter >= config.half_open_calls:
            self._pybreaker.close()

    def drop_in_flight(self) -> None:
        """Revoke the votes of all calls in flight, and free the places of probes."""
        self.generation += 1
        self.in_flight.clear()

    @property
    def free_places(self) -> int:
        """Number of probes that may be admitted now; 0 or less if there is no place."""
        if self.state is not _HALF_OPEN:
            return 0
        taken = len(self.in_flight.probes) + self._pybreaker.success_counter
        return self.config.half_open_calls - taken

    def _lost_vote(self, call: InFlightCall) -> bool:
        """Return whether the call's state has ended, or the call is a probe without its place."""
        return call.generation != self.generation or (
            call.probe and call not in self.in_flight.probes
        )

    def _vote_of(self, call: InFlightCall, verdict: BreakerOutcome) -> Counted:
        if self.in_flight.is_slow(call, self.now):  # sent before slow calls were timed
            return "slow"
        if verdict is _REFUSED and call.probe:
            return "ignored"  # a refused request does not prove that the service works again
        return _VOTES[verdict]

    def _on_call_due(self, call: InFlightCall, slow: bool) -> None:  # noqa: FBT001 - see next_due
        self.in_flight.end(call)
        if call.sent_at is not None:
            call.counted = "slow" if slow else "failure"
            self._fail(call, call.counted, _timeout(call.origin))
        else:
            self._on_place_freed()  # it was never sent, so it has no vote and must not block others

    def _fail(self, call: InFlightCall, vote: Counted, cause: TripCause) -> None:
        """Count a failure, and open the breaker if a rule has tripped or a probe has failed."""
        if vote == "slow":
            cause = _timeout(cause.origin or call.origin)
        if vote == "throttled":
            self.rule.throttled()
        else:
            self.rule.failure(self.now)
        if self.rule.tripped or self.state is _HALF_OPEN:
            self._next = self._period_of_failures(cause, call)
            self._pybreaker.fail()

    def _open_at_once(self, call: InFlightCall, verdict: BreakerOutcome, cause: TripCause) -> None:
        """Open for a fatal failure, or for as long as the server asks."""
        hint = valid_hint(cause.retry_after)
        if verdict is _TRIP:
            self.open(trip_duration(self.config, hint, self._random), cause)
        elif self.state is _HALF_OPEN:
            self._start(self._period_of_failures(cause, call))
        else:
            self.open(hint_duration(self.config, hint), cause, closes=True)

    def _period_of_failures(self, cause: TripCause, last: InFlightCall | None = None) -> OpenPeriod:
        """Return the open period that starts now.

        Args:
            cause: Reported by rejections.
            last: The call whose failure opens the breaker, if there is one.
        """
        cost = last.duration(self.now) if last is not None and last.probe else 0.0
        seconds = open_duration(self.config, cost, valid_hint(cause.retry_after), self._random)
        return OpenPeriod(self.now, self.now + seconds, cause)

    def _start(self, period: OpenPeriod) -> None:
        self._next = period
        self._pybreaker.open()

    def _set_open_period(self, period: OpenPeriod | None) -> None:
        self.open_period = period
        self._closes_at = period.until if period is not None and period.closes else math.inf

    def _on_state_change(self, state: BreakerState) -> None:
        """Follow a transition of pybreaker."""
        old, self.state = self.state, state
        self.generation += 1
        self.in_flight.clear()
        if state is _OPEN:
            # Without a next period, the transition was made on pybreaker itself.
            self._set_open_period(self._next or self._period_of_failures(NO_CAUSE))
            self.consecutive_openings += 1
        elif state is _CLOSED:
            self.consecutive_openings = 0
            if self.open_period is None or not self.open_period.closes:
                self.rule.clear()  # counts from before a hint remain valid
            self._set_open_period(None)
        elif self.open_period is not None:
            self._set_open_period(self.open_period._replace(closes=False))
        self._next = None
        self._notify(old, state)


def _timeout(origin: object | None) -> TripCause:
    return TripCause(cause=Reason.TIMEOUT, summary="timed out", origin=origin)
