"""Telemetry of calls with two requests in flight, and of requests that end after their call."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode
from pipeline_kit import FAST
from telemetry_kit import TelemetryScenario, attributes, run_telemetry_scenario

from resilient_imagen import Reason

GOOGLE = "google:gemini-3-pro-image"
OPENAI = "openai:gpt-image-2.5-flare"
OPENAI_USD = 0.00305
"""Price of the tokens that the fake provider reports."""

PROBES: dict[str, Any] = {**FAST, "breaker_fail_max": 1, "hedge_probe_after": 3}
"""The first failure opens a circuit; the next route is asked 3 s after a probe was sent."""
KEEPS: dict[str, Any] = {**FAST, "on_timeout": "keep", "per_call_timeout": 60}
SLOW: dict[str, Any] = {**FAST, "hedge_after": 10}


async def open_google(scenario: TelemetryScenario) -> None:
    """Open Google's circuit, and wait until the next request to it is a probe."""
    scenario.google.fail(Reason.OVERLOADED, status=503, times=1)
    await scenario.ask()
    await asyncio.sleep(70)
    scenario.telemetry.exporter.clear()


async def slow_google(scenario: TelemetryScenario) -> None:
    """Make a request to Google that is slow, so that OpenAI is asked beside it."""
    scenario.google.latency = 100
    await scenario.ask()


async def probe_beside_openai(scenario: TelemetryScenario) -> None:
    """Send a slow probe to Google, so that OpenAI is asked beside it; wait for its end."""
    await open_google(scenario)
    scenario.google.latency = 20
    await scenario.ask()
    await asyncio.sleep(30)


async def keep_google(scenario: TelemetryScenario) -> None:
    """Let a request to Google exceed its time limit, and OpenAI deliver beside it."""
    scenario.google.hang(times=1)
    scenario.openai.latency = 40
    await scenario.ask()


def attempt_of(scenario: TelemetryScenario, provider: str) -> ReadableSpan:
    """Return the only finished span of a request to this provider."""
    [found] = [
        span
        for span in scenario.telemetry.attempts()
        if attributes(span)["imagegen.provider"] == provider
    ]
    return found


