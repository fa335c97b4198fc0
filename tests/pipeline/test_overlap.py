"""Overlap of two requests of one call: hedged probes, slow requests, requests past their limit."""

from __future__ import annotations

import asyncio
import random
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
from resilient_imagen.control import new_order
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


class IgnoresCancellation(FakeProvider):
    """A provider that takes some seconds to end when it is cancelled."""

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


def test_a_hedged_probe_continues_after_delivery_and_votes() -> None:
    """A hedged probe keeps slot and permit, closes the circuit, and its cost is counted."""

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
    """A hedged probe ends at IMAGE_GEN_PER_CALL_TIMEOUT, independent of its call's deadline."""

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
    """A hedged probe that fails after delivery opens the circuit without another request."""

    async def scene(scenario: OverlapScenario) -> None:
        await scenario.make_probe_due()
        scenario.google.fail(Reason.OVERLOADED, status=503, latency=10.0)
        await scenario.ask()
        await asyncio.sleep(60)
        assert len(scenario.google.sent) == 1
        assert scenario.breaker()["why"] == "overloaded"

    run_overlap(scene)


def test_closing_the_client_cancels_a_hedged_probe_without_a_vote() -> None:
    """A closed client records its hedged probe as cancelled, without a vote."""

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
    """Another probe's failure ends the half-open round and cancels the hedged probe."""

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
    """A probe whose half-open round has ended is cancelled when its call ends."""

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
    """If the probe delivers first, the next route's request is cancelled and may be billed."""

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
    """A request cancelled after 1.5 times the usual latency is a failure in a row only."""

    async def scene(scenario: OverlapScenario) -> None:
        for latency, consecutive in ((29.0, 0), (31.0, 1)):
            scenario.openai.latency = 20.0
            scenario.circuit().force_open = True
            for _ in range(4):  # the first success sets the usual latency
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
    """A probe without a hedge is cancelled when the slow request delivers, without a vote."""

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


def test_a_probe_that_fails_within_three_seconds_causes_no_overlap() -> None:
    """A probe that fails before the hedge delay leads to an ordinary fallback."""

    async def scene(scenario: OverlapScenario) -> None:
        await scenario.make_probe_due()
        scenario.google.fail(Reason.OVERLOADED, status=503, latency=2.9)
        result = await scenario.ask()
        assert result.fallback_reason == "overloaded"
        assert (len(scenario.google.sent), len(scenario.openai.sent)) == (1, 1)

    run_overlap(scene, breaker_half_open_calls=1)


def test_a_probe_that_fails_after_its_hedge_leaves_the_hedge_running() -> None:
    """After the probe fails, its hedge continues; each route gets one request."""

    async def scene(scenario: OverlapScenario) -> None:
        await scenario.make_probe_due()
        scenario.google.fail(Reason.OVERLOADED, status=503, latency=4.0)
        scenario.openai.latency = 10.0
        result = await scenario.ask()
        assert (result.fallback_reason, result.attempts) == ("circuit_open", 2)
        assert (len(scenario.google.sent), len(scenario.openai.sent)) == (1, 1)

    run_overlap(scene)


def test_a_hedged_probe_skips_routes_whose_circuit_is_open() -> None:
    """The hedge of a probe starts on the first route that allows calls."""

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
    """Without a usable next route, the probe runs alone and serves its caller."""

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
    """A kept request that delivers first serves the call, without a fallback."""

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
    """A kept request that is cancelled later is recorded as a timeout that may be billed."""

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
    """A caller that leaves does not change the vote that its kept request cast at the limit."""

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


def test_the_failure_vote_is_cast_at_the_limit() -> None:
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


def test_the_failure_vote_is_cast_at_an_earlier_end_of_the_request() -> None:
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
    """On a route with a latency of 50 s, an image after 70 s is a success despite a 60 s limit."""

    async def scene(scenario: OverlapScenario) -> None:
        await scenario.learn_latency(50)
        scenario.google.latency, scenario.openai.latency = 70.0, 30.0
        assert (await scenario.ask()).provider == "google"
        assert scenario.requests("google")[-1].counted == "success"
        assert scenario.breaker()["window"]["failures"] == 0

    run_overlap(scene)


