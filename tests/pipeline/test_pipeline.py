"""The pipeline of one call: deadline, routes, retry, pace, breaker, attempt timeout."""

from __future__ import annotations

import asyncio
from typing import Literal

import pytest
from pipeline_kit import FAST, PipelineScenario, now, run_guarded, run_scenario

from resilient_imagen import (
    AllProvidersFailedError,
    CircuitOpenError,
    ContentBlockedError,
    DeadlineExceededError,
    ImageClient,
    NoImageError,
    ProviderOverloadedError,
    ProviderTimeoutError,
    QuotaExhaustedError,
    Reason,
    SaturatedError,
    Settings,
    SettingsArguments,
)
from resilient_imagen.providers.base import ProviderImage, ProviderResult
from resilient_imagen.request import ImageRequest
from resilient_imagen.telemetry.events import AttemptEnded
from resilient_imagen.testing import FakeProvider, RecordingSink, Sent

FLASH = "google:gemini-nano-banana-2.1"
CHAIN = f"google:gemini-3-pro-image,{FLASH},openai:gpt-image-2.5-flare"
GOOGLE_ONLY: SettingsArguments = {"routes": "google:gemini-3-pro-image"}


def test_a_healthy_primary_serves() -> None:
    """A healthy primary serves with one request, and the result names provider and model."""

    async def scene(scenario: PipelineScenario) -> None:
        result = await scenario.ask()
        assert (result.provider, result.model) == ("google", "gemini-3-pro-image")
        assert (result.attempts, result.fallback_reason) == (1, None)
        assert result.image_bytes == scenario.google.image
        assert result.latency_s == pytest.approx(1.0)
        assert scenario.openai.sent == []

    run_scenario(scene)


def test_an_overloaded_primary_is_left_within_fifteen_seconds() -> None:
    """An overloaded primary gets three requests, then OpenAI serves, at the default settings."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503, latency=0.0)
        result = await scenario.ask()
        assert result.provider == "openai"
        assert result.fallback_reason == "overloaded"
        assert (result.attempts, len(scenario.google.sent)) == (4, 3)
        assert scenario.openai.sent[0].at - scenario.google.sent[0].at <= 15.0 + 1e-3

    for _ in range(30):  # whatever the jitter
        run_scenario(scene)


def test_a_hanging_primary_costs_one_attempt_timeout() -> None:
    """A request that timed out is not retried on its route if another route is available."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.hang()
        result = await scenario.ask()
        assert (result.provider, result.fallback_reason) == ("openai", "timeout")
        assert scenario.openai.sent[0].at == pytest.approx(60.0, abs=0.01)
        assert len(scenario.google.sent) == 1
        assert scenario.idle()

    run_scenario(scene)


def test_both_down_fails_within_twenty_five_seconds() -> None:
    """The error is led by the primary's failure and carries every request that was sent."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503)
        scenario.openai.fail(Reason.OVERLOADED, status=503)
        with pytest.raises(AllProvidersFailedError) as caught:
            await scenario.ask()
        error = caught.value
        assert now() <= 25.0
        assert error.reason is Reason.OVERLOADED
        assert [attempt.provider for attempt in error.attempts] == ["google"] * 3 + ["openai"] * 2
        assert str(error).startswith("google gemini-3-pro-image: 503 ")
        assert scenario.idle()

    run_scenario(scene)


def test_during_an_outage_only_the_first_image_pays() -> None:
    """Once the breaker is open, further images go to OpenAI at once, with reason circuit_open."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503)
        await scenario.ask()
        started = now()
        result = await scenario.ask()
        assert (result.provider, result.fallback_reason) == ("openai", "circuit_open")
        assert (result.attempts, len(scenario.google.sent)) == (1, 3)
        assert scenario.openai.sent[-1].at - started < 6.0  # OpenAI's own pacing
        assert scenario.state() == "open"

    run_scenario(scene)


