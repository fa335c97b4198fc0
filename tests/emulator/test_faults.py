"""Every fault causes the same behaviour of the real SDKs as the vendor's own failure."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from typing import TYPE_CHECKING, Any

import httpx2
import openai
import pydantic
import pytest
from emulator_kit import GEMINI, GPT, Wired, run_with_emulator, run_with_emulator_virtually
from google.genai import errors, types
from images_samples import opened

from resilient_imagen.emulator import Emulator, Fault, Latency, faults
from resilient_imagen.emulator.gemini_variants import SHAPES as GEMINI_SHAPES
from resilient_imagen.emulator.gpt_image_variants import SHAPES as GPT_SHAPES

if TYPE_CHECKING:
    from collections.abc import Callable

BOTH_WAYS = pytest.mark.parametrize("way", ["socket", "memory"])


@BOTH_WAYS
@pytest.mark.parametrize(
    ("code", "kind", "word"),
    [
        (400, errors.ClientError, "INVALID_ARGUMENT"),
        (401, errors.ClientError, "UNAUTHENTICATED"),
        (403, errors.ClientError, "PERMISSION_DENIED"),
        (404, errors.ClientError, "NOT_FOUND"),
        (429, errors.ClientError, "RESOURCE_EXHAUSTED"),
        (499, errors.ClientError, "CANCELLED"),
        (500, errors.ServerError, "INTERNAL"),
        (503, errors.ServerError, "UNAVAILABLE"),
        (504, errors.ServerError, "DEADLINE_EXCEEDED"),
    ],
)
def test_gemini_statuses(way: str, code: int, kind: type[errors.APIError], word: str) -> None:
    """A status without a body gets Gemini's error body."""

    async def scenario(both: Wired) -> None:
        both.app.google.set(faults.status(code))
        with pytest.raises(kind) as caught:
            await both.gemini()
        assert (caught.value.code, caught.value.status) == (code, word)
        assert both.app.google.requests[0].status == code

    run_with_emulator(scenario, way=way)


@BOTH_WAYS
@pytest.mark.parametrize(
    ("code", "kind", "word"),
    [
        (401, openai.AuthenticationError, "invalid_api_key"),
        (403, openai.PermissionDeniedError, None),
        (404, openai.NotFoundError, "model_not_found"),
        (429, openai.RateLimitError, "rate_limit_exceeded"),
        (500, openai.InternalServerError, None),
        (503, openai.InternalServerError, "server_is_overloaded"),
    ],
)
def test_openai_statuses(
    way: str, code: int, kind: type[openai.APIStatusError], word: str | None
) -> None:
    """A status without a body gets OpenAI's error body."""

    async def scenario(both: Wired) -> None:
        both.app.openai.set(faults.status(code))
        with pytest.raises(kind) as caught:
            await both.gpt()
        assert (caught.value.status_code, caught.value.code) == (code, word)
        assert caught.value.request_id

    run_with_emulator(scenario, way=way)


@BOTH_WAYS
def test_a_status_carries_any_body_and_headers(way: str) -> None:
    """JSON, HTML, text and bytes are sent unchanged, with their headers."""
    page = "<!DOCTYPE html><title>520</title>"

    async def scenario(both: Wired) -> None:
        for body, received in (
            ([{"error": {"code": 499}}], b'[{"error": {"code": 499}}]'),
            (page, page.encode()),
            ("error code: 524", b"error code: 524"),
            (b"\xff\x00", b"\xff\x00"),
            ("", b""),
        ):
            both.app.google.fail(faults.status(520, body, {"Server": "cloudflare"}))
            with pytest.raises(errors.APIError) as caught:
                await both.gemini()
            assert caught.value.response.headers["server"] == "cloudflare"
            assert caught.value.response.content == received

    run_with_emulator(scenario, way=way)


@pytest.mark.parametrize("code", [204, 302, 304, 201])
def test_other_2xx_statuses_are_errors_of_the_sdk(code: int) -> None:
    """A 2xx status other than 200, with or without a body, ends the call and not the server."""

    async def scenario(both: Wired) -> None:
        both.app.google.fail(faults.status(code, {"x": 1}))
        with pytest.raises(errors.APIError) as caught:
            await both.gemini()
        assert caught.value.code == code
        await both.gemini()

    run_with_emulator(scenario)


