"""Classification of failures by family, wrapping and echo."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import ssl
from collections.abc import Callable
from typing import Any

import anyio
import google.genai.errors
import httpx2
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_imagen.providers.classification import (
    ClassificationRule,
    ClassifiedError,
    classify,
    says,
    words,
)
from resilient_imagen.providers.error_body import VendorError
from resilient_imagen.providers.google_errors import failure_of as google_failure
from resilient_imagen.providers.openai_errors import failure_of as openai_failure
from resilient_imagen.providers.transport_errors import (
    description,
    never_sent,
    transport_reason,
)
from resilient_imagen.reasons import Reason

TABLES = {"google": google_failure, "openai": openai_failure}
VENDORS = pytest.mark.parametrize("vendor", TABLES)


def look_up(
    vendor: str, status: int, body: Any, prompt: str = "", headers: dict[str, str] | None = None
) -> ClassifiedError:
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return TABLES[vendor](VendorError.read(status, headers or {}, data, prompt))


def error(message: str = "", **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, **fields}}


def info(reason: str, **metadata: str) -> dict[str, Any]:
    kind = "type.googleapis.com/google.rpc.ErrorInfo"
    return {"@type": kind, "reason": reason, "metadata": metadata}


def quota(*violations: dict[str, Any]) -> dict[str, Any]:
    kind = "type.googleapis.com/google.rpc.QuotaFailure"
    return {"@type": kind, "violations": list(violations)}


def retry(delay: str) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}


BY_STATUS = {
    **dict.fromkeys((400, 413, 414, 415, 422, 431), Reason.INVALID_REQUEST),
    401: Reason.UNAUTHENTICATED,
    402: Reason.QUOTA_EXHAUSTED,
    **dict.fromkeys((403, 451), Reason.FORBIDDEN),
    **dict.fromkeys((404, 405, 410), Reason.MODEL_NOT_FOUND),
    **dict.fromkeys((408, 504, 524, 598), Reason.TIMEOUT),
    409: Reason.SERVER_ERROR,
    429: Reason.RATE_LIMITED,
    **dict.fromkeys((499, 503, 529), Reason.OVERLOADED),
    **dict.fromkeys((500, 501, 502, 505, 520, 521, 522, 523, 525, 526, 530), Reason.SERVER_ERROR),
    **dict.fromkeys((301, 302, 304, 307, 308), Reason.INVALID_RESPONSE),
}
WITHOUT_WORDS = ("", "{}", "null", "[]", '""', "<html><title>x</title></html>", '{"error": null}')


@VENDORS
@pytest.mark.parametrize("status", BY_STATUS)
def test_the_status_decides_without_a_code_or_message(vendor: str, status: int) -> None:
    """Every status has a reason if the body has no code and no known message."""
    found = {body: look_up(vendor, status, body).reason for body in WITHOUT_WORDS}
    assert found == dict.fromkeys(WITHOUT_WORDS, BY_STATUS[status])


GOOGLE = [
    (400, error("API key expired. Please renew the API key."), Reason.UNAUTHENTICATED, True),
    (400, error("API Key not found. Please pass a valid API key."), Reason.UNAUTHENTICATED, True),
    (400, error("x", details=[info("API_KEY_INVALID")]), Reason.UNAUTHENTICATED, True),
    (
        400,
        error("User location is not supported for the API use.", status="FAILED_PRECONDITION"),
        Reason.FORBIDDEN,
        True,
    ),
    (
        400,
        error(
            "Gemini API free tier is not available in your country. Please enable billing on your "
            "project in Google AI Studio."
        ),
        Reason.FORBIDDEN,
        True,
    ),
    (
        400,
        error("Imagen API is only accessible to billed users at this time."),
        Reason.QUOTA_EXHAUSTED,
        True,
    ),
    (
        400,
        error(
            "Image generation failed with the following error: The prompt could not be submitted."
        ),
        Reason.CONTENT_BLOCKED,
        False,
    ),
    (
        400,
        error("models/gemini-1-image is not found for API version v1, or is not supported"),
        Reason.MODEL_NOT_FOUND,
        False,
    ),
    (400, error("Invalid value at 'generation_config'"), Reason.INVALID_REQUEST, False),
    (400, error("This model only supports text output."), Reason.INVALID_REQUEST, False),
    (
        403,
        error("Your API key was reported as leaked. Please use another API key."),
        Reason.UNAUTHENTICATED,
        True,
    ),
    (
        403,
        error("Method doesn't allow unregistered callers (callers without identity)."),
        Reason.UNAUTHENTICATED,
        True,
    ),
    (403, error("x", details=[info("SERVICE_DISABLED")]), Reason.FORBIDDEN, True),
    (403, error("x", details=[info("API_KEY_HTTP_REFERRER_BLOCKED")]), Reason.FORBIDDEN, True),
    (403, error("x", details=[info("BILLING_DISABLED")]), Reason.QUOTA_EXHAUSTED, True),
    (403, error("The caller does not have permission"), Reason.FORBIDDEN, False),
    (
        429,
        error("Your project has exceeded its monthly spending cap."),
        Reason.QUOTA_EXHAUSTED,
        True,
    ),
    (
        429,
        error("x", details=[quota({"quotaId": "GenerateRequestsPerDayPerProject"})]),
        Reason.QUOTA_EXHAUSTED,
        False,
    ),
    (
        429,
        error("x", details=[quota({"quotaId": "PerMinute", "quotaValue": "0"}), retry("9s")]),
        Reason.QUOTA_EXHAUSTED,
        False,
    ),
    (
        429,
        error("x", details=[info("RATE_LIMIT_EXCEEDED", quota_limit_value="0")]),
        Reason.QUOTA_EXHAUSTED,
        False,
    ),
    (
        429,
        error("x", details=[info("RATE_LIMIT_EXCEEDED", quota_unit="1/d/{project}")]),
        Reason.QUOTA_EXHAUSTED,
        False,
    ),
    (429, error("x", details=[info("QUOTA_EXHAUSTED")]), Reason.QUOTA_EXHAUSTED, False),
    (
        429,
        error("Quota exceeded for metric: a/generate_requests_per_model_per_day, limit: 250"),
        Reason.QUOTA_EXHAUSTED,
        False,
    ),
    (429, error("x", details=[info("MODEL_CAPACITY_EXHAUSTED")]), Reason.OVERLOADED, False),
    (429, error("No capacity available for model x on the server"), Reason.OVERLOADED, False),
    (
        429,
        error("The model is overloaded. Please try again later.", details=[retry("3s")]),
        Reason.RATE_LIMITED,
        False,
    ),
    (
        429,
        error("You exceeded your current quota, please check your plan.", details=[retry("3s")]),
        Reason.RATE_LIMITED,
        False,
    ),
    (429, error("Quota exceeded for metric: a/b, limit: 0.5"), Reason.RATE_LIMITED, False),
    (429, error("Quota exceeded for metric: a/b, limit: 05"), Reason.RATE_LIMITED, False),
]


@pytest.mark.parametrize(("status", "body", "reason", "account_wide"), GOOGLE)
def test_google(status: int, body: Any, reason: Reason, account_wide: bool) -> None:
    """Structured fields and phrases distinguish the meanings of Gemini's statuses."""
    failure = look_up("google", status, body)
    assert (failure.reason, failure.account_wide) == (reason, account_wide)