def test_a_probe_fails_at_its_limit_however_slow_its_route_usually_is() -> None:
    """A probe fails at its limit even on a slow route, and its request is kept."""

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
    """A kept request is cancelled at twice its limit; the next route continues."""

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
    """At the deadline both requests are recorded; the error begins with the primary's timeout."""

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
    """At half of the deadline OpenAI is asked, and the primary's request continues."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.latency = deadline / 2 + 5
        scenario.openai.latency = 20.0
        result = await scenario.ask(deadline=deadline)
        assert scenario.openai.sent[0].at == near(deadline / 2, abs=0.01)
        assert (result.provider, result.fallback_reason, result.attempts) == ("google", None, 2)

    run_overlap(scene)


def test_an_error_at_the_deadline_names_the_primary_that_was_left_at_the_reserve() -> None:
    """The deadline error names a primary that is still within its limit."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.hang()
        scenario.openai.hang()
        error = await error_of(scenario.start(deadline=50))
        assert str(error).startswith("google gemini-3-pro-image: timed out; openai ")
        assert [each.reason for each in error.attempts] == [Reason.DEADLINE, Reason.DEADLINE]
        assert [each.counted for each in scenario.events.attempts] == ["throttled", "ignored"]

    run_overlap(scene)


def test_a_request_that_the_next_route_beats_at_the_reserve_counts_as_cut_short() -> None:
    """A request cancelled after 47 s, with a usual latency of 30 s, is a failure in a row."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.hang()
        result = await scenario.ask(deadline=90)
        assert (result.fallback_reason, result.latency_s) == ("timeout", near(47, abs=0.01))
        cut = scenario.request()
        assert (cut.reason, cut.counted, cut.cut_short) == (Reason.CANCELLED, "throttled", True)
        assert (scenario.breaker()["consecutive"], scenario.breaker()["window"]["calls"]) == (1, 0)

    run_overlap(scene)


def test_a_kept_request_returns_its_slot_and_not_its_place_in_the_pace() -> None:
    """A kept request frees its slot for a queued caller, which is still paced."""

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
    """A provider has at most max_concurrent kept requests, however many callers wait."""

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
    """On the only route, a request runs to twice its limit, and its error is raised."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.hang()
        error = await error_of(scenario.start())
        assert isinstance(error, ProviderTimeoutError)
        assert now() == near(120, abs=0.01)
        assert [each.reason for each in error.attempts] == [Reason.TIMEOUT]
        assert len(scenario.google.sent) == 1

    run_overlap(scene, routes="google:gemini-3-pro-image")


def test_the_deadline_ends_a_kept_request_that_would_end_at_the_same_time() -> None:
    """A deadline of twice the limit ends the call with its own error."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.hang()
        error = await error_of(scenario.start(deadline=120.0))
        assert isinstance(error, DeadlineExceededError)
        assert now() == near(120, abs=0.01)

    run_overlap(scene, routes="google:gemini-3-pro-image")


def test_a_kept_request_ends_by_the_limit_that_it_was_sent_with() -> None:
    """An operator's new limit changes neither the slot nor the end of a request in flight."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.hang()
        call = scenario.start()
        await asyncio.sleep(10)
        scenario.client.obey(
            new_order("set", "IMAGE_GEN_PER_CALL_TIMEOUT", value="300", by="ops", seconds=3000)
        )
        await asyncio.sleep(51)
        assert (scenario.google.in_flight, scenario.queue()["in_flight"]) == (1, 0)
        await error_of(call)
        assert now() == near(120, abs=0.01)
        assert scenario.request().time_limit_s == 60

    run_overlap(scene, routes="google:gemini-3-pro-image")


