"""What a request may have cost, with a picture or without one."""

from __future__ import annotations

import asyncio
import pickle
from dataclasses import fields
from typing import Any

import pytest
from ladder import FAST
from providers_kit import MODELS, ask, google_body, http, openai_body, run

from resilient_imagen import ImageClient, Settings
from resilient_imagen.errors import ImageGenerationError, provider_failure
from resilient_imagen.reasons import Reason
from resilient_imagen.result import Attempt, Usage
from resilient_imagen.testing import FakeProvider, RecordingSink, run_virtual

TEXT = {"text": "I cannot draw that."}
GOOGLE_USAGE = {"promptTokenCount": 12, "candidatesTokenCount": 30, "totalTokenCount": 42}
OPENAI_USAGE = {"input_tokens": 100, "output_tokens": 2000, "total_tokens": 2100}
OPENAI_PRICE = (100 * 5 + 2000 * 30) / 1e6
"""By the model table, per million: 5 dollars in, 30 out."""


def error_of(vendor: str, body: Any) -> ImageGenerationError:
    with pytest.raises(ImageGenerationError) as caught:
        run(ask(vendor, http(200, body)))
    return caught.value


def used(vendor: str, cost: float | None, *tokens: int) -> Usage:
    return {
        "provider": vendor,
        "model": MODELS[vendor],
        "input_tokens": tokens[0],
        "output_tokens": tokens[1],
        "total_tokens": tokens[2],
        "cost_usd": cost,
    }


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (google_body(TEXT), Reason.NO_IMAGE),
        (google_body(TEXT, finishReason="IMAGE_SAFETY"), Reason.CONTENT_BLOCKED),
        ({"candidates": [], "promptFeedback": {"blockReason": "SAFETY"}}, Reason.CONTENT_BLOCKED),
        (google_body({"inlineData": {"data": "!!!"}}), Reason.INVALID_RESPONSE),
        ({"candidates": "oops"}, Reason.INVALID_RESPONSE),
    ],
)
def test_google_counts_what_brought_no_picture(body: dict[str, Any], reason: Reason) -> None:
    """The tokens stand on the error; the price of a picture that did not come does not."""
    error = error_of("google", body | {"usageMetadata": GOOGLE_USAGE})
    assert error.reason is reason
    assert error.usage == used("google", None, 12, 30, 42)
    assert pickle.loads(pickle.dumps(error)).usage == error.usage


@pytest.mark.parametrize(
    ("data", "reason"),
    [([], Reason.NO_IMAGE), ([{"b64_json": "!!!"}], Reason.INVALID_RESPONSE)],
)
def test_openai_counts_and_charges_what_brought_no_picture(data: Any, reason: Reason) -> None:
    """Tokens have a price there, whatever became of them."""
    error = error_of("openai", openai_body(data=data, usage=OPENAI_USAGE))
    assert error.reason is reason
    assert error.usage == used("openai", pytest.approx(OPENAI_PRICE), 100, 2000, 2100)  # type: ignore[arg-type]


@pytest.mark.parametrize("usage", [None, {}, {"total_tokens": 0}, {"input_tokens": "9"}])
def test_nothing_told_is_nothing_known(usage: Any) -> None:
    """No usage is made up."""
    assert error_of("openai", openai_body(data=[], usage=usage)).usage is None


def test_the_contract_of_an_attempt_comes_first() -> None:
    """Code that builds one from six values goes on working."""
    names = [field.name for field in fields(Attempt)]
    first = ["provider", "model", "reason", "status", "latency_s", "retry_after"]
    assert names[:6] == first
    plain = Attempt("google", "m", None, None, 1.0, None)
    assert (plain.usage, plain.may_have_been_billed) == (None, False)
    counted = Attempt("google", "m", None, None, 1.0, None, used("google", 0.1, 1, 2, 3), True)
    assert len({counted, counted}) == 1


ONE_ROUTE: dict[str, Any] = {**FAST, "routes": "openai:gpt-image-2.5-flare", "max_retries": 0}


def failing_with(error: ImageGenerationError | None) -> tuple[ImageGenerationError, float]:
    """The error of a call whose only request fails so (None: hangs), and the client's total."""

    async def main() -> tuple[ImageGenerationError, float]:
        openai = FakeProvider("openai")
        openai = openai.hang() if error is None else openai.crash(error)
        async with ImageClient(Settings(**ONE_ROUTE), providers=[openai]) as client:
            with pytest.raises(ImageGenerationError) as caught:
                await client.generate("a lighthouse")
            return caught.value, client.snapshot()["cost_usd"]

    return run_virtual(main())