def test_sixteen_at_once_while_the_primary_hangs_are_all_served() -> None:
    """OpenAI serves 16 callers while Google hangs; Google serves again after its recovery."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.hang()
        results = await asyncio.gather(*(scenario.ask() for _ in range(16)))
        assert {result.provider for result in results} == {"openai"}
        assert scenario.idle()
        scenario.google.heal()
        await asyncio.sleep(700)
        assert (await scenario.ask()).provider == "google"
        assert scenario.state() == "closed"

    run_scenario(scene)


def test_queued_and_waiting_callers_leave_a_route_that_opens() -> None:
    """Callers that queue or back off leave a route as soon as its breaker opens."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503)
        results = await asyncio.gather(*(scenario.ask() for _ in range(8)))
        assert {result.provider for result in results} == {"openai"}
        assert len(scenario.google.sent) == 3
        assert {result.fallback_reason for result in results} == {"overloaded", "circuit_open"}

    run_scenario(scene, ipm=10, openai_ipm=6000)


@pytest.mark.no_cover
def test_after_the_reset_timeout_exactly_one_probe_is_sent() -> None:
    """Of a thousand callers after the open period, one sends a probe, and no other waits."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503, times=3)
        await scenario.ask()
        scenario.google.hang(times=1)
        await asyncio.sleep(100)
        sent = len(scenario.google.sent)
        tasks = [asyncio.create_task(scenario.ask()) for _ in range(1000)]
        await asyncio.sleep(59)
        assert len(scenario.google.sent) - sent == 1
        assert sum(task.done() for task in tasks) == 999
        await asyncio.wait(tasks)
        assert scenario.idle()

    run_scenario(scene, max_concurrent=2000, ipm=900_000)


def test_blocked_content_is_neither_retried_nor_sent_elsewhere() -> None:
    """A refusal causes one request, one error and no vote."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.CONTENT_BLOCKED, status=200)
        with pytest.raises(ContentBlockedError, match="blocked by safety filters") as caught:
            await scenario.ask()
        assert isinstance(caught.value, ValueError)
        assert (len(scenario.google.sent), len(scenario.openai.sent)) == (1, 0)
        assert scenario.state() == "closed"

    run_scenario(scene)


def test_a_refusal_by_the_fallback_is_raised_during_an_outage() -> None:
    """If Google is down and OpenAI refuses the prompt, the refusal is raised."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503)
        scenario.openai.fail(Reason.CONTENT_BLOCKED, status=400)
        with pytest.raises(ContentBlockedError) as caught:
            await scenario.ask()
        assert len(caught.value.attempts) == 4

    run_scenario(scene)


def test_no_image_is_tried_once_more_then_elsewhere() -> None:
    """A response without an image gets one retry and no vote."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.NO_IMAGE, status=200)
        result = await scenario.ask()
        assert (result.provider, result.fallback_reason) == ("openai", "no_image")
        assert len(scenario.google.sent) == 2
        assert scenario.state() == "closed"

    run_scenario(scene)


def test_with_one_route_its_own_error_reaches_the_caller() -> None:
    """With one route, its error is raised without a wrapper."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503)
        with pytest.raises(ProviderOverloadedError):
            await scenario.ask()

    async def alone() -> None:
        google = FakeProvider("google")
        async with ImageClient(Settings(**GOOGLE_ONLY), providers=[google]) as client:
            await scene(PipelineScenario(google, FakeProvider("openai"), client, RecordingSink()))

    run_guarded(alone())


def test_a_timeout_is_repeated_only_when_there_is_no_other_route() -> None:
    """If OpenAI is forced open, Google's timeout is retried once."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.hang()
        with pytest.raises(AllProvidersFailedError) as caught:
            await scenario.ask()
        assert caught.value.reason is Reason.TIMEOUT
        assert len(scenario.google.sent) == 2

    run_scenario(scene, force_open="openai")