OPENAI = [
    (400, error("x", code="content_policy_violation"), Reason.CONTENT_BLOCKED, False),
    (400, error("x", code="contentFilter"), Reason.CONTENT_BLOCKED, False),
    (
        400,
        error("x", code="BadRequest", innererror={"code": "ResponsibleAIPolicyViolation"}),
        Reason.CONTENT_BLOCKED,
        False,
    ),
    (
        400,
        error("x", inner_error={"code": "ResponsibleAIPolicyViolation"}),
        Reason.CONTENT_BLOCKED,
        False,
    ),
    (403, error("x", errors=[{"reason": "billing_disabled"}]), Reason.QUOTA_EXHAUSTED, True),
    (
        400,
        error(
            "x",
            code="moderation_blocked",
            type="image_generation_user_error",
            moderation_details={"moderation_stage": "output", "categories": ["violence"]},
        ),
        Reason.CONTENT_BLOCKED,
        False,
    ),
    (
        400,
        error("Your request was rejected as a result of our safety system.", code=None),
        Reason.CONTENT_BLOCKED,
        False,
    ),
    (
        400,
        error("Billing hard limit has been reached", type="image_generation_user_error"),
        Reason.QUOTA_EXHAUSTED,
        True,
    ),
    (429, error("x", code="billing_not_active"), Reason.QUOTA_EXHAUSTED, True),
    (
        429,
        error("Your account is not active, please check your billing details."),
        Reason.QUOTA_EXHAUSTED,
        True,
    ),
    (
        429,
        error("Your organization org-1 has reached its monthly usage limit."),
        Reason.QUOTA_EXHAUSTED,
        True,
    ),
    (
        429,
        error(
            "Rate limit reached for gpt-image-2 in organization org-1 on images per day: Limit "
            "200, Used 200, Requested 1. Please try again in 7m12s.",
            code="rate_limit_exceeded",
        ),
        Reason.QUOTA_EXHAUSTED,
        False,
    ),
    (
        429,
        error("Rate limit reached for gpt-image-2 on input-images per min: Limit 0, Used 0."),
        Reason.QUOTA_EXHAUSTED,
        False,
    ),
    (
        429,
        error("Rate limit reached for x on images per min: Limit 5, Used 5. Limits per day: 9"),
        Reason.RATE_LIMITED,
        False,
    ),
    (429, error("That model is currently overloaded with other requests."), Reason.OVERLOADED, 0),
    (429, error("x", type="engine_overloaded"), Reason.OVERLOADED, False),
    (503, error("Slow down", code="slow_down"), Reason.OVERLOADED, False),
    (401, error("x", code="account_deactivated"), Reason.UNAUTHENTICATED, True),
    (
        403,
        error("x", code="unsupported_country_region_territory"),
        Reason.FORBIDDEN,
        True,
    ),
    (
        403,
        error("Your organization must be verified to use the model `gpt-image-2`."),
        Reason.FORBIDDEN,
        False,
    ),
    (400, error("Invalid value: 'x'. Supported: 'y'.", param="model"), Reason.MODEL_NOT_FOUND, 0),
    (400, error("x", code="model_not_found"), Reason.MODEL_NOT_FOUND, False),
    (
        400,
        error("Invalid size '1x1'.", param="size", code="invalid_value"),
        Reason.INVALID_REQUEST,
        False,
    ),
    (400, error("Unknown parameter: 'response_format'."), Reason.INVALID_REQUEST, False),
    (400, error("The image is too large.", code="image_too_large"), Reason.INVALID_REQUEST, False),
    (403, error("用户额度不足", code="insufficient_user_quota"), Reason.QUOTA_EXHAUSTED, True),
    (
        503,
        error("No available channel for model gpt-image-2 under group default"),
        Reason.MODEL_NOT_FOUND,
        False,
    ),
    (503, error("No available accounts with quota"), Reason.QUOTA_EXHAUSTED, False),
    (400, error("The model `gpt-image-0` does not exist."), Reason.MODEL_NOT_FOUND, False),
    (400, error("The model does not exist.", param="mask"), Reason.INVALID_REQUEST, False),
    (400, error("x", code="[invalid_api_key]"), Reason.UNAUTHENTICATED, True),
    (400, {"error": "invalid_api_key", "message": "x"}, Reason.UNAUTHENTICATED, True),
]


