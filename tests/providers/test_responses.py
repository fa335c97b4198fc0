"""Parsing of 200 responses: the image among the parts, and every kind of missing image."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from providers_kit import JPEG, PNG, PNG64, body_of, google_body, openai_body

from resilient_imagen.cost import TokenUsage
from resilient_imagen.providers import google_response, openai_response
from resilient_imagen.providers.base import ProviderImage, ProviderResult
from resilient_imagen.providers.classification import ClassifiedError
from resilient_imagen.providers.error_body import VendorError
from resilient_imagen.providers.response_parsing import ResponseError
from resilient_imagen.reasons import Reason

READERS = {"google": google_response.read_answer, "openai": openai_response.read_answer}
VENDORS = pytest.mark.parametrize("vendor", READERS)
JPEG64 = base64.b64encode(JPEG).decode()


def read(vendor: str, body: Any) -> ProviderResult | ClassifiedError:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        return READERS[vendor](body_of(data), "asked-model")
    except ResponseError as error:
        return error.failure


def image(data: str = PNG64, **marks: Any) -> dict[str, Any]:
    return {"inlineData": {"mimeType": "image/png", "data": data}, **marks}


def reason(vendor: str, body: Any) -> Reason:
    outcome = read(vendor, body)
    assert isinstance(outcome, ClassifiedError)
    return outcome.reason


def delivered(vendor: str, body: Any) -> bytes:
    outcome = read(vendor, body)
    assert isinstance(outcome, ProviderResult)
    return outcome.images[0].data


TEXT = {"text": "Here you are:"}


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([image()], PNG),
        ([TEXT, image()], PNG),
        ([image(), TEXT], PNG),
        ([image(), image(JPEG64)], JPEG),
        ([image(JPEG64), image(thought=True)], JPEG),
        ([image(thought=True), image(JPEG64, thought=True)], JPEG),
        ([image(thought=True), TEXT], PNG),
        ([image(), image("")], PNG),
        ([image(), {"inlineData": {"mimeType": "image/png"}}], PNG),
        ([image(), {"inlineData": None}], PNG),
        ([{"inline_data": {"data": PNG64}}], PNG),
        ([image(PNG64.rstrip("=").replace("+", "-").replace("/", "_"))], PNG),
        ([image(PNG64[:20] + "\n" + PNG64[20:])], PNG),
    ],
)
def test_google_uses_the_last_final_image(parts: list[dict[str, Any]], expected: bytes) -> None:
    """The last final image counts, else the last thought; parts without data are skipped."""
    assert delivered("google", google_body(*parts)) == expected


def test_google_reads_all_candidates() -> None:
    """The image may be in any candidate."""
    body = google_body(TEXT)
    body["candidates"] += google_body(image(JPEG64))["candidates"]
    assert delivered("google", body) == JPEG


def test_google_never_delivers_a_draft_of_a_refused_image() -> None:
    """A refused candidate's drafts are not delivered."""
    body = google_body(image(thought=True), finishReason="IMAGE_SAFETY")
    assert reason("google", body) is Reason.CONTENT_BLOCKED


def test_the_type_is_detected_from_the_bytes() -> None:
    """JPEG bytes that are declared as image/png get the type image/jpeg."""
    outcome = read("google", google_body(image(JPEG64)))
    assert isinstance(outcome, ProviderResult)
    assert outcome.images[0].mime_type == "image/jpeg"


def test_google_usage_is_read() -> None:
    """Token counts, model, id and finish reason are passed on."""
    body = google_body() | {
        "usageMetadata": {
            "promptTokenCount": 570,
            "candidatesTokenCount": 1120,
            "totalTokenCount": 1863,
            "promptTokensDetails": [
                {"modality": "TEXT", "tokenCount": 10},
                {"modality": "IMAGE", "tokenCount": 560},
            ],
        },
        "modelVersion": "gemini-3-pro-image-001",
        "responseId": "abc",
    }
    assert read("google", body) == ProviderResult(
        (ProviderImage(PNG, "image/png"),),
        "gemini-3-pro-image-001",
        TokenUsage(570, 1120, 1863, input_image_tokens=560),
        response_id="abc",
        finish_reason="STOP",
    )