def test_force_open_tries_the_fallback_without_touching_code() -> None:
    """A provider that is forced open is skipped, and the result states the fallback."""

    async def scene(scenario: PipelineScenario) -> None:
        result = await scenario.ask()
        assert (result.provider, result.fallback_reason) == ("openai", "circuit_open")
        assert scenario.google.sent == []
        assert scenario.state() == "forced_open"

    run_scenario(scene, force_open="google")


def test_a_short_hint_is_waited_for_exactly() -> None:
    """After a hint of four seconds the retry is sent after exactly four seconds, without jitter."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.RATE_LIMITED, times=1, status=429, retry_after=4.0, latency=0.0)
        result = await scenario.ask()
        assert result.provider == "google"
        gap = scenario.google.sent[1].at - scenario.google.sent[0].at
        assert 4.0 <= gap <= 4.01

    run_scenario(scene, **FAST)


def test_a_long_hint_is_not_waited_for_and_holds_the_breaker_open_for_as_long() -> None:
    """Falling back takes less: OpenAI serves at once, and Google is asked again after the hint."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.RATE_LIMITED, times=1, status=429, retry_after=90.0)
        result = await scenario.ask()
        assert (result.provider, result.fallback_reason) == ("openai", "rate_limited")
        opened = now()
        await asyncio.sleep(80 - (now() - opened))
        assert (await scenario.ask()).fallback_reason == "circuit_open"
        await asyncio.sleep(90 - (now() - opened))
        assert (await scenario.ask()).provider == "google"

    run_scenario(scene, **FAST)


def test_a_used_up_account_opens_every_route_of_the_provider() -> None:
    """A billing failure opens the circuits of all models of that account."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.QUOTA_EXHAUSTED, status=429, account_wide=True)
        result = await scenario.ask()
        assert result.provider == "openai"
        assert len(scenario.google.sent) == 1
        assert (scenario.state(0), scenario.state(1)) == ("open", "open")

    run_scenario(scene, routes=CHAIN)


def test_a_missing_model_opens_its_own_route_only() -> None:
    """A missing model opens its route; the sibling model stays in use."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.MODEL_NOT_FOUND, status=404, times=1)
        result = await scenario.ask()
        assert (result.provider, result.model) == ("google", "gemini-nano-banana-2.1")
        assert (scenario.state(0), scenario.state(1)) == ("open", "closed")

    run_scenario(scene, routes=CHAIN)


def test_a_sibling_model_is_tried_before_the_other_vendor() -> None:
    """Routes are tried in order, each with at most one retry after a fallback."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503)
        result = await scenario.ask()
        models = [sent.model for sent in scenario.google.sent]
        assert models == ["gemini-3-pro-image"] * 3 + ["gemini-nano-banana-2.1"] * 2
        assert (result.provider, result.fallback_reason) == ("openai", "overloaded")

    run_scenario(scene, routes=CHAIN)


def test_all_open_fails_at_once_with_the_soonest_retry_after() -> None:
    """No request is sent; the error has the soonest retry_after and the cause of the opening."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.QUOTA_EXHAUSTED, status=429)
        scenario.openai.fail(Reason.OVERLOADED, status=503)
        for _ in range(2):
            with pytest.raises(AllProvidersFailedError):
                await scenario.ask()
        started, sent = now(), len(scenario.openai.sent)
        with pytest.raises(CircuitOpenError) as caught:
            await scenario.ask()
        assert now() == started
        assert len(scenario.openai.sent) == sent
        assert caught.value.retry_after == pytest.approx(60, abs=10)
        assert str(caught.value).startswith("google gemini-3-pro-image: skipped after 429 ")
        assert "503" in str(caught.value)

    run_scenario(scene, **FAST)


def test_when_all_open_wait_serves_as_soon_as_a_probe_may_leave() -> None:
    """With on_all_open=wait, the caller sends the probe of the first route that is due."""

    async def scene(scenario: PipelineScenario) -> None:
        for provider in (scenario.google, scenario.openai):
            provider.fail(Reason.QUOTA_EXHAUSTED, times=1, status=429)
        with pytest.raises(AllProvidersFailedError):
            await scenario.ask()
        due = min(breaker.blocked_until() or 0.0 for breaker in scenario.client.breakers.values())
        result = await scenario.ask()
        assert result.attempts == 1
        assert 600 <= now() <= 670
        sent = (*scenario.google.sent, *scenario.openai.sent)
        assert max(request.at for request in sent) == pytest.approx(due)

    run_scenario(scene, when_all_open="wait", **FAST)


