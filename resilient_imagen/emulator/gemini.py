"""Gemini's API: parse, validate and answer generateContent requests for images."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from resilient_imagen.emulator import gemini_errors as errors
from resilient_imagen.emulator.gemini_variants import SHAPES
from resilient_imagen.emulator.http_messages import read_json
from resilient_imagen.emulator.renderer import sniff
from resilient_imagen.emulator.vendor_api import ApiError, ImageSize, ParsedRequest, UploadedImage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from resilient_imagen.emulator.http_messages import HttpRequest, Reply
    from resilient_imagen.emulator.vendor_api import ResponseVariant

__all__ = ["SIZES_1K", "Gemini"]


SIZES_1K: Final[Mapping[str, tuple[int, int]]] = {
    "1:1": (1024, 1024), "2:3": (848, 1264), "3:2": (1264, 848), "3:4": (896, 1200),
    "4:3": (1200, 896), "4:5": (928, 1152), "5:4": (1152, 928), "9:16": (768, 1376),
    "16:9": (1376, 768), "21:9": (1584, 672), "1:4": (512, 2048), "4:1": (2048, 512),
    "1:8": (384, 3072), "8:1": (3072, 384),
}  # fmt: skip
"""Width and height in pixels at 1K, by aspect ratio."""

_SCALE: Final = {"1K": 1, "2K": 2, "4K": 4}
_MODELS: Final[Mapping[str, frozenset[str]]] = {
    "gemini-3-pro-image": frozenset(_SCALE),
    "nano-banana-pro-preview": frozenset(_SCALE),
    "gemini-nano-banana-2.1": frozenset(_SCALE),
    "gemini-3.1-flash-image": frozenset(_SCALE),
    "gemini-3.1-flash-lite-image": frozenset({"1K"}),
    "gemini-2.5-flash-image": frozenset(),
}
"""The image sizes that each available model supports."""
_RETIRED: Final = frozenset({
    "gemini-3-pro-image-preview", "gemini-3.1-flash-image-preview",
    "gemini-2.5-flash-image-preview", "gemini-2.0-flash-preview-image-generation",
    "gemini-2.0-flash",
})  # fmt: skip
_SENDS_PNG: Final = "gemini-2.5-flash-image"
"""The only model that returns PNG; it fails with a 500 if an imageSize is sent."""
_MAX_REFERENCES: Final = 14
_INPUT_TYPES: Final = frozenset(
    {"image/png", "image/jpeg", "image/webp", "image/heic", "image/heif"}
)
_IMAGE_CONFIG: Final = frozenset({"aspectRatio", "imageSize"})
_MAX_SEED: Final = 2**31


class Gemini:
    """The `VendorApi` of Gemini."""

    name = "google"
    shapes: Mapping[str, ResponseVariant] = SHAPES
    errors: Mapping[str, Callable[[ParsedRequest, float | None], Reply]] = errors.NAMED
    path: re.Pattern[str] = re.compile(r"/(?:v1|v1beta)/models/(?P<model>[^/:]+):generateContent")
    """The path of an image endpoint."""

    def matches(self, path: str) -> bool:
        """Return whether the path is a model's generateContent."""
        return self.path.fullmatch(path) is not None

    def read(self, request: HttpRequest) -> ParsedRequest:
        """Parse a request as far as possible."""
        match = self.path.fullmatch(request.path)
        model = unquote(match["model"]) if match else ""
        try:
            call = _understand(model, read_json(request.body))
            call.prompt.encode()  # fails for an unpaired surrogate
        except (ValueError, TypeError, AttributeError):
            return ParsedRequest(
                "generate", model, problem=errors.invalid("Invalid JSON payload received.")
            )
        return call

    def check_key(self, request: HttpRequest, accepted: frozenset[str] | None) -> None:
        """Check the API key.

        Raises:
            ApiError: The key is missing or not accepted.
        """
        key = request.headers.get("x-goog-api-key", "")
        if not key:
            raise ApiError(errors.no_key())
        if accepted is not None and key not in accepted:
            raise ApiError(errors.bad_key())

    def error(self, code: int, retry_after: float | None = None) -> Reply:
        """Return Gemini's error for a status."""
        return errors.error(code, retry_after=retry_after)

    def check(self, call: ParsedRequest) -> ImageSize:
        """Validate a request and return the image to render.

        Raises:
            ApiError: Gemini does not accept the request.
        """
        if call.problem is not None:
            raise ApiError(call.problem)
        sizes = _sizes_of(call.model)
        config = call.parameters
        for name in config.keys() - _IMAGE_CONFIG:
            raise ApiError(errors.unknown_field(name, "generation_config.image_config"))
        if not call.prompt and not call.references:
            raise ApiError(
                errors.invalid("* GenerateContentRequest.contents: contents is not specified\n")
            )
        _check_references(call)
        if call.model == _SENDS_PNG and call.resolution is not None:
            raise ApiError(errors.error(500))
        return _canvas(call, sizes)