def test_gemini_hints() -> None:
    """Limits per minute and per day differ in their violations, not in their hint."""

    async def details(both: Wired, fault: Fault) -> dict[str, Any]:
        both.app.google.fail(fault)
        with pytest.raises(errors.APIError) as caught:
            await both.gemini()
        listed: Any = caught.value.details
        return {entry["@type"].rpartition(".")[2]: entry for entry in listed["error"]["details"]}

    async def scenario(both: Wired) -> None:
        minute = await details(both, faults.rate_limited(37.5))
        assert minute["RetryInfo"]["retryDelay"] == "37.5s"
        assert [v["quotaId"] for v in minute["QuotaFailure"]["violations"]] == [
            "GenerateRequestsPerMinutePerProjectPerModel"
        ]
        day = await details(both, faults.quota_exhausted(50))
        assert day["RetryInfo"]["retryDelay"] == "50s"
        assert "PerDay" in day["QuotaFailure"]["violations"][-1]["quotaId"]
        assert day["QuotaFailure"]["violations"][0]["quotaDimensions"]["model"] == GEMINI
        plain = await details(both, faults.status(503, retry_after=9))
        assert plain["RetryInfo"]["retryDelay"] == "9s"

    run_with_emulator(scenario)


@pytest.mark.parametrize(
    ("name", "google", "openai_kind"),
    [("key_invalid", 400, openai.AuthenticationError), ("model_gone", 404, openai.NotFoundError)],
)
def test_errors_by_name(name: str, google: int, openai_kind: type[Exception]) -> None:
    """A fault can treat a valid key as invalid, and a current model as retired."""

    async def scenario(both: Wired) -> None:
        for vendor in both.app.vendors:
            vendor.set(faults.error(name))
        with pytest.raises(errors.ClientError) as caught:
            await both.gemini()
        assert caught.value.code == google
        with pytest.raises(openai_kind):
            await both.gpt()

    run_with_emulator(scenario, way="memory")


def test_openai_hints() -> None:
    """The hint of a rate limit is in the message, that of a status in the header.

    Billing has none.
    """

    async def scenario(both: Wired) -> None:
        both.app.openai.fail(faults.rate_limited(12))
        with pytest.raises(openai.RateLimitError, match=r"try again in 12s") as minute:
            await both.gpt()
        assert minute.value.code == "rate_limit_exceeded"
        assert "retry-after" not in minute.value.response.headers
        both.app.openai.fail(faults.status(429, retry_after=7))
        with pytest.raises(openai.RateLimitError) as limited:
            await both.gpt()
        assert limited.value.response.headers["retry-after"] == "7"
        both.app.openai.fail(faults.quota_exhausted())
        with pytest.raises(openai.RateLimitError) as billing:
            await both.gpt()
        assert (billing.value.code, billing.value.type) == ("insufficient_quota",) * 2
        both.app.openai.fail(faults.error("billing_hard_limit"))
        with pytest.raises(openai.BadRequestError) as spent:
            await both.gpt()
        assert spent.value.code == "billing_hard_limit_reached"
        both.app.openai.fail(faults.blocked("output"))
        with pytest.raises(openai.BadRequestError) as blocked:
            await both.gpt()
        assert blocked.value.code == "moderation_blocked"
        body: Any = blocked.value.body
        assert body["moderation_details"]["moderation_stage"] == "output"

    run_with_emulator(scenario)


@BOTH_WAYS
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (faults.reset(), httpx2.ReadError),
        (faults.disconnect(), httpx2.RemoteProtocolError),
        (faults.cut(), httpx2.RemoteProtocolError),
        (faults.cut(0.0), httpx2.RemoteProtocolError),
        (faults.bad_json(), json.JSONDecodeError),
        (faults.html(), json.JSONDecodeError),
        (faults.bad_base64(), pydantic.ValidationError),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_broken_responses_of_google(way: str, fault: Fault, kind: type[Exception]) -> None:
    """Lost connections and invalid bodies raise the SDK's errors, and later requests succeed."""

    async def scenario(both: Wired) -> None:
        both.app.google.fail(fault)
        with pytest.raises(kind):
            await both.gemini()
        await both.gemini()
        first, second = both.app.google.requests
        assert (first.fault, second.fault) == (fault.name, None)

    run_with_emulator(scenario, way=way)