def test_when_all_open_wait_does_not_outlast_the_deadline() -> None:
    """A call does not begin a wait for a breaker that would exceed its deadline."""

    async def scene(scenario: PipelineScenario) -> None:
        for provider in (scenario.google, scenario.openai):
            provider.fail(Reason.QUOTA_EXHAUSTED, times=1, status=429)
        with pytest.raises(AllProvidersFailedError):
            await scenario.ask()
        started = now()
        with pytest.raises(CircuitOpenError):
            await scenario.ask(deadline=30)
        assert now() == started

    run_scenario(scene, when_all_open="wait", **FAST)


def test_the_last_usable_route_waits_for_the_probes_outcome() -> None:
    """With the other route open, a second caller waits for the probe and is served."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503, times=3)
        with pytest.raises(AllProvidersFailedError):
            await scenario.ask()
        scenario.google.latency = 20
        await asyncio.sleep(100)
        results = await asyncio.gather(*(scenario.ask() for _ in range(3)))
        assert {result.provider for result in results} == {"google"}
        assert scenario.google.sent[4].at - scenario.google.sent[3].at > 19.99

    run_scenario(scene, force_open="openai", **FAST)


def test_the_deadline_leaves_the_fallback_its_share() -> None:
    """If Google hangs, OpenAI gets half of a 40 s deadline and delivers in time."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.hang()
        result = await scenario.ask(deadline=40)
        assert (result.provider, result.fallback_reason) == ("openai", "timeout")
        assert scenario.openai.sent[0].at == pytest.approx(20, abs=0.01)
        assert scenario.state() == "closed"
        breaker = scenario.client.snapshot()["routes"][0]["breaker"]
        assert breaker["consecutive"] == 0  # cut short: no vote

    run_scenario(scene, **FAST)


def test_the_deadline_holds_to_the_moment() -> None:
    """If both routes hang, the call fails exactly at its deadline, and nothing leaks."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.hang()
        scenario.openai.hang()
        with pytest.raises(DeadlineExceededError) as caught:
            await scenario.ask(deadline=40)
        assert now() == pytest.approx(40, abs=0.01)
        assert isinstance(caught.value, TimeoutError)
        reasons = [attempt.reason for attempt in caught.value.attempts]
        assert reasons == [Reason.TIMEOUT, Reason.DEADLINE]
        assert str(caught.value).startswith("google gemini-3-pro-image: timed out")
        assert scenario.idle()

    run_scenario(scene, **FAST)


def test_a_caller_does_not_join_a_queue_that_uses_up_the_reserve() -> None:
    """A caller with a 30 s deadline does not queue 42 s for Google, but falls back."""

    async def scene(scenario: PipelineScenario) -> None:
        results = await asyncio.gather(*(scenario.ask(deadline=30) for _ in range(8)))
        reasons = [result.fallback_reason for result in results]
        assert reasons == [None, None, None] + ["saturated"] * 5
        assert now() <= 30

    run_scenario(scene, ipm=10, openai_ipm=6000)


def test_a_bounded_queue_sends_the_surplus_to_the_next_route() -> None:
    """Callers beyond max_queue=1 are served by the next route, with reason saturated."""

    async def scene(scenario: PipelineScenario) -> None:
        results = await asyncio.gather(*(scenario.ask() for _ in range(4)))
        assert [r.fallback_reason for r in results] == [None, None, "saturated", "saturated"]

    run_scenario(scene, ipm=10, openai_ipm=6000, max_queue=1)


def test_the_error_of_a_single_saturated_route_states_the_queue() -> None:
    """Without another route, the error states that the queue is full, and has retry_after."""

    async def scene(scenario: PipelineScenario) -> None:
        first = asyncio.create_task(scenario.ask())
        await asyncio.sleep(0)
        with pytest.raises(AllProvidersFailedError) as caught:
            await scenario.ask(deadline=3)
        (full, _) = caught.value.errors
        assert isinstance(full, SaturatedError)
        assert (full.provider, full.model) == ("google", "gemini-3-pro-image")
        assert full.retry_after == pytest.approx(6, abs=0.1)
        assert caught.value.retry_after == pytest.approx(6, abs=0.1)
        await first

    run_scenario(scene, ipm=10, force_open="openai")


def test_narrowing_fallback_on_keeps_the_error() -> None:
    """A reason that is not in IMAGE_GEN_FALLBACK_ON does not fall back."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.hang()
        with pytest.raises(ProviderTimeoutError):
            await scenario.ask()
        assert scenario.openai.sent == []

    run_scenario(scene, fallback_on="overloaded,circuit_open")


