"""One caller's leave to send one request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilient_imagen.circuitbreaker.state_machine import TripCause

if TYPE_CHECKING:
    from resilient_imagen.circuitbreaker.breaker import CircuitBreaker
    from resilient_imagen.circuitbreaker.calls import InFlightCall
    from resilient_imagen.circuitbreaker.types import BreakerState, Settlement
    from resilient_imagen.reasons import BreakerOutcome

__all__ = ["Permit"]


class Permit:
    """Leave to send one request. Settle it when the outcome is known, in a `finally`.

    Attributes:
        probe: True when the breaker's next state hangs on this request.
        generation: Number of the breaker's state at admission; a vote counts only while it lasts.
        state: What the caller met at admission.
    """

    __slots__ = ("_breaker", "_call", "generation", "probe", "state")

    def __init__(
        self,
        breaker: CircuitBreaker,
        flight: InFlightCall,
        *,
        probe: bool,
        generation: int,
        state: BreakerState,
    ) -> None:
        self._breaker = breaker
        self._call = flight
        self.probe = probe
        self.generation = generation
        self.state = state

    @property
    def settled(self) -> bool:
        """True once `settle` was called."""
        return self._call.settlement is not None

    @property
    def stale(self) -> bool:
        """True when its vote can no longer count.

        The state it was admitted in is over or, for a probe held unsent for `probe_deadline`
        seconds, others have taken its place.
        Who leaves a queue with a stale probe should settle it as neutral and ask `acquire` anew.
        """
        return self._breaker._is_stale(self._call)  # noqa: SLF001 - not for users, but for permits

    def begin(self, *, origin: object | None = None) -> None:
        """Say that the request is really being sent now.

        Slow calls and a probe's deadline count from here. A probe whose place was given up while
        it was held unsent takes it again, if it is still free.

        Args:
            origin: What later rejections point to, if it is this request's silence that opens the
                breaker: a span context, or anything else.
        """
        self._breaker._begin(self._call, origin)  # noqa: SLF001 - not for users, but for permits

    def answered(self) -> None:
        """Say that the answer is there: what is done with it is not the service's time any more."""
        self._breaker._answered(self._call)  # noqa: SLF001 - not for users, but for permits

    def settle(
        self,
        verdict: BreakerOutcome,
        *,
        cause: str | None = None,
        brief: str | None = None,
        retry_after: float | None = None,
        origin: object | None = None,
    ) -> Settlement:
        """Give the outcome. The first call counts; later ones return its settlement.

        Args:
            verdict: What the request says about the service.
            cause: Reason word, kept if this opens the breaker.
            brief: Short text (`503 UNAVAILABLE`), kept likewise.
            retry_after: Seconds the server asked to wait, or None.
            origin: A span context or anything else, kept likewise.
        """
        why = TripCause(cause, brief, origin, retry_after)
        return self._breaker._settle(self._call, verdict, why)  # noqa: SLF001 - likewise
