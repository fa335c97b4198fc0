"""OpenAI's errors, with the codes and messages of real responses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from resilient_imagen.emulator.http_messages import Reply, json_reply

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from resilient_imagen.emulator.vendor_api import ParsedRequest

__all__ = [
    "NAMED",
    "bad_key",
    "error",
    "invalid_image",
    "invalid_size",
    "invalid_value",
    "missing",
    "moderation_blocked",
    "no_key",
    "not_a_file",
    "retired",
    "too_large",
    "too_long",
    "too_many",
    "unknown_model",
    "unknown_parameter",
    "unreadable",
    "unsupported_type",
]

_REQUEST: Final = "invalid_request_error"
_USER: Final = "image_generation_user_error"
_SHOWN: Final = 4
"""Characters of a wrong key that OpenAI repeats."""
_WORDS: Final[Mapping[int, tuple[str, str | None, str]]] = {
    400: (_REQUEST, None, "Your request could not be processed."),
    401: (_REQUEST, "invalid_api_key", "Incorrect API key provided."),
    403: (
        _REQUEST,
        None,
        "Your organization must be verified to use this model.",
    ),
    404: (_REQUEST, "model_not_found", "The model does not exist or you do not have access to it."),
    413: (_REQUEST, None, "Maximum content size limit exceeded."),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached."),
    500: (
        "server_error",
        None,
        "The server had an error while processing your request. Sorry about that!",
    ),
    503: (
        "service_unavailable_error",
        "server_is_overloaded",
        "Our servers are currently overloaded. Please try again later.",
    ),
}


def error(
    code: int,
    message: str | None = None,
    *,
    kind: str | None = None,
    param: str | None = None,
    word: str | None = None,
    retry_after: float | None = None,
) -> Reply:
    """Return an error; ``retry_after`` (seconds) is in the message and in the header."""
    usual_kind, usual_word, usual = _WORDS.get(code, ("api_error", None, "Unknown error."))
    text = usual if message is None else message
    headers: tuple[tuple[str, str], ...] = ()
    if retry_after is not None:
        text = f"{text} Please try again in {retry_after:g}s."
        headers = (("retry-after", f"{retry_after:g}"),)
    given = message is not None
    body = {
        "message": text,
        "type": kind or usual_kind,
        "param": param,
        "code": word if given else usual_word,
    }
    return json_reply({"error": body}, code, headers)


def no_key() -> Reply:
    """Return a 401 for a request without a key."""
    return error(
        401,
        "You didn't provide an API key. You need to provide your API key in an Authorization "
        "header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY). You can obtain an API "
        "key from https://platform.openai.com/account/api-keys.",
    )


def bad_key(key: str) -> Reply:
    """Return a 401 for a wrong key, with its last characters, as the vendor does."""
    hidden = "*" * max(0, len(key) - _SHOWN) + (key[-_SHOWN:] if len(key) > 2 * _SHOWN else "")
    return error(
        401,
        f"Incorrect API key provided: {hidden}. You can find your API key at "
        "https://platform.openai.com/account/api-keys.",
        word="invalid_api_key",
    )


def unreadable() -> Reply:
    """Return a 400 for a body that cannot be parsed."""
    return error(400, "We could not parse the body of your request.")


def unknown_parameter(name: str) -> Reply:
    """Return a 400 for a parameter that the API does not have."""
    return error(400, f"Unknown parameter: '{name}'.", param=name, word="unknown_parameter")


def missing(name: str) -> Reply:
    """Return a 400 for a missing required parameter."""
    message = f"Missing required parameter: '{name}'."
    return error(400, message, param=name, word="missing_required_parameter")


def invalid_value(name: str, value: object, allowed: tuple[str, ...]) -> Reply:
    """Return a 400 for a value that is not in the list of allowed values."""
    *most, last = (f"'{choice}'" for choice in allowed)
    message = f"Invalid value: '{value}'. Supported values are: {', '.join(most)}, and {last}."
    return error(400, message, param=name, word="invalid_value")


def incompatible(name: str, value: object, other: str) -> Reply:
    """Return a 400 for a value that another parameter does not allow."""
    message = f"{name} '{value}' is not compatible with {other}."
    return error(400, message, kind=_USER, param=name, word="invalid_value")


def invalid_mask(message: str) -> Reply:
    """Return a 400 for a mask that is not accepted."""
    return error(400, message, kind=_USER, param="mask", word="invalid_image_file")


def invalid_size(size: str) -> Reply:
    """Return a 400 for a size outside the model's limits."""
    message = (
        f"Invalid size '{size}'. Width and height must be divisible by 16, the longest edge at "
        "most 3840, the ratio between 1:3 and 3:1, the pixels between 655360 and 8294400."
    )
    return error(400, message, kind=_USER, param="size", word="invalid_value")