def test_widening_fallback_on_sends_refused_prompts_on() -> None:
    """With content_blocked in IMAGE_GEN_FALLBACK_ON, a blocked prompt goes to the other vendor."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.CONTENT_BLOCKED)
        assert (await scenario.ask()).fallback_reason == "content_blocked"

    run_scenario(scene, fallback_on="content_blocked")


def test_a_bug_in_a_provider_is_raised_unchanged() -> None:
    """A local error is raised unchanged, without a vote, a retry or a fallback."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.crash(KeyError("bug"))
        for _ in range(5):
            with pytest.raises(KeyError):
                await scenario.ask()
        assert len(scenario.google.sent) == 5
        assert scenario.state() == "closed"
        assert scenario.idle()

    run_scenario(scene, **FAST)


def test_a_model_for_one_call_replaces_the_first_routes() -> None:
    """The call gets a new route with a separate breaker; the other routes stay."""

    async def scene(scenario: PipelineScenario) -> None:
        result = await scenario.ask(model="gemini-nano-banana-2.1")
        assert result.model == "gemini-nano-banana-2.1"
        assert len(scenario.client.snapshot()["routes"]) == 3

    run_scenario(scene)


def test_a_model_of_the_other_vendor_is_refused() -> None:
    """The error names the model's vendor and the setting for the order of routes."""

    async def scene(scenario: PipelineScenario) -> None:
        with pytest.raises(ValueError, match=r"belongs to openai.*IMAGE_GEN_ROUTES"):
            await scenario.ask(model="gpt-image-2")
        assert scenario.google.sent == scenario.openai.sent == []

    run_scenario(scene)


def test_breaker_off_asks_the_primary_every_time() -> None:
    """Without the breaker, each image tries the failing primary again."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503)
        for _ in range(3):
            assert (await scenario.ask()).fallback_reason == "overloaded"
        assert len(scenario.google.sent) == 9

    run_scenario(scene, breaker_mode="off", **FAST)


def test_daily_quota_is_not_asked_again() -> None:
    """quota_exhausted opens the circuit after one request, without retries."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.QUOTA_EXHAUSTED, status=429)
        scenario.openai.fail(Reason.NO_IMAGE)
        with pytest.raises(AllProvidersFailedError) as caught:
            await scenario.ask()
        assert isinstance(caught.value.errors[0], QuotaExhaustedError)
        assert isinstance(caught.value.errors[1], NoImageError)
        assert len(scenario.google.sent) == 1

    run_scenario(scene)


