"""Requests on their way, and when time alone decides about them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from resilient_imagen.circuitbreaker.config import BreakerConfig
    from resilient_imagen.circuitbreaker.types import Counted, Settlement

__all__ = ["UNTRACKED", "InFlightCall", "InFlightCalls"]

UNTRACKED: Final = -1
"""Generation of a request that says nothing: let through where a breaker would have refused it."""


@dataclass(slots=True, eq=False)
class InFlightCall:
    """One admitted request, from its permit to its settlement."""

    generation: int
    probe: bool = False
    """It takes one of the half-open places."""
    since: float = math.nan
    """When a probe's place was reserved; once `sent`, when the request was sent."""
    sent: bool = False
    answered: bool = False
    """The answer is there; what is left to do is not the service's."""
    origin: object | None = None
    counted: Counted | None = None
    """Its vote, once cast: by time while in flight, or at its settlement."""
    settlement: Settlement | None = None


class InFlightCalls:
    """Those of the present state that time may decide: probes, and calls that may become slow.

    Both are kept in order of sending, so the first slow call is the first to be due.
    """

    __slots__ = ("_config", "_slow", "due", "probes")

    def __init__(self, config: BreakerConfig) -> None:
        self._config = config
        self._slow: dict[InFlightCall, None] = {}
        self.probes: dict[InFlightCall, None] = {}
        self.due = math.inf
        """When time decides about the next one (`first`); inf: about none."""

    @property
    def any_watched(self) -> bool:
        """Whether time may decide about any."""
        return self.due < math.inf

    def reconfigure(self, config: BreakerConfig) -> None:
        """Take other thresholds; they hold for requests in flight too."""
        self._config = config
        if config.slow_call is None:
            self._slow.clear()
        self._note_due()

    def hold_place(self, probe: InFlightCall, now: float) -> None:
        """Keep a place for a probe that is yet to be sent."""
        probe.since = now
        self.probes[probe] = None
        self._note_due()

    def send(self, flight: InFlightCall, now: float) -> None:
        """Count its time from `now`."""
        flight.since, flight.sent = now, True
        # Taken out first: what is sent anew goes to the end of the order.
        if flight.probe:
            self.probes.pop(flight, None)
            self.probes[flight] = None
        if self._config.slow_call is not None:
            self._slow.pop(flight, None)
            self._slow[flight] = None
        if flight.probe or self._slow:
            self._note_due()

    def answer(self, flight: InFlightCall, now: float) -> None:
        """The service did its part: it can no longer be slow, and a probe's time begins anew."""
        flight.answered = True
        self._slow.pop(flight, None)
        if flight in self.probes:
            flight.since = now
        self._note_due()

    def end(self, flight: InFlightCall) -> None:
        """Time has no more say about it."""
        if self.due < math.inf:
            self.probes.pop(flight, None)
            self._slow.pop(flight, None)
            self._note_due()

    def clear(self) -> None:
        """The state they were admitted in is over."""
        self.probes.clear()
        self._slow.clear()
        self.due = math.inf

    def next_due(self) -> tuple[InFlightCall, bool]:
        """The one that is decided at `due`, and whether it is for being slow."""
        for flight in self._slow:
            if self._slow_at(flight) <= self.due:
                return flight, True
            break
        return min(self.probes, key=self._probe_until), False

    def is_slow(self, flight: InFlightCall, now: float) -> bool:
        """Whether it was sent so long ago that it counts as failed."""
        return flight.sent and not flight.answered and self._slow_at(flight) <= now

    def _slow_at(self, flight: InFlightCall) -> float:
        slow_call = self._config.slow_call
        return math.inf if slow_call is None else flight.since + slow_call

    def _probe_until(self, probe: InFlightCall) -> float:
        return probe.since + self._config.probe_deadline

    def _note_due(self) -> None:
        due = math.inf
        for probe in self.probes:
            due = min(due, self._probe_until(probe))
        for flight in self._slow:
            due = min(due, self._slow_at(flight))
            break
        self.due = due
