"""Images of a caller: read, checked and normalized before a call goes to its routes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from resilient_imagen import models
from resilient_imagen.references.loading import load_references
from resilient_imagen.references.masks import load_mask
from resilient_imagen.telemetry.events import ReferencesChanged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resilient_imagen.images.limits import ImageLimits
    from resilient_imagen.pipeline.call_state import CallState
    from resilient_imagen.references.fetch import Fetcher
    from resilient_imagen.result import ImageInput
    from resilient_imagen.telemetry.dispatcher import SinkDispatcher

__all__ = ["InputLoader"]

_SHARE_OF_TIME: Final = 0.25
"""Share of the time left for reading inputs: an image without a reference is better than none."""


class InputLoader:
    """Loads the references and the mask of a call.

    Args:
        limits: What an image may be, and where it may be fetched from.
        strict: Whether a reference that cannot be used ends the call, instead of being dropped.
        dispatcher: Receives an event if references were dropped or changed.
    """

    def __init__(self, limits: ImageLimits, dispatcher: SinkDispatcher, *, strict: bool) -> None:
        self._limits = limits
        self._strict = strict
        self._dispatcher = dispatcher
        self._fetcher: Fetcher | None = None

    async def load(
        self, call: CallState, references: Sequence[ImageInput], mask: ImageInput | None
    ) -> None:
        """Set the images of the call's request.

        Raises:
            InvalidRequestError: The image of an edit or the mask cannot be used, or any reference
                if the loader is strict.
        """
        if references:
            with call.spending("reading reference images"):
                await self._load_references(call, references)
        if mask is not None:
            with call.spending("reading the mask"):
                loaded = await load_mask(
                    mask,
                    call.request.references[0],
                    limits=self._limits,
                    fetch=self._url_fetcher(),
                    seconds=_seconds_for(call),
                )
            call.request = replace(call.request, mask=loaded)

    async def aclose(self) -> None:
        """Close the connections to servers of images."""
        if self._fetcher is not None:
            await self._fetcher.aclose()

    async def _load_references(self, call: CallState, references: Sequence[ImageInput]) -> None:
        """Read the references; list those that cannot be used."""
        editing = call.request.operation == "edit"
        routes = [(route.vendor, route.model) for route in call.routes]
        loaded = await load_references(
            references,
            limits=self._limits,
            fetch=self._url_fetcher(),
            strict=self._strict or editing,
            most=models.max_references(routes),
            max_bytes=max(models.max_reference_bytes(*route) for route in routes),
            seconds=_seconds_for(call),
            called="image" if editing else "reference_images[{}]",
        )
        call.request = replace(call.request, references=loaded.references)
        call.dropped_references, call.reference_notes = loaded.dropped, loaded.notes
        if loaded.dropped or loaded.notes:
            self._dispatcher.emit(
                ReferencesChanged(call_id=call.id, dropped=loaded.dropped, notes=loaded.notes)
            )

    def _url_fetcher(self) -> Fetcher:
        if self._fetcher is None:
            from resilient_imagen.references.fetch import Fetcher

            self._fetcher = Fetcher(self._limits)
        return self._fetcher


def _seconds_for(call: CallState) -> float:
    return call.deadline.remaining(call.loop.time()) * _SHARE_OF_TIME
