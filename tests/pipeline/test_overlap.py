"""Overlap of two requests of one call: hedged probes, slow requests, requests past their limit."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from overlap_kit import THREE_ROUTES, OverlapScenario, run_overlap
from pipeline_kit import now

from resilient_imagen import (
    AllProvidersFailedError,
    ContentBlockedError,
    DeadlineExceededError,
    ImageGenerationError,
    ImageResult,
    ProviderTimeoutError,
    Reason,
)
from resilient_imagen.pipeline.hedge import HedgeBudget
from resilient_imagen.providers.base import ProviderResult
from resilient_imagen.request import ImageRequest
from resilient_imagen.telemetry.events import RequestEnded, RouteFallback
from resilient_imagen.testing import FakeProvider

near: Any = pytest.approx


async def error_of(call: asyncio.Task[ImageResult]) -> ImageGenerationError:
    with pytest.raises(ImageGenerationError) as caught:
        await call
    return caught.value


class Stubborn(FakeProvider):
    """Takes some seconds to end when it is cancelled."""

    def __init__(self, name: str, seconds: float) -> None:
        super().__init__(name)
        self.seconds = seconds

    async def generate(self, request: ImageRequest, model: str) -> ProviderResult:
        try:
            return await super().generate(request, model)
        except asyncio.CancelledError:
            await asyncio.sleep(self.seconds)
            raise


# -- hedged probes --------------------------------------------------------------------------------


def test_the_next_route_starts_three_seconds_after_a_probe_was_sent() -> None:
    """The caller of a hanging probe gets its image from the next route, 3 s later than usual."""

    async def scene(scenario: OverlapScenario) -> None:
        await scenario.make_probe_due()
        scenario.google.hang()
        sent = now()
        result = await scenario.ask()
        assert (result.provider, result.fallback_reason) == ("openai", "circuit_open")
        assert scenario.openai.sent[0].at - sent == near(3, abs=0.01)
        assert result.latency_s == near(5, abs=0.01)
        assert scenario.events.last(RequestEnded).hedged == "probe"
        assert scenario.request("openai").overlap == "probe"
        assert scenario.events.last(RouteFallback).hedged == "probe"

    run_overlap(scene)


def test_the_three_seconds_of_a_probe_do_not_include_its_queue() -> None:
    """A probe that waits for its turn is hedged 3 s after it was sent."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.latency = 8.0
        first = scenario.start()
        await asyncio.sleep(0.1)
        scenario.circuit().open_for(1, cause="overloaded", summary="503")
        await asyncio.sleep(2)
        scenario.google.hang()
        result = await scenario.ask()
        assert scenario.google.sent[1].at == near(8, abs=0.01)
        assert scenario.openai.sent[0].at == near(11, abs=0.01)
        assert result.fallback_reason == "circuit_open"
        await first

    run_overlap(scene, max_concurrent=1)


def test_a_hedged_probe_goes_on_after_delivery_and_votes() -> None:
    """It holds its slot and its permit, closes the circuit, and its cost reaches the totals."""

    async def scene(scenario: OverlapScenario) -> None:
        await scenario.make_probe_due()
        scenario.google.latency = 20.0
        result = await scenario.ask()
        assert (result.provider, result.attempts) == ("openai", 1)
        assert result.usage["provider"] == "openai"
        assert scenario.events.last(RequestEnded).attempts == 1
        assert (scenario.google.in_flight, scenario.queue()["in_flight"]) == (1, 1)
        assert (scenario.breaker()["state"], scenario.breaker()["probes_in_flight"]) == (
            "half_open",
            1,
        )
        spent = scenario.client.snapshot()
        await asyncio.sleep(20)
        assert (scenario.google.in_flight, scenario.queue()["in_flight"]) == (0, 0)
        assert scenario.breaker()["state"] == "closed"
        later = scenario.client.snapshot()
        assert (spent["images"], later["images"]) == (1, 2)
        assert later["cost_usd"] > spent["cost_usd"]
        assert later["process"]["images"] - spent["process"]["images"] == 1
        assert scenario.request().counted == "success"
        assert result.attempts == 1

    run_overlap(scene)


def test_a_hedged_probe_ends_at_its_limit_and_fails() -> None:
    """Its limit is IMAGE_GEN_PER_CALL_TIMEOUT, kept or not, whatever deadline its call had."""

    async def scene(scenario: OverlapScenario) -> None:
        for deadline in (None, 20.0, 70.0):
            await scenario.make_probe_due()
            scenario.google.heal().hang()
            await scenario.ask(deadline=deadline)
            await asyncio.sleep(54)
            assert scenario.breaker()["state"] == "half_open"
            await asyncio.sleep(2)
            last = scenario.requests("google")[-1]
            assert (last.reason, last.latency_s) == (Reason.TIMEOUT, near(60, abs=0.01))
            assert (last.counted, last.cut_short) == ("failure", False)
            assert scenario.breaker()["state"] == "open"
            assert scenario.breaker()["retry_after"] == near(300, abs=35)

    for on_timeout in ("keep", "abandon"):
        run_overlap(scene, on_timeout=on_timeout)


def test_a_hedged_probe_that_fails_after_delivery_is_not_retried() -> None:
    """Its caller has an image; the failure opens the circuit, and nothing more is sent."""

    async def scene(scenario: OverlapScenario) -> None:
        await scenario.make_probe_due()
        scenario.google.fail(Reason.OVERLOADED, status=503, latency=10.0)
        await scenario.ask()
        await asyncio.sleep(60)
        assert len(scenario.google.sent) == 1
        assert scenario.breaker()["why"] == "overloaded"

    run_overlap(scene)


def test_closing_the_client_cancels_a_hedged_probe_without_a_vote() -> None:
    """The request is recorded as cancelled, and counts for nothing, however long it ran."""

    async def scene(scenario: OverlapScenario) -> None:
        await scenario.make_probe_due()
        scenario.google.hang()
        await scenario.ask(deadline=30)
        await asyncio.sleep(50)
        await scenario.client.aclose()
        assert (scenario.request().reason, scenario.request().counted) == (
            Reason.CANCELLED,
            "ignored",
        )
        assert scenario.client.snapshot()["maybe_billed"]["requests"] == 1

    run_overlap(scene)