@pytest.mark.parametrize(("status", "body", "reason", "account_wide"), OPENAI)
def test_openai(status: int, body: Any, reason: Reason, account_wide: bool) -> None:
    """Structured fields and phrases distinguish the meanings of OpenAI's and relays' statuses."""
    failure = look_up("openai", status, body)
    assert (failure.reason, failure.account_wide) == (reason, bool(account_wide))


BLOCKED = error("gone wrong", code="moderation_blocked", status="RESOURCE_EXHAUSTED")
WRAPPED = {
    "object": BLOCKED,
    "list": [BLOCKED],
    "bare": BLOCKED["error"],
    "list of bare ones": [BLOCKED["error"]],
    "lists in lists": [{"error": [{"error": [BLOCKED["error"]]}]}],
    "detail": {"detail": BLOCKED["error"]},
    "string": json.dumps(json.dumps(BLOCKED)),
    "three deep": json.dumps(json.dumps(json.dumps(BLOCKED))),
    "in the message": error(json.dumps(BLOCKED), code=400),
    "in the message, twice": {"message": json.dumps({"message": json.dumps(BLOCKED["error"])})},
    "in the error": {"error": json.dumps(BLOCKED)},
    "in the error, twice": {"error": json.dumps({"error": json.dumps(BLOCKED)})},
    "before a page": json.dumps(BLOCKED) + "\n<html><title>Blocked</title></html>",
    "event": f"event: error\ndata: {json.dumps(BLOCKED)}\n\n",
    "event, bare": f"event: error\ndata: {json.dumps(BLOCKED['error'])}\n\n",
    "event, a code": 'data: {"error": "moderation_blocked", "detail": "gone wrong"}',
    "byte order mark": "\ufeff" + json.dumps(BLOCKED),
    "byte order mark, bare": "\ufeff" + json.dumps(BLOCKED["error"]),
    "after words": error(f"upstream error: {json.dumps(BLOCKED)}"),
    "after a page": "<html><script>let a = {b: 1}</script></html>\n" + json.dumps(BLOCKED),
    "after one letter": "-" + json.dumps(BLOCKED),
    "in a brace": "-{" + json.dumps(BLOCKED) + "}",
    "after words, with a null": f"upstream error: {json.dumps({**BLOCKED, 'data': None})}",
    "as Python prints it, bare": str(BLOCKED),
    "as Python prints it": f"Error code: 400 - {BLOCKED}",
    "as Python prints it, in a sentence": f"The upstream said {BLOCKED}, sorry",
}


