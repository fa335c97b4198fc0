"""In-flight calls and their time limits: probes, and calls that may become slow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from resilient_imagen.circuitbreaker.config import BreakerConfig
    from resilient_imagen.circuitbreaker.types import Counted, Settlement

__all__ = ["UNTRACKED", "InFlightCall", "InFlightCalls"]

UNTRACKED: Final = -1
"""Generation of a call without a vote: mode off, or admitted in shadow mode while open."""


@dataclass(slots=True, eq=False)
class InFlightCall:
    """One admitted call, from its permit to its settlement."""

    generation: int
    probe: bool = False
    """Whether it takes one of the half-open places."""
    since: float = math.nan
    """The start of its time limit: when its place was reserved, it was sent, or it was answered."""
    sent_at: float | None = None
    """The time at which it was sent, or None."""
    answered: bool = False
    """Whether the response has arrived. The remaining work is local."""
    origin: object | None = None
    counted: Counted | None = None
    """Its vote, if its time limit passed before its settlement."""
    settlement: Settlement | None = None

    def duration(self, now: float) -> float:
        """Return the seconds since it was sent; 0 if it was not sent."""
        return 0.0 if self.sent_at is None else now - self.sent_at


class InFlightCalls:
    """The calls of the current state that have a time limit.

    They are kept in the order of sending, so the first call is the first to become slow.
    """

    __slots__ = ("_config", "_slow", "due", "probes")

    def __init__(self, config: BreakerConfig) -> None:
        self._config = config
        self._slow: dict[InFlightCall, None] = {}
        self.probes: dict[InFlightCall, None] = {}
        self.due: float = math.inf
        """Time of the next time-out (`next_due`), or infinity."""

    @property
    def any_watched(self) -> bool:
        """Whether any call has a time limit."""
        return self.due < math.inf

    def reconfigure(self, config: BreakerConfig) -> None:
        """Apply other limits, to the calls in flight as well."""
        self._config = config
        if config.slow_call is None:
            self._slow.clear()
        self._note_due()

    def hold_place(self, probe: InFlightCall, now: float) -> None:
        """Reserve a place for a probe that is not yet sent."""
        probe.since = now
        self.probes[probe] = None
        self._note_due()

    def send(self, call: InFlightCall, now: float) -> None:
        """Start timing a call at `now`."""
        call.since = call.sent_at = now
        # Remove it first, so that a call that is sent again moves to the end of the order.
        if call.probe:
            self.probes.pop(call, None)
            self.probes[call] = None
        if self._config.slow_call is not None:
            self._slow.pop(call, None)
            self._slow[call] = None
        if call.probe or self._slow:
            self._note_due()

    def answer(self, call: InFlightCall, now: float) -> None:
        """Record the response: the call can no longer be slow, and a probe's deadline restarts."""
        call.answered = True
        self._slow.pop(call, None)
        if call in self.probes:
            call.since = now
        self._note_due()

    def end(self, call: InFlightCall) -> None:
        """Stop timing this call."""
        if self.due < math.inf:
            self.probes.pop(call, None)
            self._slow.pop(call, None)
            self._note_due()

    def clear(self) -> None:
        """Stop timing all calls: the state in which they were admitted has ended."""
        self.probes.clear()
        self._slow.clear()
        self.due = math.inf

    def next_due(self) -> tuple[InFlightCall, bool]:
        """Return the next call to time out, and whether the slow-call limit is the cause."""
        for call in self._slow:
            if self._slow_at(call) <= self.due:
                return call, True
            break
        return min(self.probes, key=self._probe_until), False

    def is_slow(self, call: InFlightCall, now: float) -> bool:
        """Return whether the call has exceeded the slow-call limit."""
        return call.sent_at is not None and not call.answered and self._slow_at(call) <= now

    def _slow_at(self, call: InFlightCall) -> float:
        slow_call = self._config.slow_call
        return math.inf if slow_call is None else call.since + slow_call

    def _probe_until(self, probe: InFlightCall) -> float:
        return probe.since + self._config.probe_deadline

    def _note_due(self) -> None:
        due = math.inf
        for probe in self.probes:
            due = min(due, self._probe_until(probe))
        for call in self._slow:
            due = min(due, self._slow_at(call))
            break
        self.due = due
