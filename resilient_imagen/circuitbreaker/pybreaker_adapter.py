"""`pybreaker.CircuitBreaker` as the state machine, fed one finished outcome at a time.

Only its synchronous `call` and its `open`, `half_open` and `close` are used: its async ways,
its clock and its counters know nothing of requests that overlap. The counting is `TripRule`'s,
which the storage here shows to pybreaker as the counter it compares with `fail_max`. While closed
it is shown an outcome only if that is the one to open it.
"""

from __future__ import annotations

from datetime import UTC, datetime
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


class _Failed(Exception):  # noqa: N818 - a token that never leaves this file, not an error
    """What pybreaker is shown in place of a request's own failure."""


def _succeed() -> None:
    return


def _fail() -> NoReturn:
    raise _Failed


class PybreakerAdapter:
    """The circuit's own state: closed, open or half-open.

    Args:
        rule: Counts, and says when to open.
        config: For the numbers that pybreaker compares with.
        moved: Called with the new state at every transition, whoever caused it. It is the only
            truth about the state, and must neither raise nor cause another transition.
    """

    def __init__(
        self, rule: TripRule, config: BreakerConfig, moved: Callable[[BreakerState], None]
    ) -> None:
        self._storage = _Storage(rule)
        self._circuit = pybreaker.CircuitBreaker(
            listeners=[_Listener(moved)],
            state_storage=self._storage,
            throw_new_error_on_trip=False,
        )
        self.reconfigure(config)

    def reconfigure(self, config: BreakerConfig) -> None:
        """Take other numbers; state and counts stay."""
        self._circuit.fail_max = config.fail_max
        self._circuit.success_threshold = config.half_open_calls

    @property
    def successes(self) -> int:
        """Probes that succeeded in this half-open round."""
        return self._storage.success_counter

    def success(self, now: float) -> None:
        """Count a success, `now` in the breaker's seconds; may close the circuit."""
        self._storage.rule.success(now)
        if self._storage.state != pybreaker.STATE_CLOSED:  # else nothing would come of it
            self._circuit.call(_succeed)

    def failure(self, now: float) -> None:
        """Count a failure; may open the circuit."""
        self._storage.rule.failure(now)
        self._judge(by_share=True)

    def throttled(self) -> None:
        """Count a failure in a row that is outside the failure rate; may open the circuit."""
        self._storage.rule.throttled()
        self._judge(by_share=False)

    def open(self) -> None:
        """Open the circuit, whatever was counted."""
        self._circuit.open()

    def half_open(self) -> None:
        """Begin a round of probes."""
        self._circuit.half_open()

    def close(self) -> None:
        """Close the circuit."""
        self._circuit.close()

    def _judge(self, *, by_share: bool) -> None:
        self._storage.by_share = by_share
        if self._storage.state == pybreaker.STATE_CLOSED and not self._storage.counter:
            return  # nothing would come of it
        try:
            self._circuit.call(_fail)
        except _Failed as failed:
            # pybreaker's frames hold it as a variable, and it holds them and, from Python 3.12 on,
            # all their callers: the prompt would live until the next cyclic collection.
            failed.__traceback__ = None


class _Listener(pybreaker.CircuitBreakerListener):
    def __init__(self, moved: Callable[[BreakerState], None]) -> None:
        self._moved = moved

    def state_change(
        self,
        cb: pybreaker.CircuitBreaker,  # noqa: ARG002 - pybreaker's signature
        old_state: pybreaker.CircuitBreakerState | None,  # noqa: ARG002 - likewise
        new_state: pybreaker.CircuitBreakerState,
    ) -> None:
        self._moved(_STATES[new_state.name])


class _Storage(pybreaker.CircuitBreakerStorage):
    """pybreaker's counters, which are a view of our rule."""

    def __init__(self, rule: TripRule) -> None:
        super().__init__("trip rule")
        self.rule = rule
        self.by_share = True
        """Whether the latest failure counts in the failure rate."""
        self._state = pybreaker.STATE_CLOSED
        self._successes = 0

    @property
    def state(self) -> str:
        return self._state

    @state.setter
    def state(self, state: str) -> None:
        self._state = state

    def increment_counter(self) -> None:
        """Not here: the rule has counted before pybreaker is asked."""

    def reset_counter(self) -> None:
        """Nor here: the rule is cleared when the circuit closes."""

    @property
    def counter(self) -> int:
        # pybreaker opens when this reaches fail_max, and asks only after a failure.
        tripped = self.rule.consecutive_exceeded or (
            self.by_share and self.rule.failure_rate_exceeded
        )
        return self.rule.config.fail_max if tripped else 0

    def increment_success_counter(self) -> None:
        self._successes += 1

    def reset_success_counter(self) -> None:
        self._successes = 0

    @property
    def success_counter(self) -> int:
        return self._successes

    @property
    def opened_at(self) -> datetime | None:
        # The breaker alone times openings. Always "just now": pybreaker never ends one by itself.
        return datetime.now(UTC)

    @opened_at.setter
    def opened_at(self, opened_at: datetime) -> None:
        """Not kept."""
