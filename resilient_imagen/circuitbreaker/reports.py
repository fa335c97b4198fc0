"""A breaker's condition put into the words of `views`, and into JSON."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from resilient_imagen.circuitbreaker.config import BreakerMode
from resilient_imagen.circuitbreaker.state_machine import NO_CAUSE
from resilient_imagen.circuitbreaker.types import (
    BreakerMetrics,
    BreakerState,
    Rejection,
    Transition,
)

if TYPE_CHECKING:
    from resilient_imagen.circuitbreaker.state_machine import BreakerStateMachine, TripCause
    from resilient_imagen.circuitbreaker.timer import Clock
    from resilient_imagen.snapshots import BreakerSnapshot

__all__ = ["BreakerReports"]


class BreakerReports:
    """Reads a circuit; changes nothing.

    `state` is always the one that callers meet, which need not be the circuit's own.
    """

    __slots__ = ("_circuit", "_clock", "_name")

    def __init__(self, name: str, circuit: BreakerStateMachine, clock: Clock) -> None:
        self._name = name
        self._circuit = circuit
        self._clock = clock

    def blocked_until(self, state: BreakerState) -> float | None:
        """Until when callers are rejected; None: they are not; inf: until told so."""
        if state is BreakerState.CLOSED:
            return None
        return math.inf if state is BreakerState.FORCED_OPEN else self._circuit.blocked_until()

    def numbers(self, state: BreakerState) -> BreakerMetrics:
        """The numbers right now."""
        now, rule, opening = self._circuit.now, self._circuit.rule, self._circuit.open_period
        rule.window.roll(now)
        until = self.blocked_until(state)
        return BreakerMetrics(
            state,
            rule.window.failure_rate,
            rule.window.calls,
            rule.consecutive,
            self._circuit.config.fail_max,
            opening.until - opening.since if opening and state is BreakerState.OPEN else None,
            None if until is None or until == math.inf else until - now,
            self._circuit.config.failure_rate,
        )

    def rejection(self, state: BreakerState) -> Rejection:
        """The refusal of a caller."""
        why, numbers = self._why(state), self.numbers(state)
        return Rejection(
            name=self._name,
            state=state,
            retry_after=numbers.retry_after,
            probing=state is BreakerState.HALF_OPEN,
            cause=why.cause,
            summary=why.summary,
            origin=why.origin,
            metrics=numbers,
        )

    def transition(
        self, old: BreakerState, new: BreakerState, *, shadow_of: BreakerState | None
    ) -> Transition:
        """A change that callers meet or, with `shadow_of`, one behind the state they meet."""
        why, opening, now = self._why(new), self._circuit.open_period, self._circuit.now
        return Transition(
            name=self._name,
            from_state=old,
            to_state=new,
            at=self._clock.loop_time(now),
            cause=why.cause,
            summary=why.summary,
            retry_after=opening.until - now if opening and new is BreakerState.OPEN else None,
            metrics=self.numbers(shadow_of or new),
            origin=why.origin,
            shadow=shadow_of is not None,
        )

    def snapshot(self, state: BreakerState, *, since: float, would_reject: int) -> BreakerSnapshot:
        """Everything an operator wants to see."""
        numbers, circuit = self.numbers(state), self._circuit
        shadowed = circuit.config.mode is BreakerMode.SHADOW
        return {
            "name": self._name,
            "state": state.value,
            "mode": circuit.config.mode.value,
            "since_s": circuit.now - since,
            "why": circuit.open_period.cause.cause if circuit.open_period else None,
            "retry_after": numbers.retry_after,
            "window": {
                "calls": numbers.window_calls,
                "failures": circuit.rule.window.failures,
                "failure_rate": numbers.failure_rate,
                "seconds": circuit.rule.window.seconds,
            },
            "consecutive": numbers.consecutive,
            "fail_max": numbers.failure_threshold,
            "probes_in_flight": len(circuit.in_flight.probes),
            "openings_in_a_row": circuit.consecutive_openings,
            "shadow": {
                "state": circuit.state.value if shadowed else None,
                "would_reject": would_reject,
            },
        }

    def _why(self, state: BreakerState) -> TripCause:
        opening = self._circuit.open_period
        return NO_CAUSE if opening is None or state is BreakerState.FORCED_OPEN else opening.cause
