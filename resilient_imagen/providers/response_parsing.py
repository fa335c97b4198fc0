"""Parsing of successful responses: the functions that both vendors' parsers share.

SDKs drop fields and fail on new enum values and on JSON that they cannot parse. So the raw response
is parsed here, and each deviation from the API becomes a ResponseError with a reason.
"""

from __future__ import annotations

import codecs
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from resilient_imagen.images.base64_codec import decode_base64
from resilient_imagen.images.image_errors import UnusableImageError
from resilient_imagen.images.inspect import sniff_mime
from resilient_imagen.providers.classification import ClassifiedError
from resilient_imagen.providers.error_body import VendorError
from resilient_imagen.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from resilient_imagen.cost import TokenUsage
    from resilient_imagen.providers.streaming_body import StreamingJsonBody

__all__ = [
    "ResponseError",
    "attach_usage",
    "decode_image",
    "get_count",
    "get_list",
    "get_object",
    "get_text",
    "parse_json",
    "usage_of",
]


class ResponseError(Exception):
    """A response has no usable image; ``failure`` is its classification."""

    def __init__(self, failure: ClassifiedError) -> None:
        super().__init__(failure.reason.value)
        self.failure = failure

    @classmethod
    def of(cls, reason: Reason, message: str = "") -> ResponseError:
        """Return an error for a reason that the response itself does not name."""
        return cls(ClassifiedError(reason, message=message))


def parse_json(
    body: StreamingJsonBody, classify: Callable[[VendorError], ClassifiedError]
) -> dict[str, Any]:
    """Parse a response's JSON object.

    Raises:
        ResponseError: The body is not a JSON object, reports an error, or is a chat completion,
            which has no images.
    """
    try:
        value = from_json(body.text.removeprefix(codecs.BOM_UTF8))
    except ValueError:  # not chained: its text may quote the body
        value = None
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, dict) or value.get("error"):
        error = VendorError.read(200, {}, body.text)
        raise ResponseError(
            classify(error) if error.is_error else ClassifiedError(Reason.INVALID_RESPONSE)
        )
    if "choices" in value or value.get("object") == "chat.completion":
        raise ResponseError.of(Reason.NO_IMAGE)
    return value


@contextmanager
def attach_usage(tokens: TokenUsage) -> Iterator[None]:
    """Add the token counts to a ResponseError that is raised in this block."""
    try:
        yield
    except ResponseError as error:
        if tokens.total_tokens or tokens.input_tokens or tokens.output_tokens:
            error.failure = replace(error.failure, tokens=tokens)
        raise


def decode_image(encoded: str, body: StreamingJsonBody) -> tuple[bytes, str]:
    """Return an image's bytes and their sniffed type. Each string of a body can be decoded once.

    Raises:
        ResponseError: The string is not base64, or does not contain an image.
    """
    try:
        data = _decoded(encoded, body)
    except UnusableImageError:
        data = b""
    mime_type = sniff_mime(data)
    if mime_type is None:
        raise ResponseError.of(Reason.INVALID_RESPONSE)
    return data, mime_type


def _decoded(encoded: str, body: StreamingJsonBody) -> bytes:
    decoder, rest = body.decoder(encoded)
    if decoder is None:
        return decode_base64(encoded)
    data = None
    if decoder.feed(rest):
        data, rest = decoder.finish(), ""
    return decode_base64(decoder.taken() + rest) if data is None else data


def get_list(holder: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the list of objects under ``name``; an empty list if it is absent or null.

    Raises:
        ResponseError: The value is not a list of objects.
    """
    value = holder.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ResponseError.of(Reason.INVALID_RESPONSE)
    return value


def get_object(holder: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return the object under the first of ``names`` that is present; else an empty one.

    Raises:
        ResponseError: The value is not an object.
    """
    value: Any = next((holder[name] for name in names if holder.get(name) is not None), {})
    if not isinstance(value, dict):
        raise ResponseError.of(Reason.INVALID_RESPONSE)
    return value


def usage_of(holder: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the usage object, or an empty one: malformed usage must not lose the image."""
    value = holder.get(name)
    return value if isinstance(value, dict) else {}


def get_text(holder: Mapping[str, Any], name: str) -> str:
    """Return the str under ``name``, or an empty str."""
    value = holder.get(name)
    return value if isinstance(value, str) else ""


def get_count(holder: Mapping[str, Any], *names: str) -> int | None:
    """Return the first of the values that is a count, or None."""
    numbers = (holder.get(name) for name in names)
    return next((number for number in numbers if type(number) is int and number >= 0), None)
