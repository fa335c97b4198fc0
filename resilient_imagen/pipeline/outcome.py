"""The outcome of one attempt: an image or an error, and the event about the request."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from resilient_imagen.result import ImageResult

if TYPE_CHECKING:
    from resilient_imagen.errors import ImageGenerationError
    from resilient_imagen.pipeline.call_state import CallState
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

    def result(self, call: CallState) -> ImageResult:
        """Return the result of the call that the image is for."""
        dropped = (*call.dropped_references, *self.adapted.dropped)
        provider, image = self.route.provider.name, self.image
        notes = image.notes
        if image.ignored_options:
            notes += tuple(f"{provider} does not support {name}" for name in image.ignored_options)
        return ImageResult(
            image_bytes=image.data,
            mime_type=image.mime_type,
            provider=provider,
            model=self.route.model,
            attempts=len(call.attempts),
            fallback_reason=call.fallback_cause,
            dropped_references=tuple(sorted(dropped, key=itemgetter("index"))) if dropped else (),
            usage=self.usage,
            latency_s=call.loop.time() - call.started,
            # Telemetry shows the first one.
            adjustments=(*notes, *call.reference_notes, *self.adapted.notes),
            more_images=tuple(other.data for other in image.others) if image.others else (),
            n=call.request.n or 1,
        )


class AttemptFailure(NamedTuple):
    """A failure that a retry or another route may make up for."""

    error: ImageGenerationError
    event: AttemptEnded
    """The event about the request, to be emitted when it is known whether the route is retried."""


AttemptOutcome: TypeAlias = AttemptSuccess | AttemptFailure
