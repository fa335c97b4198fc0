"""Every log record has a readable sentence."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from pipeline_kit import FAST
from telemetry_kit import TelemetryScenario, run_telemetry_scenario

from resilient_imagen import (
    ImageClient,
    ImageGenerationError,
    ProviderConnectionError,
    Reason,
    Settings,
)
from resilient_imagen.telemetry import logs
from resilient_imagen.telemetry.events import Event
from resilient_imagen.telemetry.log_records import LINES
from resilient_imagen.telemetry.summaries import _SENTENCES, summary
from resilient_imagen.testing import FakeProvider, run_virtual

GOOGLE, OPENAI = "google:gemini-3-pro-image", "openai:gpt-image-2.5-flare"


class Sentences(list[tuple[str, str]]):
    """Events and their sentences in order; seconds, which have jitter, are replaced by ``N s``."""

    def of(self, event: str) -> list[str]:
        return [sentence for name, sentence in self if name == f"imagegen.{event}"]


@pytest.fixture
def sentences() -> Iterator[Sentences]:
    """Return the summaries that an application's structlog pipeline receives."""
    caught = Sentences()

    def catch(_logger: Any, _level: str, line: Any) -> Any:
        if line["event"] != "imagegen.settings.reported":
            caught.append((line["event"], re.sub(r"[\d.]+ s\b", "N s", line["summary"])))
        raise structlog.DropEvent

    structlog.configure(processors=[catch])
    yield caught
    structlog.reset_defaults()


def test_an_outage_has_sentences(sentences: Sentences) -> None:
    """Failures, retries, opening, fallback, rejection and images have sentences."""

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503, times=3)
        await scenario.ask()
        await scenario.ask()

    run_telemetry_scenario(scene, **FAST)
    assert sentences == [
        ("imagegen.request.started", "generate an image, 9:16 at 2K: google is first"),
        ("imagegen.attempt.failed", "google overloaded (503) after N s: retry in N s"),
        ("imagegen.retry.scheduled", "google overloaded: retry in N s"),
        (
            "imagegen.attempt.failed",
            "google overloaded (503) after N s, second in a row: retry in N s",
        ),
        ("imagegen.retry.scheduled", "google overloaded: retry in N s"),
        (
            "imagegen.circuit_breaker.opened",
            "google overloaded (503), third in a row: circuit open for N s, openai serves",
        ),
        (
            "imagegen.attempt.failed",
            "google overloaded (503) after N s, third in a row: circuit open for N s",
        ),
        ("imagegen.fallback", "google overloaded: openai is next"),
        (
            "imagegen.request.completed",
            "image from openai after N s and 4 requests; google was left (overloaded)",
        ),
        ("imagegen.request.started", "generate an image, 9:16 at 2K: google is first"),
        (
            "imagegen.circuit_breaker.rejected",
            "google skipped: circuit open after overloaded, next probe in N s",
        ),
        ("imagegen.fallback", "google circuit open: openai is next"),
        (
            "imagegen.request.completed",
            "image from openai after N s and 1 request; google was left (circuit open)",
        ),
    ]


def test_a_recovery_has_sentences(sentences: Sentences) -> None:
    """A failed probe, a successful one and the closed circuit have sentences."""

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503, times=2)
        await scenario.ask()
        await asyncio.sleep(70)
        await scenario.ask()
        await asyncio.sleep(200)
        await scenario.ask()

    run_telemetry_scenario(scene, max_retries=0, breaker_fail_max=1, **FAST)
    assert sentences.of("circuit_breaker.opened") == [
        "google overloaded (503): circuit open for N s, openai serves",
        "google overloaded (503), a failed probe: circuit open for N s, openai serves",
    ]
    assert (
        sentences.of("circuit_breaker.half_opened")
        == ["google: circuit half-open, the next request is a probe"] * 2
    )
    assert sentences.of("circuit_breaker.closed") == ["google serves again: circuit closed"]


def test_the_rule_that_opened_the_circuit_is_named(sentences: Sentences) -> None:
    """An opening by failure rate states the failures and requests."""

    async def scene(scenario: TelemetryScenario) -> None:
        for _ in range(3):
            await scenario.ask()
            scenario.google.fail(Reason.SERVER_ERROR, status=500, times=1)
            await scenario.ask()

    run_telemetry_scenario(scene, max_retries=0, **FAST)
    assert sentences.of("circuit_breaker.opened") == [
        "google server error (500), 3 of 6 requests failed: circuit open for N s, openai serves"
    ]


def test_no_other_route_serves(sentences: Sentences) -> None:
    """The sentence has the reason: next route down, no fallback allowed, or both forced open."""

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.openai.fail(Reason.FORBIDDEN, status=403)
        scenario.google.fail(Reason.FORBIDDEN, status=403)
        with pytest.raises(ImageGenerationError):
            await scenario.ask()

    run_telemetry_scenario(scene, **FAST)
    assert sentences.of("circuit_breaker.opened") == [
        "google forbidden (403): circuit open for N s, openai serves",
        "openai forbidden (403): circuit open for N s, no other route serves",
    ]
    sentences.clear()
    run_telemetry_scenario(scene, fallback_on="forbidden", **FAST)
    assert sentences.of("circuit_breaker.opened")[0] == (
        "google forbidden (403): circuit open for N s, no other route serves"
    )
    sentences.clear()

    async def force(scenario: TelemetryScenario) -> None:
        for route in (OPENAI, GOOGLE):
            scenario.client.breakers[route].force_open = True
        with pytest.raises(ImageGenerationError):
            await scenario.ask()
        scenario.client.breakers[GOOGLE].force_open = False

    run_telemetry_scenario(force)
    assert sentences.of("circuit_breaker.opened") == [
        "openai: circuit forced open by an operator, no other route serves",
        "google: circuit forced open by an operator, no other route serves",
    ]
    assert sentences.of("circuit_breaker.rejected") == [
        "google skipped: circuit forced open by an operator",
        "openai skipped: circuit forced open by an operator",
    ]
    assert sentences.of("circuit_breaker.closed") == [
        "google: circuit no longer forced open; it rejected 1 call"
    ]
    assert sentences.of("request.failed") == [
        (
            "no image after N s and 0 requests: google gemini-3-pro-image: skipped by the operator;"
            " openai gpt-image-2.5-flare: skipped by the operator"
        )
    ]