def _understand(model: str, body: dict[str, Any]) -> ParsedRequest:
    parts = [
        _camel(part) for content in body.get("contents", []) for part in content.get("parts", [])
    ]
    config = _camel(_camel(body).get("generationConfig") or {})
    call = ParsedRequest("generate", model)
    if "aspectRatio" in config:
        problem = errors.unknown_field("aspectRatio", "generation_config")
        call = replace(call, problem=problem)
    if (seed := config.get("seed")) is not None and not _is_int32(seed):
        call = replace(call, problem=errors.not_an_int32("generation_config.seed", seed))
    if config.get("candidateCount") not in {None, 1}:
        problem = errors.invalid("Multiple candidates is not enabled for this model")
        call = replace(call, problem=problem)
    image = _camel(config.get("imageConfig") or {})
    try:
        references = tuple(_received(part) for part in parts if "inlineData" in part)
    except (binascii.Error, KeyError):
        references = ()
        call = replace(call, problem=errors.invalid("Base64 decoding failed for inline_data."))
    return replace(
        call,
        operation="edit" if references else "generate",
        prompt="\n".join(part["text"] for part in parts if part.get("text")),
        references=references,
        parameters=dict(image),
        aspect_ratio=_text(image.get("aspectRatio")),
        resolution=_text(image.get("imageSize")),
        seed=seed,
    )


def _is_int32(value: object) -> bool:
    return type(value) is int and -_MAX_SEED <= value < _MAX_SEED


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _camel(message: Mapping[str, Any]) -> dict[str, Any]:
    """Convert field names to camel case: the API accepts both forms, and the SDK mixes them."""
    return {
        re.sub(r"_([a-z])", lambda match: match[1].upper(), name): value
        for name, value in message.items()
    }


def _received(part: Mapping[str, Any]) -> UploadedImage:
    blob = _camel(part["inlineData"])
    # The SDK sends the URL-safe alphabet, curl users the standard alphabet; the API accepts both.
    data = str(blob["data"]).translate({ord("-"): "+", ord("_"): "/"})
    return UploadedImage(
        str(blob.get("mimeType", "")), base64.b64decode(data + "=" * (-len(data) % 4))
    )


def _sizes_of(model: str) -> frozenset[str]:
    sizes = _MODELS.get(model)
    if sizes is None:
        raise ApiError(errors.retired(model) if model in _RETIRED else errors.unknown_model(model))
    return sizes


def _check_references(call: ParsedRequest) -> None:
    if len(call.references) > _MAX_REFERENCES:
        raise ApiError(errors.invalid("Request contains an invalid argument."))
    for reference in call.references:
        if reference.mime_type not in _INPUT_TYPES:
            raise ApiError(errors.invalid(f"Unsupported MIME type: {reference.mime_type}"))
        if sniff(reference.data) is None:
            raise ApiError(errors.unreadable_image())


def _canvas(call: ParsedRequest, sizes: frozenset[str]) -> ImageSize:
    aspect = call.aspect_ratio or "1:1"
    if aspect not in SIZES_1K:
        raise ApiError(errors.unsupported("aspectRatio", aspect))
    resolution = call.resolution or "1K"
    if call.resolution is not None and call.resolution not in sizes:
        raise ApiError(errors.unsupported("imageSize", resolution))
    width, height = SIZES_1K[aspect]
    scale = _SCALE[resolution]
    mime = "image/png" if call.model == _SENDS_PNG else "image/jpeg"
    return ImageSize(width * scale, height * scale, mime, seed=call.seed)
