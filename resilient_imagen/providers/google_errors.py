"""Classification rules for Gemini's errors, and for refusals inside a 200 response."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from resilient_imagen.providers.classification import (
    ClassificationRule,
    ClassifiedError,
    classify,
    says,
    words,
)
from resilient_imagen.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from resilient_imagen.providers.error_body import VendorError

__all__ = ["failure_of", "finish_reason"]

# --- a 200 without an image ------------------------------------------------------------------

_BLOCKED: Final = words(
    "SAFETY IMAGE_SAFETY PROHIBITED_CONTENT IMAGE_PROHIBITED_CONTENT RECITATION IMAGE_RECITATION "
    "BLOCKLIST SPII MODEL_ARMOR JAILBREAK ESCALATION"
)
_ACCOUNT_LIMITED: Final = "PUP_LIMITED_DISABLED"


def finish_reason(word: str) -> Reason:
    """Return the reason for a candidate's finishReason, for a candidate without a usable image.

    Every value that is not a refusal gives ``no_image``, unknown values included.
    """
    if word == _ACCOUNT_LIMITED:
        return Reason.FORBIDDEN
    return Reason.CONTENT_BLOCKED if word in _BLOCKED else Reason.NO_IMAGE


# --- an error --------------------------------------------------------------------------------


def _zero(error: VendorError) -> bool:
    """Return whether one of the exceeded quotas is zero, so that waiting does not help."""
    return (
        any(map(_is_zero, _quotas(error.details)))
        or _ZERO_QUOTA.search(error.normalized_message) is not None
    )


def _daily(error: VendorError) -> bool:
    """Return whether one of the exceeded quotas is renewed only once a day."""
    return (
        any(map(_is_daily, _quotas(error.details)))
        or _DAILY_QUOTA.search(error.normalized_message) is not None
    )


def _quotas(details: tuple[Mapping[str, Any], ...]) -> Iterator[Mapping[str, Any]]:
    for detail in details:
        for name in ("violations", "metadata"):
            value = detail.get(name)
            items = value if isinstance(value, list) else [value]
            yield from (item for item in items if isinstance(item, dict))


def _is_zero(quota: Mapping[str, Any]) -> bool:
    return any(str(quota.get(key)) == "0" for key in ("quotaValue", "quota_limit_value"))


_NAMES: Final = ("quotaId", "quotaMetric", "quota_limit", "quota_metric", "description")


def _is_daily(quota: Mapping[str, Any]) -> bool:
    names = (str(quota.get(key)) for key in _NAMES)
    return any(map(_PER_DAY.search, names)) or str(quota.get("quota_unit")).startswith("1/d")


def _has_retry_info(error: VendorError) -> bool:
    return any(str(item.get("@type")).endswith(".RetryInfo") for item in error.details)


_PER_DAY: Final = re.compile("per[_ ]?day|daily", re.IGNORECASE)
_DAILY_QUOTA: Final = says(r"quota exceeded for (?:quota )?(?:metric:? )?[^\s,]*per_?day")
_ZERO_QUOTA: Final = says(r"quota exceeded for [^\n]*?\blimit: 0(?!\d|\.\d)")

_RULES: Final = (
    # 429 has four meanings. The quota's name is reliable, the retry delay beside it is not.
    ClassificationRule(Reason.QUOTA_EXHAUSTED, {200, 429}, predicate=_zero, keep_hint=False),
    ClassificationRule(Reason.QUOTA_EXHAUSTED, {200, 429}, predicate=_daily),
    ClassificationRule(
        Reason.QUOTA_EXHAUSTED, {200, 429}, words("quota_exhausted dailylimitexceeded")
    ),
    ClassificationRule(
        Reason.OVERLOADED, {429}, words("model_capacity_exhausted capacity_exhausted")
    ),
    ClassificationRule(Reason.RATE_LIMITED, {429}, predicate=_has_retry_info),
    ClassificationRule(
        Reason.QUOTA_EXHAUSTED,
        {429},
        message_pattern=says(
            r"your prepay(?:ment)? (?:credits?|balance)",
            r"(?:your|the) (?:project|account|billing account|organization)\b"
            r"[^\n]{0,60}\bspend(?:ing)? (?:cap|limit)",
            r"(?:monthly |daily )?spend(?:ing)? (?:cap|limit) (?:reached|exceeded|has been)",
        ),
        account_wide=True,
    ),
    ClassificationRule(
        Reason.OVERLOADED,
        {429},
        message_pattern=says(
            r"resource exhausted\. please try again later",
            r"no capacity available",
            r"(?:the|this) model is (?:currently )?(?:overloaded|experiencing high demand)",
        ),
    ),
    # Gemini answers 400 or 403 to a wrong key, and to requests from an unsupported country.
    ClassificationRule(
        Reason.UNAUTHENTICATED,
        {400, 403},
        words("api_key_invalid api_key_expired api_key_not_found"),
        account_wide=True,
    ),
    ClassificationRule(
        Reason.UNAUTHENTICATED,
        {400, 403},
        message_pattern=says(
            r"api key (?:not valid|not found|expired|is invalid)",
            r"(?:your|this) api key was reported as leaked",
            r"method doesn't allow unregistered callers",
        ),
        account_wide=True,
    ),
    ClassificationRule(
        Reason.FORBIDDEN,
        {403},
        words(
            "service_disabled consumer_suspended consumer_invalid api_key_service_blocked "
            "api_key_http_referrer_blocked api_key_ip_address_blocked user_project_denied "
            "iam_permission_denied"
        ),
        account_wide=True,
    ),
    ClassificationRule(
        Reason.FORBIDDEN,
        {400, 403},
        message_pattern=says(
            r"user location is not supported",
            r"gemini api free tier is not available in your country",
            r"(?:generative language|vertex ai|agent platform) api has not been used",
            r"permission [^\n]{0,80}denied on (?:resource|project)",
            r"(?:unsupported|invalid|unknown) (?:region|location)\b",
            r"(?:the )?(?:region|location) (?:\S+ )?is (?:not supported|not valid|invalid)",
        ),
        account_wide=True,
    ),
    ClassificationRule(
        Reason.QUOTA_EXHAUSTED,
        {400, 403},
        message_pattern=says(
            r"this api method requires billing",
            r"[\w -]{0,30}api is only accessible to billed users",
            r"billing account [^\n]{0,60}(?:disabled|closed|not active)",
        ),
        account_wide=True,
    ),
    ClassificationRule(
        Reason.MODEL_NOT_FOUND,
        {400},
        message_pattern=says(
            r"(?:this |the )?(?:requested )?(?:model )?models?/\S+ "
            r"(?:is not found|was not found|does not exist|is no longer available)",
            r"(?:this|the requested) model (?:is no longer available|does not exist)",
        ),
    ),
    ClassificationRule(
        Reason.CONTENT_BLOCKED,
        {400, 403},
        message_pattern=says(
            r"image generation failed with the following error: the prompt",
            r"(?:the|your) (?:prompt|request|input image) (?:was|has been) (?:blocked|rejected)",
            r"(?:the|your|this) prompt (?:could not be submitted|contains sensitive words)",
        ),
    ),
)

_STATUS_WORDS: Final = words(
    "CANCELLED INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS "
    "PERMISSION_DENIED RESOURCE_EXHAUSTED FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNIMPLEMENTED "
    "INTERNAL UNAVAILABLE DATA_LOSS UNAUTHENTICATED"
)


def failure_of(error: VendorError) -> ClassifiedError:
    """Classify an error of Gemini, or of a relay that serves it."""
    return classify(error, _RULES, _STATUS_WORDS)
