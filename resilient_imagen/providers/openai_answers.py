"""Reading the answers of OpenAI's image API."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilient_imagen.providers.answers import (
    AnswerError,
    count,
    document,
    items,
    picture,
    text,
    usage_of,
)
from resilient_imagen.providers.base import ProviderImage
from resilient_imagen.providers.openai_failures import failure_of
from resilient_imagen.reasons import Reason

if TYPE_CHECKING:
    from resilient_imagen.providers.body import Body

__all__ = ["read_answer"]


def read_answer(body: Body, model: str) -> ProviderImage:
    """The picture in the body of a 200.

    Args:
        body: As it came, closed.
        model: The requested model; answers do not name theirs.

    Raises:
        AnswerError: It holds none, or none that could be delivered.
    """
    answer = document(body, failure_of)
    images = items(answer, "data")
    # A relay may answer with an address instead; only one that holds the picture itself will do.
    encoded = [text(image, "b64_json") or text(image, "url") for image in images]
    chosen = next(filter(None, reversed(encoded)), None)
    if chosen is None:
        promised = "data" in answer or "created" in answer
        raise AnswerError.of(Reason.NO_IMAGE if promised else Reason.INVALID_RESPONSE)
    data, mime_type = picture(chosen, body)
    usage = usage_of(answer, "usage")
    return ProviderImage(
        data,
        mime_type,
        model=model,
        input_tokens=count(usage, "input_tokens", "prompt_tokens"),
        output_tokens=count(usage, "output_tokens", "completion_tokens"),
        total_tokens=count(usage, "total_tokens"),
        image_tokens_in=count(usage_of(usage, "input_tokens_details"), "image_tokens"),
    )