@BOTH_WAYS
@pytest.mark.parametrize("fault", [faults.reset(), faults.disconnect(), faults.cut(abrupt=True)])
def test_broken_responses_of_openai(way: str, fault: Fault) -> None:
    """Lost connections raise OpenAI's connection error."""

    async def scenario(both: Wired) -> None:
        both.app.openai.fail(fault)
        with pytest.raises(openai.APIConnectionError):
            await both.gpt()
        assert both.app.openai.requests[0].delivered is False

    run_with_emulator(scenario, way=way)


@BOTH_WAYS
def test_a_hanging_request_ends_with_the_clients_timeout(way: str) -> None:
    """The SDKs raise their read timeouts, and the server ends the request when they disconnect."""

    async def scenario(both: Wired) -> None:
        for vendor in both.app.vendors:
            vendor.set(faults.hang())
        with pytest.raises(httpx2.ReadTimeout):
            await both.gemini(timeout_ms=500)
        with pytest.raises(openai.APITimeoutError):
            await both.gpt(timeout=0.5)
        for vendor in both.app.vendors:
            await vendor.until(lambda vendor: vendor.in_flight == vendor.open_connections == 0)
            (seen,) = vendor.requests
            assert (seen.status, seen.delivered, seen.fault) == (None, False, "hang")
            assert seen.ended is not None

    run_with_emulator(scenario, way=way)


@BOTH_WAYS
def test_a_slow_body_does_not_cause_a_read_timeout(way: str) -> None:
    """Each piece arrives within the read timeout, so only a total time limit would end the
    request.
    """

    async def scenario(both: Wired) -> None:
        both.app.openai.set(faults.drip(1.0))
        response = await both.gpt(timeout=0.9)
        assert opened(base64.b64decode(response.data[0].b64_json)).size == (64, 96)
        caller = asyncio.create_task(both.gpt())
        await both.app.openai.until(lambda openai: openai.in_flight == 1)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        await both.app.openai.until(lambda openai: openai.in_flight == 0)
        assert [seen.delivered for seen in both.app.openai.requests] == [True, False]

    run_with_emulator(scenario, way=way)


def _summary(response: types.GenerateContentResponse) -> tuple[Any, ...]:
    """Return candidates, finish reason and parts (t for text, d for draft, i for image) of a
    Gemini response.
    """
    candidates = response.candidates
    if not candidates:
        return (candidates, None, None)
    reason = candidates[0].finish_reason
    content = candidates[0].content
    parts = None if content is None else content.parts
    if parts is None:
        return (1, reason, None)
    letters = "".join(
        "t" if part.inline_data is None else "d" if part.thought else "i" for part in parts
    )
    return (1, reason, letters)


GEMINI_ANSWERS: dict[str, tuple[Any, ...]] = {
    "good": (1, "STOP", "i"),
    "blocked": (None, None, None),
    "prompt_feedback_only": (None, None, None),
    "body_empty": (None, None, None),
    "body_list": (None, None, None),
    "body_null": (None, None, None),
    "body_object": (None, None, None),
    "candidates_absent": (None, None, None),
    "candidates_empty": ([], None, None),
    "candidates_null": (None, None, None),
    "content_absent": (1, "STOP", None),
    "content_empty": (1, "STOP", None),
    "content_null": (1, "STOP", None),
    "content_role_only": (1, "STOP", None),
    "parts_empty": (1, "STOP", ""),
    "parts_null": (1, "STOP", None),
    "finish": (1, "IMAGE_SAFETY", None),
    "no_image": (1, "NO_IMAGE", None),
    "only_thought_image": (1, "STOP", "d"),
    "several_images": (1, "STOP", "iii"),
    "signed_drafts": (1, "STOP", "tiii"),
    "thought_images": (1, "STOP", "tddi"),
    "text_only": (1, "STOP", "t"),
    "text_before": (1, "STOP", "ti"),
    "text_after": (1, "STOP", "it"),
    "picture_cut": (1, "STOP", "i"),
    "wrong_aspect": (1, "STOP", "i"),
    "wrong_mime": (1, "STOP", "i"),
}
UNREADABLE = {"bad_base64", "bad_json", "html"}


