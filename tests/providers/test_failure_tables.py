"""Every code, phrase and status of the vendors' failure tables, one by one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

from resilient_imagen.providers.classification import ClassifiedError
from resilient_imagen.providers.error_body import VendorError
from resilient_imagen.providers.google_errors import failure_of as google_failure
from resilient_imagen.providers.google_errors import finish_reason
from resilient_imagen.providers.openai_errors import failure_of as openai_failure
from resilient_imagen.reasons import Reason

TABLES = {"google": google_failure, "openai": openai_failure}
VENDORS = pytest.mark.parametrize("vendor", TABLES)
ANOTHER_STATUS = 418
"""A status without a meaning, at which codes and phrases of other statuses do not apply."""


def look_up(
    vendor: str, status: int, body: dict[str, Any], headers: dict[str, str] | None = None
) -> ClassifiedError:
    return TABLES[vendor](VendorError.read(status, headers or {}, json.dumps(body).encode()))


def code(word: str) -> dict[str, Any]:
    return {"error": {"message": "x", "code": word}}


def phrase(message: str) -> dict[str, Any]:
    return {"error": {"message": message}}


def quota(**violation: str) -> dict[str, Any]:
    kind = "type.googleapis.com/google.rpc.QuotaFailure"
    return {"error": {"message": "x", "details": [{"@type": kind, "violations": [violation]}]}}


def cases(
    *groups: tuple[Iterable[int], Iterable[dict[str, Any]], Reason, bool],
) -> list[Any]:
    """Return one case for each body of the groups."""
    return [
        pytest.param(tuple(statuses), body, reason, account_wide, id=json.dumps(body)[11:75])
        for statuses, bodies, reason, account_wide in groups
        for body in bodies
    ]


CASES = "statuses", "body", "reason", "account_wide"


def look_up_all(
    vendor: str, statuses: Iterable[int], body: dict[str, Any]
) -> dict[int, tuple[Reason, bool]]:
    """Return the reason of the body at each status, and whether it is account-wide."""
    found = {status: look_up(vendor, status, body) for status in statuses}
    return {status: (failure.reason, failure.account_wide) for status, failure in found.items()}


def codes(words: str) -> list[dict[str, Any]]:
    return [code(word) for word in words.split()]


def phrases(*messages: str) -> list[dict[str, Any]]:
    return [phrase(message) for message in messages]


RELAYS = 500, 502, 503, 599
ANY_STATUS = 200, 400, 403, 429, 499, *RELAYS

BY_WORD = cases(
    (
        ANY_STATUS,
        codes(
            "moderation_blocked content_policy_violation content_filter contentFilter "
            "ResponsibleAIPolicyViolation prohibited_content image_safety"
        ),
        Reason.CONTENT_BLOCKED,
        False,
    ),
    (
        ANY_STATUS,
        codes(
            "insufficient_quota billing_hard_limit_reached billing_not_active billing_disabled "
            "insufficient_user_quota insufficient_credits pre_consume_token_quota_failed"
        ),
        Reason.QUOTA_EXHAUSTED,
        True,
    ),
    ((200, 400, *RELAYS), codes("model_not_found"), Reason.MODEL_NOT_FOUND, False),
)


@VENDORS
@pytest.mark.parametrize(CASES, BY_WORD)
def test_codes_that_every_vendor_and_relay_uses(
    vendor: str,
    statuses: tuple[int, ...],
    body: dict[str, Any],
    reason: Reason,
    account_wide: bool,
) -> None:
    """Common codes determine the reason at any status."""
    found = look_up_all(vendor, statuses, body)
    assert found == dict.fromkeys(statuses, (reason, account_wide))


RELAYED = cases(
    (
        RELAYS,
        phrases(
            "No available compatible accounts",
            "No available channel for model x",
            "当前分组 default 下对于模型 x 无可用渠道",
        ),
        Reason.MODEL_NOT_FOUND,
        False,
    ),
    (RELAYS, phrases("Upstream access forbidden"), Reason.FORBIDDEN, False),
    (
        RELAYS,
        phrases("No available accounts with quota", "No account with available quota"),
        Reason.QUOTA_EXHAUSTED,
        False,
    ),
)


@VENDORS
@pytest.mark.parametrize(CASES, RELAYED)
def test_phrases_of_relays_for_final_failures(
    vendor: str,
    statuses: tuple[int, ...],
    body: dict[str, Any],
    reason: Reason,
    account_wide: bool,
) -> None:
    """A relay's phrase for a final failure takes precedence over its 5xx status."""
    found = look_up_all(vendor, statuses, body)
    assert found == dict.fromkeys(statuses, (reason, account_wide))
    assert look_up(vendor, ANOTHER_STATUS, body).reason is Reason.INVALID_REQUEST


