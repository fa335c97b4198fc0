"""Time of a call: hints, reserves, and waiting for a probe's outcome."""

from __future__ import annotations

import asyncio
import random

import pytest
from pipeline_kit import FAST, PipelineScenario, now, run_scenario

from resilient_imagen import (
    AllProvidersFailedError,
    CircuitOpenError,
    ContentBlockedError,
    DeadlineExceededError,
    ImageGenerationError,
    ProviderOverloadedError,
    RateLimitedError,
    Reason,
)
from resilient_imagen.telemetry.events import RequestEnded

LONG_AWAY = 3600.0
OPENAI_OFF = {"force_open": "openai", "fallback_on": "overloaded", **FAST}


@pytest.mark.parametrize("latency", [0.0, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(5))
def test_slow_failures_do_not_delay_the_fallback_beyond_fifteen_seconds(
    monkeypatch: pytest.MonkeyPatch, latency: float, seed: int
) -> None:
    """OpenAI is asked at most 15 s after the first 503, however slow each 503 is."""
    monkeypatch.setattr(random, "random", random.Random(seed).random)

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503, latency=latency)
        result = await scenario.ask()
        assert result.attempts == 4
        assert scenario.openai.sent[0].at - (scenario.google.sent[0].at + latency) <= 15.0

    run_scenario(scene, openai_ipm=6000)


def test_a_long_hint_on_the_only_route_is_raised_at_once() -> None:
    """A hint of one hour on the only route is raised as retry_after and not waited for."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.RATE_LIMITED, status=429, retry_after=LONG_AWAY)
        with pytest.raises(RateLimitedError) as caught:
            await scenario.ask()
        assert now() < 1.0
        assert caught.value.retry_after is not None

    async def both(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503)
        scenario.openai.fail(Reason.RATE_LIMITED, status=429, retry_after=LONG_AWAY)
        with pytest.raises(AllProvidersFailedError):
            await scenario.ask()
        assert now() <= 25.0

    run_scenario(scene, **OPENAI_OFF)
    run_scenario(both, **FAST)


def test_a_hint_that_can_be_waited_for_is_waited_for_on_the_only_route() -> None:
    """On the only route, a hint of half a minute is waited for."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.RATE_LIMITED, status=429, retry_after=30, times=1)
        assert (await scenario.ask()).attempts == 2
        assert 30 < now() < 33

    run_scenario(scene, **OPENAI_OFF)


def test_retry_after_is_that_of_the_route_that_is_due_first() -> None:
    """With Google open for one minute and OpenAI for ten, retry_after is one minute."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503)
        scenario.openai.fail(Reason.QUOTA_EXHAUSTED, status=429)
        with pytest.raises(AllProvidersFailedError) as caught:
            await scenario.ask()
        assert caught.value.retry_after == pytest.approx(60, abs=7)

    run_scenario(scene, **FAST)


def test_the_error_that_opens_the_only_route_has_retry_after() -> None:
    """The error of the request that opened the breaker has the retry_after of the open period."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503)
        with pytest.raises(AllProvidersFailedError):
            await scenario.ask()

    async def alone(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503)
        with pytest.raises(ProviderOverloadedError) as caught:
            await scenario.ask()
        assert caught.value.retry_after == pytest.approx(60, abs=7)

    run_scenario(scene, **FAST, force_open="openai")
    run_scenario(alone, **{**OPENAI_OFF, "fallback_on": "timeout"})


def test_a_probe_elsewhere_is_not_waited_for_once_another_route_is_free() -> None:
    """If OpenAI's probe succeeds while Google's hangs, OpenAI is asked at once."""

    async def scene(scenario: PipelineScenario) -> None:
        await _open_both(scenario)
        await asyncio.sleep(70)
        scenario.google.heal().hang()
        scenario.openai.heal()
        first = asyncio.create_task(scenario.ask())  # Google's probe
        await asyncio.sleep(0.01)
        second = asyncio.create_task(scenario.ask())  # OpenAI's, 2 s
        await asyncio.sleep(0.01)
        asked = now()
        assert (await scenario.ask()).provider == "openai"
        assert now() - asked <= 5.0
        await asyncio.gather(first, second)

    run_scenario(scene, **FAST)