def test_every_gemini_variant_is_covered() -> None:
    """The table above and the emulator have the same variants."""
    assert GEMINI_ANSWERS.keys() | UNREADABLE == GEMINI_SHAPES.keys()


@BOTH_WAYS
def test_gemini_variants_as_parsed_by_the_sdk(way: str) -> None:
    """Every known variant of a 200 is parsed as the table states."""

    async def scenario(both: Wired) -> None:
        for shape, expected in GEMINI_ANSWERS.items():
            both.app.google.fail(faults.answer(shape))
            response = await both.gemini()
            found = _summary(response)
            assert (shape, *found) == (shape, *expected)
            feedback = response.prompt_feedback
            assert (feedback is not None) == (shape in ("blocked", "prompt_feedback_only"))
            if shape == "blocked":
                assert feedback is not None
                assert feedback.block_reason == "PROHIBITED_CONTENT"

    run_with_emulator(scenario, way=way)


@pytest.mark.parametrize("reason", ["IMAGE_SAFETY", "IMAGE_OTHER", "IMAGE_RECITATION", "SPII"])
def test_gemini_finish_reasons(reason: str) -> None:
    """Each finish reason can be set, and its response has neither an image nor output tokens."""

    async def scenario(both: Wired) -> None:
        both.app.google.fail(faults.finish(reason))
        response = await both.gemini()
        assert _summary(response) == (1, reason, None)
        assert response.usage_metadata is not None
        assert response.usage_metadata.candidates_token_count is None

    run_with_emulator(scenario)


def test_gemini_drafts_differ_from_the_final_image() -> None:
    """Every image part has other bytes, so that a test can tell which one was used."""

    async def scenario(both: Wired) -> None:
        both.app.google.fail(faults.answer("thought_images"))
        parts = (await both.gemini()).parts or []
        images = [part.inline_data.data for part in parts if part.inline_data]
        assert len(images) == len(set(images)) == 3

    run_with_emulator(scenario)


def test_wrong_aspect_and_wrong_mime() -> None:
    """The image is a square although 9:16 was requested, or its declared type is wrong."""

    async def scenario(both: Wired) -> None:
        both.app.google.fail(faults.answer("wrong_aspect"))
        both.app.google.fail(faults.answer("wrong_mime"))
        square, png = [(await both.gemini()).parts or [] for _ in range(2)]
        assert square[0].inline_data is not None
        assert opened(square[0].inline_data.data or b"").size == (48, 48)
        assert png[0].inline_data is not None
        assert png[0].inline_data.mime_type == "image/png"
        assert opened(png[0].inline_data.data or b"").format == "JPEG"

    run_with_emulator(scenario)


GPT_ANSWERS: dict[str, Callable[[Any], bool]] = {
    "b64_absent": lambda answer: answer.data[0].b64_json is None,
    "b64_null": lambda answer: answer.data[0].b64_json is None,
    "body_list": lambda answer: answer == [],
    "body_null": lambda answer: answer is None,
    "body_object": lambda answer: answer.data is None,
    "data_absent": lambda answer: answer.data is None,
    "data_empty": lambda answer: answer.data == [],
    "data_null": lambda answer: answer.data is None,
    "good": lambda answer: len(answer.data) == 1,
    "html": lambda answer: isinstance(answer, str) and answer.startswith("<!DOCTYPE"),
    "no_image": lambda answer: answer.data == [],
    "picture_cut": lambda answer: len(answer.data) == 1,
    "several_images": lambda answer: len(answer.data) == 3,
    "url_only": lambda answer: answer.data[0].url is not None and answer.data[0].b64_json is None,
    "wrong_aspect": lambda answer: answer.size == "1024x1024",
}