STATUSES = {
    401: (Reason.UNAUTHENTICATED, True, None),
    402: (Reason.QUOTA_EXHAUSTED, True, "PAYMENT_REQUIRED"),
    403: (Reason.FORBIDDEN, False, "PERMISSION_DENIED"),
    404: (Reason.MODEL_NOT_FOUND, False, "NOT_FOUND"),
    405: (Reason.MODEL_NOT_FOUND, False, None),
    407: (Reason.CONNECTION, False, None),
    408: (Reason.TIMEOUT, False, None),
    409: (Reason.SERVER_ERROR, False, "ABORTED"),
    410: (Reason.MODEL_NOT_FOUND, False, None),
    421: (Reason.SERVER_ERROR, False, None),
    423: (Reason.SERVER_ERROR, False, None),
    424: (Reason.SERVER_ERROR, False, None),
    425: (Reason.SERVER_ERROR, False, None),
    429: (Reason.RATE_LIMITED, False, "RESOURCE_EXHAUSTED"),
    451: (Reason.FORBIDDEN, False, None),
    499: (Reason.OVERLOADED, False, "CANCELLED"),
    500: (Reason.SERVER_ERROR, False, "INTERNAL"),
    501: (Reason.SERVER_ERROR, False, "UNIMPLEMENTED"),
    502: (Reason.SERVER_ERROR, False, "BAD_GATEWAY"),
    503: (Reason.OVERLOADED, False, "UNAVAILABLE"),
    504: (Reason.TIMEOUT, False, None),
    520: (Reason.SERVER_ERROR, False, "INTERNAL"),
    524: (Reason.TIMEOUT, False, None),
    529: (Reason.OVERLOADED, False, "UNAVAILABLE"),
    598: (Reason.TIMEOUT, False, None),
    599: (Reason.TIMEOUT, False, None),
    400: (Reason.INVALID_REQUEST, False, "INVALID_ARGUMENT"),
    413: (Reason.INVALID_REQUEST, False, "PAYLOAD_TOO_LARGE"),
    422: (Reason.INVALID_REQUEST, False, "INVALID_ARGUMENT"),
    200: (Reason.SERVER_ERROR, False, None),
    302: (Reason.INVALID_RESPONSE, False, None),
}


@VENDORS
@pytest.mark.parametrize("status", STATUSES)
def test_a_status_has_a_reason_and_a_word(vendor: str, status: int) -> None:
    """The status applies if the body has neither a code nor a known phrase."""
    failure = look_up(vendor, status, phrase("x"))
    found = failure.reason, failure.account_wide, failure.status_word
    assert found == STATUSES[status]


WAITS = {400: False, 401: False, 404: False, 429: True, 500: True, 502: True, 503: True, 504: True}


@VENDORS
@pytest.mark.parametrize("status", WAITS)
def test_a_hint_applies_to_temporary_failures(vendor: str, status: int) -> None:
    """Hints count for overload, rate limits, server errors and timeouts."""
    failure = look_up(vendor, status, phrase("x"), {"retry-after": "7"})
    assert failure.retry_after == (7 if WAITS[status] else None)


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ("UNAVAILABLE", 503),
        ("service_unavailable", 503),
        ("overloaded_error", 529),
        ("RESOURCE_EXHAUSTED", 429),
        ("rate_limit_exceeded", 429),
        ("rate_limit_error", 429),
        ("UNAUTHENTICATED", 401),
        ("PERMISSION_DENIED", 403),
        ("DEADLINE_EXCEEDED", 504),
        ("INVALID_ARGUMENT", 400),
        ("model_not_found", 404),
        ("x", 200),
    ],
)
def test_an_error_in_a_200_has_the_status_of_its_code(word: str, status: int) -> None:
    """Of several codes, the one with the highest status applies."""
    assert VendorError.read(200, {}, json.dumps(code(word)).encode()).status == status
    both = {"error": {"code": word, "type": "rate_limit_error"}}
    assert VendorError.read(200, {}, json.dumps(both).encode()).status == max(status, 429)


def test_a_hint_beside_a_quota_of_zero_is_ignored() -> None:
    """A hint with a quota of zero is ignored; one with a daily quota counts if it is long."""
    hint = {"retry-after": "7200"}
    assert look_up("google", 429, quota(quotaValue="0"), hint).retry_after is None
    assert look_up("google", 429, quota(quotaId="RequestsPerDay"), hint).retry_after == 7200