def test_a_caller_that_leaves_before_delivery_cancels_its_hedged_probe() -> None:
    """Both requests are cancelled without a vote, and the place of the probe is free."""

    async def scene(scenario: OverlapScenario) -> None:
        await scenario.make_probe_due()
        scenario.google.hang()
        scenario.openai.hang()
        call = scenario.start()
        await asyncio.sleep(50)
        call.cancel()
        await asyncio.wait({call})
        assert call.cancelled()
        assert scenario.outcomes() == [("google", Reason.CANCELLED), ("openai", Reason.CANCELLED)]
        assert {each.counted for each in scenario.events.attempts} == {"ignored"}
        assert (scenario.breaker()["state"], scenario.breaker()["probes_in_flight"]) == (
            "half_open",
            0,
        )

    run_overlap(scene)


def test_a_hedged_probe_is_cancelled_when_its_round_has_ended() -> None:
    """The failure of another probe ends the round; the one in the background has no vote left."""

    async def scene(scenario: OverlapScenario) -> None:
        await scenario.make_probe_due()
        scenario.google.hang(times=1)
        scenario.google.fail(Reason.OVERLOADED, status=503, latency=10.0)
        first = scenario.start(deadline=9)
        await scenario.start()
        assert (await first).provider == "openai"
        assert scenario.breaker()["probes_in_flight"] == 2
        await asyncio.sleep(10)
        assert scenario.breaker()["state"] == "open"
        assert [(each.reason, each.counted) for each in scenario.requests("google")] == [
            (Reason.OVERLOADED, "failure"),
            (Reason.CANCELLED, "stale"),
        ]
        assert scenario.google.in_flight == 0

    run_overlap(scene, breaker_half_open_calls=2)


def test_a_probe_whose_round_has_ended_does_not_outlive_its_call() -> None:
    """Another probe failed before the next route delivered."""

    async def scene(scenario: OverlapScenario) -> None:
        await scenario.make_probe_due()
        scenario.google.hang(times=1)
        scenario.google.fail(Reason.OVERLOADED, status=503, latency=5.0)
        scenario.openai.latency = 20.0
        await asyncio.gather(scenario.ask(), scenario.ask())
        assert scenario.google.in_flight == 0
        assert [each.reason for each in scenario.requests("google")] == [
            Reason.OVERLOADED,
            Reason.CANCELLED,
        ]

    run_overlap(scene, breaker_half_open_calls=2)


def test_several_hedged_probes_close_the_circuit_together() -> None:
    """With two half-open places, the successes of two probes in the background close it."""

    async def scene(scenario: OverlapScenario) -> None:
        await scenario.make_probe_due()
        scenario.google.latency = 30.0
        results = await asyncio.gather(*(scenario.ask() for _ in range(3)))
        assert {result.provider for result in results} == {"openai"}
        assert len(scenario.google.sent) == 2
        await asyncio.sleep(30)
        assert scenario.breaker()["state"] == "closed"

    run_overlap(scene, breaker_half_open_calls=2)


def test_a_probe_that_delivers_first_cancels_the_next_route() -> None:
    """The result names no fallback; the other request is an attempt, and may be billed."""

    async def scene(scenario: OverlapScenario) -> None:
        await scenario.make_probe_due()
        scenario.google.latency, scenario.openai.latency = 10.0, 30.0
        result = await scenario.ask()
        assert (result.provider, result.fallback_reason, result.attempts) == ("google", None, 2)
        other = scenario.request("openai")
        assert (other.reason, other.may_have_been_billed) == (Reason.CANCELLED, True)
        assert (other.counted, scenario.openai.in_flight) == ("ignored", 0)
        ended = scenario.events.last(RequestEnded)
        assert (ended.fallback_cause, ended.hedged) == (None, "probe")
        assert ended.served is scenario.request("google")

    run_overlap(scene)


def test_a_request_that_ran_long_beside_the_first_image_counts_as_cut_short() -> None:
    """It is a failure in a row, outside the failure rate, from 1.5 times the usual latency on."""

    async def scene(scenario: OverlapScenario) -> None:
        for latency, consecutive in ((29.0, 0), (31.0, 1)):
            scenario.openai.latency = 20.0
            scenario.circuit().force_open = True
            for _ in range(4):  # this makes its usual latency
                await scenario.ask()
            scenario.circuit().force_open = False
            await scenario.make_probe_due()
            scenario.google.latency = 3.0 + latency
            scenario.openai.hang(times=1)
            assert (await scenario.ask()).provider == "google"
            assert scenario.breaker(1)["consecutive"] == consecutive
            assert scenario.breaker(1)["window"]["failures"] == 0

    run_overlap(scene)


def test_a_probe_beside_which_no_route_was_started_ends_with_its_call() -> None:
    """The slow request before it delivers; the place of the probe is free, without a vote."""

    async def scene(scenario: OverlapScenario) -> None:
        await scenario.make_probe_due(1)
        scenario.google.latency, scenario.openai.latency = 20.0, 40.0
        assert (await scenario.ask()).provider == "google"
        assert (scenario.openai.in_flight, scenario.request("openai").counted) == (0, "ignored")
        assert scenario.breaker(1)["state"] == "half_open"

    run_overlap(scene, hedge_after=5, hedge_budget=1)


def test_without_a_delay_a_probe_is_not_hedged() -> None:
    """An empty IMAGE_GEN_HEDGE_PROBE_AFTER starts the next route after the probe has failed."""

    async def scene(scenario: OverlapScenario) -> None:
        await scenario.make_probe_due()
        scenario.google.fail(Reason.OVERLOADED, status=503, latency=30.0)
        result = await scenario.ask()
        assert (result.fallback_reason, result.latency_s) == ("overloaded", near(32, abs=0.01))
        assert scenario.events.last(RequestEnded).hedged is None

    run_overlap(scene, hedge_probe_after=None)


def test_a_probe_that_fails_within_three_seconds_is_no_overlap() -> None:
    """The fallback has the reason of the failed probe."""

    async def scene(scenario: OverlapScenario) -> None:
        await scenario.make_probe_due()
        scenario.google.fail(Reason.OVERLOADED, status=503, latency=2.9)
        result = await scenario.ask()
        assert result.fallback_reason == "overloaded"
        assert (len(scenario.google.sent), len(scenario.openai.sent)) == (1, 1)

    run_overlap(scene, breaker_half_open_calls=1)


