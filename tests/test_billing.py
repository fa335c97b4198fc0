"""The cost of requests, with and without an image."""

from __future__ import annotations

import asyncio
import base64
import os
import pickle
import subprocess
import sys
from contextlib import suppress
from dataclasses import fields
from typing import Any

import pytest
from images_samples import encoded, picture
from pipeline_kit import FAST
from providers_kit import MODELS, ask, google_body, http, openai_body, run

from resilient_imagen import ImageClient, Resolution, Settings, Snapshot
from resilient_imagen.cost import PROCESS_COSTS, CostLedger, cost_usd
from resilient_imagen.errors import ImageGenerationError, provider_failure
from resilient_imagen.reasons import Reason
from resilient_imagen.result import Attempt, Usage
from resilient_imagen.testing import FakeProvider, RecordingSink, run_virtual

PNG_TEXT = base64.b64encode(encoded(picture(), "PNG")).decode()
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
def test_google_failures_without_an_image_have_token_counts(
    body: dict[str, Any], reason: Reason
) -> None:
    """The error has the token counts, but no price for the missing image."""
    error = error_of("google", body | {"usageMetadata": GOOGLE_USAGE})
    assert error.reason is reason
    assert error.usage == used("google", None, 12, 30, 42)
    assert pickle.loads(pickle.dumps(error)).usage == error.usage


@pytest.mark.parametrize(
    ("data", "reason"),
    [([], Reason.NO_IMAGE), ([{"b64_json": "!!!"}], Reason.INVALID_RESPONSE)],
)
def test_openai_failures_without_an_image_have_a_price(data: Any, reason: Reason) -> None:
    """OpenAI's tokens have a price even if no image was returned."""
    error = error_of("openai", openai_body(data=data, usage=OPENAI_USAGE))
    assert error.reason is reason
    assert error.usage == used("openai", pytest.approx(OPENAI_PRICE), 100, 2000, 2100)  # type: ignore[arg-type]


@pytest.mark.parametrize("usage", [None, {}, {"total_tokens": 0}, {"input_tokens": "9"}])
def test_missing_usage_is_unknown(usage: Any) -> None:
    """Missing usage is not replaced by an estimate."""
    assert error_of("openai", openai_body(data=[], usage=usage)).usage is None


def test_an_attempt_is_created_from_six_values() -> None:
    """An attempt can still be built from six values."""
    names = [field.name for field in fields(Attempt)]
    first = ["provider", "model", "reason", "status", "latency_s", "retry_after"]
    assert names[:6] == first
    plain = Attempt("google", "m", None, None, 1.0, None)
    assert (plain.usage, plain.may_have_been_billed) == (None, False)
    counted = Attempt("google", "m", None, None, 1.0, None, used("google", 0.1, 1, 2, 3), True)
    assert len({counted, counted}) == 1


ROUTE = "openai:gpt-image-2.5-flare"
ONE_ROUTE: dict[str, Any] = {**FAST, "routes": ROUTE, "max_retries": 0}


def failing_with(error: ImageGenerationError | None) -> tuple[ImageGenerationError, float]:
    """Return the error of a call whose request fails (None: hangs), and the client's total."""

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
        (Reason.OVERLOADED, 529, False),
        (Reason.SERVER_ERROR, 500, True),
        (Reason.SERVER_ERROR, 502, True),
        (Reason.INVALID_RESPONSE, 200, True),
        (Reason.CONTENT_BLOCKED, 200, False),
        (Reason.NO_IMAGE, 200, True),
    ],
)
def test_a_failure_without_a_count_is_judged_by_its_kind(
    reason: Reason, status: int | None, billed: bool
) -> None:
    """A missing or unusable response may be billed; a rejection is not."""
    raised, total = failing_with(provider_failure(reason, status=status))
    (attempt,) = raised.attempts
    assert (attempt.may_have_been_billed, attempt.usage, total) == (billed, None, 0.0)


def test_an_attempt_that_timed_out_may_have_been_billed() -> None:
    """A request that exceeds the client's time limit may be billed."""
    raised, _ = failing_with(None)
    (attempt,) = raised.attempts
    assert (attempt.reason, attempt.may_have_been_billed) == (Reason.TIMEOUT, True)


@pytest.mark.parametrize(
    ("tokens", "billed"), [((10, 5, 15), True), ((10, 0, 10), False), ((10, 0, 60), True)]
)
def test_token_counts_determine_whether_a_request_is_billed(
    tokens: tuple[int, int, int], billed: bool
) -> None:
    """Output tokens are billed, including thoughts, which only the total contains."""
    usage = used("openai", 0.06, *tokens)
    raised, total = failing_with(provider_failure(Reason.NO_IMAGE, status=200, usage=usage))
    (attempt,) = raised.attempts
    assert (attempt.usage, attempt.may_have_been_billed) == (usage, billed)
    assert total == pytest.approx(0.06)


def test_the_total_of_a_client_includes_the_cost_of_failures() -> None:
    """The total has the cost of failed requests of calls that another route served."""
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