@VENDORS
@pytest.mark.parametrize("body", WRAPPED.values(), ids=WRAPPED)
def test_an_error_is_found_in_any_wrapping(vendor: str, body: Any) -> None:
    """An error is classified by its code in every known wrapping, and its message is kept."""
    failure = look_up(vendor, 400, body)
    assert failure.reason is Reason.CONTENT_BLOCKED
    assert failure.message == "gone wrong"


def test_the_field_beside_a_code_is_the_message() -> None:
    """If ``error`` is a code, the field beside it is the message."""
    failure = look_up("openai", 429, {"error": "insufficient_quota", "message": "gone wrong"})
    assert (failure.reason, failure.message) == (Reason.QUOTA_EXHAUSTED, "gone wrong")


@pytest.mark.parametrize("field", ["message", "detail", "msg", "error_message"])
def test_a_relays_sentence_is_found_in_any_field(field: str) -> None:
    """A relay's message is read from several fields, of which empty ones are skipped."""
    body = {"message": "", "code": "insufficient_quota", field: "gone wrong"}
    assert look_up("openai", 429, body).message == "gone wrong"
    assert look_up("openai", 429, {"error": body}).message == "gone wrong"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: {"error": inner},
        lambda inner: {"error": [inner]},
        lambda inner: {"error": json.dumps(inner)},
        lambda inner: {"message": json.dumps(inner)},
        json.dumps,
    ],
    ids=["objects", "lists", "strings", "messages", "bare strings"],
)
def test_an_error_in_more_wrappings_than_any_relay_adds_is_not_looked_for(
    wrap: Callable[[Any], Any],
) -> None:
    """Hostile nesting costs no time: the error object is searched to a limited depth."""
    body: Any = BLOCKED
    for _ in range(9):
        body = wrap(body)
    assert look_up("openai", 400, body).reason is Reason.INVALID_REQUEST


