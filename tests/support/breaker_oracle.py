"""Breaker oracle: a reference model written from the specification, for comparison in tests.

It shares only the configuration and the names of states with the breaker. It keeps every outcome
and every request in plain lists, and searches all of them each time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import count

from resilient_imagen.circuitbreaker import BreakerConfig, BreakerMode
from resilient_imagen.reasons import BreakerOutcome

DAY = 86_400.0


@dataclass(eq=False)
class Call:
    """One admitted request."""

    state_number: int
    probe: bool
    counts: bool
    time: float
    place: bool = False
    sent: bool = False
    watched: bool = False
    early: str | None = None
    settled: str | None = None
    order: int = 0


class BreakerOracle:
    """The specification in its simplest form."""

    def __init__(self, config: BreakerConfig, jitter: float) -> None:
        self.config = config
        self.jitter = jitter
        self.forced = False
        self.state = "closed"
        self.state_number = 0
        self.row = 0
        self.outcomes: list[tuple[float, bool]] = []
        self.openings = 0
        self.open_from = self.open_to = math.nan
        self.hint_only = False
        """Whether only hints have opened or extended the present open period."""
        self.successes = 0
        self.calls: list[Call] = []
        self.would_reject = 0
        self.transitions: list[tuple[str, str, bool]] = []
        self.met_before = "closed"
        self.last_moment = 0.0
        self.orders = count()

    # Admission

    @property
    def met(self) -> str:
        if self.forced:
            return "forced_open"
        return self.state if self.config.mode is BreakerMode.ON else "closed"

    def rejected_until(self, now: float) -> float | None:
        if self.met == "forced_open":
            return math.inf
        return None if self.met == "closed" else self.circuit_until(now)

    def circuit_until(self, now: float) -> float | None:
        if self.state == "open" and now < self.open_to:
            return self.open_to
        if self.state == "half_open" and not self.room:
            return min(when for when, _, _ in self.pending())
        return None

    @property
    def places_taken(self) -> int:
        return sum(call.place for call in self.calls)

    @property
    def room(self) -> bool:
        free = self.config.half_open_calls - self.places_taken - self.successes
        return self.state == "half_open" and free > 0

    def counted(self, now: float) -> list[bool]:
        width = self.config.window / 60
        newest = math.floor(now / width)
        return [failed for at, failed in self.outcomes if newest - math.floor(at / width) < 60]

    # Time

    def pending(self) -> list[tuple[float, int, Call]]:
        """Return the pending time-outs of calls: slow calls first, then in order of sending."""
        found = []
        for call in self.calls:
            if call.watched and self.config.slow_call is not None:
                found.append((call.time + self.config.slow_call, 0, call))
            if call.place:
                found.append((call.time + self.config.probe_deadline, 1, call))
        return sorted(found, key=lambda entry: (*entry[:2], entry[2].order))

    @property
    def closes_at(self) -> float:
        return self.open_to if self.state == "open" and self.hint_only else math.inf

    def pass_to(self, now: float) -> None:
        if self.closes_at <= now:
            self.move("closed", keep_counts=True)
        while (pending := self.pending()) and pending[0][0] <= now:
            due, kind, call = pending[0]
            moment = max(due, self.last_moment)
            self.last_moment = moment
            call.place = call.watched = False
            if call.sent:
                call.early = "slow" if kind == 0 else "failure"
                self.failure(moment, call)
        self.last_moment = now

    # Changes of state

    def move(self, state: str, *, keep_counts: bool = False) -> None:
        if self.config.mode is BreakerMode.SHADOW:
            self.transitions.append((self.state, state, True))
        self.state = state
        self.state_number += 1
        for call in self.calls:
            call.place = call.watched = False
        self.successes = 0
        if state == "closed":
            self.openings = 0
            if not keep_counts:
                self.row, self.outcomes = 0, []
        self.record_transition()

    def record_transition(self) -> None:
        if self.met != self.met_before:
            self.transitions.append((self.met_before, self.met, False))
            self.met_before = self.met

    def open(self, now: float, seconds: float, *, hint_only: bool = False) -> None:
        self.open_from, self.open_to, self.hint_only = now, now + seconds, hint_only
        self.openings += 1
        self.move("open")

    def lengthen(self, now: float, seconds: float, *, hint_only: bool) -> None:
        self.open_to = max(self.open_to, now + seconds)
        self.hint_only = self.hint_only and hint_only

    def own_pause(self, now: float, call: Call, hint: float | None) -> float:
        cost = now - call.time if call.probe and call.sent else 0.0
        base = max(self.config.reset_timeout, self.config.reset_factor * cost)
        base = min(base, self.config.reset_max)
        return max(base * (1.0 + 0.1 * self.jitter), min(hint or 0.0, self.config.reset_max))

    def long_pause(self, hint: float | None) -> float:
        if hint is not None and hint > self.config.reset_max:
            return min(hint, DAY)
        return self.config.reset_max * (1.0 + 0.1 * self.jitter)

    def failure(
        self, now: float, call: Call, *, hint: float | None = None, in_rate: bool = True
    ) -> None:
        self.row += 1
        if in_rate:
            self.outcomes.append((now, True))
        recent = self.counted(now)
        share = (
            in_rate
            and len(recent) >= self.config.min_calls
            and sum(recent) / len(recent) >= self.config.failure_rate
        )
        if self.state == "half_open" or self.row >= self.config.fail_max or share:
            self.open(now, self.own_pause(now, call, hint))

    # Calls

    def ask(self, now: float) -> Call | None:
        if self.forced:
            return None
        if self.config.mode is BreakerMode.OFF:
            return self.let(now, probe=False, counts=False)
        if self.state == "closed":
            return self.let(now, probe=False, counts=True)
        if self.circuit_until(now) is not None:
            if self.config.mode is BreakerMode.ON:
                return None
            self.would_reject += 1
            return self.let(now, probe=False, counts=False)
        if self.state == "open":
            self.move("half_open")
        return self.let(now, probe=True, counts=True)

    def let(self, now: float, *, probe: bool, counts: bool) -> Call:
        call = Call(self.state_number, probe, counts, now, place=probe, order=next(self.orders))
        self.calls.append(call)
        return call

    def current(self, call: Call) -> bool:
        return call.counts and call.state_number == self.state_number

    def begin(self, call: Call, now: float) -> None:
        if call.settled or call.early or not self.current(call):
            return
        if call.probe and not call.place:
            if not self.room:
                return
            call.place = True
        call.time, call.sent, call.order = now, True, next(self.orders)
        call.watched = self.config.slow_call is not None

    def settle(self, call: Call, verdict: BreakerOutcome, now: float, hint: float | None) -> str:
        if call.settled is None:
            call.settled = self.judge(call, verdict, now, hint)
            self.calls.remove(call)
        return call.settled

    def judge(self, call: Call, verdict: BreakerOutcome, now: float, hint: float | None) -> str:
        if self.config.mode is BreakerMode.OFF or not call.counts:
            return "ignored"
        at_once = verdict is BreakerOutcome.TRIP or (
            verdict is BreakerOutcome.THROTTLED and bool(hint)
        )
        if not self.current(call) or (call.probe and not call.place):
            if at_once and self.state == "open" and verdict is BreakerOutcome.TRIP:
                self.lengthen(now, self.long_pause(hint), hint_only=False)
            elif at_once and self.state == "open":
                self.lengthen(now, min(hint or 0.0, self.config.reset_max), hint_only=True)
            return call.early or "stale"
        call.place = call.watched = False
        if at_once:
            self._apply_hint_or_trip(call, verdict, now, hint)
        elif call.early is None and self.is_slow(call, now):
            self.failure(now, call)
            return "slow"
        elif call.early is None:
            self.vote(call, verdict, now, hint)
        refused = "ignored" if call.probe else "success"
        words = {"trip": "failure", "neutral": "ignored", "refused": refused}
        return call.early or words.get(verdict.value, verdict.value)

    def is_slow(self, call: Call, now: float) -> bool:
        slow_call = self.config.slow_call
        return call.sent and slow_call is not None and call.time + slow_call <= now

    def _apply_hint_or_trip(
        self, call: Call, verdict: BreakerOutcome, now: float, hint: float | None
    ) -> None:
        if verdict is BreakerOutcome.THROTTLED:
            if call.probe:
                self.open(now, self.own_pause(now, call, hint))
            else:
                self.open(now, min(hint or 0.0, self.config.reset_max), hint_only=True)
            return
        if call.early is None:
            self.row += 1
            self.outcomes.append((now, True))
        self.open(now, self.long_pause(hint))

    def vote(self, call: Call, verdict: BreakerOutcome, now: float, hint: float | None) -> None:
        if verdict is BreakerOutcome.FAILURE:
            self.failure(now, call, hint=hint)
        elif verdict is BreakerOutcome.THROTTLED:
            self.failure(now, call, in_rate=False)
        elif verdict is BreakerOutcome.SUCCESS or (
            verdict is BreakerOutcome.REFUSED and not call.probe
        ):
            self.success(now)

    def success(self, now: float) -> None:
        self.row = 0
        self.outcomes.append((now, False))
        if self.state == "half_open":
            self.successes += 1
            if self.successes >= self.config.half_open_calls:
                self.move("closed")

    # Operators and siblings

    def trip(self, now: float, hint: float | None) -> None:
        if self.config.mode is BreakerMode.OFF:
            return
        seconds = self.long_pause(hint)
        if self.state != "open":
            self.open(now, seconds)
        else:
            self.lengthen(now, seconds, hint_only=False)

    def force(self, *, forced: bool) -> None:
        self.forced = forced
        self.record_transition()

    def reconfigure(self, config: BreakerConfig) -> None:
        self.config = config
        for call in self.calls:
            call.watched = call.watched and config.slow_call is not None
        if self.state == "half_open" and self.successes >= config.half_open_calls:
            self.move("closed")
        if config.mode is BreakerMode.OFF:
            self.state_number += 1
            for call in self.calls:
                call.place = call.watched = False
        self.record_transition()
