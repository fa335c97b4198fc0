"""Queue and circuit breaker of an independent simulation, written from the rules in the guides."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from random import Random
from typing import Final, NamedTuple

from simpy import Environment, Event

_OUTSIDE_RATE: Final = frozenset({"rate_limited", "cancelled"})
"""Reasons that count as consecutive failures only, not in the failure rate."""


@dataclass(frozen=True)
class Rules:
    """The settings that the model knows, with the library's defaults."""

    breaker_mode: str = "on"
    breaker_fail_max: int = 3
    breaker_failure_rate: float = 0.5
    breaker_window: float = 300.0
    breaker_min_calls: int = 6
    breaker_reset_timeout: float = 60.0
    breaker_reset_factor: float = 5.0
    breaker_reset_max: float = 600.0
    max_retries: int = 2
    retry_base_delay: float = 5.0
    per_call_timeout: float = 60.0
    openai_timeout: float = 180.0
    hedge_probe_after: float | None = 3.0
    on_timeout: str = "keep"
    ipm: float = 10.0
    max_concurrent: int = 4


class Queue:
    """First in, first out: slots for requests in flight, and places evenly spaced in time."""

    def __init__(self, env: Environment, rules: Rules) -> None:
        self._env, self._free, self._interval = env, rules.max_concurrent, 60.0 / rules.ipm
        self._next_place, self._line = 0.0, deque[Event]()

    def join(self) -> Event:
        """Return an event that is triggered when the turn has come."""
        turn = self._env.event()
        self._line.append(turn)
        self._serve()
        return turn

    def _serve(self) -> None:
        if not self._line or not self._free:
            return
        if (wait := self._next_place - self._env.now) > 1e-9:
            self._env.timeout(wait).callbacks.append(lambda _: self._serve())
            return
        self._free -= 1
        self._next_place = max(self._next_place, self._env.now) + self._interval
        self._line.popleft().succeed()
        self._serve()

    def leave(self, turn: Event) -> None:
        """Leave the line, or give back a turn that was not used."""
        if turn.triggered:
            self._next_place -= self._interval
            self.release()
        else:
            self._line.remove(turn)

    def release(self) -> None:
        """Free a slot."""
        self._free += 1
        self._serve()


class Permit(NamedTuple):
    """A breaker's consent to one request, which votes only until the breaker's next change."""

    era: int
    probe: bool


class Breaker:
    """Closed, open for a time, or half-open with one probe."""

    def __init__(self, env: Environment, rules: Rules, chance: Random) -> None:
        self._env, self._rules, self._chance = env, rules, chance
        self.state, self.era = "closed", 0
        self._until, self._closes_itself = 0.0, False
        self._in_a_row, self._window = 0, deque[tuple[float, bool]]()
        self.changed: Event = env.event()
        """It is triggered at the next change of the state."""

    def ask(self) -> Permit | None:
        """Return a permit, or None if the request is rejected."""
        if self.state == "open" and self._env.now >= self._until:
            self._move("closed" if self._closes_itself else "half-open")
            if self.state == "half-open":
                return Permit(self.era, probe=True)
        return Permit(self.era, probe=False) if self.state == "closed" else None

    def is_usable(self, at: float) -> bool:
        """Return whether a request at a time would get a permit, as far as is known now."""
        return self.state == "closed" or (self.state == "open" and at >= self._until)

    def hand_back(self, permit: Permit) -> None:
        """Let another request be the probe, if this is the permit of one."""
        if permit.probe and permit.era == self.era:
            self._until = self._env.now
            self._move("open")

    def vote(self, permit: Permit, reason: str | None, took: float, hint: float | None) -> None:
        """Count the outcome of a request."""
        now = self._env.now
        if self._rules.breaker_mode == "off":
            return
        if permit.era != self.era:
            if self.state == "open" and reason == "rate_limited" and hint:
                self._until = max(self._until, now + hint)
            return
        if reason is None:
            self._in_a_row = 0
            self._window.append((now, False))
            if permit.probe:
                self._closes_itself = False
                self._move("closed")
            return
        longest = self._rules.breaker_reset_max
        if reason == "rate_limited" and hint and not permit.probe:
            self._open(min(hint, longest), closes_itself=True)
            return
        self._in_a_row += 1
        if reason not in _OUTSIDE_RATE:
            self._window.append((now, True))
        if permit.probe or self._trips(reason):
            cost = self._rules.breaker_reset_factor * took if permit.probe else 0.0
            wanted = min(max(self._rules.breaker_reset_timeout, cost), longest)
            wanted *= 1.0 + 0.1 * self._chance.random()
            self._open(max(wanted, min(hint or 0.0, longest)))

    def _trips(self, reason: str) -> bool:
        rules = self._rules
        while self._window and self._window[0][0] <= self._env.now - rules.breaker_window:
            self._window.popleft()
        failed, requests = sum(each for _, each in self._window), len(self._window)
        often = failed >= rules.breaker_failure_rate * requests
        enough = requests >= rules.breaker_min_calls and reason not in _OUTSIDE_RATE
        return self._in_a_row >= rules.breaker_fail_max or (enough and often)

    def _open(self, seconds: float, *, closes_itself: bool = False) -> None:
        self._until, self._closes_itself = self._env.now + seconds, closes_itself
        self._move("open")

    def _move(self, state: str) -> None:
        self.state, self.era = state, self.era + 1
        if state == "closed" and not self._closes_itself:
            self._in_a_row, self._window = 0, deque()
        changed, self.changed = self.changed, self._env.event()
        changed.succeed()