def test_a_probe_that_fails_after_its_hedge_leaves_the_hedge_running() -> None:
    """One request goes to each route, and the fallback remains one past an open circuit."""

    async def scene(scenario: OverlapScenario) -> None:
        await scenario.make_probe_due()
        scenario.google.fail(Reason.OVERLOADED, status=503, latency=4.0)
        scenario.openai.latency = 10.0
        result = await scenario.ask()
        assert (result.fallback_reason, result.attempts) == ("circuit_open", 2)
        assert (len(scenario.google.sent), len(scenario.openai.sent)) == (1, 1)

    run_overlap(scene)


def test_a_hedged_probe_skips_routes_whose_circuit_is_open() -> None:
    """The first usable route starts beside the probe."""

    async def scene(scenario: OverlapScenario) -> None:
        await scenario.make_probe_due()
        scenario.circuit(1).force_trip(cause="quota_exhausted")
        scenario.google.hang()
        result = await scenario.ask()
        assert (result.provider, result.latency_s) == ("local", near(5, abs=0.01))
        assert result.fallback_reason == "circuit_open"
        assert scenario.openai.sent == []

    run_overlap(scene, routes=THREE_ROUTES)


def test_a_probe_without_a_usable_next_route_is_waited_for() -> None:
    """Nothing is skipped, left or counted, and the probe serves its caller."""

    async def scene(scenario: OverlapScenario) -> None:
        await scenario.make_probe_due()
        scenario.circuit(1).force_trip(cause="quota_exhausted")
        scenario.google.latency = 30.0
        result = await scenario.ask()
        assert (result.provider, result.fallback_reason, result.attempts) == ("google", None, 1)
        assert scenario.events.of(RouteFallback) == []
        assert scenario.events.last(RequestEnded).hedged is None

    run_overlap(scene)


# -- requests past their limit --------------------------------------------------------------------


def test_the_next_route_starts_at_the_limit_and_the_request_is_kept() -> None:
    """The first image wins: here the late one, and the call has not fallen back."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.latency, scenario.openai.latency = 65.0, 30.0
        result = await scenario.ask()
        assert scenario.openai.sent[0].at == near(60, abs=0.01)
        assert (result.provider, result.fallback_reason, result.attempts) == ("google", None, 2)
        assert result.latency_s == near(65, abs=0.01)
        assert scenario.outcomes() == [("google", None), ("openai", Reason.CANCELLED)]
        assert scenario.events.last(RequestEnded).hedged == "timeout"

    run_overlap(scene)


def test_a_kept_request_is_a_timeout_even_if_it_is_cancelled_later() -> None:
    """The next route delivers first; the kept request is recorded, and may be billed."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.hang()
        result = await scenario.ask()
        assert (result.provider, result.fallback_reason, result.attempts) == (
            "openai",
            "timeout",
            2,
        )
        kept = scenario.request()
        assert (kept.reason, kept.may_have_been_billed) == (Reason.TIMEOUT, True)
        assert (kept.latency_s, kept.counted) == (near(62, abs=0.01), "failure")
        assert scenario.client.snapshot()["maybe_billed"]["requests"] == 1

    run_overlap(scene)


def test_a_kept_request_whose_caller_leaves_is_a_timeout() -> None:
    """The vote at the limit stays; the departure adds none."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.hang()
        scenario.openai.hang()
        call = scenario.start()
        await asyncio.sleep(70)
        assert scenario.breaker()["consecutive"] == 1
        call.cancel()
        await asyncio.wait({call})
        assert scenario.outcomes() == [("google", Reason.TIMEOUT), ("openai", Reason.CANCELLED)]
        assert scenario.breaker()["consecutive"] == 1
        assert scenario.breaker()["window"]["failures"] == 1

    run_overlap(scene)


def test_the_failure_vote_comes_at_the_limit() -> None:
    """The circuit opens when three requests have reached their limit, not when they end."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.hang()
        scenario.openai.latency = 30.0
        calls = [scenario.start() for _ in range(3)]
        await asyncio.sleep(59.9)
        assert scenario.breaker()["state"] == "closed"
        await asyncio.sleep(0.2)
        assert (scenario.breaker()["state"], scenario.breaker()["why"]) == ("open", "timeout")
        await asyncio.gather(*calls)

    run_overlap(scene)


def test_the_failure_vote_waits_for_a_route_that_is_usually_slow() -> None:
    """With a measured latency of 50 s, a request counts as failed after 75 s."""

    async def scene(scenario: OverlapScenario) -> None:
        await scenario.learn_latency(50)
        scenario.google.hang()
        scenario.openai.latency = 30.0
        call = scenario.start()
        await asyncio.sleep(74.9)
        assert scenario.breaker()["consecutive"] == 0
        await asyncio.sleep(0.2)
        assert scenario.breaker()["consecutive"] == 1
        await call

    run_overlap(scene)


def test_the_failure_vote_comes_when_the_request_ends_if_that_is_earlier() -> None:
    """The next route delivers at 62 s, before the 75 s of a route with a latency of 50 s."""

    async def scene(scenario: OverlapScenario) -> None:
        await scenario.learn_latency(50)
        scenario.google.hang()
        await scenario.ask()
        assert (scenario.breaker()["consecutive"], scenario.breaker()["window"]["failures"]) == (
            1,
            1,
        )

    run_overlap(scene)


def test_a_late_image_before_the_vote_is_a_success() -> None:
    """A route with a latency of 50 s may take 70 s, although its limit is 60 s."""

    async def scene(scenario: OverlapScenario) -> None:
        await scenario.learn_latency(50)
        scenario.google.latency, scenario.openai.latency = 70.0, 30.0
        assert (await scenario.ask()).provider == "google"
        assert scenario.requests("google")[-1].counted == "success"
        assert scenario.breaker()["window"]["failures"] == 0

    run_overlap(scene)