@pytest.mark.parametrize("seed", range(8))
def test_a_detached_probe_ends_at_its_limit_whatever_timers_the_loop_has(seed: int) -> None:
    """It keeps its slot until then, and no callback of the loop fails."""

    async def scene(scenario: OverlapScenario) -> None:
        failures: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, found: failures.append(found))
        await scenario.make_probe_due()
        chance, loop = random.Random(seed), asyncio.get_running_loop()
        scenario.google.hang()
        others = [loop.call_later(chance.uniform(1, 200), int) for _ in range(20)]
        await scenario.ask()
        others += [loop.call_later(chance.uniform(1, 200), int) for _ in range(20)]
        await asyncio.sleep(50)
        assert scenario.queue()["in_flight"] == 1
        await asyncio.sleep(10)
        last = scenario.events.attempts[-1]
        assert (last.reason, last.latency_s) == (Reason.TIMEOUT, near(60, abs=0.01))
        assert (last.cancel_cause, last.counted, scenario.google.in_flight) == (None, "failure", 0)
        assert failures == []
        for each in others:
            each.cancel()

    run_overlap(scene)


def test_the_only_route_may_deliver_after_its_limit() -> None:
    """A request of 100 s serves its caller, and has counted as a failure since 60 s."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.latency = 100.0
        result = await scenario.ask()
        assert (result.attempts, result.latency_s) == (1, near(100, abs=0.01))
        assert scenario.request().counted == "failure"
        assert scenario.events.last(RequestEnded).hedged is None

    run_overlap(scene, routes="google:gemini-3-pro-image")


def test_a_retry_after_a_late_failure_has_its_own_limit() -> None:
    """A retry after a request that failed past its limit gets a new time limit."""

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
    """With IMAGE_GEN_ON_TIMEOUT=abandon, the next route starts after the request has ended."""

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
    """If the hedge delivers first, the fallback has the reason timeout, and the request none."""

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
    """Only after 20 latencies at a resolution does the percentile start a hedge, here at 10 s."""

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
    """The usual latency ignores older latencies, which only the 95th percentile uses."""

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
    """The budget allows at least one hedge an hour, unless it is 0."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.latency = 12.0
        for _ in range(calls):
            await scenario.ask()
        assert hedges(scenario) == hedged

    run_overlap(scene, hedge_after=5, hedge_budget=budget)


def test_the_budget_is_that_of_the_last_hour() -> None:
    """An hour after a hedge another one is allowed, even with few calls."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.latency = 20.0
        for minutes, hedged in ((0, 1), (30, 1), (29, 1), (3, 2), (58, 2)):
            await asyncio.sleep(minutes * 60)
            await scenario.ask()
            assert hedges(scenario) == hedged

    run_overlap(scene, hedge_after=5)


def test_calls_and_hedges_leave_the_budget_an_hour_later_minute_by_minute() -> None:
    """Calls and hedges expire from the budget one hour after their minute."""
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
    """Only hedges of slow requests use up the budget."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.hang()
        assert (await scenario.ask()).fallback_reason == "timeout"
        await scenario.make_probe_due()
        assert (await scenario.ask()).fallback_reason == "circuit_open"

    run_overlap(scene, hedge_after=5, hedge_budget=0)


@pytest.mark.parametrize(("deadline", "sent"), [(70, 0), (80, 1)])
def test_a_hedge_that_the_deadline_cannot_hold_is_not_started(deadline: float, sent: int) -> None:
    """A slow request is not hedged if OpenAI's usual 60 s exceed the remaining deadline."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.latency, scenario.openai.latency = 20.0, 30.0
        assert (await scenario.ask(deadline=deadline)).provider == "google"
        assert len(scenario.openai.sent) == sent

    run_overlap(scene, hedge_after=15, hedge_budget=1)


def test_a_request_that_is_slow_at_its_limit_is_kept_beside_the_next_route() -> None:
    """A request that becomes slow at its limit is kept even without a hedge budget."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.hang()
        result = await scenario.ask()
        assert (result.provider, result.latency_s) == ("openai", near(62, abs=0.01))
        assert scenario.events.last(RequestEnded).hedged == "timeout"

    run_overlap(scene, hedge_after=60, hedge_budget=0)