def test_a_rule_applies_where_all_of_its_conditions_are_met() -> None:
    """The first rule with a matching status, code, phrase and predicate applies."""
    rules = (
        ClassificationRule(
            Reason.OVERLOADED,
            {429},
            words("busy crowded"),
            says("come back", "no room"),
            lambda complaint: complaint.param == "",
        ),
        ClassificationRule(Reason.FORBIDDEN, {429}, words("busy")),
    )

    def reason(message: str, code: str, status: int = 429, param: str = "") -> Reason:
        body = json.dumps(error(message, code=code, param=param)).encode()
        return classify(VendorError.read(status, {}, body), rules, ()).reason

    for message in ("Come back later", "Sorry. No room.", "Sorry.\nNo room", "* come back"):
        assert reason(message, "busy") is Reason.OVERLOADED
        assert reason(message, "crowded") is Reason.OVERLOADED
    for message in ("There is no room", "x"):
        assert reason(message, "busy") is Reason.FORBIDDEN
        assert reason(message, "crowded") is Reason.RATE_LIMITED
    assert reason("come back", "busy", param="x") is Reason.FORBIDDEN
    assert reason("come back", "busy", status=500) is Reason.SERVER_ERROR
    assert reason("come back", "x") is Reason.RATE_LIMITED


@VENDORS
@pytest.mark.parametrize(
    "sentence",
    [
        "rate limit quota exceeded 503 blocked safety",
        "Your request was rejected by the safety system",
        "You exceeded your current quota, limit: 0. The model does not exist. API key not valid",
        "retry in 30s. Quota exceeded for metric: per_day, limit: 0",
    ],
)
@pytest.mark.parametrize(
    "message",
    ["Invalid prompt: {}", "{}", "Could not read {} as a prompt. {}", "Bad value '{}'.", "A\n{}"],
)
def test_an_echoed_prompt_decides_nothing(vendor: str, sentence: str, message: str) -> None:
    """A 400 stays a bad request, whatever the echoed prompt contains."""
    body = error(message.format(sentence, sentence), code=None, type="invalid_request_error")
    assert look_up(vendor, 400, body, prompt=sentence).reason is Reason.INVALID_REQUEST


@VENDORS
@pytest.mark.parametrize("prompt", ["model not found", "retry in 9s now"])
@pytest.mark.parametrize("message", ["Cannot draw this.\n{}", "{}", "No. {}.", "Prompt: {}"])
def test_a_short_echoed_prompt_decides_nothing(vendor: str, prompt: str, message: str) -> None:
    """A short prompt that is echoed as a sentence does not affect the classification."""
    failure = look_up(vendor, 400, error(message.format(prompt)), prompt=prompt)
    assert failure.reason is Reason.INVALID_REQUEST


@VENDORS
@pytest.mark.parametrize(
    "prompt",
    [
        "The clock says retry in 10 hours, said the knight",
        'a sign that reads {"error": {"code": "insufficient_quota"}} in neon',
    ],
)
@pytest.mark.parametrize("message", ["Too many requests for: {}", "{}", "<p>{}</p>"])
def test_an_echoed_prompt_sets_no_hint_and_no_code(vendor: str, prompt: str, message: str) -> None:
    """An echoed prompt sets neither the retry hint nor a code."""
    failure = look_up(vendor, 429, error(message.format(prompt)), prompt=prompt)
    assert (failure.reason, failure.retry_after) == (Reason.RATE_LIMITED, None)


@VENDORS
@pytest.mark.parametrize("prompt", ["moderation_blocked", '{"error"'])
def test_a_prompt_that_equals_a_code_does_not_hide_the_code(vendor: str, prompt: str) -> None:
    """The vendor's fields count even if the prompt equals a code."""
    assert look_up(vendor, 400, BLOCKED, prompt=prompt).reason is Reason.CONTENT_BLOCKED


@pytest.mark.parametrize(
    "body",
    [
        error(
            "The model could not process your image. The mask was not found.",
            param="mask",
            code="invalid_value",
        ),
        error("The model gpt-image-2 only supports sizes listed; size '1x1' not found."),
        error("Model input image file 3 not found in upload.", code="invalid_image_file"),
    ],
)
def test_a_missing_object_other_than_the_model_is_a_bad_request(body: Any) -> None:
    """A 400 about something else that was not found is not reported as a missing model."""
    assert look_up("openai", 400, body).reason is Reason.INVALID_REQUEST


@VENDORS
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("moderation_blocked", Reason.CONTENT_BLOCKED),
        ("insufficient_quota", Reason.QUOTA_EXHAUSTED),
    ],
)
def test_a_relays_500_is_classified_by_its_code(vendor: str, code: str, reason: Reason) -> None:
    """A refusal or an exhausted account with a 500 is classified by its code."""
    assert look_up(vendor, 500, error("x", code=code)).reason is reason


