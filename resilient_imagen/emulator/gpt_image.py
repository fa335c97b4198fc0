"""OpenAI's image API: parse, validate and answer requests."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from resilient_imagen.emulator import gpt_image_errors as errors
from resilient_imagen.emulator.gpt_image_variants import SHAPES
from resilient_imagen.emulator.http_messages import read_json
from resilient_imagen.emulator.multipart import read_form
from resilient_imagen.emulator.vendor_api import ApiError, ImageSize, ParsedRequest, UploadedImage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from resilient_imagen.emulator.http_messages import HttpRequest, Reply
    from resilient_imagen.emulator.vendor_api import ResponseVariant

__all__ = ["GptImage"]

_GENERATE: Final = "/images/generations"
_EDIT: Final = "/images/edits"
_FREE: Final = re.compile(r"gpt-image-2(\.\d+-(sunburst|flare))?(-\d{4}-\d{2}-\d{2})?")
"""The models that support any size within limits; other models support three sizes."""
_MODELS: Final = frozenset({
    "gpt-image-1.5", "gpt-image-1-mini", "chatgpt-image-latest", "gpt-image-2",
    "gpt-image-2-2026-04-21", "gpt-image-2.5-sunburst", "gpt-image-2.5-sunburst-2026-09-08",
    "gpt-image-2.5-flare", "gpt-image-2.5-flare-2026-09-08", "gpt-image-2.6-sunburst",
    "gpt-image-2.6-flare",
})  # fmt: skip
_RETIRED: Final = frozenset({"gpt-image-1"})
_STANDARD: Final = ("1024x1024", "1024x1536", "1536x1024", "auto")
_MIN_PIXELS, _MAX_PIXELS, _MAX_EDGE, _MAX_RATIO, _STEP = 655_360, 8_294_400, 3840, 3, 16
_MAX_PROMPT: Final = 32_000
_MAX_IMAGES: Final = 16
_MAX_IMAGE_BYTES: Final = 50 * 1024 * 1024
_COUNTS: Final = tuple(str(count) for count in range(1, 11))
"""Allowed numbers of images in one request."""
_PREVIEWS: Final = ("0", "1", "2", "3")
"""Allowed numbers of partial images."""
_PERCENTS: Final = tuple(str(percent) for percent in range(101))
"""Allowed values of output_compression."""
_MAX_MASK_BYTES: Final = 4 * 1024 * 1024
_FORMATS: Final = ("png", "jpeg", "webp")
_QUALITIES: Final = ("low", "medium", "high", "auto")
_FINER: Final = ("xhigh", "max")
_COMMON: Final = frozenset({
    "background", "complexity", "moderation", "model", "n", "output_compression", "output_format",
    "partial_images", "prompt", "quality", "safety_identifier", "size", "stream", "user",
})  # fmt: skip
_EDIT_ONLY: Final = frozenset({"image", "image[]", "mask", "markup", "input_fidelity"})


class GptImage:
    """The `VendorApi` of OpenAI."""

    name = "openai"
    shapes: Mapping[str, ResponseVariant] = SHAPES
    errors: Mapping[str, Callable[[ParsedRequest, float | None], Reply]] = errors.NAMED
    prefix = "/v1"
    """The path of the API."""

    def matches(self, path: str) -> bool:
        """Return whether the path is one of the image endpoints."""
        return path in (self.prefix + _GENERATE, self.prefix + _EDIT)

    def read(self, request: HttpRequest) -> ParsedRequest:
        """Parse a request as far as possible."""
        if request.path == self.prefix + _EDIT:
            return _read_edit(request)
        try:
            body = read_json(request.body)
            call = _call("generate", body, ())
            call.prompt.encode()  # fails for an unpaired surrogate
        except (ValueError, AttributeError):
            return ParsedRequest("generate", "", problem=errors.unreadable())
        return call

    def check_key(self, request: HttpRequest, accepted: frozenset[str] | None) -> None:
        """Check the API key.

        Raises:
            ApiError: The key is missing or not accepted.
        """
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise ApiError(errors.no_key())
        if accepted is not None and key not in accepted:
            raise ApiError(errors.bad_key(key))

    @staticmethod
    def has_model(model: str) -> bool:
        """Return whether there is such a model, retired ones included."""
        return model in _MODELS | _RETIRED

    def error(self, code: int, retry_after: float | None = None) -> Reply:
        """Return OpenAI's error for a status."""
        return errors.error(code, retry_after=retry_after)

    def check(self, call: ParsedRequest) -> ImageSize:
        """Validate a request and return the image to render.

        Raises:
            ApiError: OpenAI does not accept the request.
        """
        if call.problem is not None:
            raise ApiError(call.problem)
        _check_model(call.model)
        known = _COMMON | _EDIT_ONLY if call.operation == "edit" else _COMMON
        for name in call.parameters.keys() - known:
            raise ApiError(errors.unknown_parameter(name))
        if not call.prompt:
            raise ApiError(errors.missing("prompt"))
        if len(call.prompt) > _MAX_PROMPT:
            raise ApiError(errors.too_long(len(call.prompt), _MAX_PROMPT))
        if call.operation == "edit":
            _check_images(call.references)
            _check_mask(call)
        return _canvas(call)