@pytest.mark.parametrize(
    ("raised", "taken_for"),
    [
        (Reason.CIRCUIT_OPEN, Reason.OVERLOADED),
        (Reason.SATURATED, Reason.OVERLOADED),
        (Reason.CANCELLED, Reason.OVERLOADED),
        (Reason.DEADLINE, Reason.TIMEOUT),
    ],
)
def test_a_providers_own_limits_are_not_taken_for_the_pipelines(
    raised: Reason, taken_for: Reason
) -> None:
    """A provider that is itself an ImageClient has separate breakers, queues and deadlines."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(raised)
        result = await scenario.ask()
        assert (result.provider, result.fallback_reason) == ("openai", taken_for)
        ended = [e for e in scenario.events.of(AttemptEnded) if e.provider == "google"]
        assert {e.reason for e in ended} == {taken_for}
        assert {e.counted for e in ended} == {"failure"}
        assert len(ended) == (1 if taken_for is Reason.TIMEOUT else 3)

    run_scenario(scene, **FAST)


@pytest.mark.parametrize("when_all_open", ["fail", "wait"])
def test_a_nested_client_with_an_open_circuit_gets_its_retries_only(
    when_all_open: Literal["fail", "wait"],
) -> None:
    """Calls wait for their own client's breakers only; a nested client's error is kept."""

    class Nested(FakeProvider):
        """A provider that serves by another ImageClient whose only route is open."""

        async def generate(self, request: ImageRequest, model: str) -> ProviderResult:
            self.sent.append(Sent(now(), model, request))
            inner = Settings(routes="inner:m", force_open="inner")
            async with ImageClient(inner, providers=[FakeProvider("inner")]) as client:
                result = await client.generate(request.prompt)
            return ProviderResult((ProviderImage(result.image_bytes, result.mime_type),), model)

    async def main() -> None:
        nested = Nested("nested")
        chosen = Settings(routes="nested:m", when_all_open=when_all_open, **FAST)
        async with ImageClient(chosen, providers=[nested]) as client:
            with pytest.raises(ProviderOverloadedError) as caught:
                await client.generate("x")
            assert len(nested.sent) == len(caught.value.attempts) == 3
            assert caught.value.vendor_error == "CircuitOpenError"
            assert caught.value.vendor_message == "inner m: skipped by the operator"

    run_guarded(main())


def test_a_providers_call_error_becomes_a_provider_error() -> None:
    """CircuitOpenError and DeadlineExceededError of a provider become errors of their reason."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.crash(CircuitOpenError("x", reason=Reason.OVERLOADED))
        scenario.openai.crash(DeadlineExceededError("x", reason=Reason.SERVER_ERROR))
        with pytest.raises(AllProvidersFailedError) as caught:
            await scenario.ask()
        assert [type(error).__name__ for error in caught.value.errors] == [
            "ProviderOverloadedError",
            "ProviderError",
        ]

    run_scenario(scene, when_all_open="wait", **FAST)


def test_the_deadline_error_has_retry_after() -> None:
    """The deadline error's retry_after is that of the first route that may serve again."""

    async def opened(scenario: PipelineScenario) -> None:
        breaker = scenario.client.breakers["google:gemini-3-pro-image"]
        breaker.open_for(100, cause="overloaded", summary="503")
        scenario.openai.hang()
        with pytest.raises(DeadlineExceededError) as caught:
            await scenario.ask(deadline=40)
        assert caught.value.retry_after == pytest.approx(60)

    async def silent(scenario: PipelineScenario) -> None:
        scenario.google.hang()
        scenario.openai.hang()
        with pytest.raises(DeadlineExceededError) as caught:
            await scenario.ask(deadline=30)
        assert caught.value.retry_after is None, "nothing is known"

    run_scenario(opened, **FAST)
    run_scenario(silent, **FAST)


def test_a_fallback_may_open_during_a_retry_decision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The call is retried and served if the fallback opens while the retry is decided."""

    async def scene(scenario: PipelineScenario) -> None:
        breaker = scenario.client.breakers["openai:gpt-image-2.5-flare"]
        answers = iter([True])
        monkeypatch.setattr(breaker, "allows_calls", lambda: next(answers, False))
        scenario.google.fail(Reason.RATE_LIMITED, status=429, retry_after=2.0, times=1)
        assert (await scenario.ask()).provider == "google"

    run_scenario(scene, **FAST)
