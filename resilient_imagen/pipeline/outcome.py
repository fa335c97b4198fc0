"""The outcome of one attempt: an image, or a failure with all that the pipeline decides by."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from resilient_imagen.telemetry.events import AttemptEnded

if TYPE_CHECKING:
    from resilient_imagen.circuitbreaker import Settlement
    from resilient_imagen.errors import ImageGenerationError
    from resilient_imagen.pipeline.failure import FailureClass
    from resilient_imagen.pipeline.fitter import FittedImage
    from resilient_imagen.pipeline.overlap import CancelCause
    from resilient_imagen.pipeline.route import AdaptedRequest, Route
    from resilient_imagen.result import Attempt, Usage
    from resilient_imagen.telemetry.events import AttemptStarted

__all__ = ["AttemptFailure", "AttemptOutcome", "AttemptSuccess"]


class AttemptSuccess(NamedTuple):
    """An image, ready for the caller, and the route that it came by."""

    route: Route
    image: FittedImage
    usage: Usage
    adapted: AdaptedRequest
    """The request that was sent, with what became of the references."""
    event: AttemptEnded
    """The event about the request."""


class AttemptFailure(NamedTuple):
    """A request that failed, after it was settled and recorded."""

    failure: FailureClass
    sent: AttemptStarted
    """The request as it was sent."""
    attempt: Attempt
    """The record of the request."""
    settlement: Settlement
    """How the breaker counted the vote."""
    cancel_cause: CancelCause | None = None
    """Why the library cancelled it; None if it did not."""
    delivered_by: str | None = None
    """The route, as provider:model, whose image came before this request ended."""

    @property
    def error(self) -> ImageGenerationError:
        """Return the error of a failure that a retry or another route may make up for."""
        if self.failure.provider_error is None:
            raise TypeError("a cancellation or a local bug is raised, not returned")
        return self.failure.provider_error

    def event(self, *, retry_in: float | None) -> AttemptEnded:
        """Return the event about the failure.

        Args:
            retry_in: Seconds until the route is asked again, or None.
        """
        failure, ours = self.failure, self.failure.provider_error
        vendor_error = None if ours is None else ours.vendor_error
        return AttemptEnded(
            call_id=self.sent.call_id,
            sent=self.sent,
            attempt=self.attempt,
            settlement=self.settlement,
            status=self.attempt.status,
            vote=failure.vote,
            retry_in=retry_in,
            cut_short=failure.cut_short,
            cancel_cause=None if self.cancel_cause is None else str(self.cancel_cause),
            delivered_by=self.delivered_by,
            error_type=vendor_error or type(failure.error).__name__,
            vendor_message=None if ours is None else ours.vendor_message,
        )


AttemptOutcome: TypeAlias = AttemptSuccess | AttemptFailure
