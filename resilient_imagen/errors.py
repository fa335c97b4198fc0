"""Exceptions: every error carries its reason, the requests sent and ``retry_after``.

::

    ImageGenerationError
    ├── InvalidRequestError (ValueError)      invalid_request
    ├── ContentBlockedError (ValueError)      content_blocked
    ├── NoImageError (ValueError)             no_image
    ├── ProviderError                         server_error, and the base of:
    │   ├── ProviderOverloadedError           overloaded
    │   ├── RateLimitedError                  rate_limited
    │   ├── QuotaExhaustedError               quota_exhausted
    │   ├── ProviderTimeoutError (TimeoutError)        timeout
    │   ├── ProviderConnectionError (ConnectionError)  connection
    │   ├── AuthenticationError               unauthenticated
    │   ├── PermissionDeniedError             forbidden
    │   ├── ModelNotFoundError                model_not_found
    │   └── InvalidResponseError              invalid_response
    ├── CircuitOpenError                      circuit_open
    ├── SaturatedError                        saturated
    ├── DeadlineExceededError (TimeoutError)  deadline
    ├── AllProvidersFailedError               the primary's reason
    └── ConfigurationError                    invalid_request

Error texts are made here from a fixed vocabulary: provider, model, HTTP code and the vendor's
status word. Applications search them, so they contain no other number and no vendor prose.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from resilient_imagen.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resilient_imagen.result import Attempt, Usage

__all__ = [
    "AllProvidersFailedError",
    "AuthenticationError",
    "CircuitOpenError",
    "ConfigurationError",
    "ContentBlockedError",
    "DeadlineExceededError",
    "ImageGenerationError",
    "InvalidRequestError",
    "InvalidResponseError",
    "ModelNotFoundError",
    "NoImageError",
    "PermissionDeniedError",
    "ProviderConnectionError",
    "ProviderError",
    "ProviderOverloadedError",
    "ProviderTimeoutError",
    "QuotaExhaustedError",
    "RateLimitedError",
    "SaturatedError",
    "provider_failure",
]

# Phrases for errors without a vendor's status. They contain no reason words.
_DEFAULT_MESSAGES: Mapping[Reason, str] = {
    Reason.OVERLOADED: "temporarily unavailable",
    Reason.RATE_LIMITED: "too many requests",
    Reason.QUOTA_EXHAUSTED: "quota used up",
    Reason.SERVER_ERROR: "internal failure",
    Reason.TIMEOUT: "timed out",
    Reason.CONNECTION: "network failure",
    Reason.UNAUTHENTICATED: "key not accepted",
    Reason.FORBIDDEN: "permission denied",
    Reason.MODEL_NOT_FOUND: "no such model",
    Reason.INVALID_RESPONSE: "unusable answer",
    Reason.NO_IMAGE: "empty response",
    Reason.CONTENT_BLOCKED: "blocked by safety filters",
    Reason.INVALID_REQUEST: "request not accepted",
    Reason.CIRCUIT_OPEN: "skipped after earlier failures",
    Reason.SATURATED: "queue is full",
    Reason.DEADLINE: "out of time",
    Reason.CANCELLED: "caller left",
}


_STATUS_WORD: Final = re.compile(r"[A-Z_]{1,40}")
_KNOWN_MESSAGES: Final = "|".join(map(re.escape, _DEFAULT_MESSAGES.values()))
_SUMMARY: Final = re.compile(rf"\d{{3}}|(\d{{3}} )?({_STATUS_WORD.pattern}|{_KNOWN_MESSAGES})")


def trusted_summary(text: str, reason: Reason | None) -> str:
    """Return `text` if it is a possible `summary` of an error, else the fixed phrase for `reason`.

    Used for a str that another process stored, which may be damaged or forged.
    """
    if _SUMMARY.fullmatch(text):
        return text
    return "a failure in another process" if reason is None else _DEFAULT_MESSAGES[reason]


class ImageGenerationError(Exception):
    """Base of every error raised for a request that did not deliver an image.

    Attributes:
        reason: The cause, as one word; spans and log lines use the same word.
        attempts: The requests really sent, in order. A rejection by a breaker or a full queue is
            not an attempt.
        retry_after: Seconds after which a new call may succeed; None if unknown.
        provider: The provider's name; None if no single provider is concerned.
        model: The model's name; None if no single model is concerned.
        status: HTTP status of the response; None without a response.
        status_word: The vendor's status word (``UNAVAILABLE``), or None.
        vendor_message: The vendor's own message, or the system's description of a failed
            connection; redacted and bounded, or None. Not in the text.
        vendor_error: Name of the SDK's exception type, or None. SDK exceptions are never chained,
            because their texts may contain keys, prompts or whole response bodies.
        account_wide: True if every model of the account is concerned (billing, key).
        usage: The vendor's token counts of the failed request, which may be billed; or None.
        never_sent: True if no connection was made, so that nothing can have been billed.

    Raises:
        ValueError: ``reason`` is not a Reason.
        TypeError: Another argument has the wrong type.
    """

    default_reason: Reason = Reason.SERVER_ERROR

    def __init__(
        self,
        message: str | None = None,
        *,
        reason: Reason | None = None,
        attempts: tuple[Attempt, ...] = (),
        retry_after: float | None = None,
        provider: str | None = None,
        model: str | None = None,
        status: int | None = None,
        status_word: str | None = None,
        vendor_message: str | None = None,
        vendor_error: str | None = None,
        account_wide: bool = False,
        usage: Usage | None = None,
        never_sent: bool = False,
    ) -> None:
        self.reason: Reason = self.default_reason if reason is None else _reason(reason)
        _check_type("status", status, int)
        _check_type("status_word", status_word, str)
        _check_type("vendor_message", vendor_message, str)
        _check_type("vendor_error", vendor_error, str)
        if usage is not None:
            _check_usage(usage)
        self.attempts = attempts
        self.retry_after = retry_after
        self.provider = provider
        self.model = model
        self.status = status
        self.status_word = status_word
        self.vendor_message = vendor_message
        self.vendor_error = vendor_error
        self.account_wide = account_wide
        self.usage = usage
        self.not_sent = never_sent
        self._has_custom_message = message is not None
        super().__init__(message if message is not None else self._text())

    def set_route(self, provider: str, model: str) -> None:
        """Set provider and model if the provider that raised the error did not set them."""
        if self.provider is None:
            self.provider, self.model = provider, model
            self.args = (f"{provider} {model}: {self.args[0]}",)

    def scrub(self, secret: str) -> None:
        """Remove ``secret``, and everything that looks like a secret, from the error's texts.

        An application's provider may have quoted the prompt, or a vendor's echo of it.
        """
        strange = self.status_word is not None and not _STATUS_WORD.fullmatch(self.status_word)
        if self.vendor_message is None and not strange and not self._has_custom_message:
            return  # a default message contains no secret
        from resilient_imagen.redaction import redact

        if self.vendor_message is not None:
            self.vendor_message = redact(self.vendor_message, secrets=(secret,))
        if self.status_word is not None and strange:
            self.status_word = redact(self.status_word, secrets=(secret,))
        if self._has_custom_message:
            self.args: tuple[object, ...] = (redact(str(self), secrets=(secret,)),)

    def _text(self) -> str:
        route = " ".join(name for name in (self.provider, self.model) if name)
        cause = self.summary
        return f"{route}: {cause}" if route else cause

    @property
    def summary(self) -> str:
        """HTTP code and status word, or a fixed phrase: ``503 UNAVAILABLE``, ``timed out``."""
        phrase = self.status_word or _DEFAULT_MESSAGES[self.reason]
        if self.reason in {Reason.CONTENT_BLOCKED, Reason.NO_IMAGE}:
            phrase = _DEFAULT_MESSAGES[self.reason]  # applications search for exactly these words
        if self.status is None or self.status == 200:  # noqa: PLR2004 - HTTP's "OK"
            return phrase
        return f"{self.status} {phrase}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy with every attribute, for example between processes."""
        return _rebuild, (type(self), self.args, self.__dict__.copy())


