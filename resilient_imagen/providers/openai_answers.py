"""Reading the answers of OpenAI's image API."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from resilient_imagen.providers.answers import (
    AnswerError,
    count,
    counted,
    document,
    items,
    picture,
    text,
    usage_of,
)
from resilient_imagen.providers.base import ProviderImage, Tokens
from resilient_imagen.providers.openai_failures import failure_of
from resilient_imagen.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping

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
    tokens = _tokens(usage_of(answer, "usage"))
    with counted(tokens):
        images = items(answer, "data")
        # A relay may answer with an address instead; only one that holds the picture will do.
        encoded = [text(image, "b64_json") or text(image, "url") for image in images]
        chosen = next(filter(None, reversed(encoded)), None)
        if chosen is not None:
            return ProviderImage(*picture(chosen, body), model=model, **asdict(tokens))
        promised = "data" in answer or "created" in answer
        raise AnswerError.of(Reason.NO_IMAGE if promised else Reason.INVALID_RESPONSE)


def _tokens(usage: Mapping[str, Any]) -> Tokens:
    return Tokens(
        input_tokens=count(usage, "input_tokens", "prompt_tokens"),
        output_tokens=count(usage, "output_tokens", "completion_tokens"),
        total_tokens=count(usage, "total_tokens"),
        image_tokens_in=count(usage_of(usage, "input_tokens_details"), "image_tokens"),
    )
