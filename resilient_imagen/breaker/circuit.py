"""What each outcome, and time passing, does to one circuit. No loop, no lock, nobody to tell.

Before anything else, `catch_up` is told the time. It makes up for what time alone has decided, in
order and each at its own moment, so that nothing depends on when a timer could run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from resilient_imagen.breaker.flights import Flight, Flights
from resilient_imagen.breaker.trip import TripRule, believable, pause, tripped_pause
from resilient_imagen.breaker.views import BreakerState
from resilient_imagen.reasons import Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_imagen.breaker.config import BreakerConfig
    from resilient_imagen.breaker.views import Counted

__all__ = ["NO_REASON", "Circuit", "Opening", "Why"]

_CLOSED, _OPEN, _HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


class Why(NamedTuple):
    """What a failure is remembered by, if it is the one that opens the circuit."""

    cause: str | None = None
    brief: str | None = None
    origin: object | None = None
    retry_after: float | None = None


class Opening(NamedTuple):
    """From when until when, and why. Kept until the circuit closes."""

    since: float
    until: float
    why: Why


NO_REASON: Final = Why()


class Circuit:
    """The state, and what may change it.

    Args:
        config: The numbers.
        random: Returns 0 to 1 for the jitter.
        moved: Called after each change, with the old state and the new one.
        freed: Called when a probe's place is free again without a verdict.
    """

    def __init__(
        self,
        config: BreakerConfig,
        random: Callable[[], float],
        moved: Callable[[BreakerState, BreakerState], None],
        freed: Callable[[], None],
    ) -> None:
        from resilient_imagen.breaker.machine import Machine  # pybreaker, only where it is used

        self.config = config
        self._random = random
        self._on_moved = moved
        self._on_freed = freed
        self.now = 0.0
        """The present moment; while time is made up for, the moment that is."""
        self.state = _CLOSED
        self.generation = 0
        """Number of states so far; an outcome counts in the one its request was admitted in."""
        self.openings = 0
        """Openings since it was last closed."""
        self.opening: Opening | None = None
        self.rule = TripRule(config)
        self.flights = Flights(config)
        self._machine = Machine(self.rule, config, self._moved)
        self._why = NO_REASON
        self._pause: float | None = None

    def catch_up(self, now: float) -> None:
        """Make up for what time alone has decided up to `now`."""
        while self.flights.due <= now:
            # A threshold lowered meanwhile may be due before what was already counted.
            self.now = max(self.flights.due, self.now)
            self._time_is_up(*self.flights.first())
        self.now = now

    @property
    def due(self) -> float:
        """When time decides something next; inf: never."""
        return self.flights.due

    def ask(self) -> Flight | None:
        """Admit one request, or None. The first to ask once an opening is over begins a round."""
        if self.state is _CLOSED:
            return Flight(self.generation)
        if self.blocked_until() is not None:
            return None
        if self.state is _OPEN:
            self._machine.half_open()
        probe = Flight(self.generation, probe=True)
        self.flights.reserve(probe, self.now)
        return probe

    def blocked_until(self) -> float | None:
        """Until when nobody is admitted, or None.

        With every place taken by a probe: when time will have decided about the first of them.
        """
        if self.state is _OPEN and self.opening is not None and self.now < self.opening.until:
            return self.opening.until
        if self.state is _HALF_OPEN and not self._has_room:
            return self.flights.due
        return None

    def send(self, flight: Flight) -> None:
        """The request leaves now. A probe whose place was given up takes it again, if free."""
        if flight.counted is None and not self.is_stale(flight):
            self.flights.send(flight, self.now)

    def answered(self, flight: Flight) -> None:
        """Its answer is there."""
        self.flights.answer(flight, self.now)

    def is_stale(self, flight: Flight) -> bool:
        """Whether its outcome can no longer count."""
        if flight.generation != self.generation:
            return True
        return flight.probe and flight not in self.flights.probes and not self._has_room

    def count(self, flight: Flight, verdict: Verdict, why: Why) -> Counted:
        """Count the outcome of a request, unless it was counted in flight or is stale."""
        lost_its_place = flight.probe and flight not in self.flights.probes
        if flight.generation != self.generation or lost_its_place:
            return flight.counted or "stale"
        self.flights.end(flight)
        hint = believable(why.retry_after)
        if verdict is Verdict.TRIP:
            if flight.counted is None:
                self.rule.failure(self.now)
            self.open(tripped_pause(self.config, hint, self._random), why)
            return flight.counted or "failure"
        if verdict is Verdict.THROTTLED and hint is not None:
            before = self.openings
            self.open(min(hint, self.config.reset_max), why)
            self.openings = max(before, 1)  # the server's own time; no probe of ours has failed
            return flight.counted or "throttled"
        return flight.counted or self._vote(flight, verdict, why)

    def open(self, seconds: float, why: Why) -> None:
        """Open for `seconds` from now; if it is open already, for the longer of both."""
        if self.state is not _OPEN:
            self._why, self._pause = why, seconds
            self._machine.open()
        elif self.opening is not None and self.now + seconds > self.opening.until:
            self.opening = self.opening._replace(until=self.now + seconds, why=why)

    def reconfigure(self, config: BreakerConfig) -> None:
        """Take other numbers; state, counts and the present opening stay."""
        self.config = config
        self.rule.reconfigure(config, self.now)
        self.flights.reconfigure(config)
        self._machine.reconfigure(config)
        if self.state is _HALF_OPEN and self._machine.successes >= config.half_open_calls:
            self._machine.close()

    def disown(self) -> None:
        """End the votes of all requests in flight, and free the places of probes."""
        self.generation += 1
        self.flights.clear()

    @property
    def _has_room(self) -> bool:
        taken = len(self.flights.probes) + self._machine.successes
        return self.state is _HALF_OPEN and taken < self.config.half_open_calls

    def _vote(self, flight: Flight, verdict: Verdict, why: Why) -> Counted:
        if self.flights.is_slow(flight, self.now):  # sent before slow calls were watched
            self._fail(_silence(why.origin or flight.origin))
            return "slow"
        match verdict:
            case Verdict.SUCCESS:
                self._machine.success(self.now)
                return "success"
            case Verdict.FAILURE:
                self._fail(why)
                return "failure"
            case Verdict.THROTTLED:
                self._why = why
                self._machine.throttled()
                self._why = NO_REASON
                return "throttled"
            case _:
                if flight.probe:
                    self._on_freed()
                return "ignored"

    def _time_is_up(self, flight: Flight, slow: bool) -> None:  # noqa: FBT001 - as `first` says it
        self.flights.end(flight)
        if flight.sent:
            flight.counted = "slow" if slow else "failure"
            self._fail(_silence(flight.origin))
        else:
            self._on_freed()  # never sent: it says nothing, and may not block the others

    def _fail(self, why: Why) -> None:
        self._why = why
        self._machine.failure(self.now)
        self._why = NO_REASON

    def _moved(self, state: BreakerState) -> None:
        old, self.state = self.state, state
        self.generation += 1
        self.flights.clear()
        if state is _OPEN:
            self.openings += 1
            hint = believable(self._why.retry_after)
            seconds = self._pause or pause(self.config, self.openings, hint, self._random)
            self.opening = Opening(self.now, self.now + seconds, self._why)
        elif state is _CLOSED:
            self.openings = 0
            self.opening = None
            self.rule.clear()
        self._why, self._pause = NO_REASON, None  # an operator's own opening has no cause of ours
        self._on_moved(old, state)


def _silence(origin: object | None) -> Why:
    return Why(cause=Reason.TIMEOUT, brief="timed out", origin=origin)
