"""Parse Gemini's responses: choose the image among the parts, or classify its absence."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from resilient_imagen.cost import TokenUsage
from resilient_imagen.providers.base import ProviderImage, ProviderResult
from resilient_imagen.providers.classification import ClassifiedError
from resilient_imagen.providers.google_errors import failure_of, finish_reason
from resilient_imagen.providers.response_parsing import (
    ResponseError,
    attach_usage,
    decode_image,
    get_count,
    get_list,
    get_object,
    get_text,
    parse_json,
    usage_of,
)
from resilient_imagen.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from resilient_imagen.providers.streaming_body import StreamingJsonBody

__all__ = ["read_answer"]

_KNOWN = frozenset({"candidates", "promptFeedback", "usageMetadata", "modelVersion", "responseId"})


def read_answer(body: StreamingJsonBody, model: str) -> ProviderResult:
    """Return the image in the body of a 200.

    Args:
        body: The complete body.
        model: The requested model, for a response that does not name the model.

    Raises:
        ResponseError: The body has no image, or only images that cannot be delivered.
    """
    answer = parse_json(body, failure_of)
    tokens = _tokens(usage_of(answer, "usageMetadata"))
    with attach_usage(tokens):
        candidates = get_list(answer, "candidates")
        for candidate in candidates:
            encoded = _chosen(candidate)
            if encoded is not None:
                return ProviderResult(
                    (ProviderImage(*decode_image(encoded, body)),),
                    model=get_text(answer, "modelVersion") or model,
                    usage=replace(tokens, billed_images=max(1, _finals(candidates))),
                    response_id=get_text(answer, "responseId") or None,
                    finish_reason=get_text(candidate, "finishReason") or None,
                )
        raise ResponseError(_shortfall(answer, candidates))


def _chosen(candidate: Mapping[str, Any]) -> str | None:
    """Return the last final image, else the last thought image; None for a refused candidate."""
    if finish_reason(get_text(candidate, "finishReason")) is not Reason.NO_IMAGE:
        return None  # an image in a refused candidate is a draft of the refused image
    best: tuple[bool, str] = (False, "")
    for final, encoded in _pictures(candidate):
        if final or not best[0]:
            best = (final, encoded)
    return best[1] or None


def _finals(candidates: list[dict[str, Any]]) -> int:
    """Count the images that Google charges for.

    Google bills final images by the image, and thought images by the token. A response that has
    only a thought image still delivers an image; the caller counts it.
    """
    return sum(final for candidate in candidates for final, _ in _pictures(candidate))


def _pictures(candidate: Mapping[str, Any]) -> Iterator[tuple[bool, str]]:
    """Yield for each image whether it is final (not a thought), and its base64."""
    for part in get_list(get_object(candidate, "content"), "parts"):
        encoded = get_text(get_object(part, "inlineData", "inline_data"), "data")
        if encoded:
            yield not part.get("thought"), encoded


def _tokens(usage: Mapping[str, Any]) -> TokenUsage:
    return TokenUsage(
        input_tokens=get_count(usage, "promptTokenCount"),
        output_tokens=get_count(usage, "candidatesTokenCount"),
        total_tokens=get_count(usage, "totalTokenCount"),
        input_image_tokens=_image_tokens(usage),
    )


def _image_tokens(usage: Mapping[str, Any]) -> int | None:
    details = usage.get("promptTokensDetails")
    items = (
        [item for item in details if isinstance(item, dict)] if isinstance(details, list) else []
    )
    counts = [
        get_count(item, "tokenCount") for item in items if get_text(item, "modality") == "IMAGE"
    ]
    return sum(filter(None, counts)) if counts else None


def _shortfall(answer: Mapping[str, Any], candidates: list[dict[str, Any]]) -> ClassifiedError:
    """Classify a response without an image: blocked prompt, refused candidate, or no image."""
    feedback = get_object(answer, "promptFeedback")
    silent = not candidates and answer.get("promptFeedback") is not None
    if get_text(feedback, "blockReason") or silent:
        message = get_text(feedback, "blockReasonMessage") or get_text(feedback, "blockReason")
        return ClassifiedError(Reason.CONTENT_BLOCKED, message=message)
    finishes = [_finish(candidate) for candidate in candidates]
    refusals = [finish for finish in finishes if finish.reason is not Reason.NO_IMAGE]
    if refusals or finishes:
        return (refusals or finishes)[0]
    known = not answer or not _KNOWN.isdisjoint(answer)
    return ClassifiedError(Reason.NO_IMAGE if known else Reason.INVALID_RESPONSE)


def _finish(candidate: Mapping[str, Any]) -> ClassifiedError:
    word = get_text(candidate, "finishReason")
    return ClassifiedError(
        finish_reason(word), message=get_text(candidate, "finishMessage") or word
    )