def duration(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def test_a_hedged_probe_has_a_span_of_its_whole_duration() -> None:
    """The span of a hedged probe ends after its call's root span, its parent."""

    async def scene(scenario: TelemetryScenario) -> None:
        await open_google(scenario)
        scenario.google.latency = 20
        await scenario.ask()
        root, served = scenario.telemetry.roots()[0], attempt_of(scenario, "openai")
        assert duration(root) == pytest.approx(5)
        assert duration(served) == pytest.approx(2)
        await asyncio.sleep(30)
        probe = attempt_of(scenario, "google")
        assert duration(probe) == pytest.approx(20)
        assert probe.parent == served.parent == root.context
        assert attributes(probe)["imagegen.attempt.outcome"] == "success"
        assert attributes(probe)["imagegen.circuit_breaker.transition"] == "half_open_to_closed"
        assert attributes(served)["imagegen.attempt.outcome"] == "success"
        assert probe.status.status_code is StatusCode.UNSET

    run_telemetry_scenario(scene, **PROBES)


def test_an_opening_by_a_probe_without_its_caller_is_linked_to_the_probe() -> None:
    """A later rejection links to the probe that failed after its call."""

    async def scene(scenario: TelemetryScenario) -> None:
        await open_google(scenario)
        scenario.google.fail(Reason.OVERLOADED, status=503, latency=20)
        await scenario.ask()
        await asyncio.sleep(30)
        await scenario.ask()
        probe, [reject] = attempt_of(scenario, "google"), scenario.telemetry.rejects()
        assert [link.context for link in reject.links] == [probe.context]
        assert attributes(probe)["imagegen.circuit_breaker.transition"] == "half_open_to_open"

    run_telemetry_scenario(scene, **PROBES)


def test_an_opening_is_linked_to_the_request_of_that_route() -> None:
    """An opening does not link to another route's request of the same call."""

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.google.hang(times=1)
        scenario.openai.latency = 40
        call = asyncio.create_task(scenario.ask())
        await asyncio.sleep(70)  # Google's circuit opens at 60 s, beside a request to OpenAI
        await scenario.ask()
        await call
        kept, [reject] = attempt_of(scenario, "google"), scenario.telemetry.rejects()
        assert [link.context for link in reject.links] == [kept.context]
        assert attributes(kept)["imagegen.circuit_breaker.transition"] == "closed_to_open"

    run_telemetry_scenario(scene, breaker_fail_max=1, **KEEPS)


def test_each_of_two_requests_in_flight_ends_its_own_span() -> None:
    """Of two requests in flight, each that ends closes its own span."""

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.google.fail(Reason.SERVER_ERROR, status=500, latency=70, times=1)
        scenario.openai.latency = 40
        await scenario.ask()
        failed, served = attempt_of(scenario, "google"), attempt_of(scenario, "openai")
        assert duration(failed) == pytest.approx(70)
        assert attributes(failed)["error.type"] == "server_error"
        assert duration(served) == pytest.approx(40)
        assert "error.type" not in attributes(served)

    run_telemetry_scenario(scene, **KEEPS)


def test_a_log_record_names_the_span_of_its_request(caplog: pytest.LogCaptureFixture) -> None:
    """With two requests in flight, a record has the id of its own request's span."""

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.google.fail(Reason.SERVER_ERROR, status=500, latency=70, times=1)
        scenario.openai.latency = 40
        await scenario.ask()
        context = attempt_of(scenario, "google").context
        assert context is not None
        [record] = [each for each in caplog.records if vars(each)["event"].endswith(".failed")]
        assert vars(record)["span_id"] == format(context.span_id, "016x")
        assert vars(record)["trace_id"] == format(context.trace_id, "032x")

    caplog.set_level(logging.INFO, logger="imagegen")
    run_telemetry_scenario(scene, **KEEPS)


def test_a_request_that_ends_after_its_call_is_measured() -> None:
    """Duration, tokens and the breaker's count of a hedged probe are recorded when it ends."""

    async def scene(scenario: TelemetryScenario) -> None:
        await open_google(scenario)
        scenario.google.latency = 20
        await scenario.ask()

        def probes() -> list[Any]:
            return [
                value
                for found, value in scenario.telemetry.points("gen_ai.client.operation.duration")
                if found["gen_ai.provider.name"] == "gcp.gemini" and "error.type" not in found
            ]

        assert probes() == []
        await asyncio.sleep(30)
        assert probes() == [(1, 20.0)]
        counted = {
            found["imagegen.circuit_breaker.result"]: value
            for found, value in scenario.telemetry.points("imagegen.circuit_breaker.calls")
            if found["imagegen.circuit_breaker.name"] == GOOGLE
        }
        assert counted == {"failure": 1, "success": 1}

    run_telemetry_scenario(scene, **PROBES)


@pytest.mark.parametrize(
    ("scene", "settings", "kind", "cause"),
    [
        (probe_beside_openai, PROBES, "probe", "circuit_open"),
        (slow_google, SLOW, "slow", "timeout"),
        (keep_google, KEEPS, "timeout", "timeout"),
    ],
)
def test_spans_and_metrics_have_the_kind_of_overlap(
    scene: Callable[[TelemetryScenario], Awaitable[None]],
    settings: dict[str, Any],
    kind: str,
    cause: str,
) -> None:
    """The root span, its event, the span of the second request, and a counter have it."""

    async def whole(scenario: TelemetryScenario) -> None:
        await scene(scenario)
        root = scenario.telemetry.roots()[0]
        assert attributes(root)["imagegen.hedged"] == kind
        assert attributes(root)["imagegen.fallback.cause"] == cause
        assert [dict(event.attributes or {}) for event in root.events] == [
            {
                "imagegen.event.from": GOOGLE,
                "imagegen.event.to": OPENAI,
                "imagegen.event.cause": cause,
                "imagegen.event.hedged": kind,
            }
        ]
        assert attributes(attempt_of(scenario, "openai"))["imagegen.attempt.overlap"] == kind
        assert "imagegen.attempt.overlap" not in attributes(attempt_of(scenario, "google"))
        assert scenario.telemetry.points("imagegen.hedges") == [
            ({"imagegen.hedged": kind, "gen_ai.provider.name": "openai"}, 1)
        ]

    run_telemetry_scenario(whole, **settings)


def test_a_call_without_overlap_has_no_kind() -> None:
    """A request sent after the kept one failed has no kind of overlap, nor has its call."""

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.google.fail(Reason.SERVER_ERROR, status=500, latency=70, times=1)
        scenario.openai.fail(Reason.SERVER_ERROR, status=500, latency=5, times=1)
        await scenario.ask()
        first, second = (
            span
            for span in scenario.telemetry.attempts()
            if attributes(span)["imagegen.provider"] == "openai"
        )
        assert attributes(first)["imagegen.attempt.overlap"] == "timeout"
        assert "imagegen.attempt.overlap" not in attributes(second)
        scenario.telemetry.exporter.clear()
        await scenario.ask()
        assert "imagegen.hedged" not in attributes(scenario.telemetry.roots()[0])

    run_telemetry_scenario(scene, retry_base_delay=20, **KEEPS)


def test_a_request_cancelled_by_another_routes_image_may_have_been_billed() -> None:
    """The cancelled request's span has outcome and cause, and is not an error."""

    async def scene(scenario: TelemetryScenario) -> None:
        await slow_google(scenario)
        cancelled = attempt_of(scenario, "google")
        found = attributes(cancelled)
        assert found["imagegen.attempt.outcome"] == "cancelled"
        assert found["imagegen.attempt.cancel_cause"] == "delivered"
        assert found["imagegen.attempt.may_be_billed"] is True
        assert duration(cancelled) == pytest.approx(12)
        assert cancelled.status.status_code is StatusCode.UNSET

    run_telemetry_scenario(scene, **SLOW)


def test_a_kept_request_timed_out_and_may_have_been_billed() -> None:
    """It was cancelled when the next route delivered, after its time limit."""

    async def scene(scenario: TelemetryScenario) -> None:
        await keep_google(scenario)
        kept = attempt_of(scenario, "google")
        found = attributes(kept)
        assert found["imagegen.attempt.outcome"] == found["error.type"] == "timeout"
        assert found["imagegen.attempt.cancel_cause"] == "delivered"
        assert found["imagegen.attempt.time_limit"] == 60.0
        assert found["imagegen.attempt.may_be_billed"] is True
        assert duration(kept) == pytest.approx(100)
        assert kept.status.status_code is StatusCode.ERROR

    run_telemetry_scenario(scene, **KEEPS)


def records(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if record.name == "imagegen"]


@pytest.mark.parametrize(
    ("scene", "settings", "sentences"),
    [
        (
            probe_beside_openai,
            PROBES,
            [
                "google probe slow after 3.0 s: openai asked beside it",
                "image from openai after 5.0 s and 1 request; google was left (probe slow)",
                "google serves again: circuit closed",
                "image from google after 20 s, not used: openai delivered first; circuit closed",
            ],
        ),
        (
            slow_google,
            SLOW,
            [
                "google slow after 10 s: openai asked beside it",
                "google cancelled after 12 s: openai delivered first; may have been billed",
                "image from openai after 12 s and 2 requests; google was left (slow)",
            ],
        ),
        (
            keep_google,
            {**KEEPS, "openai_timeout": 200},
            [
                "google past its limit of 60 s: kept beside openai",
                (
                    "google cancelled after 100 s, past its limit of 60 s: openai delivered first; "
                    "may have been billed"
                ),
                "image from openai after 100 s and 2 requests; google was left (past its limit)",
            ],
        ),
    ],
)
def test_log_records_describe_overlaps_and_cancelled_requests(
    scene: Callable[[TelemetryScenario], Awaitable[None]],
    settings: dict[str, Any],
    sentences: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each step of an overlap has one sentence, in order."""

    async def whole(scenario: TelemetryScenario) -> None:
        await scene(scenario)
        summaries = [record["summary"] for record in records(caplog)]
        assert summaries[-len(sentences) :] == sentences

    caplog.set_level(logging.INFO, logger="imagegen")
    run_telemetry_scenario(whole, **settings)


def test_log_records_have_the_keys_of_the_overlap(caplog: pytest.LogCaptureFixture) -> None:
    """Records of fallback, cancelled request and call have the keys of the overlap."""

    async def scene(scenario: TelemetryScenario) -> None:
        await slow_google(scenario)
        _settings, fallback, cancelled, completed = records(caplog)
        assert (fallback["event"], fallback["hedged"]) == ("imagegen.fallback", "slow")
        assert fallback["after_s"] == 10.0
        assert cancelled["event"] == "imagegen.attempt.failed"
        assert cancelled["reason"] == "cancelled"
        assert cancelled["attempt.cancel_cause"] == "delivered"
        assert cancelled["attempt.may_be_billed"] is True
        assert (cancelled["attempt.resolution"], cancelled["attempt.time_limit"]) == ("2K", 60.0)
        assert (completed["event"], completed["hedged"]) == ("imagegen.request.completed", "slow")
        assert completed["attempt.overlap"] == "slow"
        assert (completed["attempt.resolution"], completed["attempt.time_limit"]) == ("2K", 180.0)

    caplog.set_level(logging.INFO, logger="imagegen")
    run_telemetry_scenario(scene, **SLOW)


def test_the_image_of_a_hedged_probe_has_a_record(caplog: pytest.LogCaptureFixture) -> None:
    """An image after the end of its call has a separate record with span and price."""

    async def scene(scenario: TelemetryScenario) -> None:
        await probe_beside_openai(scenario)
        record, probe = records(caplog)[-1], attempt_of(scenario, "google")
        assert record["event"] == "imagegen.attempt.completed"
        assert (record["attempt.unused"], record["circuit_breaker.probe"]) == (True, True)
        assert record["cost_usd"] > 0
        assert probe.context is not None
        assert record["span_id"] == format(probe.context.span_id, "016x")
        assert attributes(probe)["imagegen.attempt.unused"] is True

    caplog.set_level(logging.INFO, logger="imagegen")
    run_telemetry_scenario(scene, **PROBES)


def test_one_of_two_simultaneous_images_is_unused(caplog: pytest.LogCaptureFixture) -> None:
    """The caller gets the image whose request the record of the call describes."""

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.google.latency, scenario.openai.latency = 15, 5
        result = await scenario.ask()
        unused, completed = records(caplog)[-2:]
        assert (unused["event"], unused["attempt.unused"]) == ("imagegen.attempt.completed", True)
        assert completed["circuit_breaker.name"] == f"{result.provider}:{result.model}"
        assert {unused["provider"], result.provider} == {"google", "openai"}
        assert completed["attempts"] == 2

    caplog.set_level(logging.INFO, logger="imagegen")
    run_telemetry_scenario(scene, **SLOW)


def test_the_snapshot_counts_calls_hedges_and_requests_in_the_background() -> None:
    """The snapshot has the last hour's hedges; only slow requests use up the budget."""

    async def scene(scenario: TelemetryScenario) -> None:
        for _ in range(3):
            await scenario.ask()
        await slow_google(scenario)
        assert scenario.client.snapshot()["hedging"] == {
            "calls_last_hour": 4,
            "hedged_last_hour": 1,
            "budget": 0.05,
            "in_background": 0,
        }
        scenario.google.heal().latency = 1
        scenario.google.fail(Reason.OVERLOADED, status=503, times=1)
        await scenario.ask()
        await asyncio.sleep(70)
        scenario.google.latency = 20
        await scenario.ask()
        hedging = scenario.client.snapshot()["hedging"]
        assert (hedging["calls_last_hour"], hedging["hedged_last_hour"]) == (6, 1)
        assert hedging["in_background"] == 1
        await asyncio.sleep(3600)
        hedging = scenario.client.snapshot()["hedging"]
        assert (hedging["calls_last_hour"], hedging["hedged_last_hour"]) == (0, 0)
        assert hedging["in_background"] == 0

    run_telemetry_scenario(scene, **{**PROBES, **SLOW})


def test_the_totals_have_the_cost_of_both_requests_once() -> None:
    """The image has its price; the cancelled request counts as possibly billed, at a price."""

    async def scene(scenario: TelemetryScenario) -> None:
        await slow_google(scenario)
        snapshot = scenario.client.snapshot()
        assert (snapshot["images"], snapshot["unpriced_images"]) == (1, 0)
        assert snapshot["cost_usd"] == pytest.approx(OPENAI_USD)
        assert snapshot["maybe_billed"] == {"requests": 1, "cost_usd": 0.134, "unpriced": 0}
        await asyncio.sleep(200)
        assert scenario.client.snapshot()["maybe_billed"]["requests"] == 1

    run_telemetry_scenario(scene, **SLOW)


def test_the_cost_of_a_hedged_probe_is_added_when_it_ends() -> None:
    """The image of a hedged probe is counted, although no caller gets it."""

    async def scene(scenario: TelemetryScenario) -> None:
        await open_google(scenario)
        before = scenario.client.snapshot()
        scenario.google.latency = 20
        await scenario.ask()
        served = scenario.client.snapshot()
        assert served["images"] - before["images"] == 1
        assert served["cost_usd"] - before["cost_usd"] == pytest.approx(OPENAI_USD)
        await asyncio.sleep(30)
        ended = scenario.client.snapshot()
        assert ended["images"] - served["images"] == 1
        assert ended["cost_usd"] - served["cost_usd"] == pytest.approx(0.134)
        assert ended["maybe_billed"]["requests"] == 0

    run_telemetry_scenario(scene, **PROBES)