def test_a_model_that_a_caller_names_is_replaced_by_the_route_behind_the_first(
    sentences: Sentences,
) -> None:
    """The fallback of a caller-named model is the second configured route."""

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.google.fail(Reason.FORBIDDEN, status=403)
        await scenario.ask(model="gemini-2.5-flash-image")

    run_telemetry_scenario(scene)
    assert sentences.of("circuit_breaker.opened") == [
        "google forbidden (403): circuit open for N s, openai serves"
    ]


def test_routes_of_one_provider_are_named_by_model(sentences: Sentences) -> None:
    """Sentences name the models if both routes have one provider."""

    async def main() -> None:
        google = FakeProvider("google").fail(Reason.MODEL_NOT_FOUND, status=404, times=1)
        routes = "google:gemini-3-pro-image,google:gemini-2.5-flash-image"
        async with ImageClient(Settings(routes=routes), providers=[google]) as client:
            await client.generate("a lighthouse")

    run_virtual(main())
    old, new = "google:gemini-3-pro-image", "google:gemini-2.5-flash-image"
    assert sentences.of("circuit_breaker.opened") == [
        f"{old} model not found (404): circuit open for N s, {new} serves"
    ]
    assert sentences.of("fallback") == [f"{old} model not found: {new} is next"]
    assert sentences.of("request.completed") == [
        f"image from {new} after N s and 2 requests; {old} was left (model not found)"
    ]


def test_a_shadow_breaker_has_no_effect(sentences: Sentences) -> None:
    """The summary of a shadow breaker states that it has no effect, and no fallback."""

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503, times=3)
        await scenario.ask()

    run_telemetry_scenario(scene, breaker_mode="shadow", **FAST)
    assert sentences.of("circuit_breaker.opened") == [
        "without effect (shadow): google overloaded (503), third in a row: circuit open for N s"
    ]
    assert sentences.of("attempt.failed")[-1] == (
        "google overloaded (503) after N s, third in a row"
    )
    sentences.clear()
    run_telemetry_scenario(scene, shadow="fail_max=2", **FAST)
    assert sentences.of("shadow.differed") == [
        "candidate settings would have refused a request to google that ended as overloaded"
    ]


def test_other_endings_have_sentences(sentences: Sentences) -> None:
    """Cancellation, deadline, bug, hint and network failure have sentences."""

    async def scene(scenario: TelemetryScenario) -> None:
        await scenario.leave()
        scenario.google.heal()
        scenario.google.hang()
        await scenario.ask(deadline=20)
        scenario.google.heal()
        scenario.google.crash(KeyError("x"))
        with pytest.raises(KeyError):
            await scenario.ask()
        refused = ProviderConnectionError(vendor_message="Connection refused")
        scenario.google.crash(refused)
        await scenario.ask()

    run_telemetry_scenario(scene, max_retries=0, **FAST)
    assert sentences.of("attempt.failed") == [
        "google cancelled after N s",
        "google cut short after N s by the call's deadline",
        "request to google ended by KeyError after N s",
        "google connection failure after N s (Connection refused)",
    ]
    assert sentences.of("request.failed") == [
        "cancelled by the caller after N s and 1 request",
        "no image after N s and 1 request: KeyError",
    ]
    sentences.clear()

    async def throttled(scenario: TelemetryScenario) -> None:
        scenario.google.fail(Reason.RATE_LIMITED, status=429, retry_after=2, times=1)
        await scenario.ask()

    run_telemetry_scenario(throttled, **FAST)
    assert sentences.of("retry.scheduled") == [
        "google rate limited: retry in N s, as the server asked"
    ]


def test_dropped_references_are_described(sentences: Sentences) -> None:
    """The sentence has the first three dropped references and the number of others."""

    async def scene(scenario: TelemetryScenario) -> None:
        await scenario.ask(references=[1, 2, 3, 4, 5])
        await scenario.ask(references=[1])

    run_telemetry_scenario(scene, **FAST)
    kind = "is of type int, not an image"
    assert sentences.of("references.changed") == [
        (
            f"5 references dropped: reference 0 {kind}; reference 1 {kind}; reference 2 {kind}; "
            "and 2 more"
        ),
        f"1 reference dropped: reference 0 {kind}",
    ]


def test_a_warnings_sentence_is_its_message(
    sentences: Sentences, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence about a missing key is the warning's message."""
    monkeypatch.setenv("GOOGLE_GENAI_API_KEY", "made-up")
    ImageClient()
    assert sentences == [
        ("imagegen.warning", "OPENAI_API_KEY is not set: routes to openai are off")
    ]


def test_every_kind_of_line_has_a_sentence() -> None:
    """Every logged event has a sentence, and no other event has one."""
    assert LINES.keys() == _SENTENCES.keys()
    assert summary(Event(at=0.0)) == ""


def test_no_sentence_is_built_for_a_filtered_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence is built only after the level filter."""
    made: list[Event] = []

    def note(event: Event) -> str:
        made.append(event)
        return summary(event)

    monkeypatch.setattr(logs, "summary", note)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    try:
        run_telemetry_scenario(TelemetryScenario.ask)
    finally:
        structlog.reset_defaults()
    assert made == []