def _reason(given: object) -> Reason:
    try:
        return Reason(given)  # type: ignore[arg-type]  # a provider may pass the word
    except ValueError:
        raise ValueError(f"reason must be one of {', '.join(Reason)}") from None


def _check_type(name: str, value: object, kind: type) -> None:
    if value is not None and not isinstance(value, kind):
        allowed = kind.__name__
        raise TypeError(f"{name} must be {allowed} or None, not {type(value).__name__}")


def _check_usage(usage: object) -> None:
    from resilient_imagen.result import Usage

    if not isinstance(usage, dict) or not Usage.__required_keys__ <= usage.keys():
        keys = ", ".join(Usage.__annotations__)
        raise TypeError(f"usage must be None or a dict with the keys {keys}")


def _rebuild(
    cls: type[ImageGenerationError], args: tuple[Any, ...], state: dict[str, Any]
) -> ImageGenerationError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


class InvalidRequestError(ImageGenerationError, ValueError):
    """The request is invalid: an argument was rejected here, or by the vendor with 400 or 413."""

    default_reason = Reason.INVALID_REQUEST


class ContentBlockedError(ImageGenerationError, ValueError):
    """The vendor refused the prompt, a reference image or the generated image."""

    default_reason = Reason.CONTENT_BLOCKED