@BOTH_WAYS
def test_openai_variants_as_parsed_by_the_sdk(way: str) -> None:
    """Every variant of a 200 is parsed as the table states, and the SDK raises for unreadable
    ones.
    """
    assert GPT_ANSWERS.keys() | {"bad_base64", "bad_json", "blocked", "body_empty"} == (
        GPT_SHAPES.keys()
    )

    async def scenario(both: Wired) -> None:
        for shape, holds in GPT_ANSWERS.items():
            both.app.openai.fail(faults.answer(shape))
            assert (shape, holds(await both.gpt())) == (shape, True)
        for unreadable in ("bad_json", "body_empty"):
            both.app.openai.fail(faults.answer(unreadable))
            with pytest.raises(json.JSONDecodeError):
                await both.gpt()
        both.app.openai.fail(faults.bad_base64())
        data = (await both.gpt()).data[0].b64_json
        with pytest.raises(ValueError, match="base64"):
            base64.b64decode(data, validate=True)

    run_with_emulator(scenario, way=way)


def test_a_day_of_faults_on_virtual_time() -> None:
    """Windows use the loop's clock: overload in the first minute, hanging in the second."""

    async def scenario(both: Wired) -> None:
        loop = asyncio.get_running_loop()
        both.app.google.schedule([(0, 60, faults.overload()), (60, 120, faults.hang())])
        with pytest.raises(errors.ServerError):
            await both.gemini()
        assert loop.time() == 0.0
        await asyncio.sleep(60)
        with pytest.raises(httpx2.ReadTimeout):
            await both.gemini(timeout_ms=30_000)
        assert loop.time() == pytest.approx(90)
        await asyncio.sleep(86_400)
        await both.gemini()
        seen = both.app.google.requests[-1]
        assert seen.ended is not None
        assert 5 < seen.ended - seen.time < 80

    run_with_emulator_virtually(
        scenario, Emulator(picture="tiny", seed=3, latency=Latency(20.0, 0.4))
    )


def test_a_share_of_faults_depends_on_the_seed() -> None:
    """Half of the requests fail, the same ones for the same seed."""

    async def failed_requests(both: Wired) -> list[bool]:
        both.app.openai.set(faults.overload(0.5))
        for _ in range(40):
            with contextlib.suppress(openai.InternalServerError):
                await both.gpt()
        return [seen.fault is not None for seen in both.app.openai.requests]

    first, again, other = (
        run_with_emulator_virtually(failed_requests, Emulator(picture="tiny", seed=seed))
        for seed in (1, 1, 2)
    )
    assert first == again != other
    assert 8 < sum(first) < 32


def test_a_fault_can_be_for_one_model() -> None:
    """One model fails and its sibling serves; healing restores the first one."""

    async def scenario(both: Wired) -> None:
        both.app.google.set(faults.status(503), model=GEMINI)
        with pytest.raises(errors.ServerError):
            await both.gemini()
        await both.gemini(model="gemini-nano-banana-2.1")
        both.app.google.heal()
        await both.gemini()

    run_with_emulator(scenario, way="memory")


def test_an_error_can_be_delayed() -> None:
    """An error is sent at once, or after the seconds that are passed to `after`."""

    async def scenario(both: Wired) -> None:
        loop = asyncio.get_running_loop()
        for fault, elapsed in ((faults.status(503), 0), (faults.status(503).after(180), 180)):
            both.app.openai.fail(fault)
            before = loop.time()
            with pytest.raises(openai.InternalServerError):
                await both.gpt()
            assert loop.time() - before == pytest.approx(elapsed)
        for latency in (20, 3):
            both.app.openai.set_latency(latency, model=GPT)
            before = loop.time()
            await both.gpt()
            assert loop.time() - before == pytest.approx(latency)

    run_with_emulator_virtually(scenario, Emulator(picture="tiny", latency=9))


def test_an_unknown_variant_is_refused_when_it_is_set() -> None:
    """The error lists the known variants."""
    app = Emulator()
    with pytest.raises(
        ValueError, match="openai has no answer 'thought_images'; it has b64_absent"
    ):
        app.openai.set(faults.answer("thought_images"))
    with pytest.raises(ValueError, match="times must be at least 1"):
        app.openai.fail(faults.hang(), times=0)