def test_a_probe_fails_at_its_limit_however_slow_its_route_usually_is() -> None:
    """Its place must not stay taken; the call of the probe is kept beside the next route."""

    async def scene(scenario: OverlapScenario) -> None:
        await scenario.learn_latency(50)
        await scenario.make_probe_due()
        scenario.google.hang()
        scenario.openai.hang()
        call = scenario.start()
        await asyncio.sleep(59.9)
        assert scenario.breaker()["state"] == "half_open"
        await asyncio.sleep(0.2)
        assert scenario.breaker()["state"] == "open"
        assert scenario.google.in_flight == 1
        scenario.openai.heal()
        call.cancel()
        await asyncio.wait({call})

    run_overlap(scene)


def test_a_kept_request_ends_at_twice_its_limit() -> None:
    """The next route goes on alone."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.hang()
        scenario.openai.latency = 100.0
        result = await scenario.ask()
        assert (result.provider, result.latency_s) == ("openai", near(160, abs=0.01))
        kept = scenario.request()
        assert (kept.reason, kept.latency_s) == (Reason.TIMEOUT, near(120, abs=0.01))
        assert not kept.cut_short

    run_overlap(scene)


def test_a_kept_request_ends_at_the_deadline() -> None:
    """Both requests are recorded, and the text is led by the primary's timeout."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.hang()
        scenario.openai.hang()
        error = await error_of(scenario.start(deadline=100))
        assert now() == near(100, abs=0.01)
        assert isinstance(error, DeadlineExceededError)
        assert [each.reason for each in error.attempts] == [Reason.TIMEOUT, Reason.DEADLINE]
        assert str(error).startswith("google gemini-3-pro-image: timed out; openai ")

    run_overlap(scene)


@pytest.mark.parametrize("deadline", [50, 90, 105])
def test_the_next_route_starts_at_the_end_of_the_reserve(deadline: float) -> None:
    """Half of the deadline is left for OpenAI, and the primary's request is not cut."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.latency = deadline / 2 + 5
        scenario.openai.latency = 20.0
        result = await scenario.ask(deadline=deadline)
        assert scenario.openai.sent[0].at == near(deadline / 2, abs=0.01)
        assert (result.provider, result.fallback_reason, result.attempts) == ("google", None, 2)

    run_overlap(scene)


def test_an_error_at_the_deadline_names_the_primary_that_was_left_at_the_reserve() -> None:
    """The primary is still within its limit of 60 s when the deadline of 50 s passes."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.hang()
        scenario.openai.hang()
        error = await error_of(scenario.start(deadline=50))
        assert str(error).startswith("google gemini-3-pro-image: timed out; openai ")
        assert [each.reason for each in error.attempts] == [Reason.DEADLINE, Reason.DEADLINE]
        assert [each.counted for each in scenario.events.attempts] == ["throttled", "ignored"]

    run_overlap(scene)


def test_a_request_that_the_next_route_beats_at_the_reserve_counts_as_cut_short() -> None:
    """After 47 s without an answer, of a typical 30 s, it is a failure in a row."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.hang()
        result = await scenario.ask(deadline=90)
        assert (result.fallback_reason, result.latency_s) == ("timeout", near(47, abs=0.01))
        cut = scenario.request()
        assert (cut.reason, cut.counted, cut.cut_short) == (Reason.CANCELLED, "throttled", True)
        assert (scenario.breaker()["consecutive"], scenario.breaker()["window"]["calls"]) == (1, 0)

    run_overlap(scene)


def test_a_kept_request_returns_its_slot_and_not_its_place_in_the_pace() -> None:
    """A queued caller is sent at that moment, as far as the pace allows."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.hang(times=1)
        scenario.openai.latency = 30.0
        kept = scenario.start()
        await asyncio.sleep(1)
        queued = [scenario.start(), scenario.start()]
        await asyncio.gather(*queued)
        assert [sent.at for sent in scenario.google.sent] == near([0, 60, 61], abs=0.01)
        await kept

    run_overlap(scene, max_concurrent=1, ipm=60)

    async def paced(scenario: OverlapScenario) -> None:
        scenario.google.hang(times=1)
        scenario.openai.latency = 300.0
        kept = scenario.start()
        await asyncio.sleep(50)
        await scenario.ask()
        assert [sent.at for sent in scenario.google.sent] == near([0, 120], abs=0.01)
        kept.cancel()
        await asyncio.wait({kept})

    run_overlap(paced, max_concurrent=1, ipm=0.5)


def test_at_most_max_concurrent_requests_are_kept_per_provider() -> None:
    """The oldest one has ended when another one reaches its limit, however many callers wait."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.hang()
        scenario.openai.hang()
        calls = [scenario.start() for _ in range(7)]
        for _ in range(600):
            assert scenario.google.in_flight - scenario.queue()["in_flight"] <= 2
            await asyncio.sleep(1)
        assert scenario.google.max_in_flight == 4, "two are kept, and two are within their limit"
        await asyncio.wait(calls)
        assert {each.reason for each in scenario.requests("google")} == {Reason.TIMEOUT}

    run_overlap(scene, max_concurrent=2, breaker_mode="off", openai_timeout=1)


def test_a_timeout_is_not_retried_on_the_only_route() -> None:
    """One request runs to twice its limit, and its own error reaches the caller."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.hang()
        error = await error_of(scenario.start())
        assert isinstance(error, ProviderTimeoutError)
        assert now() == near(120, abs=0.01)
        assert [each.reason for each in error.attempts] == [Reason.TIMEOUT]
        assert len(scenario.google.sent) == 1

    run_overlap(scene, routes="google:gemini-3-pro-image")


def test_the_only_route_may_deliver_after_its_limit() -> None:
    """A request of 100 s serves its caller, and counts as failed since 60 s."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.latency = 100.0
        result = await scenario.ask()
        assert (result.attempts, result.latency_s) == (1, near(100, abs=0.01))
        assert scenario.request().counted == "failure"
        assert scenario.events.last(RequestEnded).hedged is None

    run_overlap(scene, routes="google:gemini-3-pro-image")


def test_a_retry_after_a_late_failure_has_its_own_limit() -> None:
    """A request that fails past its limit leaves no mark on the next one of that route."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503, latency=70.0, times=1)
        scenario.google.hang()
        call = scenario.start()
        await asyncio.sleep(90)
        assert len(scenario.google.sent) == 2
        call.cancel()
        await asyncio.wait({call})
        assert scenario.requests("google")[-1].reason is Reason.CANCELLED

    run_overlap(scene, routes="google:gemini-3-pro-image")