GOOGLE = cases(
    ((200, 429), [quota(quotaValue="0")], Reason.QUOTA_EXHAUSTED, False),
    (
        (200, 429),
        [
            quota(quotaId="RequestsPerDay"),
            quota(quotaMetric="x/requests_per_day"),
            quota(quota_limit="RequestsPerDay"),
            quota(quota_metric="x/daily_requests"),
            quota(description="Daily requests"),
            quota(quota_unit="1/d/{project}"),
        ],
        Reason.QUOTA_EXHAUSTED,
        False,
    ),
    (
        (200, 429),
        codes("QUOTA_EXHAUSTED dailyLimitExceeded"),
        Reason.QUOTA_EXHAUSTED,
        False,
    ),
    ((429,), codes("MODEL_CAPACITY_EXHAUSTED CAPACITY_EXHAUSTED"), Reason.OVERLOADED, False),
    (
        (429,),
        phrases(
            "Your prepayment credits are depleted.",
            "Your project has exceeded its monthly spending cap.",
            "Monthly spend limit reached.",
        ),
        Reason.QUOTA_EXHAUSTED,
        True,
    ),
    (
        (429,),
        phrases(
            "Resource exhausted. Please try again later.",
            "No capacity available for model x.",
            "The model is overloaded.",
        ),
        Reason.OVERLOADED,
        False,
    ),
    (
        (400, 403),
        [
            *codes("API_KEY_INVALID API_KEY_EXPIRED API_KEY_NOT_FOUND"),
            *phrases(
                "API key not valid.",
                "Your API key was reported as leaked.",
                "Method doesn't allow unregistered callers.",
            ),
        ],
        Reason.UNAUTHENTICATED,
        True,
    ),
    (
        (403,),
        codes(
            "SERVICE_DISABLED CONSUMER_SUSPENDED CONSUMER_INVALID API_KEY_SERVICE_BLOCKED "
            "API_KEY_HTTP_REFERRER_BLOCKED API_KEY_IP_ADDRESS_BLOCKED USER_PROJECT_DENIED"
        ),
        Reason.FORBIDDEN,
        True,
    ),
    (
        (400, 403),
        phrases(
            "User location is not supported for the API use.",
            "Gemini API free tier is not available in your country.",
            "Generative Language API has not been used in project x before.",
            "Vertex AI API has not been used in project x before.",
            "Agent Platform API has not been used in project x before.",
            "Permission 'x' denied on resource 'y'.",
            "Unsupported region x.",
            "The location x is not supported.",
        ),
        Reason.FORBIDDEN,
        True,
    ),
    (
        (400, 403),
        phrases(
            "This API method requires billing to be enabled.",
            "Imagen API is only accessible to billed users at this time.",
            "Billing account for project x is disabled.",
        ),
        Reason.QUOTA_EXHAUSTED,
        True,
    ),
    (
        (400,),
        phrases(
            "models/x is not found for API version v1beta.",
            "This model does not exist.",
        ),
        Reason.MODEL_NOT_FOUND,
        False,
    ),
    (
        (400, 403),
        phrases(
            "Image generation failed with the following error: The prompt is too daring.",
            "Your prompt was blocked.",
            "The prompt could not be submitted.",
        ),
        Reason.CONTENT_BLOCKED,
        False,
    ),
)


@pytest.mark.parametrize(CASES, GOOGLE)
def test_codes_and_phrases_of_google(
    statuses: tuple[int, ...], body: dict[str, Any], reason: Reason, account_wide: bool
) -> None:
    """Each code and phrase applies at its statuses only."""
    found = look_up_all("google", statuses, body)
    assert found == dict.fromkeys(statuses, (reason, account_wide))
    assert look_up("google", ANOTHER_STATUS, body).reason is Reason.INVALID_REQUEST