def test_a_hedge_that_came_due_as_its_request_failed_is_forgotten() -> None:
    """If a request fails when its hedge is due, only the retry is hedged, at its own time."""

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
    """Starting a third route cancels the oldest request, so at most two are in flight."""

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
    """A slow first request is cancelled for the third route, and the call continues."""

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


def test_a_failed_hedge_is_followed_by_the_third_route() -> None:
    """After a hedge fails, the third route starts beside the slow first request."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.hang()
        scenario.openai.fail(Reason.UNAUTHENTICATED, status=401, latency=1.0)
        result = await scenario.ask()
        assert (result.provider, result.attempts) == ("local", 3)
        assert scenario.local.sent[0].at == near(6, abs=0.01)
        assert scenario.request("local").overlap == "slow"

    run_overlap(scene, routes=THREE_ROUTES, hedge_after=5, hedge_budget=1)


def test_a_displaced_request_counts_as_cut_short_even_if_its_caller_leaves_then() -> None:
    """A request displaced after 45 s counts as cut short even if its caller leaves then."""

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
        google=IgnoresCancellation("google", 0.5),
        routes=THREE_ROUTES,
        openai_timeout=40,
        hedge_after=5,
        hedge_budget=1,
    )


# -- the end of a call ----------------------------------------------------------------------------


def test_a_refusal_by_the_primary_ends_the_call_at_once() -> None:
    """A primary's refusal cancels the other request without a vote and lists both attempts."""

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
    """The refusal is raised with both attempts even if the hedge fails."""

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
    """If a later route refuses, the primary's request continues and delivers."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.latency = 20.0
        scenario.openai.fail(Reason.CONTENT_BLOCKED, latency=1.0)
        result = await scenario.ask()
        assert (result.provider, result.fallback_reason, result.attempts) == ("google", None, 2)
        assert scenario.local.sent == []

    run_overlap(scene, routes=THREE_ROUTES, hedge_after=5, hedge_budget=1)


def test_a_later_routes_refusal_is_raised_when_no_other_request_runs() -> None:
    """A later route's refusal is raised if the primary fails afterwards."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503, latency=20.0)
        scenario.openai.fail(Reason.CONTENT_BLOCKED, latency=1.0)
        error = await error_of(scenario.start())
        assert isinstance(error, ContentBlockedError)
        assert now() == near(20, abs=0.01)
        assert len(error.attempts) == 2

    run_overlap(scene, hedge_after=5, hedge_budget=1)


def test_the_primarys_image_is_delivered_of_two_in_the_same_instant() -> None:
    """The primary's image is delivered, and both are recorded and paid for."""

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
    """An image that arrives together with a refusal is delivered."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.fail(Reason.CONTENT_BLOCKED, latency=10.0)
        scenario.openai.latency = 5.0
        result = await scenario.ask()
        assert (result.provider, result.attempts) == ("openai", 2)

    run_overlap(scene, hedge_after=5, hedge_budget=1)


def test_an_error_is_led_by_the_primary_and_has_every_attempt_once() -> None:
    """If both routes fail, the error begins with the primary's and lists each attempt once."""

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
    """A hedge rejected by an open circuit is tried again when the first request fails."""

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
    """A hedge rejected by a full queue is tried again when the first request fails."""

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
    """A hedge that sent no request is not reported as overlap."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.latency = 30.0
        with scenario.client._routing.routes[1].limiter.join():
            result = await scenario.ask()
        assert (result.provider, result.fallback_reason, result.attempts) == ("google", None, 1)
        assert scenario.events.last(RequestEnded).hedged is None

    run_overlap(scene, hedge_after=5, hedge_budget=1, max_concurrent=1, max_queue=0)


def test_a_request_sent_without_another_in_flight_is_not_an_overlap() -> None:
    """A hedge that leaves its queue after the slow request failed is not an overlap."""

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
    """Closing the client records both requests as cancelled, and no task is left."""

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
    """A bug in one request is raised unchanged and cancels the other request."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.google.hang()
        scenario.openai.crash(KeyError("bug"))
        with pytest.raises(KeyError, match="bug"):
            await scenario.ask()
        assert scenario.google.in_flight == 0

    run_overlap(scene, hedge_after=5, hedge_budget=1)