def test_openai_usage_is_read() -> None:
    """OpenAI's token counts are read; the model is the requested one."""
    usage = {
        "input_tokens": 50,
        "output_tokens": 4160,
        "total_tokens": 4210,
        "input_tokens_details": {"image_tokens": 40, "text_tokens": 10},
    }
    assert read("openai", openai_body(usage=usage)) == ProviderResult(
        (ProviderImage(PNG, "image/png"),),
        "asked-model",
        TokenUsage(50, 4160, 4210, input_image_tokens=40),
    )


@VENDORS
@pytest.mark.parametrize("usage", [None, [], "x", {"promptTokenCount": -1}, {"input_tokens": "9"}])
def test_invalid_usage_does_not_reject_the_image(vendor: str, usage: Any) -> None:
    """Invalid usage is unknown usage."""
    body = google_body() if vendor == "google" else openai_body()
    outcome = read(vendor, body | {"usage": usage, "usageMetadata": usage})
    assert isinstance(outcome, ProviderResult)
    assert outcome.usage.input_tokens is None


REFUSALS = [
    "SAFETY", "IMAGE_SAFETY", "PROHIBITED_CONTENT", "IMAGE_PROHIBITED_CONTENT", "RECITATION",
    "IMAGE_RECITATION", "BLOCKLIST", "SPII", "MODEL_ARMOR", "ESCALATION",
]  # fmt: skip
SHORTFALLS = [
    "STOP", "MAX_TOKENS", "OTHER", "IMAGE_OTHER", "NO_IMAGE", "LANGUAGE", "MALFORMED_RESPONSE",
    "MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS", "CONTINUATION",
    "MISSING_THOUGHT_SIGNATURE", "FINISH_REASON_UNSPECIFIED", "SOMETHING_NEW", "",
]  # fmt: skip


WITHOUT_IMAGE: tuple[Any, ...] = (
    None,
    {},
    {"role": "model"},
    {"parts": None},
    {"parts": []},
    {"parts": [TEXT]},
)


@pytest.mark.parametrize("finish", [*REFUSALS, *SHORTFALLS])
def test_google_finish_reasons(finish: str) -> None:
    """Refusals are content_blocked; every other finishReason without an image is no_image."""
    expected = Reason.CONTENT_BLOCKED if finish in REFUSALS else Reason.NO_IMAGE
    for content in WITHOUT_IMAGE:
        body = {"candidates": [{"finishReason": finish, "content": content}]}
        assert reason("google", body) is expected, content


def test_every_finish_reason_of_the_sdk_was_decided_on() -> None:
    """A new finish reason in the SDK fails this test until it is classified."""
    from google.genai.types import FinishReason

    assert {str(value.value) for value in FinishReason} <= {
        *REFUSALS,
        *SHORTFALLS,
        "PUP_LIMITED_DISABLED",
    }


def test_a_blocked_account_is_not_a_refusal_of_the_prompt() -> None:
    """A block of the account is not reported as a refusal of the prompt."""
    body = {"candidates": [{"finishReason": "PUP_LIMITED_DISABLED"}]}
    assert reason("google", body) is Reason.FORBIDDEN


@pytest.mark.parametrize(
    "feedback",
    [{}, {"safetyRatings": None}]
    + [
        {"blockReason": block}
        for block in (
            "SAFETY", "OTHER", "BLOCKLIST", "PROHIBITED_CONTENT", "IMAGE_SAFETY", "MODEL_ARMOR",
            "JAILBREAK", "BLOCKED_REASON_UNSPECIFIED", "SOMETHING_NEW",
        )
    ],
)  # fmt: skip
@pytest.mark.parametrize("candidates", [{}, {"candidates": None}, {"candidates": []}])
def test_google_feedback_without_candidates_is_a_refusal(
    feedback: dict[str, Any], candidates: dict[str, Any]
) -> None:
    """Feedback without candidates is a refusal, with or without a block reason."""
    assert reason("google", {"promptFeedback": feedback, **candidates}) is Reason.CONTENT_BLOCKED