def too_long(length: int, limit: int) -> Reply:
    """Return a 400 for a prompt longer than the limit in characters."""
    message = (
        f"Invalid 'prompt': string too long. Expected a string with maximum length {limit}, but "
        f"got a string with length {length} instead."
    )
    return error(400, message, param="prompt", word="string_above_max_length")


def unknown_model(model: str) -> Reply:
    """Return a 400 for an unknown model; the image endpoints do not use 404."""
    message = f"The model '{model}' does not exist."
    return error(400, message, kind=_USER, param="model", word="invalid_value")


def retired(model: str) -> Reply:
    """Return a 404 for a retired model."""
    message = (
        f"The model `{model}` has been deprecated, learn more here: "
        "https://platform.openai.com/docs/deprecations"
    )
    return error(404, message, word="model_not_found")


def not_a_file() -> Reply:
    """Return a 400 for an image field that is not an upload."""
    message = (
        "Invalid type for 'image': expected one of an array of files or file, but got a string "
        "instead."
    )
    return error(400, message, param="image", word="invalid_type")


def too_many(count: int, limit: int) -> Reply:
    """Return a 400 for too many images."""
    message = (
        f"Invalid 'image': array too long. Expected an array with maximum length {limit}, but "
        f"got an array with length {count} instead."
    )
    return error(400, message, param="image", word="array_above_max_length")


def too_large(index: int) -> Reply:
    """Return a 400 for an image larger than 50 MB."""
    message = f"Invalid image {index + 1}: the file is larger than the maximum of 50 MB."
    return error(400, message, kind=_USER, param="image", word="image_too_large")


def unsupported_type(index: int, mime_type: str) -> Reply:
    """Return a 400 for an upload whose declared type is not an image."""
    message = (
        f"Invalid file 'image[{index}]': unsupported mimetype ('{mime_type}'). Supported file "
        "formats are 'image/jpeg', 'image/png', and 'image/webp'."
    )
    return error(400, message, param=f"image[{index}]", word="unsupported_file_mimetype")


def invalid_image(index: int) -> Reply:
    """Return a 400 for bytes that are not a plain PNG, JPEG or WebP."""
    message = f"Invalid image file or mode for image {index + 1}, please check your image file."
    return error(400, message, kind=_USER, param="image", word="invalid_image_file")


def moderation_blocked(stage: str) -> Reply:
    """Return a 400 of the safety system; ``stage`` is input or output."""
    message = (
        "Your request was rejected by the safety system. If you believe this is an error, "
        "contact us at help.openai.com and include the request ID."
    )
    details = {"moderation_stage": stage, "categories": ["violence"]}
    body = {
        "message": message, "type": _USER, "param": None, "code": "moderation_blocked",
        "moderation_details": details,
    }  # fmt: skip
    return json_reply({"error": body}, 400)


def _rate_limited(call: ParsedRequest, retry_after: float | None) -> Reply:
    # The delay is only in the message: no known response for images has a Retry-After header.
    hint = "" if retry_after is None else f" Please try again in {retry_after:g}s."
    message = (
        f"Rate limit reached for {call.model} in organization org-emulated on images per min: "
        f"Limit 5, Used 5, Requested 1.{hint}"
    )
    return error(429, message, kind="input-images", word="rate_limit_exceeded")


def _quota_exhausted(_call: ParsedRequest, _retry_after: float | None) -> Reply:
    message = "You exceeded your current quota, please check your plan and billing details."
    return error(429, message, kind="insufficient_quota", word="insufficient_quota")


def _billing_hard_limit(_call: ParsedRequest, _retry_after: float | None) -> Reply:
    message = "Billing hard limit has been reached"
    word = "billing_hard_limit_reached"
    return error(400, message, kind="billing_limit_user_error", word=word)


NAMED: Final[Mapping[str, Callable[[ParsedRequest, float | None], Reply]]] = {
    "billing_hard_limit": _billing_hard_limit,
    "blocked_output": lambda _call, _retry_after: moderation_blocked("output"),
    "key_invalid": lambda _call, _retry_after: bad_key(""),
    "model_gone": lambda call, _retry_after: retired(call.model),
    "quota_exhausted": _quota_exhausted,
    "rate_limited": _rate_limited,
}
