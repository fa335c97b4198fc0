"""Gemini's errors, with the codes and messages of real responses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from resilient_imagen.emulator.http_messages import Reply, json_reply

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from resilient_imagen.emulator.vendor_api import ParsedRequest

__all__ = [
    "NAMED",
    "bad_key",
    "error",
    "invalid",
    "no_key",
    "quota_failure",
    "retired",
    "retry_info",
    "unknown_field",
    "unknown_model",
    "unreadable_image",
    "unsupported",
]

_RPC: Final = "type.googleapis.com/google.rpc."
_SERVICE: Final = "generativelanguage.googleapis.com"
_REPORT: Final = (
    "Please retry or report in https://developers.generativeai.google/guide/troubleshooting"
)
_WORDS: Final[Mapping[int, tuple[str, str]]] = {
    400: ("INVALID_ARGUMENT", "Request contains an invalid argument."),
    401: ("UNAUTHENTICATED", "Request had invalid authentication credentials."),
    403: ("PERMISSION_DENIED", "The caller does not have permission"),
    404: ("NOT_FOUND", "Requested entity was not found."),
    413: ("Request Entity Too Large", "Maximum request body size exceeded."),
    429: ("RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota)."),
    499: ("CANCELLED", "The operation was cancelled."),
    500: ("INTERNAL", f"An internal error has occurred. {_REPORT}"),
    503: ("UNAVAILABLE", "The model is overloaded. Please try again later."),
    504: ("DEADLINE_EXCEEDED", "Deadline expired before operation could complete."),
}


def error(
    code: int,
    message: str | None = None,
    *,
    details: list[dict[str, Any]] | None = None,
    retry_after: float | None = None,
) -> Reply:
    """Return an error as google.rpc.Status; ``retry_after`` (seconds) becomes RetryInfo."""
    state, usual = _WORDS.get(code, ("UNKNOWN", "Unknown error."))
    body: dict[str, Any] = {"code": code, "message": message or usual, "status": state}
    every = [*(details or []), *([] if retry_after is None else [retry_info(retry_after)])]
    if every:
        body["details"] = every
    return json_reply({"error": body}, code)


def retry_info(seconds: float) -> dict[str, Any]:
    """Return the detail with the time to wait."""
    return {"@type": f"{_RPC}RetryInfo", "retryDelay": f"{seconds:g}s"}


def quota_failure(model: str, *windows: str) -> dict[str, Any]:
    """Return the detail with the exceeded quotas; a window is Day or Minute."""
    violations = [
        {
            "quotaMetric": f"{_SERVICE}/generate_requests_per_model_per_{window.lower()}",
            "quotaId": f"GenerateRequestsPer{window}PerProjectPerModel",
            "quotaDimensions": {"location": "global", "model": model},
        }
        for window in windows
    ]
    return {"@type": f"{_RPC}QuotaFailure", "violations": violations}


def invalid(message: str) -> Reply:
    """Return a 400 INVALID_ARGUMENT with this message."""
    return error(400, message)


def unsupported(parameter: str, value: object) -> Reply:
    """Return a 400 for a value that the model does not support."""
    return invalid(
        f"`{parameter}` does not support `{value}` as a valid value. Please refer to the Gemini "
        "API documentation for supported usage."
    )


def unknown_field(name: str, where: str) -> Reply:
    """Return a 400 for a field that the API does not have."""
    message = f"Invalid JSON payload received. Unknown name \"{name}\" at '{where}': "
    violation = {"field": where, "description": message + "Cannot find field."}
    detail = {"@type": f"{_RPC}BadRequest", "fieldViolations": [violation]}
    return error(400, message + "Cannot find field.", details=[detail])


def not_an_int32(where: str, value: object) -> Reply:
    """Return a 400 for a value that is not a 32-bit integer."""
    return invalid(f"Invalid value at '{where}' (TYPE_INT32), {value!r}")


def unknown_model(model: str) -> Reply:
    """Return a 404 for an unknown model."""
    return error(
        404,
        f"models/{model} is not found for API version v1, or is not supported for "
        "generateContent. Call ListModels to see the list of available models and their "
        "supported methods.",
    )


def retired(model: str) -> Reply:
    """Return a 404 for a retired model."""
    return error(
        404,
        f"This model models/{model} is no longer available. Please update your code to use a "
        "newer model for the latest features and improvements.",
    )


def unreadable_image() -> Reply:
    """Return a 400 for a reference that is not an image."""
    return invalid(f"Unable to process input image. {_REPORT}")


def no_key() -> Reply:
    """Return a 403 for a request without a key."""
    return error(
        403,
        "Method doesn't allow unregistered callers (callers without established identity). "
        "Please use API Key or other form of API consumer identity to call this API.",
    )


def bad_key() -> Reply:
    """Return a 400 for a wrong key, with the cause only in the detail's reason, as Gemini does."""
    detail = {
        "@type": f"{_RPC}ErrorInfo",
        "reason": "API_KEY_INVALID",
        "domain": "googleapis.com",
        "metadata": {"service": _SERVICE},
    }
    return error(400, "API key not valid. Please pass a valid API key.", details=[detail])


def _exceeded(call: ParsedRequest, retry_after: float | None, *windows: str) -> Reply:
    hint = "" if retry_after is None else f"\nPlease retry in {retry_after:g}s."
    message = (
        "You exceeded your current quota, please check your plan and billing details. For more "
        "information on this error, head to: https://ai.google.dev/gemini-api/docs/rate-limits."
    )
    details = [quota_failure(call.model, *windows)]
    return error(429, message + hint, details=details, retry_after=retry_after)


def _rate_limited(call: ParsedRequest, retry_after: float | None) -> Reply:
    return _exceeded(call, retry_after, "Minute")


def _quota_exhausted(call: ParsedRequest, retry_after: float | None) -> Reply:
    # The per-day violation comes last: a client must not read only the first one.
    return _exceeded(call, retry_after, "Minute", "Day")


NAMED: Final[Mapping[str, Callable[[ParsedRequest, float | None], Reply]]] = {
    "key_invalid": lambda _call, _retry_after: bad_key(),
    "model_gone": lambda call, _retry_after: retired(call.model),
    "rate_limited": _rate_limited,
    "quota_exhausted": _quota_exhausted,
}
