"""Previews: the partial images of one request, and its first sign of life."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from resilient_imagen.pipeline.call_state import CallState
    from resilient_imagen.pipeline.route_state import RouteState
    from resilient_imagen.request import ImageRequest, PartialImage

__all__ = ["SILENT_AFTER", "PreviewWatch"]

SILENT_AFTER: Final = 10.0
"""Seconds after which a streaming request without any response counts as silent. The headers of a
stream come as soon as the vendor has accepted the request, long before the first preview."""


class PreviewWatch:
    """Forwards the previews of one request to its call, and notes when the vendor responds."""

    def __init__(self, call: CallState, state: RouteState) -> None:
        self._call = call
        self._state = state
        self._sent_at = call.loop.time()
        self._responded_at: float | None = None
        self.count = 0
        """Previews so far. A vendor that has sent one has begun to work, and may bill it."""

    def attach(self, request: ImageRequest) -> ImageRequest:
        """Return the request with this object as its listener."""
        return replace(request, on_partial_image=self._forward, on_response=self._respond)

    def is_silent(self) -> bool:
        """Return whether the provider streams and sent nothing for ``SILENT_AFTER`` seconds."""
        if not self._state.route.supports("partial_images"):
            return False
        heard_at = self._call.loop.time() if self._responded_at is None else self._responded_at
        return heard_at - self._sent_at >= SILENT_AFTER

    def _respond(self) -> None:
        if self._responded_at is None:
            self._responded_at = self._call.loop.time()

    def _forward(self, preview: PartialImage) -> None:
        self._respond()
        self.count += 1
        call = self._call
        # After an image of the call, a preview of another request would be a step back.
        if call.progress is not None and call.success_event is None:
            call.progress.report(
                "partial_image",
                self._state.route,
                position=preview.index + 1,
                image_bytes=preview.data,
            )