@pytest.mark.parametrize("overlaps", [{"hedge_probe_after": 3}, {"hedge_after": 5}])
def test_abandoned_requests_end_at_their_limit(overlaps: dict[str, Any]) -> None:
    """With IMAGE_GEN_ON_TIMEOUT=abandon the next route starts after the request has ended."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.hang()
        result = await scenario.ask()
        assert (result.fallback_reason, result.attempts) == ("timeout", 2)
        assert scenario.openai.sent[0].at == near(60, abs=0.01)
        assert scenario.request().latency_s == near(60, abs=0.01)
        assert scenario.events.last(RequestEnded).hedged is None
        scenario.google.heal().hang()
        await scenario.ask(deadline=50)
        assert scenario.requests("google")[-1].latency_s == near(25, abs=0.01)

    run_overlap(scene, on_timeout="abandon", hedge_budget=0, **overlaps)


# -- slow requests --------------------------------------------------------------------------------


def test_a_slow_request_is_hedged_after_the_given_seconds() -> None:
    """The first image wins; the fallback has the reason timeout, the request none of its own."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.latency = 30.0
        result = await scenario.ask()
        assert (result.provider, result.fallback_reason, result.attempts) == (
            "openai",
            "timeout",
            2,
        )
        assert (scenario.openai.sent[0].at, result.latency_s) == near((10, 12), abs=0.01)
        assert scenario.events.last(RequestEnded).hedged == "slow"
        assert scenario.request().reason is Reason.CANCELLED
        scenario.openai.latency = 30.0
        result = await scenario.ask()
        assert (result.provider, result.fallback_reason, result.attempts) == ("google", None, 2)

    run_overlap(scene, hedge_after=10, hedge_budget=1)


@pytest.mark.parametrize(("successes", "hedged"), [(19, False), (20, True)])
def test_the_95th_percentile_needs_twenty_latencies_of_the_route_at_that_resolution(
    successes: int,
    hedged: bool,
) -> None:
    """All images took 10 s, so that one at that resolution is slow from 10 s on."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.latency = 10.0
        for _ in range(successes):
            await scenario.ask(resolution="2K")
        scenario.google.latency = 20.0
        result = await scenario.ask(resolution="4K")
        assert (result.provider, result.attempts) == ("google", 1)
        result = await scenario.ask(resolution="2K")
        assert result.latency_s == near(12 if hedged else 20, abs=0.01)

    run_overlap(scene, hedge_after="p95", hedge_budget=1)


def test_the_95th_percentile_is_that_of_the_measured_latencies() -> None:
    """Of 20 latencies from 10 to 29 s, the percentile lies between the two longest ones."""

    async def scene(scenario: OverlapScenario) -> None:
        for latency in range(10, 30):
            scenario.google.latency = float(latency)
            await scenario.ask(resolution="2K")
        scenario.google.latency = 60.0
        result = await scenario.ask(resolution="2K")
        assert result.latency_s == near(28.05 + 2, abs=0.01)

    run_overlap(scene, hedge_after="p95", hedge_budget=1)


def test_the_usual_latency_is_that_of_the_latest_sixteen_successes() -> None:
    """Latencies that only the 95th percentile looks at do not change it."""

    async def scene(scenario: OverlapScenario) -> None:
        await scenario.learn_latency(50, times=30)
        await scenario.learn_latency(10, times=16)
        usual = scenario.client.snapshot()["routes"][0]["usual_latency_s"]
        assert usual == {"2K": near(10, abs=0.01)}

    run_overlap(scene)


def hedges(scenario: OverlapScenario) -> int:
    return sum(each.overlap == "slow" for each in scenario.requests("openai"))


@pytest.mark.parametrize(
    ("budget", "calls", "hedged"), [(0, 100, 0), (0.05, 19, 1), (0.05, 100, 5), (1, 30, 30)]
)
def test_a_budget_limits_the_share_of_hedged_calls(budget: float, calls: int, hedged: int) -> None:
    """One call an hour may be hedged at least, unless the budget is 0."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.latency = 12.0
        for _ in range(calls):
            await scenario.ask()
        assert hedges(scenario) == hedged

    run_overlap(scene, hedge_after=5, hedge_budget=budget)


def test_the_budget_is_that_of_the_last_hour() -> None:
    """An hour after a hedge the next one is allowed, however few calls there are."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.latency = 20.0
        for minutes, hedged in ((0, 1), (30, 1), (29, 1), (3, 2), (58, 2)):
            await asyncio.sleep(minutes * 60)
            await scenario.ask()
            assert hedges(scenario) == hedged

    run_overlap(scene, hedge_after=5)


def test_calls_and_hedges_leave_the_budget_an_hour_later_minute_by_minute() -> None:
    """The counts of a minute are those of its own calls, and go when that minute is an hour ago."""
    budget = HedgeBudget(1.0)
    for minute, calls in ((0, 3), (1, 5), (30, 7)):
        for _ in range(calls):
            budget.count_call(minute * 60.0)
        assert budget.try_spend(minute * 60.0 + 1)
    assert budget.snapshot(59 * 60.0) == (15, 3)
    assert budget.snapshot(60 * 60.0) == (12, 2)
    budget.count_call(61 * 60.0)
    assert budget.snapshot(61 * 60.0) == (8, 1)
    assert [budget.try_spend(61 * 60.0) for _ in range(8)] == [True] * 7 + [False]


def test_a_budget_is_never_exceeded_by_the_hedge_that_it_allows() -> None:
    """Of 39 calls one may be hedged at a share of 5 %, of 40 calls two."""
    for calls, hedged in ((39, 1), (40, 2), (59, 2), (60, 3)):
        budget = HedgeBudget(0.05)
        for _ in range(calls):
            budget.count_call(0.0)
        assert sum(budget.try_spend(1.0) for _ in range(10)) == hedged
        assert budget.snapshot(1.0) == (calls, hedged)


def test_probes_and_kept_requests_need_no_budget() -> None:
    """Only a hedge of a slow request may cost more than the call would have otherwise."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.hang()
        assert (await scenario.ask()).fallback_reason == "timeout"
        await scenario.make_probe_due()
        assert (await scenario.ask()).fallback_reason == "circuit_open"

    run_overlap(scene, hedge_after=5, hedge_budget=0)


