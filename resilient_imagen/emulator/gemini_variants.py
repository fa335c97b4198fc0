"""Variants of Gemini's 200 response, as in real responses: images, drafts, refusals, no image."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Final

from resilient_imagen.emulator.response_variants import common_shapes, other_ratio
from resilient_imagen.emulator.vendor_api import Answer, ResponseVariant

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from resilient_imagen.emulator.vendor_api import Picture

__all__ = ["SHAPES"]

_TEXT_IN_TOKENS: Final = 4
"""Characters a token, roughly."""
_IMAGE_IN: Final = 560
_IMAGE_OUT: Final = 1120
_IMAGE_OUT_4K: Final = 2000
_PIXELS_4K: Final = 3000 * 3000
_THOUGHTS: Final = 173
_SIGNATURE: Final = base64.b64encode(b"emulated thought signature").decode()
_NOTHING: Final = object()


def _usage(answer: Answer, images: int) -> dict[str, Any]:
    text = max(1, len(answer.call.prompt) // _TEXT_IN_TOKENS)
    seen = _IMAGE_IN * len(answer.call.references)
    big = answer.canvas.width * answer.canvas.height > _PIXELS_4K
    made = images * (_IMAGE_OUT_4K if big else _IMAGE_OUT)
    prompt = [{"modality": "TEXT", "tokenCount": text}]
    if seen:
        prompt.append({"modality": "IMAGE", "tokenCount": seen})
    usage: dict[str, Any] = {
        "promptTokenCount": text + seen,
        "totalTokenCount": text + seen + made + (_THOUGHTS if made else 0),
        "promptTokensDetails": prompt,
    }
    if made:
        usage["candidatesTokenCount"] = made
        usage["candidatesTokensDetails"] = [{"modality": "IMAGE", "tokenCount": made}]
        usage["thoughtsTokenCount"] = _THOUGHTS
    return usage


def _body(answer: Answer, images: int = 0, **rest: Any) -> dict[str, Any]:
    return {
        **rest,
        "usageMetadata": _usage(answer, images),
        "modelVersion": answer.call.model,
        "responseId": answer.id,
    }


def _candidate(answer: Answer, content: Any, reason: str = "STOP") -> dict[str, Any]:
    candidate = {"finishReason": answer.detail or reason, "index": 0}
    return candidate if content is _NOTHING else {"content": content, **candidate}


def _parts(answer: Answer, *parts: dict[str, Any]) -> dict[str, Any]:
    images = sum("inlineData" in part for part in parts)
    content = {"parts": list(parts), "role": "model"}
    return _body(answer, images, candidates=[_candidate(answer, content)])


def _image(picture: Picture, **marks: Any) -> dict[str, Any]:
    return {"inlineData": {"mimeType": picture.mime_type, "data": picture.base64}, **marks}


def _good(answer: Answer) -> dict[str, Any]:
    return _parts(answer, _image(answer.pictures[0], thoughtSignature=_SIGNATURE))


def _content(content: Any) -> Callable[[Answer], dict[str, Any]]:
    return lambda answer: _body(answer, candidates=[_candidate(answer, content)])


def _candidates(**candidates: Any) -> Callable[[Answer], dict[str, Any]]:
    return lambda answer: _body(answer, **candidates)


def _finish(answer: Answer) -> dict[str, Any]:
    candidate = _candidate(answer, {}, "IMAGE_SAFETY")
    candidate["finishMessage"] = (
        "Unable to show the generated image. The image was filtered out because it may violate "
        "the usage policy. You will not be charged for it."
    )
    return _body(answer, candidates=[candidate])


def _blocked(answer: Answer) -> dict[str, Any]:
    feedback = {"blockReason": answer.detail or "PROHIBITED_CONTENT"}
    return _body(answer, promptFeedback=feedback)


def _no_image(answer: Answer) -> dict[str, Any]:
    return _body(answer, candidates=[_candidate(answer, _NOTHING, "NO_IMAGE")])


def _drafts_by(**marks: Any) -> Callable[[Answer], dict[str, Any]]:
    def write(answer: Answer) -> dict[str, Any]:
        *drafts, final = answer.pictures
        shown = [_image(draft, **marks) for draft in drafts]
        thinking = {"text": "Considering the composition.", "thought": True}
        return _parts(answer, thinking, *shown, _image(final, thoughtSignature=_SIGNATURE))

    return write


def _only_thought(answer: Answer) -> dict[str, Any]:
    return _parts(answer, _image(answer.pictures[0], thought=True))


def _several(answer: Answer) -> dict[str, Any]:
    return _parts(answer, *(_image(picture) for picture in answer.pictures))


def _text_only(answer: Answer) -> dict[str, Any]:
    return _parts(answer, {"text": "Here is a picture for you:"})


def _text_before(answer: Answer) -> dict[str, Any]:
    return _parts(answer, {"text": "Here is a picture for you:"}, _image(answer.pictures[0]))


def _text_after(answer: Answer) -> dict[str, Any]:
    return _parts(answer, _image(answer.pictures[0]), {"text": "I hope you like it."})


def _wrong_mime(answer: Answer) -> dict[str, Any]:
    declared = "image/jpeg" if answer.pictures[0].mime_type == "image/png" else "image/png"
    part = _image(answer.pictures[0])
    part["inlineData"]["mimeType"] = declared
    return _parts(answer, part)


SHAPES: Final[Mapping[str, ResponseVariant]] = {
    **common_shapes(_good),
    "blocked": ResponseVariant(_blocked, pictures=0),
    "candidates_absent": ResponseVariant(_candidates(), pictures=0),
    "candidates_empty": ResponseVariant(_candidates(candidates=[]), pictures=0),
    "candidates_null": ResponseVariant(_candidates(candidates=None), pictures=0),
    "content_absent": ResponseVariant(_content(_NOTHING), pictures=0),
    "content_empty": ResponseVariant(_content({}), pictures=0),
    "content_null": ResponseVariant(_content(None), pictures=0),
    "content_role_only": ResponseVariant(_content({"role": "model"}), pictures=0),
    "finish": ResponseVariant(_finish, pictures=0),
    "no_image": ResponseVariant(_no_image, pictures=0),
    "only_thought_image": ResponseVariant(_only_thought),
    "parts_empty": ResponseVariant(_content({"parts": [], "role": "model"}), pictures=0),
    "parts_null": ResponseVariant(_content({"parts": None, "role": "model"}), pictures=0),
    "prompt_feedback_only": ResponseVariant(
        _candidates(candidates=None, promptFeedback={"safetyRatings": None}), pictures=0
    ),
    "several_images": ResponseVariant(_several, pictures=3),
    "signed_drafts": ResponseVariant(_drafts_by(thoughtSignature=_SIGNATURE), pictures=3),
    "text_after": ResponseVariant(_text_after),
    "text_before": ResponseVariant(_text_before),
    "text_only": ResponseVariant(_text_only, pictures=0),
    "thought_images": ResponseVariant(_drafts_by(thought=True), pictures=3),
    "wrong_aspect": ResponseVariant(_good, canvas=other_ratio),
    "wrong_mime": ResponseVariant(_wrong_mime),
}
"""Variants by name; ``good`` is the normal response."""
