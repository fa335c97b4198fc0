"""`pybreaker.CircuitBreaker` as the state of the breaker, given finished outcomes one at a time.

Only its synchronous `call` and its `open`, `half_open` and `close` are used: its async methods, its
clock and its counters do not handle overlapping calls. `TripRule` counts; the storage shows the
result to pybreaker as the failure counter that it compares with `fail_max`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

import pybreaker

from resilient_imagen.circuitbreaker.types import BreakerState

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_imagen.circuitbreaker.config import BreakerConfig
    from resilient_imagen.circuitbreaker.window import TripRule

__all__ = ["PybreakerAdapter"]

_STATES: Final = {
    pybreaker.STATE_CLOSED: BreakerState.CLOSED,
    pybreaker.STATE_OPEN: BreakerState.OPEN,
    pybreaker.STATE_HALF_OPEN: BreakerState.HALF_OPEN,
}
_NEVER: Final = 100 * 365 * 86_400.0
"""Seconds. The state machine ends open periods; pybreaker's wall clock must never do so."""


class _CallFailedError(Exception):
    """Represents the failure of a call inside pybreaker. It never leaves this module."""


class PybreakerAdapter(pybreaker.CircuitBreaker):
    """A pybreaker circuit that takes outcomes instead of functions.

    Args:
        rule: Counts the outcomes and decides when failures open the circuit.
        on_state_change: Called with the new state on every transition, including transitions that
            are made on this object directly. It must neither raise nor cause another transition.
    """

    def __init__(self, rule: TripRule, on_state_change: Callable[[BreakerState], None]) -> None:
        super().__init__(
            reset_timeout=_NEVER,
            listeners=[_Listener(on_state_change)],
            state_storage=_Storage(rule),
            throw_new_error_on_trip=False,
        )
        self.reconfigure(rule.config)

    def reconfigure(self, config: BreakerConfig) -> None:
        """Apply other thresholds; state and counts stay."""
        self.fail_max = config.fail_max
        self.success_threshold = config.half_open_calls

    def succeed(self) -> None:
        """Pass a success on; the last one that is needed closes a half-open circuit."""
        self.call(int)

    def fail(self) -> None:
        """Pass a failure on; it opens the circuit when it is half-open or the rule has tripped."""
        try:
            self.call(_fail)
        except _CallFailedError as error:
            # pybreaker's frames refer to the error, and its traceback refers to them and, from
            # Python 3.12 on, to all their callers: without this the prompt would stay in memory
            # until the next cyclic garbage collection.
            error.__traceback__ = None


def _fail() -> NoReturn:
    raise _CallFailedError


class _Listener(pybreaker.CircuitBreakerListener):
    def __init__(self, on_state_change: Callable[[BreakerState], None]) -> None:
        self._on_state_change = on_state_change

    def state_change(
        self,
        cb: pybreaker.CircuitBreaker,  # noqa: ARG002 - pybreaker's signature
        old_state: pybreaker.CircuitBreakerState | None,  # noqa: ARG002 - pybreaker's signature
        new_state: pybreaker.CircuitBreakerState,
    ) -> None:
        self._on_state_change(_STATES[new_state.name])


class _Storage(pybreaker.CircuitMemoryStorage):
    def __init__(self, rule: TripRule) -> None:
        super().__init__(pybreaker.STATE_CLOSED)
        self._rule = rule

    @property
    def counter(self) -> int:
        """`fail_max` once the rule has tripped, else 0: pybreaker opens at `fail_max`."""
        return self._rule.config.fail_max if self._rule.tripped else 0