class NoImageError(ImageGenerationError, ValueError):
    """The vendor's response has neither an image nor a refusal."""

    default_reason = Reason.NO_IMAGE


class ProviderError(ImageGenerationError):
    """The provider failed. Custom providers may raise it with any ``reason=``."""


class ProviderOverloadedError(ProviderError):
    """The model has no capacity right now."""

    default_reason = Reason.OVERLOADED


class RateLimitedError(ProviderError):
    """Too many requests in too short a time; see ``retry_after``."""

    default_reason = Reason.RATE_LIMITED


class QuotaExhaustedError(ProviderError):
    """The daily quota, the prepaid credit or the billing limit is exhausted."""

    default_reason = Reason.QUOTA_EXHAUSTED


class ProviderTimeoutError(ProviderError, TimeoutError):
    """No response within the attempt timeout, or the vendor timed out (504, 524)."""

    default_reason = Reason.TIMEOUT


class ProviderConnectionError(ProviderError, ConnectionError):
    """The connection failed: refused, not resolved, no TLS, reset, or a truncated body."""

    default_reason = Reason.CONNECTION


class AuthenticationError(ProviderError):
    """The API key is wrong, missing or revoked."""

    default_reason = Reason.UNAUTHENTICATED


class PermissionDeniedError(ProviderError):
    """The API key is valid but lacks permission for the request."""

    default_reason = Reason.FORBIDDEN


class ModelNotFoundError(ProviderError):
    """The vendor does not have the model, or not any more."""

    default_reason = Reason.MODEL_NOT_FOUND


class InvalidResponseError(ProviderError):
    """A 200 response that violates the API."""

    default_reason = Reason.INVALID_RESPONSE


class CircuitOpenError(ImageGenerationError):
    """Circuit breakers rejected the call on every route; ``retry_after`` is the shortest wait."""

    default_reason = Reason.CIRCUIT_OPEN


class SaturatedError(ImageGenerationError):
    """The provider's queue is full, or its wait is longer than the call allows."""

    default_reason = Reason.SATURATED


class DeadlineExceededError(ImageGenerationError, TimeoutError):
    """The caller's deadline expired; it covers queueing, retries and fallback."""

    default_reason = Reason.DEADLINE


class AllProvidersFailedError(ImageGenerationError):
    """Every route failed or was skipped; the reason is the primary's.

    Attributes:
        errors: The last error of each route, in the order the routes were tried.
    """

    def __init__(self, *, errors: tuple[ImageGenerationError, ...], **details: Any) -> None:
        first = errors[0]
        self.errors = errors
        details.setdefault("reason", first.reason)
        for name in ("provider", "model", "status", "status_word", "vendor_message"):
            details.setdefault(name, getattr(first, name))
        super().__init__("; ".join(str(error) for error in errors), **details)


class ConfigurationError(ImageGenerationError):
    """A setting is missing or not allowed; the text has the variable and the allowed values."""

    default_reason = Reason.INVALID_REQUEST


_CLASSES: Mapping[Reason, type[ImageGenerationError]] = {
    cls.default_reason: cls
    for cls in (
        InvalidRequestError,
        ContentBlockedError,
        NoImageError,
        ProviderError,
        ProviderOverloadedError,
        RateLimitedError,
        QuotaExhaustedError,
        ProviderTimeoutError,
        ProviderConnectionError,
        AuthenticationError,
        PermissionDeniedError,
        ModelNotFoundError,
        InvalidResponseError,
        CircuitOpenError,
        SaturatedError,
        DeadlineExceededError,
    )
}


def provider_failure(reason: Reason, **details: Any) -> ImageGenerationError:
    """Return an error of the class for ``reason``, with attributes of ImageGenerationError."""
    return _CLASSES.get(reason, ProviderError)(reason=reason, **details)