def test_a_probe_is_not_waited_for_beyond_the_next_routes_turn() -> None:
    """While Google's probe hangs, the call waits until OpenAI is due, not longer."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503, times=3)
        assert (await scenario.ask()).provider == "openai"
        opened = now()
        scenario.google.hang()
        scenario.openai.fail(Reason.RATE_LIMITED, status=429, retry_after=70)
        with pytest.raises(ImageGenerationError):
            await scenario.ask()  # opens OpenAI for 70 s
        scenario.openai.heal()
        await asyncio.sleep(67 - (now() - opened))
        first = asyncio.create_task(scenario.ask())  # Google's probe, which hangs
        await asyncio.sleep(0.01)
        asked = now()
        assert (await scenario.ask()).provider == "openai"
        assert now() - asked < 20
        await first

    run_scenario(scene, **FAST)


async def _open_both(scenario: PipelineScenario) -> None:
    scenario.google.fail(Reason.OVERLOADED, status=503)
    scenario.openai.fail(Reason.OVERLOADED, status=503)
    while "closed" in (scenario.state(0), scenario.state(1)):
        with pytest.raises(ImageGenerationError):
            await scenario.ask()


def test_a_fallback_that_is_due_in_time_gets_its_reserve() -> None:
    """Time is reserved for OpenAI if its circuit is due long before the deadline."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.openai.fail(Reason.RATE_LIMITED, status=429, retry_after=5)
        scenario.google.fail(Reason.OVERLOADED, status=503, times=1)
        with pytest.raises(ImageGenerationError):
            await scenario.ask(model=None, deadline=3)
        scenario.openai.heal()
        scenario.google.heal().hang()
        result = await scenario.ask(deadline=50)
        assert (result.provider, result.fallback_reason) == ("openai", "timeout")

    run_scenario(scene, max_retries=0, **FAST)


def test_a_call_does_not_back_off_for_a_retry_that_would_be_late() -> None:
    """With eight queued callers a retry would be late, so the call falls back at once."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503, times=1)
        first = asyncio.create_task(scenario.ask(deadline=60))
        await asyncio.sleep(0)
        others = [asyncio.create_task(scenario.ask()) for _ in range(8)]
        assert (await first).provider == "openai"
        assert scenario.openai.sent[0].at < 1.0
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    run_scenario(scene, ipm=10, openai_ipm=6000, max_concurrent=20)


def test_a_deadline_error_names_the_failure_and_its_route() -> None:
    """The deadline error names the route's last failure, else the route that was waited for."""

    async def failed(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503, times=1).hang()
        with pytest.raises(DeadlineExceededError) as caught:
            await scenario.ask(deadline=20)
        assert str(caught.value) == (
            "google gemini-3-pro-image: 503 temporarily unavailable; "
            "out of time, mostly spent waiting for answers"
        )

    async def silent(scenario: PipelineScenario) -> None:
        scenario.google.hang()
        with pytest.raises(DeadlineExceededError) as caught:
            await scenario.ask(deadline=20)
        assert str(caught.value) == (
            "google gemini-3-pro-image: out of time, mostly spent waiting for answers"
        )

    run_scenario(failed, **OPENAI_OFF)
    run_scenario(silent, **OPENAI_OFF)


def test_a_refusal_on_a_route_in_the_middle_is_not_lost() -> None:
    """A refusal is raised even if earlier and later routes fail for other reasons."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503)
        scenario.openai.fail(Reason.CONTENT_BLOCKED, status=400, times=1)
        scenario.openai.fail(Reason.OVERLOADED, status=503)
        with pytest.raises(ContentBlockedError) as caught:
            await scenario.ask()
        assert len(caught.value.attempts) > 4

    run_scenario(
        scene,
        routes="google:gemini-3-pro-image, openai:gpt-image-2, openai:gpt-image-2.6-flare",
        fallback_on="overloaded,content_blocked",
        **FAST,
    )


def test_a_retry_that_was_never_sent_is_not_counted() -> None:
    """If the breaker opens during the back-off, the retry that was not sent is not counted."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.SERVER_ERROR, status=500)
        await asyncio.gather(*(scenario.ask() for _ in range(3)))
        retries = [ended.retries for ended in scenario.events.of(RequestEnded)]
        assert sum(retries) == len(scenario.google.sent) - 3

    run_scenario(scene, **FAST)