def test_google_refusals_are_explained_by_their_message() -> None:
    """finishMessage and blockReasonMessage, which the SDK drops, are kept for redaction."""
    finished = read("google", {"candidates": [{"finishReason": "SAFETY", "finishMessage": "why"}]})
    blocked = read("google", {"promptFeedback": {"blockReason": "X", "blockReasonMessage": "why"}})
    for failure in (finished, blocked):
        assert isinstance(failure, ClassifiedError)
        assert failure.message == "why"
    silent = read("google", {"candidates": [{"finishReason": "IMAGE_SAFETY"}]})
    assert isinstance(silent, ClassifiedError)
    assert silent.message == "IMAGE_SAFETY"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, Reason.NO_IMAGE),
        ({"candidates": None}, Reason.NO_IMAGE),
        ({"candidates": []}, Reason.NO_IMAGE),
        ({"candidates": [], "promptFeedback": None}, Reason.NO_IMAGE),
        ({"usageMetadata": {}}, Reason.NO_IMAGE),
        ({"candidates": [{"content": {"parts": [{"fileData": {}}]}}]}, Reason.NO_IMAGE),
        ({"candidates": "oops"}, Reason.INVALID_RESPONSE),
        ({"candidates": ["oops"]}, Reason.INVALID_RESPONSE),
        ({"candidates": [{"content": "oops"}]}, Reason.INVALID_RESPONSE),
        ({"candidates": [{"content": {"parts": {}}}]}, Reason.INVALID_RESPONSE),
        ({"images": []}, Reason.INVALID_RESPONSE),
    ],
)
def test_google_responses_without_an_image(body: Any, expected: Reason) -> None:
    """An empty response is no_image; another shape is an invalid response."""
    assert reason("google", body) is expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"created": 1, "data": []}, Reason.NO_IMAGE),
        ({"created": 1, "data": None}, Reason.NO_IMAGE),
        ({"created": 1}, Reason.NO_IMAGE),
        ({"created": 1, "data": [{}]}, Reason.NO_IMAGE),
        ({"created": 1, "data": [{"b64_json": None}]}, Reason.NO_IMAGE),
        ({"created": 1, "data": [{"b64_json": ""}]}, Reason.NO_IMAGE),
        ({"created": 1, "data": [{"url": "https://example.com/a.png"}]}, Reason.INVALID_RESPONSE),
        ({"data": "oops"}, Reason.INVALID_RESPONSE),
        ({"data": [None]}, Reason.INVALID_RESPONSE),
        ({}, Reason.INVALID_RESPONSE),
    ],
)
def test_openai_responses_without_an_image(body: Any, expected: Reason) -> None:
    """OpenAI's responses without an image have the reason no_image."""
    assert reason("openai", body) is expected


def test_openai_data_urls_are_images() -> None:
    """An image in a data URL is delivered, as some relays send it."""
    body = {"created": 1, "data": [{"url": f"data:image/png;base64,{PNG64}"}]}
    assert delivered("openai", body) == PNG


