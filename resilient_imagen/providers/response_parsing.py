"""Reading a 200 that should hold a picture: what both vendors' readers share.

SDKs drop fields, stumble over new enum values and give up over what they cannot parse. The raw
answer is read here instead, and every way in which it is not what was promised has a name.
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

    from resilient_imagen.providers.base import TokenUsage
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
    """An answer holds no picture; says why."""

    def __init__(self, failure: ClassifiedError) -> None:
        super().__init__(failure.reason.value)
        self.failure = failure

    @classmethod
    def of(cls, reason: Reason, message: str = "") -> ResponseError:
        """An error for a reason that the answer itself does not name."""
        return cls(ClassifiedError(reason, message=message))


def parse_json(
    body: StreamingJsonBody, classify: Callable[[VendorError], ClassifiedError]
) -> dict[str, Any]:
    """The JSON object that an answer is.

    Raises:
        ResponseError: It is none, reports an error, or is a chat's, which hold no pictures.
    """
    try:
        value = from_json(body.text.removeprefix(codecs.BOM_UTF8))
    except ValueError:  # its text may quote the body
        value = None
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, dict) or value.get("error"):
        complaint = VendorError.read(200, {}, body.text)
        raise ResponseError(
            classify(complaint) if complaint.is_error else ClassifiedError(Reason.INVALID_RESPONSE)
        )
    if "choices" in value or value.get("object") == "chat.completion":
        raise ResponseError.of(Reason.NO_IMAGE)
    return value


@contextmanager
def attach_usage(tokens: TokenUsage) -> Iterator[None]:
    """Every failure in this block tells what was used."""
    try:
        yield
    except ResponseError as error:
        if tokens.total_tokens or tokens.input_tokens or tokens.output_tokens:
            error.failure = replace(error.failure, tokens=tokens)
        raise


def decode_image(encoded: str, body: StreamingJsonBody) -> tuple[bytes, str]:
    """The bytes of a picture and their true type. Each string of a body can be asked for once.

    Raises:
        ResponseError: It is no base64, or what it holds is no picture.
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
    """The objects in a list; none if it is absent or null.

    Raises:
        ResponseError: It is something else.
    """
    value = holder.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ResponseError.of(Reason.INVALID_RESPONSE)
    return value


def get_object(holder: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The object under the first of ``names`` that is there; empty if there is none.

    Raises:
        ResponseError: It is something else.
    """
    value: Any = next((holder[name] for name in names if holder.get(name) is not None), {})
    if not isinstance(value, dict):
        raise ResponseError.of(Reason.INVALID_RESPONSE)
    return value


def usage_of(holder: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What was used, as far as it is told: no picture is refused over its bill."""
    value = holder.get(name)
    return value if isinstance(value, dict) else {}


def get_text(holder: Mapping[str, Any], name: str) -> str:
    """A text, or an empty one."""
    value = holder.get(name)
    return value if isinstance(value, str) else ""


def get_count(holder: Mapping[str, Any], *names: str) -> int | None:
    """The first number of tokens that is one, or None."""
    numbers = (holder.get(name) for name in names)
    return next((number for number in numbers if type(number) is int and number >= 0), None)