OPENAI = cases(
    (
        (429,),
        phrases(
            "Rate limit reached for x on images per min: Limit 0, Used 0.",
            "Rate limit reached for x on images per day.",
        ),
        Reason.QUOTA_EXHAUSTED,
        False,
    ),
    (
        (400, 403, 429),
        phrases(
            "You exceeded your current quota.",
            "Your account is not active.",
            "Billing hard limit has been reached.",
            "Your organization x has reached its monthly usage limit.",
        ),
        Reason.QUOTA_EXHAUSTED,
        True,
    ),
    (
        (429,),
        [
            *codes("engine_overloaded model_overloaded server_overloaded overloaded_error"),
            *phrases(
                "That model is currently overloaded.",
                "Upstream resources are temporarily busy.",
                "No available capacity.",
                "当前分组上游负载已饱和",
            ),
        ],
        Reason.OVERLOADED,
        False,
    ),
    (
        (400,),
        [*codes("invalid_api_key"), *phrases("Incorrect API key provided: x.")],
        Reason.UNAUTHENTICATED,
        True,
    ),
    (
        (400, 403),
        [
            *codes("unsupported_country_region_territory"),
            *phrases("Country, region, or territory not supported"),
        ],
        Reason.FORBIDDEN,
        True,
    ),
    ((400,), phrases("Your organization must be verified."), Reason.FORBIDDEN, False),
    (
        (401, 403),
        phrases(
            "The principal x lacks the required data action y.",
            "Access denied due to Virtual Network/Firewall rules.",
            "Public access is disabled.",
        ),
        Reason.FORBIDDEN,
        True,
    ),
    (
        (400, 403, 422),
        phrases(
            "Your request was rejected by the safety system.",
            "This image is not allowed by our safety system.",
            "This request has been blocked by our content filter.",
            "The response was filtered due to the prompt triggering a policy.",
        ),
        Reason.CONTENT_BLOCKED,
        False,
    ),
    (
        (400,),
        [
            {"error": {"message": "x", "param": "model"}},
            *phrases("The requested model does not exist."),
        ],
        Reason.MODEL_NOT_FOUND,
        False,
    ),
)


@pytest.mark.parametrize(CASES, OPENAI)
def test_codes_and_phrases_of_openai(
    statuses: tuple[int, ...], body: dict[str, Any], reason: Reason, account_wide: bool
) -> None:
    """Each code and phrase applies at its statuses only."""
    found = look_up_all("openai", statuses, body)
    assert found == dict.fromkeys(statuses, (reason, account_wide))
    assert look_up("openai", ANOTHER_STATUS, body).reason is Reason.INVALID_REQUEST


def test_a_code_of_a_rate_limit_takes_precedence_over_a_quota_phrase() -> None:
    """OpenAI's code for a rate limit takes precedence over a phrase about a quota."""
    body = {"error": {"message": "You exceeded your current quota.", "code": "rate_limit_exceeded"}}
    assert look_up("openai", 429, body).reason is Reason.RATE_LIMITED
    assert look_up("openai", 400, body).reason is Reason.QUOTA_EXHAUSTED


def test_a_retry_info_makes_a_rate_limit_of_words_about_the_load() -> None:
    """With RetryInfo, a message about load is a rate limit."""
    kind = "type.googleapis.com/google.rpc.RetryInfo"
    details = [{"@type": kind, "retryDelay": "3s"}]
    body = {"error": {"message": "The model is overloaded.", "details": details}}
    assert look_up("google", 429, body).reason is Reason.RATE_LIMITED
    body["error"]["message"] = "API key not valid."
    assert look_up("google", 400, body).reason is Reason.UNAUTHENTICATED


STATUS_WORDS = {
    "google": "CANCELLED INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS "
    "PERMISSION_DENIED RESOURCE_EXHAUSTED FAILED_PRECONDITION ABORTED OUT_OF_RANGE "
    "UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS UNAUTHENTICATED",
    "openai": "insufficient_quota billing_hard_limit_reached billing_not_active "
    "rate_limit_exceeded invalid_api_key unsupported_country_region_territory "
    "moderation_blocked content_policy_violation invalid_image_file invalid_value "
    "unknown_parameter INVALID_ARGUMENT FAILED_PRECONDITION PERMISSION_DENIED "
    "NOT_FOUND RESOURCE_EXHAUSTED INTERNAL UNAVAILABLE DEADLINE_EXCEEDED UNAUTHENTICATED",
}


@pytest.mark.parametrize(
    ("vendor", "word"),
    [(vendor, word) for vendor, words in STATUS_WORDS.items() for word in words.split()],
)
def test_a_vendors_own_status_word_is_kept(vendor: str, word: str) -> None:
    """A known status word of the vendor is part of the error message."""
    assert look_up(vendor, ANOTHER_STATUS, code(word)).status_word == word


REFUSALS = (
    "SAFETY IMAGE_SAFETY PROHIBITED_CONTENT IMAGE_PROHIBITED_CONTENT RECITATION IMAGE_RECITATION "
    "BLOCKLIST SPII MODEL_ARMOR JAILBREAK ESCALATION"
)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (REFUSALS, Reason.CONTENT_BLOCKED),
        ("PUP_LIMITED_DISABLED", Reason.FORBIDDEN),
        ("STOP NO_IMAGE IMAGE_OTHER SOMETHING_NEW", Reason.NO_IMAGE),
    ],
)
def test_finish_reasons_of_google(words: str, reason: Reason) -> None:
    """Known refusals are content_blocked; other finish reasons are no_image."""
    assert {finish_reason(word) for word in words.split()} == {reason}
