"""Read the event streams of OpenAI's image API: previews, then complete images or an error."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from resilient_imagen.cost import TokenUsage, sum_known
from resilient_imagen.providers.base import ProviderImage, ProviderResult
from resilient_imagen.providers.error_body import VendorError
from resilient_imagen.providers.openai_errors import failure_of
from resilient_imagen.providers.openai_response import read_tokens
from resilient_imagen.providers.response_parsing import (
    ResponseError,
    attach_usage,
    decode_image,
    get_count,
    get_text,
    parse_json,
)
from resilient_imagen.reasons import Reason
from resilient_imagen.request import PartialImage

if TYPE_CHECKING:
    from resilient_imagen.providers.event_stream import ServerSentEvent
    from resilient_imagen.providers.streaming_body import StreamingJsonBody
    from resilient_imagen.request import ImageRequest

__all__ = ["ImageStream"]

_log = logging.getLogger("resilient_imagen")

_END: Final = b"[DONE]"
"""The data of a last event that some relays send."""


class ImageStream:
    """The `EventReader` of one request with ``partial_images``.

    Events of types that are not known are ignored, also if their data is not JSON.
    """

    def __init__(self, request: ImageRequest, model: str) -> None:
        self._request = request
        self._model = model
        self._images: list[ProviderImage] = []
        self._tokens: list[TokenUsage] = []
        self._previews = 0
        self._error: ResponseError | None = None

    @property
    def has_images(self) -> bool:
        """Whether at least one complete image has arrived."""
        return bool(self._images)

    def begin(self) -> None:
        """Report that the response has begun."""
        if self._request.on_response is not None:
            self._request.on_response()

    def add(self, event: ServerSentEvent) -> bool:
        """Receive the next event; return whether the rest of the stream is not needed."""
        if event.data.text.strip() == _END:
            return True
        try:
            self._read(event.name, event.data)
        except ResponseError as error:
            self._error = error
        return self._error is not None or len(self._images) == (self._request.n or 1)

    def result(self) -> ProviderResult:
        """Return the complete images, even if fewer than requested have arrived.

        Raises:
            ResponseError: There is none: the stream reported an error or ended without an image.
        """
        if self._images:
            return ProviderResult(tuple(self._images), self._model, self._usage())
        raise self._error or ResponseError.of(
            Reason.INVALID_RESPONSE, "the event stream ended without a completed image"
        )

    def _read(self, name: str, data: StreamingJsonBody) -> None:
        try:
            event = {} if name == "error" else parse_json(data, failure_of)
        except ResponseError as caught:
            if caught.failure.reason is Reason.INVALID_RESPONSE and _is_unknown(name):
                return  # such as a relay's keep-alive
            raise
        kind = get_text(event, "type") or name
        if kind == "error":
            error = VendorError.read(200, {}, data.text, self._request.prompt)
            raise ResponseError(failure_of(error))
        if kind.endswith(".partial_image"):
            self._preview(event, data)
        elif kind.endswith(".completed"):
            self._complete(event, data)

    def _preview(self, event: dict[str, Any], data: StreamingJsonBody) -> None:
        try:
            image, mime_type = decode_image(get_text(event, "b64_json"), data)
        except ResponseError:  # the image itself may still come
            _log.warning("openai sent a partial image that cannot be decoded")
            return
        number = get_count(event, "partial_image_index")
        index = self._previews if number is None else number
        self._previews += 1
        if self._request.on_partial_image is not None:
            self._request.on_partial_image(PartialImage(image, mime_type, index))

    def _complete(self, event: dict[str, Any], data: StreamingJsonBody) -> None:
        tokens = read_tokens(event)
        with attach_usage(tokens):
            encoded = get_text(event, "b64_json")
            if not encoded:
                raise ResponseError.of(Reason.NO_IMAGE)
            self._images.append(ProviderImage(*decode_image(encoded, data)))
        self._tokens.append(tokens)

    def _usage(self) -> TokenUsage:
        """Return the sums of the events' counts."""
        events = self._tokens
        return TokenUsage(
            input_tokens=sum_known(each.input_tokens for each in events),
            output_tokens=sum_known(each.output_tokens for each in events),
            total_tokens=sum_known(each.total_tokens for each in events),
            input_image_tokens=sum_known(each.input_image_tokens for each in events),
            billed_images=len(events),
        )


def _is_unknown(name: str) -> bool:
    """Return whether an event has a name, and one that this API does not use."""
    return not (name in ("", "message") or name.endswith((".partial_image", ".completed")))