def _read_edit(request: HttpRequest) -> ParsedRequest:
    form = read_form(request.headers.get("content-type", ""), request.body)
    if form is None:
        return ParsedRequest("edit", "", problem=errors.unreadable())
    received = [part for part in form if part.name in ("image", "image[]")]
    if any(part.filename is None for part in received):
        return ParsedRequest("edit", "", problem=errors.not_a_file())
    # Image fields are known fields, but their bytes are not parameters.
    fields = {part.name: part.text() for part in form if part.filename is None}
    call = _call(
        "edit", fields, tuple(UploadedImage(part.mime_type, part.data) for part in received)
    )
    masks = [part for part in form if part.name == "mask" and part.filename is not None]
    return replace(call, mask=UploadedImage(masks[0].mime_type, masks[0].data)) if masks else call


def _call(
    operation: str, fields: Mapping[str, Any], images: tuple[UploadedImage, ...]
) -> ParsedRequest:
    prompt = fields.get("prompt")
    size = fields.get("size")
    return ParsedRequest(
        operation,
        str(fields.get("model") or ""),
        prompt=prompt if isinstance(prompt, str) else "",
        references=images,
        parameters=dict(fields),
        resolution=None if size is None else str(size),
    )


def _check_model(model: str) -> None:
    if not model:
        raise ApiError(errors.missing("model"))
    if model in _RETIRED:
        raise ApiError(errors.retired(model))
    if model not in _MODELS:
        raise ApiError(errors.unknown_model(model))


def _check_images(images: tuple[UploadedImage, ...]) -> None:
    if not images:
        raise ApiError(errors.missing("image"))
    if len(images) > _MAX_IMAGES:
        raise ApiError(errors.too_many(len(images), _MAX_IMAGES))
    from resilient_imagen.emulator import drawing

    for index, image in enumerate(images):
        if len(image.data) > _MAX_IMAGE_BYTES:
            raise ApiError(errors.too_large(index))
        if image.mime_type not in ("image/png", "image/jpeg", "image/webp"):
            raise ApiError(errors.unsupported_type(index, image.mime_type))
        if not drawing.is_plain(image.data):
            raise ApiError(errors.invalid_image(index))


def _check_mask(call: ParsedRequest) -> None:
    if call.mask is None:
        return
    from resilient_imagen.emulator import drawing

    if len(call.mask.data) >= _MAX_MASK_BYTES:
        raise ApiError(errors.invalid_mask("The mask must be less than 4MB."))
    size = drawing.mask_size(call.mask.data)
    if size is None:
        raise ApiError(errors.invalid_mask("The mask must be a PNG with an alpha channel."))
    if size != drawing.size_of(call.references[0].data):
        raise ApiError(errors.invalid_mask("The mask must have the dimensions of the image."))


def _canvas(call: ParsedRequest) -> ImageSize:
    options = call.parameters
    width, height = _size(call.model, call.resolution or "auto")
    qualities = _QUALITIES + (_FINER if _FREE.fullmatch(call.model) and "2." in call.model else ())
    quality = _choice(options, "quality", "auto", qualities)
    kind = _choice(options, "output_format", "png", _FORMATS)
    background = _choice(options, "background", "auto", ("transparent", "opaque", "auto"))
    transparent = background == "transparent"
    if transparent and kind == "jpeg":
        raise ApiError(errors.incompatible("background", background, "output_format 'jpeg'"))
    _choice(options, "moderation", "auto", ("low", "auto"))
    return ImageSize(
        width,
        height,
        f"image/{kind}",
        quality,
        _count(options.get("n", 1)),
        _previews(options),
        transparent,
        _compression(options, kind),
    )


def _compression(options: Mapping[str, Any], kind: str) -> int | None:
    value = options.get("output_compression")
    if value is None:
        return None
    if str(value) not in _PERCENTS:
        raise ApiError(errors.invalid_value("output_compression", value, ("0", "100")))
    if kind == "png" and str(value) != _PERCENTS[-1]:
        raise ApiError(errors.incompatible("output_compression", value, "output_format 'png'"))
    return int(value)


def _previews(options: Mapping[str, Any]) -> int | None:
    """Return the number of partial images; None if no event stream is requested."""
    number = str(options.get("partial_images", 0))  # a str in a form
    if number not in _PREVIEWS:
        raise ApiError(errors.invalid_value("partial_images", number, _PREVIEWS))
    stream = options.get("stream") or False
    if stream not in (True, False, "true", "false"):
        raise ApiError(errors.invalid_value("stream", stream, ("true", "false")))
    return int(number) if stream in (True, "true") else None


def _choice(options: Mapping[str, Any], name: str, default: str, allowed: tuple[str, ...]) -> str:
    value = options.get(name, default)
    if value not in allowed:
        raise ApiError(errors.invalid_value(name, value, allowed))
    return str(value)


def _count(value: Any) -> int:
    text = str(value)
    if text not in _COUNTS:
        raise ApiError(errors.invalid_value("n", value, _COUNTS))
    return int(text)


def _size(model: str, size: str) -> tuple[int, int]:
    if size == "auto":
        return 1024, 1024
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", size, re.ASCII)
    free = _FREE.fullmatch(model) is not None
    if match is None or (not free and size not in _STANDARD):
        raise ApiError(errors.invalid_value("size", size, _STANDARD))
    width, height = int(match[1]), int(match[2])
    if free and not _within_limits(width, height):
        raise ApiError(errors.invalid_size(size))
    return width, height


def _within_limits(width: int, height: int) -> bool:
    short, long = sorted((width, height))
    return (
        width % _STEP == height % _STEP == 0
        and long <= _MAX_EDGE
        and long <= short * _MAX_RATIO
        and _MIN_PIXELS <= width * height <= _MAX_PIXELS
    )