@pytest.mark.parametrize(("deadline", "sent"), [(70, 0), (80, 1)])
def test_a_hedge_that_the_deadline_cannot_hold_is_not_started(deadline: float, sent: int) -> None:
    """OpenAI usually takes 60 s for 2K; the slow request is 15 s old."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.latency, scenario.openai.latency = 20.0, 30.0
        assert (await scenario.ask(deadline=deadline)).provider == "google"
        assert len(scenario.openai.sent) == sent

    run_overlap(scene, hedge_after=15, hedge_budget=1)


def test_a_request_that_is_slow_at_its_limit_is_kept_beside_the_next_route() -> None:
    """Two reasons at the same moment: the one without budget does not hide the other one."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.hang()
        result = await scenario.ask()
        assert (result.provider, result.latency_s) == ("openai", near(62, abs=0.01))
        assert scenario.events.last(RequestEnded).hedged == "timeout"

    run_overlap(scene, hedge_after=60, hedge_budget=0)


def test_a_hedge_that_came_due_as_its_request_failed_is_forgotten() -> None:
    """Both happen in one round of the event loop; the retry is hedged at its own time."""

    async def scene(scenario: OverlapScenario) -> None:
        just_before = 5.0 - 5e-10  # less than the resolution of the clock
        scenario.google.fail(Reason.OVERLOADED, status=503, latency=just_before, times=1)
        scenario.google.hang()
        await scenario.ask()
        assert len(scenario.google.sent) == 2
        assert scenario.openai.sent[0].at - scenario.google.sent[1].at == near(5, abs=0.01)

    run_overlap(scene, hedge_after=5, hedge_budget=1)


# -- three routes ---------------------------------------------------------------------------------


def test_a_third_route_cancels_the_request_that_has_run_longest() -> None:
    """Two requests of a call are in flight at most, whatever passes its limit."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.hang()
        scenario.openai.hang()
        scenario.local.latency = 80.0
        result = await scenario.ask()
        assert (result.provider, result.fallback_reason, result.attempts) == ("local", "timeout", 3)
        assert [
            each.sent[0].at for each in (scenario.google, scenario.openai, scenario.local)
        ] == near([0, 60, 100], abs=0.01)
        assert scenario.request("google").latency_s == near(100, abs=0.01)
        assert scenario.request("openai").latency_s == near(80, abs=0.01)
        assert [each.reason for each in scenario.events.attempts] == [
            Reason.TIMEOUT,
            Reason.TIMEOUT,
            None,
        ]

    run_overlap(scene, routes=THREE_ROUTES, openai_timeout=40, per_call_timeout=60)


def test_a_request_displaced_before_its_limit_is_cancelled_and_recorded() -> None:
    """A slow first request makes room for the third route, and the call goes on."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.hang()
        scenario.openai.hang()
        result = await scenario.ask()
        assert (result.provider, result.attempts) == ("local", 3)
        assert scenario.outcomes() == [
            ("google", Reason.CANCELLED),
            ("openai", Reason.TIMEOUT),
            ("local", None),
        ] or scenario.outcomes() == [
            ("google", Reason.CANCELLED),
            ("local", None),
            ("openai", Reason.TIMEOUT),
        ]

    run_overlap(scene, routes=THREE_ROUTES, openai_timeout=20, hedge_after=5, hedge_budget=1)


def test_a_hedge_that_fails_leads_on_to_the_third_route() -> None:
    """The slow first request stays in flight, and the event of the third one says why."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.hang()
        scenario.openai.fail(Reason.UNAUTHENTICATED, status=401, latency=1.0)
        result = await scenario.ask()
        assert (result.provider, result.attempts) == ("local", 3)
        assert scenario.local.sent[0].at == near(6, abs=0.01)
        assert scenario.request("local").overlap == "slow"

    run_overlap(scene, routes=THREE_ROUTES, hedge_after=5, hedge_budget=1)


def test_a_displaced_request_counts_as_cut_short_even_if_its_caller_leaves_then() -> None:
    """The first cause of its cancellation remains: it ran for 45 s, and made room."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.hang()
        scenario.openai.hang()
        call = scenario.start()
        await asyncio.sleep(45.2)
        call.cancel()
        await asyncio.wait({call})
        assert (scenario.request().reason, scenario.request().counted) == (
            Reason.CANCELLED,
            "throttled",
        )

    run_overlap(
        scene,
        google=Stubborn("google", 0.5),
        routes=THREE_ROUTES,
        openai_timeout=40,
        hedge_after=5,
        hedge_budget=1,
    )


# -- the end of a call ----------------------------------------------------------------------------


def test_a_refusal_by_the_primary_ends_the_call_at_once() -> None:
    """The other request is cancelled without a vote, and is among the attempts of the error."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.fail(Reason.CONTENT_BLOCKED, latency=10.0)
        scenario.openai.latency = 30.0
        error = await error_of(scenario.start())
        assert isinstance(error, ContentBlockedError)
        assert now() == near(10, abs=0.01)
        assert [(each.provider, each.reason) for each in error.attempts] == [
            ("google", Reason.CONTENT_BLOCKED),
            ("openai", Reason.CANCELLED),
        ]
        assert scenario.request("openai").counted == "ignored"

    run_overlap(scene, hedge_after=5, hedge_budget=1)


def test_a_refusal_by_the_primary_is_not_hidden_behind_a_failed_hedge() -> None:
    """The caller gets the refusal, with both attempts."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.fail(Reason.CONTENT_BLOCKED, latency=30.0)
        scenario.openai.fail(Reason.QUOTA_EXHAUSTED, status=429, latency=1.0)
        error = await error_of(scenario.start())
        assert isinstance(error, ContentBlockedError)
        assert [each.reason for each in error.attempts] == [
            Reason.QUOTA_EXHAUSTED,
            Reason.CONTENT_BLOCKED,
        ]

    run_overlap(scene, hedge_after=5, hedge_budget=1)


