"""The outcome of one attempt: an image or an error, and the event about the request."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from resilient_imagen.errors import ImageGenerationError
    from resilient_imagen.pipeline.fitter import FittedImage
    from resilient_imagen.pipeline.route import AdaptedRequest, Route
    from resilient_imagen.result import Usage
    from resilient_imagen.telemetry.events import AttemptEnded

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
    """A failure that a retry or another route may make up for."""

    error: ImageGenerationError
    event: AttemptEnded
    """The event about the request, to be emitted when it is known whether the route is retried."""


AttemptOutcome: TypeAlias = AttemptSuccess | AttemptFailure
