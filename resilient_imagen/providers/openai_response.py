"""Reading the answers of OpenAI's image API."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from resilient_imagen.providers.base import ProviderImage, TokenUsage
from resilient_imagen.providers.openai_errors import failure_of
from resilient_imagen.providers.response_parsing import (
    ResponseError,
    attach_usage,
    decode_image,
    get_count,
    get_list,
    get_text,
    parse_json,
    usage_of,
)
from resilient_imagen.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resilient_imagen.providers.streaming_body import StreamingJsonBody

__all__ = ["read_answer"]


def read_answer(body: StreamingJsonBody, model: str) -> ProviderImage:
    """The picture in the body of a 200.

    Args:
        body: As it came, closed.
        model: The requested model; answers do not name theirs.

    Raises:
        ResponseError: It holds none, or none that could be delivered.
    """
    answer = parse_json(body, failure_of)
    tokens = _tokens(usage_of(answer, "usage"))
    with attach_usage(tokens):
        images = get_list(answer, "data")
        # A relay may answer with an address instead; only one that holds the picture will do.
        encoded = [get_text(image, "b64_json") or get_text(image, "url") for image in images]
        chosen = next(filter(None, reversed(encoded)), None)
        if chosen is not None:
            return ProviderImage(*decode_image(chosen, body), model=model, **asdict(tokens))
        promised = "data" in answer or "created" in answer
        raise ResponseError.of(Reason.NO_IMAGE if promised else Reason.INVALID_RESPONSE)


def _tokens(usage: Mapping[str, Any]) -> TokenUsage:
    return TokenUsage(
        input_tokens=get_count(usage, "input_tokens", "prompt_tokens"),
        output_tokens=get_count(usage, "output_tokens", "completion_tokens"),
        total_tokens=get_count(usage, "total_tokens"),
        image_tokens_in=get_count(usage_of(usage, "input_tokens_details"), "image_tokens"),
    )