IMAGE_PART = {"inlineData": {"mimeType": "image/png", "data": PNG_TEXT}}
THOUGHT = IMAGE_PART | {"thought": True}


@pytest.mark.parametrize(
    ("parts", "images"),
    [
        ([IMAGE_PART], 1),
        ([TEXT, IMAGE_PART], 1),
        ([IMAGE_PART, IMAGE_PART, IMAGE_PART], 3),
        ([THOUGHT, THOUGHT, IMAGE_PART], 1),
        ([THOUGHT, IMAGE_PART, IMAGE_PART], 2),
        ([THOUGHT, THOUGHT], 1),
    ],
)
def test_every_image_of_a_response_is_charged_except_thoughts(
    parts: list[dict[str, Any]], images: int
) -> None:
    """Drafts that Google returns beside the image have the price of an image."""
    answer = run(ask("google", http(200, google_body(*parts))))
    assert answer.usage.billed_images == images
    cost = cost_usd("gemini-3-pro-image", answer.usage, "4K")
    assert cost == pytest.approx(0.24 * images)


async def spent(provider: FakeProvider, route: str, *resolutions: Resolution) -> Snapshot:
    """Return a client's totals after one call for each of the resolutions."""
    knobs: dict[str, Any] = {**FAST, "routes": route, "max_retries": 0, "breaker_mode": "off"}
    async with ImageClient(Settings(**knobs), providers=[provider]) as client:
        for resolution in resolutions:
            with suppress(ImageGenerationError):
                await client.generate("a lighthouse", resolution=resolution)
        return client.snapshot()


def test_an_image_without_a_price_is_not_counted_as_free() -> None:
    """The totals count it separately from the dollars."""
    totals = run_virtual(spent(FakeProvider("mine"), "mine:model", "1K", "1K"))
    assert (totals["images"], totals["cost_usd"], totals["unpriced_images"]) == (2, 0.0, 2)


def test_possibly_billed_requests_have_the_price_of_an_image() -> None:
    """The price is that of the table for the requested resolution."""
    google = FakeProvider("google").crash(provider_failure(Reason.SERVER_ERROR, status=500))
    totals = run_virtual(spent(google, "google:gemini-3-pro-image", "2K", "4K"))
    assert totals["maybe_billed"] == {
        "requests": 2,
        "cost_usd": pytest.approx(0.134 + 0.24),
        "unpriced": 0,
    }
    assert totals["cost_usd"] == 0.0


def test_possibly_billed_requests_charged_by_token_have_the_average_price() -> None:
    """Without a table price, the average of delivered images applies, else only the count."""
    failure = provider_failure(Reason.SERVER_ERROR, status=500)
    openai = FakeProvider("openai").crash(failure, times=1)
    first = run_virtual(spent(openai, ROUTE, "1K"))["maybe_billed"]
    assert first == {"requests": 1, "cost_usd": 0.0, "unpriced": 1}

    async def main() -> Snapshot:
        provider = FakeProvider("openai")
        async with ImageClient(Settings(**ONE_ROUTE), providers=[provider]) as client:
            await client.generate("a lighthouse")
            provider.crash(failure, times=1)
            with suppress(ImageGenerationError):
                await client.generate("a lighthouse")
            return client.snapshot()

    totals = run_virtual(main())
    assert totals["cost_usd"] > 0
    assert totals["maybe_billed"]["cost_usd"] == pytest.approx(totals["cost_usd"])


def test_the_total_of_the_process_is_that_of_all_its_clients() -> None:
    """The total of the process includes closed clients."""
    before = PROCESS_COSTS.snapshot()
    totals = [run_virtual(spent(FakeProvider("openai"), ROUTE, "1K")) for _ in range(2)]
    after = totals[-1]["process"]
    assert [each["images"] for each in totals] == [1, 1]
    assert after["images"] - before["images"] == 2
    assert after["cost_usd"] - before["cost_usd"] == pytest.approx(2 * totals[0]["cost_usd"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_starts_with_an_empty_total() -> None:
    """The cost of the parent is not counted again by each worker."""
    script = (
        "import os\n"
        "from resilient_imagen.cost import PROCESS_COSTS\n"
        "PROCESS_COSTS.images = 3\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(PROCESS_COSTS.snapshot()['images'])\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0


def test_the_number_of_models_in_the_ledger_is_limited() -> None:
    """Average prices are kept for 256 models; images of more models are still added up."""
    ledger = CostLedger()
    for number in range(300):
        model = f"model-{number}"
        usage: Usage = {
            "provider": "openai", "model": model, "input_tokens": 1, "output_tokens": 1,
            "total_tokens": 2, "cost_usd": 0.5,
        }  # fmt: skip
        ledger.add([Attempt("openai", model, None, None, 1.0, None, usage)], "1K")

    assert len(ledger._delivered) == 256
    assert ledger.snapshot()["images"] == 300
    assert ledger.snapshot()["cost_usd"] == 150.0


def test_an_unusable_image_was_paid_for() -> None:
    """An image that cannot be fitted is charged."""

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
def test_a_cancelled_request_may_have_been_billed(by: str) -> None:
    """A request that was cancelled or timed out may be billed."""

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