def test_a_hint_with_a_quota_of_zero_is_ignored() -> None:
    """A quota of zero does not recover, so its hint is ignored."""
    body = error("x", status="RESOURCE_EXHAUSTED", details=[quota({"quotaValue": "0"})])
    assert look_up("google", 429, body, headers={"retry-after": "72000"}).retry_after is None
    daily = [quota({"quotaId": "GenerateRequestsPerDayPerProjectPerModel"}), retry("47s")]
    assert look_up("google", 429, error("x", details=daily)).retry_after is None
    daily[1] = retry("40000s")
    assert look_up("google", 429, error("x", details=daily)).retry_after == 40_000


@VENDORS
@pytest.mark.parametrize(
    "message",
    [
        "See https://example.com/429/quota/limit: 0 for more",
        "The file `429-insufficient_quota-503.png` is broken",
        "Value 'your request was rejected by the safety system' is not a size",
        "Request 503429404 failed at 401:403",
    ],
)
def test_digits_and_quoted_words_decide_nothing(vendor: str, message: str) -> None:
    """Addresses, names and numbers in a message do not affect the classification."""
    assert look_up(vendor, 400, error(message)).reason is Reason.INVALID_REQUEST


@VENDORS
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (error("x", code=503), Reason.OVERLOADED),
        (error("x", code="429"), Reason.RATE_LIMITED),
        (error("x", code=401), Reason.UNAUTHENTICATED),
        (error("x", code="insufficient_quota"), Reason.QUOTA_EXHAUSTED),
        (error("x", code="not_found"), Reason.SERVER_ERROR),
        (error("x", code=5000), Reason.SERVER_ERROR),
        (error("x", code=302), Reason.SERVER_ERROR),
        (error("x", code="4_9"), Reason.SERVER_ERROR),
        (error("x", code="٤٢٩"), Reason.SERVER_ERROR),
        (error("x", status="UNAVAILABLE"), Reason.OVERLOADED),
        (error("x", status="RESOURCE_EXHAUSTED"), Reason.RATE_LIMITED),
        (error("x", code="rate_limit_exceeded"), Reason.RATE_LIMITED),
        (error("x", status="PERMISSION_DENIED"), Reason.FORBIDDEN),
        ("error code: 524", Reason.TIMEOUT),
    ],
)
def test_an_error_inside_a_200_is_classified_by_its_code(
    vendor: str, body: Any, reason: Reason
) -> None:
    """A code inside a 200 replaces the status; an error without a code is a server error."""
    assert look_up(vendor, 200, body).reason is reason


@VENDORS
def test_a_redirection_stays_one(vendor: str) -> None:
    """Only a 2xx response can contain an error of another status."""
    assert look_up(vendor, 300, error("x", code=503)).reason is Reason.INVALID_RESPONSE


@VENDORS
def test_implausible_hints_are_ignored(vendor: str) -> None:
    """Short hints of an exhausted quota and hints of a refusal are ignored."""
    hint = {"retry-after": "7"}
    assert look_up(vendor, 503, error("x"), headers=hint).retry_after == 7
    assert look_up(vendor, 429, error("x"), headers=hint).retry_after == 7
    assert look_up(vendor, 400, error("x"), headers=hint).retry_after is None
    spent = error("x", code="insufficient_quota")
    assert look_up(vendor, 429, spent, headers=hint).retry_after is None
    assert look_up(vendor, 429, spent, headers={"retry-after": "600"}).retry_after == 600
    assert look_up(vendor, 429, spent, headers={"retry-after": "3600"}).retry_after == 3600