def test_a_later_routes_refusal_waits_for_the_other_request() -> None:
    """The primary delivers, and the caller gets its image."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.latency = 20.0
        scenario.openai.fail(Reason.CONTENT_BLOCKED, latency=1.0)
        result = await scenario.ask()
        assert (result.provider, result.fallback_reason, result.attempts) == ("google", None, 2)
        assert scenario.local.sent == []

    run_overlap(scene, routes=THREE_ROUTES, hedge_after=5, hedge_budget=1)


def test_a_later_routes_refusal_is_raised_when_no_other_request_runs() -> None:
    """The primary fails afterwards; the refusal is not hidden behind its 503."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503, latency=20.0)
        scenario.openai.fail(Reason.CONTENT_BLOCKED, latency=1.0)
        error = await error_of(scenario.start())
        assert isinstance(error, ContentBlockedError)
        assert now() == near(20, abs=0.01)
        assert len(error.attempts) == 2

    run_overlap(scene, hedge_after=5, hedge_budget=1)


def test_of_two_images_in_the_same_instant_that_of_the_primary_is_delivered() -> None:
    """Both are recorded and paid for; the event names the request that served."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.latency, scenario.openai.latency = 10.0, 5.0
        result = await scenario.ask()
        assert (result.provider, result.fallback_reason, result.attempts) == ("google", None, 2)
        assert result.usage["provider"] == "google"
        assert scenario.events.last(RequestEnded).served is scenario.request("google")
        assert [reason for _, reason in scenario.outcomes()] == [None, None]
        assert scenario.client.snapshot()["images"] == 2

    run_overlap(scene, hedge_after=5, hedge_budget=1)


def test_an_image_in_the_same_instant_as_a_refusal_is_delivered() -> None:
    """It is paid for."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.fail(Reason.CONTENT_BLOCKED, latency=10.0)
        scenario.openai.latency = 5.0
        result = await scenario.ask()
        assert (result.provider, result.attempts) == ("openai", 2)

    run_overlap(scene, hedge_after=5, hedge_budget=1)


def test_an_error_is_led_by_the_primary_and_has_every_attempt_once() -> None:
    """Both routes fail while both are in flight."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.fail(Reason.SERVER_ERROR, status=500, latency=30.0)
        scenario.openai.fail(Reason.QUOTA_EXHAUSTED, status=429, latency=2.0)
        error = await error_of(scenario.start())
        assert isinstance(error, AllProvidersFailedError)
        assert error.reason is Reason.SERVER_ERROR
        assert str(error).startswith("google gemini-3-pro-image: 500")
        assert [each.provider for each in error.attempts] == ["openai", "google"]
        assert error.retry_after == near(607, abs=31), "the quota's circuit is open"

    run_overlap(scene, hedge_after=5, hedge_budget=1)


def test_a_hedge_whose_circuit_opened_is_asked_again_when_the_first_request_fails() -> None:
    """OpenAI's circuit closes again in the meantime, and OpenAI serves the call."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.fail(Reason.UNAUTHENTICATED, status=401, latency=30.0)

        async def warm_up() -> None:
            if not scenario.breaker(1)["openings_in_a_row"]:
                scenario.circuit(1).open_for(10, cause="overloaded", summary="503")

        scenario.openai.warm_up = warm_up  # type: ignore[attr-defined]
        result = await scenario.ask()
        assert (result.provider, result.fallback_reason) == ("openai", "unauthenticated")
        assert scenario.openai.sent[0].at == near(30, abs=0.01)
        assert scenario.events.last(RequestEnded).hedged is None

    run_overlap(scene, hedge_after=5, hedge_budget=1)


def test_a_hedge_that_is_saturated_is_asked_again_when_the_first_request_fails() -> None:
    """The queue of OpenAI is full at the moment of the hedge, and free later."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.fail(Reason.UNAUTHENTICATED, status=401, latency=30.0)
        limiter = scenario.client._routing.routes[1].limiter
        with limiter.join() as blocker:
            await blocker.granted
            call = scenario.start()
            await asyncio.sleep(10)
            assert scenario.openai.sent == []
        result = await call
        assert (result.provider, result.fallback_reason) == ("openai", "unauthenticated")

    run_overlap(scene, hedge_after=5, hedge_budget=1, max_concurrent=1, max_queue=0)


def test_a_primary_that_serves_after_its_hedge_was_turned_away_has_not_been_left() -> None:
    """There was no second request, so that the call reports no overlap."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.latency = 30.0
        with scenario.client._routing.routes[1].limiter.join():
            result = await scenario.ask()
        assert (result.provider, result.fallback_reason, result.attempts) == ("google", None, 1)
        assert scenario.events.last(RequestEnded).hedged is None

    run_overlap(scene, hedge_after=5, hedge_budget=1, max_concurrent=1, max_queue=0)


def test_a_request_that_is_alone_when_it_is_sent_is_no_overlap() -> None:
    """The hedge waited in its queue until the slow request had failed."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.fail(Reason.UNAUTHENTICATED, status=401, latency=8.0)
        with scenario.client._routing.routes[1].limiter.join():
            call = scenario.start()
            await asyncio.sleep(10)
        assert (await call).fallback_reason == "timeout"
        assert scenario.request("openai").overlap is None
        assert scenario.events.last(RequestEnded).hedged is None

    run_overlap(scene, hedge_after=5, hedge_budget=1, max_concurrent=1)


def test_closing_the_client_ends_both_requests_of_a_call() -> None:
    """Both are recorded as cancelled, and no task is left."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.hang()
        scenario.openai.hang()
        call = scenario.start()
        await asyncio.sleep(10)
        await scenario.client.aclose()
        with pytest.raises(RuntimeError, match="closed during the call"):
            await call
        assert scenario.outcomes() == [("google", Reason.CANCELLED), ("openai", Reason.CANCELLED)]

    run_overlap(scene, hedge_after=5, hedge_budget=1)


def test_a_local_bug_in_one_request_reaches_the_caller_and_ends_the_other() -> None:
    """The error is raised unchanged."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.hang()
        scenario.openai.crash(KeyError("bug"))
        with pytest.raises(KeyError, match="bug"):
            await scenario.ask()
        assert scenario.google.in_flight == 0

    run_overlap(scene, hedge_after=5, hedge_budget=1)


def test_an_interrupt_in_one_request_reaches_the_caller() -> None:
    """It does not pass the caller by through the event loop."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.hang()
        scenario.openai.crash(KeyboardInterrupt())
        try:
            await scenario.ask()
        except KeyboardInterrupt:
            interrupted = True
        assert interrupted
        assert scenario.google.in_flight == 0

    run_overlap(scene, hedge_after=5, hedge_budget=1)


