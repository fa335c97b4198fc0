"""What each outcome, and time passing, does to one circuit. No loop, no lock, nobody to tell.

Before anything else, `catch_up` is told the time. It makes up for what time alone has decided, in
order and each at its own moment, so that nothing depends on when a timer could run.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

from resilient_imagen.circuitbreaker.calls import InFlightCall, InFlightCalls
from resilient_imagen.circuitbreaker.types import BreakerState
from resilient_imagen.circuitbreaker.window import (
    TripRule,
    open_duration,
    trip_duration,
    valid_hint,
)
from resilient_imagen.reasons import BreakerOutcome, Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_imagen.circuitbreaker.config import BreakerConfig
    from resilient_imagen.circuitbreaker.types import Counted

__all__ = ["NO_CAUSE", "BreakerStateMachine", "OpenPeriod", "TripCause"]

_CLOSED, _OPEN, _HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


class TripCause(NamedTuple):
    """What a failure is remembered by, if it is the one that opens the circuit."""

    cause: str | None = None
    summary: str | None = None
    origin: object | None = None
    retry_after: float | None = None


class OpenPeriod(NamedTuple):
    """From when until when, and why. Kept until the circuit closes."""

    since: float
    until: float
    cause: TripCause
    closes: bool = False
    """The circuit is closed when this opening is over; otherwise the next caller is a probe."""


NO_CAUSE: Final = TripCause()
_TRIP, _THROTTLED = BreakerOutcome.TRIP, BreakerOutcome.THROTTLED


class BreakerStateMachine:
    """The state, and what may change it.

    Args:
        config: The numbers.
        random: Returns 0 to 1 for the jitter.
        moved: Called after each change, with the old state and the new one.
        freed: Called when a probe's place may be free again without a verdict.
    """

    def __init__(
        self,
        config: BreakerConfig,
        random: Callable[[], float],
        moved: Callable[[BreakerState, BreakerState], None],
        freed: Callable[[], None],
    ) -> None:
        from resilient_imagen.circuitbreaker.pybreaker_adapter import (
            PybreakerAdapter,
        )  # pybreaker, only where it is used

        self.config = config
        self._random = random
        self._on_moved = moved
        self._on_freed = freed
        self.now = 0.0
        """The present moment; while time is made up for, the moment that is."""
        self.state = _CLOSED
        self.generation = 0
        """Number of states so far; an outcome counts in the one its request was admitted in."""
        self.consecutive_openings = 0
        """Openings since it was last closed."""
        self.open_period: OpenPeriod | None = None
        self.rule = TripRule(config)
        self.in_flight = InFlightCalls(config)
        self._pybreaker = PybreakerAdapter(self.rule, config, self._on_state_change)
        self._cause = NO_CAUSE
        self._next: OpenPeriod | None = None
        """The opening that begins with the next transition, if it is not one of failures."""
        self._closes_at = math.inf
        """When the present opening ends in the closed state; inf: it does not."""

    def catch_up(self, now: float) -> None:
        """Make up for what time alone has decided up to `now`."""
        if self._closes_at <= now:  # then nothing is in flight that time decides about
            self.now = max(self._closes_at, self.now)
            self._pybreaker.close()
        while self.in_flight.due <= now:
            # A threshold lowered meanwhile may be due before what was already counted.
            self.now = max(self.in_flight.due, self.now)
            self._on_call_due(*self.in_flight.next_due())
        self.now = now

    @property
    def due(self) -> float:
        """When time decides something next; inf: never."""
        due = self.in_flight.due
        return due if due < self._closes_at else self._closes_at  # noqa: FURB136 - asked each call

    def admit(self) -> InFlightCall | None:
        """Admit one request, or None. The first to ask once an opening is over begins a round."""
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
        """Until when nobody is admitted, or None.

        With every place taken by a probe: when time will have decided about the first of them.
        """
        if (
            self.state is _OPEN
            and self.open_period is not None
            and self.now < self.open_period.until
        ):
            return self.open_period.until
        if self.state is _HALF_OPEN and not self._has_room:
            return self.in_flight.due
        return None

    def send(self, flight: InFlightCall) -> None:
        """The request leaves now. A probe whose place was given up takes it again, if free."""
        if flight.counted is None and not self.is_stale(flight):
            self.in_flight.send(flight, self.now)

    def answered(self, flight: InFlightCall) -> None:
        """Its answer is there."""
        self.in_flight.answer(flight, self.now)

    def is_stale(self, flight: InFlightCall) -> bool:
        """Whether its outcome can no longer count."""
        if flight.generation != self.generation:
            return True
        return flight.probe and flight not in self.in_flight.probes and not self._has_room

    def count(self, flight: InFlightCall, verdict: BreakerOutcome, why: TripCause) -> Counted:
        """Count the outcome of a request, unless it was counted in flight or is stale.

        A stale hint or fatal failure may lengthen the present opening, and does nothing else.
        """
        at_once = verdict is _TRIP or (
            verdict is _THROTTLED and valid_hint(why.retry_after) is not None
        )
        lost_its_place = flight.probe and flight not in self.in_flight.probes
        if flight.generation != self.generation or lost_its_place:
            if at_once and self.state is _OPEN:
                self._open_at_once(verdict, why)
            return flight.counted or "stale"
        self.in_flight.end(flight)
        if not at_once:
            return flight.counted or self._vote(flight, verdict, why)
        if verdict is _TRIP and flight.counted is None:
            self.rule.failure(self.now)
        self._open_at_once(verdict, why)
        return flight.counted or ("failure" if verdict is _TRIP else "throttled")

    def open(self, seconds: float, why: TripCause, *, closes: bool = False) -> None:
        """Open for `seconds` from now; if it is open already, for the longer of both.

        Args:
            seconds: From now.
            why: What rejections tell, if this is the opening that lasts longer.
            closes: Be closed afterwards. An opening ends with a probe unless all that opened and
                lengthened it agree.
        """
        opening = OpenPeriod(self.now, self.now + seconds, why, closes)
        if self.state is not _OPEN or self.open_period is None:
            self._begin(opening)
            return
        closes = closes and self.open_period.closes
        if opening.until > self.open_period.until:
            self._note(opening._replace(since=self.open_period.since, closes=closes))
        else:
            self._note(self.open_period._replace(closes=closes))

    def abandon(self) -> None:
        """Forget the requests in flight: their event loop was closed, so nobody settles them."""
        probes = bool(self.in_flight.probes)
        self.in_flight.clear()
        if probes:
            self._on_freed()

    def reconfigure(self, config: BreakerConfig) -> None:
        """Take other numbers; state, counts and the present opening stay."""
        self.config = config
        self.rule.reconfigure(config, self.now)
        self.in_flight.reconfigure(config)
        self._pybreaker.reconfigure(config)
        if self.state is _HALF_OPEN and self._pybreaker.successes >= config.half_open_calls:
            self._pybreaker.close()

    def drop_in_flight(self) -> None:
        """End the votes of all requests in flight, and free the places of probes."""
        self.generation += 1
        self.in_flight.clear()

    @property
    def free_places(self) -> int:
        """Probes that may be admitted right now; 0 or less: none."""
        if self.state is not _HALF_OPEN:
            return 0
        return self.config.half_open_calls - len(self.in_flight.probes) - self._pybreaker.successes

    @property
    def _has_room(self) -> bool:
        return self.free_places > 0

    def _open_at_once(self, verdict: BreakerOutcome, why: TripCause) -> None:
        """Open by a fatal failure, or for as long as the server asks."""
        config, hint = self.config, valid_hint(why.retry_after)
        if verdict is _TRIP:
            self.open(trip_duration(config, hint, self._random), why)
            return
        openings = self.consecutive_openings
        if self.state is _HALF_OPEN:
            self.open(open_duration(config, openings + 1, hint, self._random), why)
        else:
            self.open(min(hint or 0.0, config.reset_max), why, closes=True)
        self.consecutive_openings = max(
            openings, 1
        )  # the server's own time: it doubles no later opening

    def _begin(self, opening: OpenPeriod) -> None:
        self._next = opening
        self._pybreaker.open()

    def _note(self, opening: OpenPeriod | None) -> None:
        self.open_period = opening
        closes = opening is not None and opening.closes
        self._closes_at = opening.until if opening is not None and closes else math.inf

    def _vote(self, flight: InFlightCall, verdict: BreakerOutcome, why: TripCause) -> Counted:
        if self.in_flight.is_slow(flight, self.now):  # sent before slow calls were watched
            self._fail(_timeout_cause(why.origin or flight.origin))
            return "slow"
        match verdict:
            case BreakerOutcome.SUCCESS:
                self._pybreaker.success(self.now)
                return "success"
            case BreakerOutcome.REFUSED if not flight.probe:
                self._pybreaker.success(self.now)
                return "success"
            case BreakerOutcome.FAILURE:
                self._fail(why)
                return "failure"
            case BreakerOutcome.THROTTLED:
                self._cause = why
                self._pybreaker.throttled()
                self._cause = NO_CAUSE
                return "throttled"
            case _:
                if flight.probe:
                    self._on_freed()
                return "ignored"

    def _on_call_due(self, flight: InFlightCall, slow: bool) -> None:  # noqa: FBT001 - as `first` says it
        self.in_flight.end(flight)
        if flight.sent:
            flight.counted = "slow" if slow else "failure"
            self._fail(_timeout_cause(flight.origin))
        else:
            self._on_freed()  # never sent: it says nothing, and may not block the others

    def _fail(self, why: TripCause) -> None:
        self._cause = why
        self._pybreaker.failure(self.now)
        self._cause = NO_CAUSE

    def _on_state_change(self, state: BreakerState) -> None:
        old, self.state = self.state, state
        self.generation += 1
        self.in_flight.clear()
        if state is _OPEN:
            self.consecutive_openings += 1
            self._note(self._next or self._opening_of_failures())
        elif state is _CLOSED:
            self.consecutive_openings = 0
            if self.open_period is None or not self.open_period.closes:
                self.rule.clear()  # a hint says nothing about what was counted before it
            self._note(None)
        elif self.open_period is not None:
            self._note(self.open_period._replace(closes=False))
        self._cause, self._next = NO_CAUSE, None  # an operator's own opening has no cause of ours
        self._on_moved(old, state)

    def _opening_of_failures(self) -> OpenPeriod:
        hint = valid_hint(self._cause.retry_after)
        seconds = open_duration(self.config, self.consecutive_openings, hint, self._random)
        return OpenPeriod(self.now, self.now + seconds, self._cause)


def _timeout_cause(origin: object | None) -> TripCause:
    return TripCause(cause=Reason.TIMEOUT, summary="timed out", origin=origin)