def test_a_slot_that_comes_too_late_is_not_taken() -> None:
    """With one slot and a hanging request, the queued caller does not send a request too late."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.hang()
        served = await asyncio.gather(*(scenario.ask(deadline=60) for _ in range(4)))
        assert [result.provider for result in served] == ["openai"] * 4
        assert len(scenario.google.sent) == 1
        assert scenario.idle()

    run_scenario(scene, max_concurrent=1, openai_ipm=6000, **FAST)


@pytest.mark.parametrize("when_all_open", ["fail", "wait"])
@pytest.mark.parametrize("fallback_on", [None, "overloaded,timeout"], ids=["any", "no-skip"])
def test_a_route_forced_open_is_never_waited_for(
    when_all_open: str, fallback_on: str | None
) -> None:
    """The call falls back if open circuits allow it, and otherwise fails at once.

    The second route is free, but a call that may not leave an open route cannot reach it.
    """

    async def scene(scenario: PipelineScenario) -> None:
        if fallback_on is None:
            assert (await scenario.ask()).provider == "openai"
        else:
            with pytest.raises(CircuitOpenError):
                await scenario.ask()
            assert now() == 0.0
        assert scenario.idle()

    run_scenario(
        scene, force_open="google", when_all_open=when_all_open, fallback_on=fallback_on, **FAST
    )


def test_a_call_that_may_not_leave_an_open_route_waits_for_that_route_alone() -> None:
    """The wait ends when the first route's breaker is due, independent of the other routes."""

    async def scene(scenario: PipelineScenario) -> None:
        breaker = scenario.client.breakers["google:gemini-3-pro-image"]
        breaker.open_for(60, cause="overloaded", summary="503")
        assert (await scenario.ask()).provider == "google"
        assert scenario.google.sent[0].at == pytest.approx(60, abs=0.01)
        breaker.open_for(60, cause="overloaded", summary="503")
        asked = now()
        with pytest.raises(CircuitOpenError):
            await scenario.ask(deadline=30)
        assert now() == asked, "a wait that cannot end in time is not begun"
        leaving = asyncio.create_task(scenario.ask(deadline=90))
        await asyncio.sleep(10)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert now() == pytest.approx(asked + 10)
        assert scenario.openai.sent == []
        assert scenario.idle()

    async def refused(scenario: PipelineScenario) -> None:
        breaker = scenario.client.breakers["google:gemini-3-pro-image"]
        breaker.open_for(60, cause="overloaded", summary="503")
        with pytest.raises(CircuitOpenError) as caught:
            await scenario.ask()
        assert caught.value.retry_after == pytest.approx(60)

    run_scenario(scene, when_all_open="wait", fallback_on="overloaded,timeout", **FAST)
    run_scenario(refused, when_all_open="fail", fallback_on="overloaded,timeout", **FAST)


def test_a_route_is_not_entered_when_the_time_is_up() -> None:
    """If a route ends at the deadline, the next route's probe is not taken."""

    async def scene(scenario: PipelineScenario) -> None:
        google, openai = scenario.client.breakers.values()
        openai.open_for(25.0, cause="overloaded", summary=None)
        scenario.google.latency = 29.9995
        first = asyncio.create_task(scenario.ask())
        await asyncio.sleep(0)
        with pytest.raises(DeadlineExceededError):
            await scenario.ask(deadline=30.0)
        await first
        assert google.allows_calls()
        assert scenario.state(1) == "open", "a probe would have made it half-open"

    run_scenario(scene, max_concurrent=1, **FAST)
