"""A permit to make one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from resilient_imagen.circuitbreaker.open_period import NO_CAUSE, TripCause
from resilient_imagen.reasons import BreakerOutcome

if TYPE_CHECKING:
    from resilient_imagen.circuitbreaker.calls import InFlightCall
    from resilient_imagen.circuitbreaker.types import BreakerState, Settlement

__all__ = ["CallTracker", "Permit"]


class CallTracker(Protocol):
    """The methods of a breaker that its permits use. They are not part of its public interface."""

    def _begin(self, call: InFlightCall, origin: object | None) -> None: ...

    def _answered(self, call: InFlightCall) -> None: ...

    def _is_stale(self, call: InFlightCall) -> bool: ...

    def _settle(
        self, call: InFlightCall, verdict: BreakerOutcome, cause: TripCause
    ) -> Settlement: ...


class Permit:
    """A permit to make one call. Settle it in a `finally` when the outcome is known.

    Attributes:
        probe: Whether the next state of the breaker depends on this call.
        generation: Number of the breaker's state at admission; the call votes only in that state.
        state: The state that the caller saw at admission.
    """

    __slots__ = ("_breaker", "_call", "generation", "probe", "state")

    def __init__(
        self,
        breaker: CallTracker,
        call: InFlightCall,
        *,
        probe: bool,
        generation: int,
        state: BreakerState,
    ) -> None:
        self._breaker = breaker
        self._call = call
        self.probe: bool = probe
        self.generation: int = generation
        self.state: BreakerState = state

    @property
    def settled(self) -> bool:
        """Whether `settle` was called."""
        return self._call.settlement is not None

    @property
    def stale(self) -> bool:
        """Whether the call can no longer vote.

        Either the state in which it was admitted has ended or, for a probe that was not sent within
        `probe_deadline` seconds, other probes have taken its place. A caller that leaves a queue
        with a stale probe should settle it as neutral and call `acquire` again.
        """
        return self._breaker._is_stale(self._call)  # noqa: SLF001 - see CallTracker

    def begin(self, *, origin: object | None = None) -> None:
        """Record that the request is sent now.

        The slow-call limit and a probe's deadline start here. A probe that lost its place while it
        was not sent takes it again if it is still free.

        Args:
            origin: Reported by later rejections if this call opens the breaker: a span context, or
                any other object.
        """
        self._breaker._begin(self._call, origin)  # noqa: SLF001 - see CallTracker

    def answered(self) -> None:
        """Record that the response has arrived: the time from here on is not the service's."""
        self._breaker._answered(self._call)  # noqa: SLF001 - see CallTracker

    def settle(
        self,
        verdict: BreakerOutcome,
        *,
        cause: str | None = None,
        summary: str | None = None,
        retry_after: float | None = None,
        origin: object | None = None,
    ) -> Settlement:
        """Count the outcome. Only the first call counts; later calls return its settlement.

        Args:
            verdict: The meaning of the outcome for the health of the service.
            cause: Reason of the failure, reported by rejections if it opens the breaker. Cause,
                summary and hint of a success have no effect.
            summary: Short text of the failure (`503 UNAVAILABLE`), reported with the cause.
            retry_after: Seconds that the server asked to wait, or None.
            origin: A span context or any other object, reported with the cause; that of `begin` if
                it is None.
        """
        if verdict is BreakerOutcome.SUCCESS and origin is None:
            trip_cause = NO_CAUSE  # if it is too slow, the breaker finds the cause itself
        else:
            if origin is None:
                origin = self._call.origin
            trip_cause = TripCause(cause, summary, origin, retry_after)
        return self._breaker._settle(self._call, verdict, trip_cause)  # noqa: SLF001 - see CallTracker