@pytest.mark.parametrize(
    ("vendor", "status", "body", "word"),
    [
        ("google", 503, error("x", status="UNAVAILABLE"), "UNAVAILABLE"),
        ("google", 503, error("x", status="Service Unavailable"), "UNAVAILABLE"),
        ("google", 400, error("x", status="FAILED_PRECONDITION"), "FAILED_PRECONDITION"),
        ("google", 429, "", "RESOURCE_EXHAUSTED"),
        ("openai", 429, error("x", code="insufficient_quota"), "insufficient_quota"),
        ("openai", 500, error("x", type="server_error"), "INTERNAL"),
        ("openai", 404, error("x", code="model_not_found"), "NOT_FOUND"),
        ("openai", 502, "<html>", "BAD_GATEWAY"),
        ("openai", 418, error("x", code="I am a prompt"), None),
        ("openai", 401, "", None),
        ("google", 504, "", None),
        ("google", 504, error("x", status="DEADLINE_EXCEEDED"), "DEADLINE_EXCEEDED"),
    ],
)
def test_status_words_are_of_a_fixed_vocabulary(
    vendor: str, status: int, body: Any, word: str | None
) -> None:
    """The status word is the vendor's if known, else that of the status."""
    assert look_up(vendor, status, body).status_word == word


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["error", "message", "code", "type", "status", "details", "errors", "reason",
                 "param", "violations", "metadata", "@type", "retryDelay", "quotaId", "detail"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)  # fmt: skip
HEADERS = st.dictionaries(
    st.sampled_from(["retry-after", "retry-after-ms", "date"]), st.text(max_size=40)
)


@pytest.mark.no_cover
@VENDORS
@settings(max_examples=200)
@given(status=st.integers(200, 599), body=JSON, headers=HEADERS, prompt=st.text(max_size=40))
def test_any_json_gets_a_reason(
    vendor: str, status: int, body: Any, headers: dict[str, str], prompt: str
) -> None:
    """Any JSON value gives a reason, and hints stay within bounds."""
    failure = look_up(vendor, status, body, prompt, headers)
    assert isinstance(failure.reason, Reason)
    assert failure.retry_after is None or 0 < failure.retry_after <= 86_400


@VENDORS
@settings(max_examples=200)
@given(status=st.integers(200, 599), body=st.binary(max_size=200))
def test_any_bytes_get_a_reason(vendor: str, status: int, body: bytes) -> None:
    """Any bytes give a reason."""
    assert isinstance(TABLES[vendor](VendorError.read(status, {}, body)).reason, Reason)


@VENDORS
@pytest.mark.parametrize("start", ["[", '{"error":', '"', "\\", "data: [", "a-", "1h"])
def test_hostile_bodies_take_no_time(vendor: str, start: str) -> None:
    """Half a megabyte of hostile input is classified within the test's time limit."""
    failure = look_up(vendor, 400, start * (2**19 // len(start)))
    assert failure.reason is Reason.INVALID_REQUEST


REQUEST = httpx2.Request("POST", "http://127.0.0.1")


def _subclasses(kind: type[BaseException]) -> set[type[BaseException]]:
    return {kind}.union(*(_subclasses(child) for child in kind.__subclasses__()))


LOCAL = {httpx2.PoolTimeout, httpx2.LocalProtocolError, httpx2.UnsupportedProtocol}


@pytest.mark.parametrize("kind", sorted(_subclasses(httpx2.RequestError), key=str), ids=str)
def test_every_transport_exception_is_classified(kind: type[httpx2.RequestError]) -> None:
    """Each httpx2 request error has a reason or is explicitly a local failure."""
    reason = transport_reason(kind("x"))
    if kind in LOCAL:
        assert reason is None
    else:
        assert reason in {Reason.CONNECTION, Reason.TIMEOUT, Reason.INVALID_RESPONSE}


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        (httpx2.ReadTimeout("x"), Reason.TIMEOUT),
        (httpx2.ConnectTimeout("x"), Reason.CONNECTION),
        (httpx2.PoolTimeout("x"), None),
        (httpx2.ReadError("x"), Reason.CONNECTION),
        (ssl.SSLError("x"), Reason.CONNECTION),
        (anyio.EndOfStream(), Reason.CONNECTION),
        (ConnectionResetError("x"), Reason.CONNECTION),
        (RuntimeError("Event loop is closed"), None),
        (ValueError("x"), None),
    ],
)
def test_a_wrapped_exception_counts_as_its_cause(
    cause: BaseException, reason: Reason | None
) -> None:
    """An httpx2 exception has the same reason if an SDK wraps it."""
    wrapped: Exception = openai.APIConnectionError(request=REQUEST)
    wrapped.__cause__ = cause
    assert transport_reason(wrapped) is reason
    assert transport_reason(cause) is reason


