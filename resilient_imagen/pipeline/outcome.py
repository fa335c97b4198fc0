"""The outcome of one attempt: an image or an error, and the event about the request."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from resilient_imagen.result import ImageResult

if TYPE_CHECKING:
    from resilient_imagen.errors import ImageGenerationError
    from resilient_imagen.pipeline.fitter import FittedImage
    from resilient_imagen.pipeline.route import AdaptedRequest, Route
    from resilient_imagen.pipeline.state import CallState
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

    def result(self, call: CallState) -> ImageResult:
        """Return the result of the call that the image is for."""
        dropped = (*call.dropped_references, *self.adapted.dropped)
        provider = self.route.provider.name
        return ImageResult(
            image_bytes=self.image.data,
            mime_type=self.image.mime_type,
            provider=provider,
            model=self.route.model,
            attempts=len(call.attempts),
            fallback_reason=call.fallback_cause,
            dropped_references=tuple(sorted(dropped, key=itemgetter("index"))) if dropped else (),
            usage=self.usage,
            latency_s=call.loop.time() - call.started,
            adjustments=(
                *self.image.notes,
                *[f"{provider} does not support {name}" for name in self.image.ignored_options],
                *call.reference_notes,
                *self.adapted.notes,
            ),  # telemetry shows the first
            more_images=tuple([image.data for image in self.image.others]),
            n=call.request.n or 1,
        )


class AttemptFailure(NamedTuple):
    """A failure that a retry or another route may make up for."""

    error: ImageGenerationError
    event: AttemptEnded
    """The event about the request, to be emitted when it is known whether the route is retried."""


AttemptOutcome: TypeAlias = AttemptSuccess | AttemptFailure
