"""Telemetry of calls with two requests in flight, and of requests that end after their call."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode
from telemetry_kit import FAST, TelemetryScenario, attributes, run_telemetry_scenario

from resilient_imagen import Reason

GOOGLE = "google:gemini-3-pro-image"

PROBES: dict[str, Any] = {**FAST, "breaker_fail_max": 1, "hedge_probe_after": 3}
"""The first failure opens a circuit; the next route is asked 3 s after a probe was sent."""
KEEPS: dict[str, Any] = {**FAST, "on_timeout": "keep", "per_call_timeout": 60}


async def open_google(world: TelemetryScenario) -> None:
    """Open Google's circuit, and wait until the next request to it is a probe."""
    world.google.fail(Reason.OVERLOADED, status=503, times=1)
    await world.ask()
    await asyncio.sleep(70)
    world.telemetry.exporter.clear()


def attempt_of(world: TelemetryScenario, provider: str) -> ReadableSpan:
    """Return the only finished span of a request to this provider."""
    [found] = [
        span
        for span in world.telemetry.attempts()
        if attributes(span)["imagegen.provider"] == provider
    ]
    return found


def duration(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def test_a_hedged_probe_has_a_span_of_its_whole_duration() -> None:
    """It ends after the root span of its call, as a child of it."""

    async def scene(world: TelemetryScenario) -> None:
        await open_google(world)
        world.google.latency = 20
        await world.ask()
        root, served = world.telemetry.roots()[0], attempt_of(world, "openai")
        assert duration(root) == pytest.approx(5)
        assert duration(served) == pytest.approx(2)
        await asyncio.sleep(30)
        probe = attempt_of(world, "google")
        assert duration(probe) == pytest.approx(20)
        assert probe.parent == served.parent == root.context
        assert attributes(probe)["imagegen.attempt.outcome"] == "success"
        assert attributes(probe)["imagegen.circuit_breaker.transition"] == "half_open_to_closed"
        assert attributes(served)["imagegen.attempt.outcome"] == "success"
        assert probe.status.status_code is StatusCode.UNSET

    run_telemetry_scenario(scene, **PROBES)


def test_an_opening_by_a_probe_without_its_caller_is_linked_to_the_probe() -> None:
    """The next call's rejection leads to the request that failed after its own call."""

    async def scene(world: TelemetryScenario) -> None:
        await open_google(world)
        world.google.fail(Reason.OVERLOADED, status=503, latency=20)
        await world.ask()
        await asyncio.sleep(30)
        await world.ask()
        probe, [reject] = attempt_of(world, "google"), world.telemetry.rejects()
        assert [link.context for link in reject.links] == [probe.context]
        assert attributes(probe)["imagegen.circuit_breaker.transition"] == "half_open_to_open"

    run_telemetry_scenario(scene, **PROBES)


def test_an_opening_is_linked_to_the_request_of_that_route() -> None:
    """Not to another request of the same call that is in flight as well."""

    async def scene(world: TelemetryScenario) -> None:
        world.google.hang(times=1)
        world.openai.latency = 40
        call = asyncio.create_task(world.ask())
        await asyncio.sleep(70)  # Google's circuit opens at 60 s, beside a request to OpenAI
        await world.ask()
        await call
        kept, [reject] = attempt_of(world, "google"), world.telemetry.rejects()
        assert [link.context for link in reject.links] == [kept.context]
        assert attributes(kept)["imagegen.circuit_breaker.transition"] == "closed_to_open"

    run_telemetry_scenario(scene, breaker_fail_max=1, **KEEPS)


def test_each_of_two_requests_in_flight_ends_its_own_span() -> None:
    """A request past its limit fails beside the next route, and then the next route delivers."""

    async def scene(world: TelemetryScenario) -> None:
        world.google.fail(Reason.SERVER_ERROR, status=500, latency=70, times=1)
        world.openai.latency = 40
        await world.ask()
        failed, served = attempt_of(world, "google"), attempt_of(world, "openai")
        assert duration(failed) == pytest.approx(70)
        assert attributes(failed)["error.type"] == "server_error"
        assert duration(served) == pytest.approx(40)
        assert "error.type" not in attributes(served)

    run_telemetry_scenario(scene, **KEEPS)


def test_a_log_record_names_the_span_of_its_request(caplog: pytest.LogCaptureFixture) -> None:
    """Two requests are in flight; the record about the one that fails has its span's id."""

    async def scene(world: TelemetryScenario) -> None:
        world.google.fail(Reason.SERVER_ERROR, status=500, latency=70, times=1)
        world.openai.latency = 40
        await world.ask()
        context = attempt_of(world, "google").context
        assert context is not None
        [record] = [each for each in caplog.records if vars(each)["event"].endswith(".failed")]
        assert vars(record)["span_id"] == format(context.span_id, "016x")
        assert vars(record)["trace_id"] == format(context.trace_id, "032x")

    caplog.set_level(logging.INFO, logger="imagegen")
    run_telemetry_scenario(scene, **KEEPS)


def test_a_request_that_ends_after_its_call_is_measured() -> None:
    """Duration, tokens and the breaker's count of a hedged probe are recorded when it ends."""

    async def scene(world: TelemetryScenario) -> None:
        await open_google(world)
        world.google.latency = 20
        await world.ask()

        def probes() -> list[Any]:
            return [
                value
                for found, value in world.telemetry.points("gen_ai.client.operation.duration")
                if found["gen_ai.provider.name"] == "gcp.gemini" and "error.type" not in found
            ]

        assert probes() == []
        await asyncio.sleep(30)
        assert probes() == [(1, 20.0)]
        counted = {
            found["imagegen.circuit_breaker.result"]: value
            for found, value in world.telemetry.points("imagegen.circuit_breaker.calls")
            if found["imagegen.circuit_breaker.name"] == GOOGLE
        }
        assert counted == {"failure": 1, "success": 1}

    run_telemetry_scenario(scene, **PROBES)
