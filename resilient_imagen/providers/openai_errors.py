"""Classification rules for the errors of OpenAI's image API and of relays with that API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from resilient_imagen.providers.classification import (
    ClassificationRule,
    ClassifiedError,
    classify,
    says,
    words,
)
from resilient_imagen.reasons import Reason

if TYPE_CHECKING:
    from resilient_imagen.providers.error_body import VendorError

__all__ = ["failure_of"]


def _about_the_model(error: VendorError) -> bool:
    return error.param == "model"


def _names_no_parameter(error: VendorError) -> bool:
    return not error.param


_RULES: Final = (
    # A limit of 0, or per day: the wait that the message suggests does not help.
    ClassificationRule(
        Reason.QUOTA_EXHAUSTED,
        {429},
        message_pattern=says(
            r"rate limit (?:reached|exceeded)[^\n]*?\blimit:? 0(?!\d|\.\d)",
            r"rate limit (?:reached|exceeded)[^\n:]*\b(?:per (?:day|month)\b|[rti]pd\b)",
        ),
    ),
    ClassificationRule(Reason.RATE_LIMITED, {429}, words("rate_limit_exceeded")),
    ClassificationRule(
        Reason.QUOTA_EXHAUSTED,
        {400, 403, 429},
        message_pattern=says(
            r"you(?:'ve)? (?:have )?exceeded your current quota",
            r"your account is not active",
            r"billing hard limit has been reached",
            r"(?:your|this) (?:organization|project|account)\b[^\n]{0,60}"
            r"\b(?:spend(?:ing)?|usage|budget|monthly) (?:limit|cap)",
        ),
        account_wide=True,
    ),
    ClassificationRule(
        Reason.OVERLOADED,
        {429},
        words(
            "engine_overloaded engineoverloaded model_overloaded server_overloaded overloaded_error"
        ),
    ),
    ClassificationRule(
        Reason.OVERLOADED,
        {429},
        message_pattern=says(
            r"(?:that|the|this) (?:model|engine|server) is (?:currently |temporarily )?"
            r"(?:overloaded|at capacity|experiencing high demand)",
            r"upstream resources are temporarily busy",
            r"no (?:available )?capacity",
            "当前分组上游负载已饱和",
        ),
    ),
    # Status 400 also covers wrong keys, unsupported countries and refused content.
    ClassificationRule(Reason.UNAUTHENTICATED, {400}, words("invalid_api_key"), account_wide=True),
    ClassificationRule(
        Reason.UNAUTHENTICATED,
        {400},
        message_pattern=says(r"incorrect api key provided"),
        account_wide=True,
    ),
    ClassificationRule(
        Reason.FORBIDDEN,
        {400, 403},
        words("unsupported_country_region_territory"),
        account_wide=True,
    ),
    ClassificationRule(
        Reason.FORBIDDEN,
        {400, 403},
        message_pattern=says(r"country, region, or territory not supported"),
        account_wide=True,
    ),
    ClassificationRule(
        Reason.FORBIDDEN, {400}, message_pattern=says(r"your organization must be verified")
    ),
    # Azure answers 401 to an identity without a role, and 403 where only a private network may ask.
    ClassificationRule(
        Reason.FORBIDDEN,
        {401, 403},
        message_pattern=says(
            r"the principal (?:\S+ )?lacks the required data action",
            r"access denied due to virtual network",
            r"public access is disabled",
        ),
        account_wide=True,
    ),
    ClassificationRule(
        Reason.CONTENT_BLOCKED,
        {400, 403, 422},
        message_pattern=says(
            r"your (?:request|prompt|image|task)s? (?:was|were|failed)\b[^\n]{0,40}\bsafety system",
            r"[\w ]{0,60}\bnot allowed by our safety system",
            r"this (?:request|prompt) (?:has been|was) blocked by our content filter",
            r"the response was filtered due to the prompt triggering",
        ),
    ),
    # A retired image model gives a 400 with the same type as a refusal.
    ClassificationRule(Reason.MODEL_NOT_FOUND, {400}, predicate=_about_the_model),
    ClassificationRule(
        Reason.MODEL_NOT_FOUND,
        {400},
        message_pattern=says(
            r"(?:the )?(?:requested )?model:?(?: (?:id|name))?(?: [^\s,;]+)? (?:(?:is|was) )?"
            r"(?:does not exist|has been (?:deprecated|retired|removed|shut down)"
            r"|no longer available|not found)"
        ),
        predicate=_names_no_parameter,
    ),
)

# These words contain no reason: an exception's text must not contain reason words.
_STATUS_WORDS: Final = words(
    "insufficient_quota billing_hard_limit_reached billing_not_active rate_limit_exceeded "
    "invalid_api_key unsupported_country_region_territory moderation_blocked "
    "content_policy_violation invalid_image_file invalid_value unknown_parameter "
    "INVALID_ARGUMENT FAILED_PRECONDITION PERMISSION_DENIED NOT_FOUND RESOURCE_EXHAUSTED "
    "INTERNAL UNAVAILABLE DEADLINE_EXCEEDED UNAUTHENTICATED"
)


def failure_of(error: VendorError) -> ClassifiedError:
    """Classify an error of OpenAI, or of a relay with its API."""
    return classify(error, _RULES, _STATUS_WORDS)