@pytest.mark.parametrize(("deadline", "seconds"), [(None, 10.5), (10.0, 10.0)])
def test_a_provider_that_ignores_its_cancellation_delays_the_image_for_a_second(
    deadline: float | None, seconds: float
) -> None:
    """The image does not miss the deadline for it; the request is counted when it ends."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.hang()
        scenario.openai.latency = 4.5
        result = await scenario.ask(deadline=deadline)
        assert result.provider == "openai"
        assert result.latency_s == near(seconds, abs=0.01)
        assert result.attempts == 1
        assert scenario.client.snapshot()["maybe_billed"]["requests"] == 0
        await asyncio.sleep(5)
        assert scenario.client.snapshot()["maybe_billed"]["requests"] == 1
        assert (scenario.queue()["in_flight"], scenario.breaker()["consecutive"]) == (0, 0)

    run_overlap(
        scene,
        google=Stubborn("google", 4.0),
        hedge_after=5,
        hedge_budget=1,
        openai_timeout=5,
        per_call_timeout=20,
        routes="google:m,openai:m",
    )


@pytest.mark.parametrize("allowed", ["overloaded,timeout", "overloaded,circuit_open", "overloaded"])
def test_reasons_that_may_not_lead_on_start_no_overlap(allowed: str) -> None:
    """IMAGE_GEN_FALLBACK_ON decides about a hedged probe and about a request past its limit."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.latency = 100.0
        result = await scenario.ask()
        assert len(scenario.openai.sent) == ("timeout" in allowed)
        await scenario.make_probe_due()
        sent = len(scenario.openai.sent)
        scenario.google.latency = 20.0
        result = await scenario.ask()
        assert len(scenario.openai.sent) - sent == ("circuit_open" in allowed)
        assert result.fallback_reason == ("circuit_open" if "circuit_open" in allowed else None)
        await asyncio.sleep(60)

    run_overlap(scene, fallback_on=allowed, hedge_after=30, hedge_budget=1)


def test_an_image_that_arrives_while_a_probe_ends_at_its_limit_is_delivered() -> None:
    """The probe takes a second to end after 60 s, and OpenAI delivers after 60.5 s."""

    async def scene(scenario: OverlapScenario) -> None:
        await scenario.make_probe_due()
        scenario.google.hang()
        scenario.openai.latency = 57.5
        assert (await scenario.ask()).provider == "openai"
        await asyncio.sleep(5)
        assert (scenario.request().reason, scenario.request().counted) == (
            Reason.TIMEOUT,
            "failure",
        )

    for on_timeout in ("keep", "abandon"):
        run_overlap(scene, google=Stubborn("google", 1.0), on_timeout=on_timeout)


def test_sibling_routes_share_the_slots_of_their_provider() -> None:
    """The hedge waits for the slot of the slow request, which returns it at its limit."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.hang(times=1)
        result = await scenario.ask()
        assert [sent.at for sent in scenario.google.sent] == near([0, 60], abs=0.01)
        assert (result.model, result.fallback_reason) == ("second", "timeout")

    run_overlap(
        scene, routes="google:first,google:second", max_concurrent=1, hedge_after=5, hedge_budget=1
    )


# -- spill ----------------------------------------------------------------------------------------


def test_a_caller_that_would_queue_for_too_long_goes_to_the_next_route_at_once() -> None:
    """Of eight scenes at ten images per minute, two are worth waiting for."""

    async def scene(scenario: OverlapScenario) -> None:
        results = await asyncio.gather(*(scenario.ask() for _ in range(8)))
        served = [result.provider for result in results]
        assert served == ["google"] * 3 + ["openai"] * 5
        assert {result.fallback_reason for result in results[3:]} == {"saturated"}
        assert max(result.latency_s for result in results) == near(13, abs=0.01)

    run_overlap(scene, ipm=10, openai_ipm=6000, max_wait=12)


def test_a_wait_that_turns_out_too_long_ends_at_the_maximum() -> None:
    """The slots are taken by requests of unknown length."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.latency = 30.0
        first = scenario.start()
        await asyncio.sleep(0.1)
        result = await scenario.ask()
        assert (result.provider, result.fallback_reason) == ("openai", "saturated")
        assert result.latency_s == near(7, abs=0.01)
        await first

    run_overlap(scene, max_concurrent=1, max_wait=5)


def test_the_maximum_does_not_apply_to_the_last_usable_route() -> None:
    """The circuit of the next route is open, and so the caller waits."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.circuit(1).force_trip(cause="quota_exhausted")
        results = await asyncio.gather(*(scenario.ask() for _ in range(4)))
        assert {result.provider for result in results} == {"google"}
        assert max(result.latency_s for result in results) == near(19, abs=0.01)

    run_overlap(scene, ipm=10, max_wait=0)


def test_sibling_routes_behind_one_queue_pass_a_caller_on_to_the_last_of_them() -> None:
    """The last route is waited for, although its queue is the same."""

    async def scene(scenario: OverlapScenario) -> None:
        results = await asyncio.gather(*(scenario.ask() for _ in range(3)))
        assert [result.model for result in results] == ["first", "second", "second"]
        assert max(result.latency_s for result in results) == near(13, abs=0.01)

    run_overlap(scene, routes="google:first,google:second", ipm=10, max_wait=0)


def test_a_maximum_of_zero_lets_a_caller_through_that_need_not_wait() -> None:
    """Callers that arrive as the pace allows are all served by the primary."""

    async def scene(scenario: OverlapScenario) -> None:
        for _ in range(50):
            assert (await scenario.ask()).provider == "google"
            await asyncio.sleep(60 / 7 - 1)

    run_overlap(scene, ipm=7, max_wait=0)


def test_without_saturated_among_the_reasons_nobody_is_passed_on() -> None:
    """IMAGE_GEN_FALLBACK_ON keeps callers in the queue."""

    async def scene(scenario: OverlapScenario) -> None:
        results = await asyncio.gather(*(scenario.ask() for _ in range(3)))
        assert {result.provider for result in results} == {"google"}

    run_overlap(scene, ipm=10, max_wait=0, fallback_on="overloaded")