def test_an_interrupt_in_one_request_reaches_the_caller() -> None:
    """KeyboardInterrupt in a request is raised by the call."""

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
    """A request that ignores cancellation delays the image for at most a second."""

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
        google=IgnoresCancellation("google", 4.0),
        hedge_after=5,
        hedge_budget=1,
        openai_timeout=5,
        per_call_timeout=20,
        routes="google:m,openai:m",
    )


@pytest.mark.parametrize("allowed", ["overloaded,timeout", "overloaded,circuit_open", "overloaded"])
def test_reasons_without_a_fallback_start_no_overlap(allowed: str) -> None:
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
    """An image that arrives while the timed-out probe is still ending is delivered."""

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
        run_overlap(scene, google=IgnoresCancellation("google", 1.0), on_timeout=on_timeout)


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
    """Of eight callers at ten images per minute, two wait; the others go to the next route."""

    async def scene(scenario: OverlapScenario) -> None:
        results = await asyncio.gather(*(scenario.ask() for _ in range(8)))
        served = [result.provider for result in results]
        assert served == ["google"] * 3 + ["openai"] * 5
        assert {result.fallback_reason for result in results[3:]} == {"saturated"}
        assert max(result.latency_s for result in results) == near(13, abs=0.01)

    run_overlap(scene, ipm=10, openai_ipm=6000, max_wait=12)


def test_a_wait_that_turns_out_too_long_ends_at_the_maximum() -> None:
    """A queued caller goes to the next route when its maximum wait has passed."""

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
    """A caller waits beyond the maximum if the next route's circuit is open."""

    async def scene(scenario: OverlapScenario) -> None:
        scenario.circuit(1).force_trip(cause="quota_exhausted")
        results = await asyncio.gather(*(scenario.ask() for _ in range(4)))
        assert {result.provider for result in results} == {"google"}
        assert max(result.latency_s for result in results) == near(19, abs=0.01)

    run_overlap(scene, ipm=10, max_wait=0)


def test_the_last_of_sibling_routes_with_one_queue_is_waited_for() -> None:
    """The last route is waited for even if it shares the queue of the earlier routes."""

    async def scene(scenario: OverlapScenario) -> None:
        results = await asyncio.gather(*(scenario.ask() for _ in range(3)))
        assert [result.model for result in results] == ["first", "second", "second"]
        assert max(result.latency_s for result in results) == near(13, abs=0.01)

    run_overlap(scene, routes="google:first,google:second", ipm=10, max_wait=0)


def test_a_maximum_of_zero_lets_a_caller_through_that_need_not_wait() -> None:
    """With a maximum wait of zero, callers within the pace are served by the primary."""

    async def scene(scenario: OverlapScenario) -> None:
        for _ in range(50):
            assert (await scenario.ask()).provider == "google"
            await asyncio.sleep(60 / 7 - 1)

    run_overlap(scene, ipm=7, max_wait=0)


def test_without_saturated_in_fallback_on_callers_stay_in_the_queue() -> None:
    """Callers stay in the queue if IMAGE_GEN_FALLBACK_ON does not list saturated."""

    async def scene(scenario: OverlapScenario) -> None:
        results = await asyncio.gather(*(scenario.ask() for _ in range(3)))
        assert {result.provider for result in results} == {"google"}

    run_overlap(scene, ipm=10, max_wait=0, fallback_on="overloaded")
