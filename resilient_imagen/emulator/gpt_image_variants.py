"""Variants of OpenAI's image response, as in real responses, including refusals by moderation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from resilient_imagen.emulator.gpt_image_errors import moderation_blocked
from resilient_imagen.emulator.response_variants import common_shapes, other_ratio
from resilient_imagen.emulator.vendor_api import Answer, ImageSize, ResponseVariant

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from resilient_imagen.emulator.http_messages import Reply

__all__ = ["SHAPES"]

_CHARACTERS_A_TOKEN: Final = 4
_IMAGE_IN: Final = 323
_SQUARE: Final = 1024 * 1024
_PREVIEW: Final = 100
"""Output tokens of a partial image."""
_PER_SQUARE: Final[Mapping[str, int]] = {
    "low": 272, "medium": 1056, "high": 4160, "xhigh": 8320, "max": 16640,
}  # fmt: skip
"""Output tokens of a 1024x1024 image; other sizes in proportion to their pixels."""


def _drawn_quality(canvas: ImageSize) -> str:
    return "high" if canvas.quality == "auto" else canvas.quality


def _usage(answer: Answer, images: int) -> dict[str, Any]:
    canvas = answer.canvas
    text = max(1, len(answer.call.prompt) // _CHARACTERS_A_TOKEN)
    seen = _IMAGE_IN * len(answer.call.references)
    each = _PER_SQUARE[_drawn_quality(canvas)] * canvas.width * canvas.height // _SQUARE
    made = images * each + _PREVIEW * len(answer.previews)
    return {
        "input_tokens": text + seen,
        "input_tokens_details": {"image_tokens": seen, "text_tokens": text},
        "output_tokens": made,
        "output_tokens_details": {"image_tokens": made, "text_tokens": 0},
        "total_tokens": text + seen + made,
    }


def _body(answer: Answer, **data: Any) -> dict[str, Any]:
    canvas = answer.canvas
    return {
        "created": answer.created,
        "background": "transparent" if canvas.transparent else "opaque",
        **data,
        "output_format": canvas.mime_type.removeprefix("image/"),
        "quality": _drawn_quality(canvas),
        "size": f"{canvas.width}x{canvas.height}",
        "usage": _usage(answer, len(data.get("data") or ())),
    }


def _good(answer: Answer) -> dict[str, Any]:
    return _body(answer, data=[{"b64_json": picture.base64} for picture in answer.pictures])


def _data(**data: Any) -> Callable[[Answer], dict[str, Any]]:
    return lambda answer: _body(answer, **data)


def _blocked(answer: Answer) -> Reply:
    return moderation_blocked(answer.detail or "input")


_URL: Final = "https://images.example.invalid/emulated.png"

SHAPES: Final[Mapping[str, ResponseVariant]] = {
    **common_shapes(_good),
    "b64_absent": ResponseVariant(_data(data=[{}]), pictures=0),
    "b64_null": ResponseVariant(_data(data=[{"b64_json": None}]), pictures=0),
    "blocked": ResponseVariant(_blocked, pictures=0),
    "data_absent": ResponseVariant(_data(), pictures=0),
    "data_empty": ResponseVariant(_data(data=[]), pictures=0),
    "data_null": ResponseVariant(_data(data=None), pictures=0),
    "no_image": ResponseVariant(_data(data=[]), pictures=0),
    "several_images": ResponseVariant(_good, pictures=3),
    "url_only": ResponseVariant(_data(data=[{"url": _URL}]), pictures=0),
    "wrong_aspect": ResponseVariant(_good, canvas=other_ratio),
}
"""Variants by name; ``good`` is the normal response."""
