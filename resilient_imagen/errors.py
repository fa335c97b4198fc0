"""The error tree. Every error carries its reason, the requests sent and when to come back.

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

Texts are made here from a fixed vocabulary: provider, model, HTTP code and the vendor's status
word. Applications search them, so they hold no other number and no vendor prose.
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

# What stands in a text when the vendor sent no status of its own. None of them is a reason word.
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
_BRIEF: Final = re.compile(rf"\d{{3}}|(\d{{3}} )?({_STATUS_WORD.pattern}|{_KNOWN_MESSAGES})")


def trusted_brief(text: str, reason: Reason | None) -> str:
    """Return `text` if an error's `brief` can be it, else the fixed phrase for `reason`.

    For a text that another process stored: it may have been damaged or forged.
    """
    if _BRIEF.fullmatch(text):
        return text
    return "a failure in another process" if reason is None else _DEFAULT_MESSAGES[reason]


class ImageGenerationError(Exception):
    """Base of every error raised for a request that did not deliver an image.

    Attributes:
        reason: One word saying why; the same word stands in spans and log lines.
        attempts: The requests really sent, in order. Refusals by a guard are not among them.
        retry_after: Seconds after which asking again may help, or None when unknown.
        provider: The provider's name, or None when no single one is meant.
        model: The model's name, or None likewise.
        status: HTTP status of the answer, or None when there was none.
        status_word: The vendor's status word (``UNAVAILABLE``), or None.
        vendor_message: The vendor's own message, redacted and bounded, or None. Not in the text.
        vendor_error: Name of the SDK's exception type, or None. SDK exceptions are never chained:
            their texts may hold keys, prompts or whole pages.
        account_wide: True when every model of the account is concerned (billing, key).
        usage: What the vendor counted although no picture came, or None. It may be billed.
        never_sent: True when no connection was made, so that nothing can have been billed.

    Raises:
        ValueError: ``reason`` is none of those that there are.
        TypeError: Another argument is of the wrong type.
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
        """Set the route if the provider that raised the error did not."""
        if self.provider is None:
            self.provider, self.model = provider, model
            self.args = (f"{provider} {model}: {self.args[0]}",)

    def scrub(self, secret: str) -> None:
        """Take ``secret``, and whatever looks like one, out of its texts.

        A provider of the application's may have quoted the prompt, or passed on what a vendor
        quoted.
        """
        strange = self.status_word is not None and not _STATUS_WORD.fullmatch(self.status_word)
        if self.vendor_message is None and not strange and not self._has_custom_message:
            return  # it was made here, of words that are known
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
            phrase = _DEFAULT_MESSAGES[self.reason]  # the application looks for exactly these words
        if self.status is None or self.status == 200:  # noqa: PLR2004 - HTTP's "OK"
            return phrase
        return f"{self.status} {phrase}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Survive pickling and copying with every attribute (tasks cross process borders)."""
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
    """The request is at fault: a bad argument of ours, or a 400 or 413 of the vendor's."""

    default_reason = Reason.INVALID_REQUEST


class ContentBlockedError(ImageGenerationError, ValueError):
    """The vendor refused the prompt, a reference or the picture it made."""

    default_reason = Reason.CONTENT_BLOCKED


class NoImageError(ImageGenerationError, ValueError):
    """The vendor answered, without an image and without a refusal."""

    default_reason = Reason.NO_IMAGE


class ProviderError(ImageGenerationError):
    """The provider failed. Custom providers may raise it with any ``reason=``."""


class ProviderOverloadedError(ProviderError):
    """The model has no capacity right now."""

    default_reason = Reason.OVERLOADED


class RateLimitedError(ProviderError):
    """Too many requests in too short a time; ``retry_after`` says when to come back."""

    default_reason = Reason.RATE_LIMITED


class QuotaExhaustedError(ProviderError):
    """The daily quota, the prepaid credit or the billing limit is used up."""

    default_reason = Reason.QUOTA_EXHAUSTED


class ProviderTimeoutError(ProviderError, TimeoutError):
    """No answer within the per-call timeout, or the vendor gave up (504, 524)."""

    default_reason = Reason.TIMEOUT


class ProviderConnectionError(ProviderError, ConnectionError):
    """Refused, not resolved, no TLS, reset, or a body that was cut."""

    default_reason = Reason.CONNECTION


class AuthenticationError(ProviderError):
    """The API key is wrong, missing or revoked."""

    default_reason = Reason.UNAUTHENTICATED


class PermissionDeniedError(ProviderError):
    """The key is known and may not do this."""

    default_reason = Reason.FORBIDDEN


class ModelNotFoundError(ProviderError):
    """The vendor does not know the model (any more)."""

    default_reason = Reason.MODEL_NOT_FOUND


class InvalidResponseError(ProviderError):
    """A 200 that is not what the API promises."""

    default_reason = Reason.INVALID_RESPONSE


class CircuitOpenError(ImageGenerationError):
    """Every route is skipped by its circuit breaker; ``retry_after`` is the soonest."""

    default_reason = Reason.CIRCUIT_OPEN


class SaturatedError(ImageGenerationError):
    """The provider's queue is full, or longer than the call can wait."""

    default_reason = Reason.SATURATED


class DeadlineExceededError(ImageGenerationError, TimeoutError):
    """The caller's deadline passed: queueing, retries and fallback included."""

    default_reason = Reason.DEADLINE


class AllProvidersFailedError(ImageGenerationError):
    """Every route was tried or skipped; the reason is the primary's.

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
    """A setting is missing or not allowed; the text names the variable and what is allowed."""

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
    """The error that belongs to ``reason``, with the attributes of ImageGenerationError."""
    return _CLASSES.get(reason, ProviderError)(reason=reason, **details)