@pytest.mark.parametrize(
    ("reason", "status", "billed"),
    [
        (Reason.CONNECTION, None, True),
        (Reason.TIMEOUT, 504, True),
        (Reason.TIMEOUT, 408, False),
        (Reason.CONNECTION, 407, False),
        (Reason.INVALID_REQUEST, 400, False),
        (Reason.RATE_LIMITED, 429, False),
        (Reason.OVERLOADED, 503, False),
        (Reason.NO_IMAGE, 200, False),
    ],
)
def test_a_failure_without_a_count_is_judged_by_its_kind(
    reason: Reason, status: int | None, billed: bool
) -> None:
    """Who never answered may have gone on and billed; who refused did not."""
    raised, total = failing_with(provider_failure(reason, status=status))
    (attempt,) = raised.attempts
    assert (attempt.may_have_been_billed, attempt.usage, total) == (billed, None, 0.0)


def test_an_attempt_that_timed_out_may_have_been_billed() -> None:
    """By our own clock, too."""
    raised, _ = failing_with(None)
    (attempt,) = raised.attempts
    assert (attempt.reason, attempt.may_have_been_billed) == (Reason.TIMEOUT, True)


@pytest.mark.parametrize(
    ("tokens", "billed"), [((10, 5, 15), True), ((10, 0, 10), False), ((10, 0, 60), True)]
)
def test_a_count_decides(tokens: tuple[int, int, int], billed: bool) -> None:
    """Output tokens are work done; so are thoughts, which only the total shows."""
    usage = used("openai", 0.06, *tokens)
    raised, total = failing_with(provider_failure(Reason.NO_IMAGE, status=200, usage=usage))
    (attempt,) = raised.attempts
    assert (attempt.usage, attempt.may_have_been_billed) == (usage, billed)
    assert total == pytest.approx(0.06)


def test_the_total_of_a_client_holds_what_failures_cost() -> None:
    """A picture from the next route does not hide what the first one charged for none."""
    usage = used("google", 0.02, 10, 5, 15)

    async def main() -> None:
        sink = RecordingSink()
        google, openai = FakeProvider("google"), FakeProvider("openai")
        google.crash(provider_failure(Reason.NO_IMAGE, status=200, usage=usage), times=1)
        settings = Settings(**FAST, max_retries=0)
        async with ImageClient(settings, providers=[google, openai], sinks=[sink]) as client:
            result = await client.generate("a lighthouse")
            assert result.usage["cost_usd"] is not None
            expected = pytest.approx(0.02 + result.usage["cost_usd"])
            assert client.snapshot()["cost_usd"] == expected
        failed, served = sink.attempts
        assert (failed.usage, failed.may_have_been_billed) == (usage, True)
        assert (served.usage, served.may_have_been_billed) == (result.usage, True)

    run_virtual(main())


def test_a_picture_that_cannot_be_used_was_paid_for() -> None:
    """It came, so it is charged for, although it cannot be made to fit."""

    async def main() -> None:
        openai = FakeProvider("openai", image=b"\x89PNG\r\n\x1a\n" + bytes(50))
        async with ImageClient(Settings(**ONE_ROUTE), providers=[openai]) as client:
            with pytest.raises(ImageGenerationError) as caught:
                await client.generate("a lighthouse")
            (attempt,) = caught.value.attempts
            assert (attempt.reason, attempt.may_have_been_billed) == (Reason.INVALID_RESPONSE, True)
            assert caught.value.usage == attempt.usage
            assert attempt.usage is not None
            assert client.snapshot()["cost_usd"] == attempt.usage["cost_usd"] != 0

    run_virtual(main())


@pytest.mark.parametrize("by", ["caller", "deadline"])
def test_leaving_may_have_been_billed(by: str) -> None:
    """A request that the caller left, or that ran out of time, may be finished without us."""

    async def main() -> None:
        sink = RecordingSink()
        openai = FakeProvider("openai").hang()
        settings = Settings(**ONE_ROUTE)
        async with ImageClient(settings, providers=[openai], sinks=[sink]) as client:
            deadline = 3.0 if by == "deadline" else None
            task = asyncio.create_task(client.generate("a lighthouse", deadline=deadline))
            await asyncio.sleep(1)
            if by == "caller":
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert client.snapshot()["cost_usd"] == 0
        (ended,) = sink.attempts
        expected = Reason.CANCELLED if by == "caller" else Reason.DEADLINE
        assert (ended.reason, ended.usage, ended.may_have_been_billed) == (expected, None, True)

    run_virtual(main())
