"""The outcome of one attempt: an image, or a failure with all that the pipeline decides by."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from resilient_imagen.circuitbreaker import Permit, Settlement
    from resilient_imagen.errors import ImageGenerationError
    from resilient_imagen.pipeline.failure import FailureClass
    from resilient_imagen.pipeline.fitter import FittedImage
    from resilient_imagen.pipeline.route import AdaptedRequest, Route
    from resilient_imagen.result import Attempt, Usage

__all__ = ["AttemptFailure", "AttemptOutcome", "AttemptSuccess"]


class AttemptSuccess(NamedTuple):
    """An image, ready for the caller, and the route that it came by."""

    route: Route
    image: FittedImage
    usage: Usage
    adapted: AdaptedRequest
    """The request that was sent, with what became of the references."""


class AttemptFailure(NamedTuple):
    """A request that failed, after it was settled and recorded."""

    failure: FailureClass
    attempt: Attempt
    """The record of the request."""
    permit: Permit
    settlement: Settlement
    """What the breaker made of the vote."""

    @property
    def error(self) -> ImageGenerationError:
        """Return the error of a failure that a retry or another route may make up for."""
        if self.failure.provider_error is None:
            raise TypeError("a cancellation or a local bug is raised, not returned")
        return self.failure.provider_error


AttemptOutcome: TypeAlias = AttemptSuccess | AttemptFailure