def test_exhausted_local_resources_are_a_local_failure() -> None:
    """Too many open files is a local failure, although it looks like a failed connection."""
    failed = httpx2.ConnectError("All connection attempts failed")
    failed.__cause__ = ExceptionGroup("x", [OSError(errno.EMFILE, "Too many open files")])
    assert transport_reason(failed) is None


def test_sdk_exceptions_without_a_cause_are_local() -> None:
    """An SDK's exception before sending is local, not a failure of the vendor."""
    for kind in (openai.OpenAIError, google.genai.errors.UnsupportedFunctionError):
        assert transport_reason(kind("x")) is None


def caused(error: BaseException, *causes: BaseException) -> BaseException:
    """Chain the exceptions, each caused by the next."""
    link = error
    for cause in causes:
        link.__cause__ = cause
        link = cause
    return error


RESET = OSError(errno.ECONNRESET, "words that a server chose")
RESET_WORDS = f"[Errno {errno.ECONNRESET}] {os.strerror(errno.ECONNRESET)}"
NO_NAME = socket.gaierror(socket.EAI_NONAME, "no such name")
BAD_CERTIFICATE = ssl.SSLError(1, "bad certificate")


@pytest.mark.parametrize(
    ("failed", "words"),
    [
        (httpx2.ConnectError("All attempts failed"), "All attempts failed"),
        (caused(httpx2.ReadError("x"), RESET), RESET_WORDS),
        (caused(httpx2.ReadError("x"), OSError("without a number")), "x"),
        (caused(httpx2.ConnectError("x"), NO_NAME, RESET), f"{NO_NAME}; {RESET_WORDS}"),
        (caused(httpx2.ConnectError("x"), BAD_CERTIFICATE), str(BAD_CERTIFICATE)),
        (caused(httpx2.ConnectError("x"), ExceptionGroup("x", [RESET, RESET])), RESET_WORDS),
        (caused(httpx2.ReadError(""), httpx2.ReadError("later")), "later"),
        (httpx2.ReadError(""), ""),
        (ValueError("x"), ""),
    ],
)
def test_a_transport_failure_is_described_by_the_system_first(
    failed: BaseException, words: str
) -> None:
    """The description has the messages of system and TLS library once, else httpx2's."""
    assert description(failed) == words


@pytest.mark.parametrize(
    ("failed", "unsent"),
    [
        (httpx2.ConnectError("x"), True),
        (httpx2.ConnectTimeout("x"), True),
        (caused(ValueError("x"), httpx2.ConnectError("x")), True),
        (httpx2.ReadError("x"), False),
        (ValueError("x"), False),
    ],
)
def test_a_request_was_never_sent_if_no_connection_was_made(
    failed: BaseException, unsent: bool
) -> None:
    """Only a request without a connection cannot have been billed."""
    assert never_sent(failed) is unsent


@pytest.mark.parametrize(
    ("prompt", "left"),
    [("short", "short"), ("sixsix", ""), ("exactly sixteen!", "a , b")],
)
def test_minimum_lengths_of_an_echoed_prompt(prompt: str, left: str) -> None:
    """A prompt is an echo from 6 characters as a sentence, and from 16 anywhere."""
    message = prompt if len(prompt) < 16 else f"a {prompt}, b"
    found = VendorError.read(400, {}, json.dumps(error(message)).encode(), prompt)
    assert re.sub(r"\[…\]", "", found.normalized_message).replace("  ", " ") == left


@pytest.mark.parametrize(("length", "kept"), [(64, True), (65, False)])
def test_a_word_longer_than_any_code_is_ignored(length: int, *, kept: bool) -> None:
    """A code field that contains prose or data is ignored."""
    word = "x" * length
    found = VendorError.read(400, {}, json.dumps(error("y", code=word)).encode())
    assert found.raw_codes == ((word,) if kept else ())


def test_a_status_is_removed_at_the_start_of_a_line_only() -> None:
    """A status within a sentence is not removed as a prefix."""
    body = json.dumps(error("HTTP 400: the http 500 rule\n[x] status: none\n-http 5")).encode()
    assert VendorError.read(400, {}, body).normalized_message == "the http 500 rule\nnone\n-http 5"