@VENDORS
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", Reason.INVALID_RESPONSE),
        (b"null", Reason.INVALID_RESPONSE),
        (b"[]", Reason.INVALID_RESPONSE),
        (b"[1]", Reason.INVALID_RESPONSE),
        (b'"text"', Reason.INVALID_RESPONSE),
        (b"17", Reason.INVALID_RESPONSE),
        (b"<html><title>Welcome</title></html>", Reason.INVALID_RESPONSE),
        (b'{"candidates": [{"content"', Reason.INVALID_RESPONSE),
        (b"\xff\xfe\x00", Reason.INVALID_RESPONSE),
        (b"[" * 100_000, Reason.INVALID_RESPONSE),
        (b'data: {"error": {"code": "not_found"}}', Reason.SERVER_ERROR),
        (b'event: error\ndata: {"error": {"code": "moderation_blocked"}}', Reason.CONTENT_BLOCKED),
        (b'{"error": {"code": 503, "status": "UNAVAILABLE"}}', Reason.OVERLOADED),
        (b'[{"error": {"code": 429}}]', Reason.RATE_LIMITED),
        (b"error code: 524", Reason.TIMEOUT),
        (b'{"object": "chat.completion", "choices": []}', Reason.NO_IMAGE),
        (b'{"choices": [{"message": {"content": "![](https://x/y.png)"}}]}', Reason.NO_IMAGE),
    ],
)
def test_bodies_other_than_the_expected_json(vendor: str, body: bytes, expected: Reason) -> None:
    """A body that is not the expected JSON is invalid_response, unless it contains an error."""
    assert reason(vendor, body) is expected


@VENDORS
@pytest.mark.parametrize("data", ["!!!", "AAAA", "QUJD" * 10, base64.b64encode(b"x" * 99).decode()])
def test_data_other_than_an_image(vendor: str, data: str) -> None:
    """Invalid base64, and bytes of an unknown type, are invalid_response."""
    body = google_body(image(data)) if vendor == "google" else {"data": [{"b64_json": data}]}
    assert reason(vendor, body) is Reason.INVALID_RESPONSE


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.just(PNG64),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["candidates", "content", "parts", "inlineData", "data", "thought", "error", "code",
                 "finishReason", "promptFeedback", "b64_json", "url", "usage", "created", "choices"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=16,
)  # fmt: skip


@VENDORS
@settings(max_examples=300)
@given(body=JSON)
def test_any_json_is_an_image_or_a_failure(vendor: str, body: Any) -> None:
    """Any JSON value gives an image or a classified failure."""
    assert isinstance(read(vendor, body), ProviderResult | ClassifiedError)


@VENDORS
@given(body=st.binary(max_size=300))
def test_any_bytes_are_an_image_or_a_failure(vendor: str, body: bytes) -> None:
    """Any bytes give an image or a classified failure."""
    assert isinstance(read(vendor, body), ProviderResult | ClassifiedError)


@pytest.mark.parametrize(
    "body",
    [b"Bad gateway: {{'error': {'code': 502}}}", b"oops {[]: 1}"],
)
def test_an_error_page_that_looks_like_python_is_only_text(body: bytes) -> None:
    """Unhashable keys in a Python literal raise no error."""
    assert VendorError.read(502, {}, body, "").status == 502


@pytest.mark.parametrize("delay", ["5\u017f", "1 minute and 5 \u017fec"])
def test_units_are_not_matched_by_case_folding(delay: str) -> None:
    """A long s, which case folding turns into s, is not a unit of seconds."""
    body = json.dumps({"error": {"message": f"Please try again in {delay}."}}).encode()
    assert VendorError.read(429, {}, body, "").hint in {None, 60}


def test_several_images_are_delivered_without_those_that_are_broken() -> None:
    """One valid image suffices; all images are billed."""
    body = openai_body(data=[{"b64_json": "!"}, {"b64_json": PNG64}, {"b64_json": JPEG64}])
    answer = openai_response.read_answer(body_of(json.dumps(body).encode()), "asked-model", 3)
    assert [each.data for each in answer.images] == [PNG, JPEG]
    assert answer.usage.billed_images == 3
    broken = openai_body(data=[{"b64_json": "!"}, {"b64_json": "?"}])
    with pytest.raises(ResponseError):
        openai_response.read_answer(body_of(json.dumps(broken).encode()), "asked-model", 2)
