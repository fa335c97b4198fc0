"""The trace of a call explains which provider served it and why."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode
from pipeline_kit import FAST
from telemetry_kit import Telemetry, TelemetryScenario, attributes, run_telemetry_scenario

from resilient_imagen import (
    ImageGenerationError,
    RateLimitedError,
    Reason,
)
from resilient_imagen.providers.base import ProviderImage, ProviderResult
from resilient_imagen.telemetry.spans import SpanSink
from resilient_imagen.testing import TINY_PNG


def test_a_healthy_call_is_a_root_with_one_attempt() -> None:
    """Both spans have the documented names, kinds and attributes, and no status."""

    async def scene(scenario: TelemetryScenario) -> None:
        await scenario.ask()
        root, attempt = scenario.telemetry.roots()[0], scenario.telemetry.attempts()[0]
        assert (root.name, root.kind, root.status.status_code) == (
            "imagegen.generate",
            SpanKind.INTERNAL,
            StatusCode.UNSET,
        )
        found = attributes(root)
        call_id = found.pop("imagegen.call_id")
        assert len(call_id) == 16
        assert found.pop("imagegen.cost_usd") > 0
        settings = found.pop("imagegen.settings")
        assert "IMAGE_GEN_ON_TIMEOUT=abandon" in settings.split()
        assert found == {
            "gen_ai.output.type": "image",
            "imagegen.operation": "generate",
            "imagegen.provider.primary": "google",
            "imagegen.outcome": "success",
            "imagegen.provider.served": "google",
            "imagegen.model.served": "gemini-3-pro-image",
            "imagegen.fallback.used": False,
            "imagegen.attempts": 1,
            "imagegen.retries": 0,
            "imagegen.short_circuits": 0,
            "imagegen.queue_s": 0.0,
            "imagegen.setup_s": 0.0,
            "imagegen.retry.backoff_total": 0.0,
        }
        assert (attempt.name, attempt.kind, attempt.status.status_code) == (
            "generate_content gemini-3-pro-image",
            SpanKind.CLIENT,
            StatusCode.UNSET,
        )
        assert attempt.parent == root.context
        found = attributes(attempt)
        assert found.pop("imagegen.cost_usd") > 0
        assert found == {
            "gen_ai.operation.name": "generate_content",
            "gen_ai.provider.name": "gcp.gemini",
            "gen_ai.request.model": "gemini-3-pro-image",
            "gen_ai.response.model": "gemini-3-pro-image",
            "gen_ai.output.type": "image",
            "gen_ai.usage.input_tokens": 10,
            "gen_ai.usage.output_tokens": 100,
            "imagegen.call_id": call_id,
            "imagegen.operation": "generate",
            "imagegen.provider": "google",
            "imagegen.model": "gemini-3-pro-image",
            "imagegen.attempt.number": 1,
            "imagegen.attempt.max": 3,
            "imagegen.attempt.resolution": "2K",
            "imagegen.attempt.time_limit": 60.0,
            "imagegen.attempt.outcome": "success",
            "imagegen.attempt.will_retry": False,
            "imagegen.queue_s": 0.0,
            "imagegen.circuit_breaker.name": "google:gemini-3-pro-image",
            "imagegen.circuit_breaker.state": "closed",
            "imagegen.circuit_breaker.counted": "success",
            "imagegen.circuit_breaker.failure_rate": 0.0,
            "imagegen.circuit_breaker.window.calls": 1,
            "imagegen.circuit_breaker.failure_threshold": 3,
        }

    run_telemetry_scenario(scene)


def test_adjustments_are_attributes_of_the_root() -> None:
    """The root span lists that the image was cropped, as the result does."""

    async def scene(scenario: TelemetryScenario) -> None:
        result = await scenario.ask(aspect_ratio="1:1")
        assert result.adjustments
        found = attributes(scenario.telemetry.roots()[0])
        assert found["imagegen.adjustments"] == "; ".join(result.adjustments)

    run_telemetry_scenario(scene)


def test_retries_fallback_and_the_opening_attempt_are_visible() -> None:
    """Failed attempts have status error, the root has none; the third opened the breaker."""

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503, times=3)
        await scenario.ask()
        root = scenario.telemetry.roots()[0]
        assert root.status.status_code is StatusCode.UNSET
        found = attributes(root)
        assert found["imagegen.fallback.used"] is True
        assert found["imagegen.fallback.cause"] == "overloaded"
        assert found["imagegen.fallback.from"] == "google:gemini-3-pro-image"
        assert found["imagegen.provider.served"] == "openai"
        assert (found["imagegen.attempts"], found["imagegen.retries"]) == (4, 2)
        assert "error.type" not in found
        assert [event.name for event in root.events] == [
            "imagegen.retry.scheduled",
            "imagegen.retry.scheduled",
            "imagegen.fallback",
        ]
        assert dict(root.events[2].attributes or {}) == {
            "imagegen.event.from": "google:gemini-3-pro-image",
            "imagegen.event.to": "openai:gpt-image-2.5-flare",
            "imagegen.event.cause": "overloaded",
        }
        *failed, served = scenario.telemetry.attempts()
        for number, span in enumerate(failed, 1):
            found = attributes(span)
            assert span.status.status_code is StatusCode.ERROR
            assert found["error.type"] == found["imagegen.attempt.outcome"] == "overloaded"
            assert found["imagegen.attempt.number"] == number
            assert found["imagegen.attempt.will_retry"] is (number < 3)
            assert found["imagegen.circuit_breaker.consecutive"] == number
            assert ("imagegen.retry.backoff" in found) is (number < 3)
        assert attributes(failed[2])["imagegen.circuit_breaker.transition"] == "closed_to_open"
        assert attributes(served)["gen_ai.provider.name"] == "openai"
        assert "error.type" not in attributes(served)
        assert all(span.parent == root.context for span in (*failed, served))

    run_telemetry_scenario(scene, **FAST)


def test_a_rejection_is_an_error_span_linked_to_the_opening_attempt() -> None:
    """The link crosses traces; attributes have the breaker's counts and retry_after."""

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503, times=3)
        await scenario.ask()
        await asyncio.sleep(10)
        await scenario.ask()
        opener = scenario.telemetry.attempts()[2]
        (reject,) = scenario.telemetry.rejects()
        assert reject.name == "circuit_breaker reject google"
        assert (reject.kind, reject.status.status_code) == (SpanKind.INTERNAL, StatusCode.ERROR)
        assert reject.start_time is not None
        assert reject.end_time == reject.start_time + 1000
        assert [link.context for link in reject.links] == [opener.context]
        assert opener.context is not None
        assert reject.context is not None
        assert reject.context.trace_id != opener.context.trace_id
        found = attributes(reject)
        waited = found["imagegen.circuit_breaker.open_for"]
        assert waited == pytest.approx(12, abs=0.01)
        remaining = found["imagegen.circuit_breaker.retry_after"]
        assert 60 <= waited + remaining <= 66
        assert found["imagegen.circuit_breaker.cause"] == "overloaded"
        assert found["imagegen.circuit_breaker.state"] == "open"
        assert found["error.type"] == "circuit_open"
        assert not any(key.startswith("gen_ai.") for key in found)
        root = scenario.telemetry.roots()[1]
        assert reject.parent == root.context
        assert attributes(root)["imagegen.fallback.cause"] == "circuit_open"
        assert attributes(root)["imagegen.short_circuits"] == 1

    run_telemetry_scenario(scene, **FAST)


def test_an_account_wide_trip_links_the_sibling_route_to_the_same_attempt() -> None:
    """A circuit that another route's failure opened links to that failure."""

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.google.fail(Reason.QUOTA_EXHAUSTED, status=429, account_wide=True, times=1)
        await scenario.ask()
        opener = scenario.telemetry.attempts()[0]
        (reject,) = scenario.telemetry.rejects()
        assert attributes(reject)["imagegen.model"] == "gemini-3.1-flash-image"
        assert [link.context for link in reject.links] == [opener.context]

    run_telemetry_scenario(
        scene,
        routes="google:gemini-3-pro-image,google:gemini-3.1-flash-image,openai:gpt-image-2.5-flare",
    )


def test_a_rejection_links_to_the_slow_request_that_opened_the_circuit() -> None:
    """The link is to the slow request, which opened the circuit while in flight."""

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.google.latency = 20.0
        slow = asyncio.create_task(scenario.ask())
        await asyncio.sleep(15)
        await scenario.ask()
        await slow
        (reject,) = scenario.telemetry.rejects()
        (silent,) = openers(scenario)
        assert attributes(silent)["imagegen.circuit_breaker.counted"] == "failure"
        assert attributes(silent)["imagegen.circuit_breaker.counted_as"] == "slow"
        assert [link.context for link in reject.links] == [silent.context]

    run_telemetry_scenario(scene, breaker_slow_call=10, breaker_fail_max=1, **FAST)


def openers(scenario: TelemetryScenario) -> list[ReadableSpan]:
    """Return the requests with the tag of an opening."""
    tag = "imagegen.circuit_breaker.transition"
    return [
        span
        for span in scenario.telemetry.attempts()
        if attributes(span).get(tag) == "closed_to_open"
    ]


def test_a_slow_image_has_the_breakers_counts() -> None:
    """A slow image that opened the circuit is not an error, and has its counts."""

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.google.latency = 20.0
        await scenario.ask()
        found = attributes(scenario.telemetry.attempts()[0])
        wanted = {
            "imagegen.attempt.outcome": "success",
            "imagegen.circuit_breaker.counted_as": "slow",
            "imagegen.circuit_breaker.transition": "closed_to_open",
            "imagegen.circuit_breaker.consecutive": 1,
            "imagegen.circuit_breaker.failure_rate_threshold": 0.5,
        }
        assert {key: found.get(key) for key in wanted} == wanted

    run_telemetry_scenario(scene, breaker_slow_call=10, breaker_fail_max=1, **FAST)


def test_a_slow_request_is_linked_to_whichever_task_detected_it() -> None:
    """An opening links to the silent request, whichever task noticed its time-out."""

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.google.latency = 5.0
        first = asyncio.create_task(scenario.ask())
        await asyncio.sleep(3)
        scenario.google.latency = 20.0
        silent = asyncio.create_task(scenario.ask())
        await asyncio.sleep(12)
        await scenario.ask()
        await asyncio.gather(first, silent)
        await scenario.ask()
        early, late = scenario.telemetry.rejects()
        (slow,) = openers(scenario)
        assert attributes(slow)["imagegen.circuit_breaker.counted_as"] == "slow"
        assert [link.context for link in (*early.links, *late.links)] == [slow.context] * 2

    run_telemetry_scenario(scene, breaker_slow_call=10, breaker_fail_max=1, **FAST)


def test_the_later_of_two_slow_requests_opened_the_breaker() -> None:
    """Of two slow requests under one timer, the link is to the later one."""

    async def scene(scenario: TelemetryScenario) -> None:
        await scenario.overlap_three_requests()
        (opener,) = openers(scenario)
        earlier, later = (
            span
            for span in scenario.telemetry.attempts()
            if attributes(span)["imagegen.provider"] == "google"
        )
        assert opener is later
        assert earlier.start_time is not None
        assert opener.start_time is not None
        assert opener.start_time > earlier.start_time
        for reject in scenario.telemetry.rejects():
            assert [link.context for link in reject.links] == [opener.context]
        assert scenario.telemetry.rejects()

    run_telemetry_scenario(scene, breaker_slow_call=10, breaker_fail_max=2, **FAST)


def test_rejections_link_to_a_hanging_probe() -> None:
    """Rejections link to the hanging probe before its time limit, not to the first opener."""

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503, times=1)
        await scenario.ask()
        scenario.google.hang(times=1)
        await asyncio.sleep(70)
        probe = asyncio.create_task(scenario.ask())
        await asyncio.sleep(15)
        await scenario.ask()
        await probe
        (reopener,) = [
            span
            for span in scenario.telemetry.attempts()
            if attributes(span).get("imagegen.circuit_breaker.transition") == "half_open_to_open"
        ]
        assert attributes(reopener)["imagegen.circuit_breaker.probe"] is True
        assert [link.context for link in scenario.telemetry.rejects()[-1].links] == [
            reopener.context
        ]

    run_telemetry_scenario(scene, breaker_slow_call=10, breaker_fail_max=1, max_retries=0, **FAST)


def test_a_breaker_forced_open_links_to_nothing() -> None:
    """A breaker that is forced open has no request to link to."""

    async def scene(scenario: TelemetryScenario) -> None:
        await scenario.ask()
        (reject,) = scenario.telemetry.rejects()
        assert attributes(reject)["imagegen.circuit_breaker.state"] == "forced_open"
        assert reject.links == ()

    run_telemetry_scenario(scene, force_open="google")


def test_spans_have_the_durations_of_the_loop() -> None:
    """Durations are correct on virtual time."""

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.google.latency = 33.0
        await scenario.ask()
        for span in (scenario.telemetry.roots()[0], scenario.telemetry.attempts()[0]):
            assert span.start_time is not None
            assert span.end_time is not None
            assert (span.end_time - span.start_time) / 1e9 == pytest.approx(33, abs=0.01)

    run_telemetry_scenario(scene)


def test_queueing_is_an_attribute_of_root_and_attempt() -> None:
    """A boolean accompanies the seconds and is set only when true."""

    async def scene(scenario: TelemetryScenario) -> None:
        await asyncio.gather(scenario.ask(), scenario.ask())
        for spans in (scenario.telemetry.roots(), scenario.telemetry.attempts()):
            waited = [attributes(span).get("imagegen.queue.waited") for span in spans]
            assert waited == [None, True]
        assert attributes(scenario.telemetry.roots()[1])["imagegen.queue_s"] == 6.0
        assert attributes(scenario.telemetry.attempts()[1])["imagegen.queue_s"] == 6.0

    run_telemetry_scenario(scene, ipm=10)


def test_a_failed_call_is_an_error_with_its_reason() -> None:
    """The root's status has the error's message, and its error type is the reason."""

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.google.fail(Reason.CONTENT_BLOCKED, status=200)
        with pytest.raises(ImageGenerationError):
            await scenario.ask()
        root = scenario.telemetry.roots()[0]
        assert root.status.status_code is StatusCode.ERROR
        assert "blocked by safety filters" in (root.status.description or "")
        assert attributes(root)["error.type"] == "content_blocked"
        assert attributes(root)["imagegen.outcome"] == "error"
        assert attributes(root)["imagegen.fallback.used"] is False
        assert "imagegen.fallback.cause" not in attributes(root)

    run_telemetry_scenario(scene)


def test_a_passed_deadline_is_an_attribute_of_every_span() -> None:
    """Outcome and error type are the deadline's; the cut attempt may be billed."""

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.google.hang()
        scenario.openai.hang()
        with pytest.raises(TimeoutError):
            await scenario.ask(deadline=30)
        root = scenario.telemetry.roots()[0]
        assert attributes(root)["imagegen.outcome"] == "deadline"
        assert attributes(root)["error.type"] == "deadline"
        first, second = (attributes(span) for span in scenario.telemetry.attempts())
        assert first["imagegen.attempt.outcome"] == "timeout"
        assert first["imagegen.attempt.cut_short"] is True
        assert first["imagegen.attempt.may_be_billed"] is True
        assert first["imagegen.circuit_breaker.counted"] == "neutral"
        assert first["imagegen.circuit_breaker.counted_as"] == "ignored"
        assert second["imagegen.attempt.outcome"] == "deadline"

    run_telemetry_scenario(scene)


def test_a_cancelled_call_is_not_an_error() -> None:
    """Both spans of a cancelled call are marked as cancelled, neither as error nor as success."""

    async def scene(scenario: TelemetryScenario) -> None:
        await scenario.leave()
        root, attempt = scenario.telemetry.roots()[0], scenario.telemetry.attempts()[0]
        assert attributes(root)["imagegen.outcome"] == "cancelled"
        assert attributes(attempt)["imagegen.attempt.outcome"] == "cancelled"
        for span in (root, attempt):
            assert span.status.status_code is StatusCode.UNSET
        assert "error.type" not in attributes(root)
        assert attributes(attempt)["error.type"] == "cancelled"
        assert attempt.events == ()

    run_telemetry_scenario(scene)


def test_an_abandoned_call_is_marked_as_cancelled() -> None:
    """A call whose coroutine is closed during a request is marked as cancelled."""

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.google.hang()
        call = scenario.ask()
        context = otel_context.get_current()
        call.send(None)
        await asyncio.sleep(1)
        otel_context.attach(context)
        call.close()
        await asyncio.sleep(0.1)  # its request ends after it
        root, attempt = scenario.telemetry.roots()[0], scenario.telemetry.attempts()[0]
        assert attributes(root)["imagegen.outcome"] == "cancelled"
        assert attributes(attempt)["imagegen.attempt.outcome"] == "cancelled"
        assert attributes(attempt)["imagegen.circuit_breaker.counted"] == "neutral"
        assert root.status.status_code is attempt.status.status_code is StatusCode.UNSET

    run_telemetry_scenario(scene, **FAST)


def test_a_bug_has_its_exception_type() -> None:
    """A bug in a provider has no reason and no vote, but its exception type is an attribute."""

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.google.crash(ZeroDivisionError("a lighthouse"))
        with pytest.raises(ZeroDivisionError):
            await scenario.ask()
        root, attempt = scenario.telemetry.roots()[0], scenario.telemetry.attempts()[0]
        for span in (root, attempt):
            assert span.status.status_code is StatusCode.ERROR
            assert attributes(span)["error.type"] == "ZeroDivisionError"
        assert root.status.description == "ZeroDivisionError"
        assert attributes(root)["imagegen.attempts"] == 1
        assert attributes(attempt)["imagegen.circuit_breaker.counted"] == "neutral"
        assert "lighthouse" not in root.to_json() + attempt.to_json()

    run_telemetry_scenario(scene)


def test_prompts_are_captured_only_on_request() -> None:
    """OpenTelemetry's variable enables prompts on spans; they are bounded and contain no images."""
    data_url = "data:image/png;base64," + "iVBORw0KGgo" * 50

    async def scene(scenario: TelemetryScenario) -> None:
        await scenario.client.generate(f"a lighthouse like {data_url} at night " + "waves " * 2000)

    def captured(**settings: Any) -> str | None:
        async def run(scenario: TelemetryScenario) -> str | None:
            await scene(scenario)
            found = attributes(scenario.telemetry.attempts()[0]).get("gen_ai.input.messages")
            assert "lighthouse" not in scenario.telemetry.roots()[0].to_json()
            return None if found is None else str(found)

        return run_telemetry_scenario(run, **settings)

    assert captured() is None
    text = captured(capture_content="SPAN_ONLY")
    assert text is not None
    (message,) = json.loads(text)
    content = message["parts"][0]["content"]
    assert message["role"] == "user"
    assert content.startswith("a lighthouse like ")
    assert "iVBORw0KGgo" not in text
    assert len(content) <= 4000


@pytest.mark.parametrize(
    ("provider", "base_url", "expected"),
    [
        ("google", "https://generativelanguage.googleapis.com", "gcp.gemini"),
        ("google", "https://europe-west4-aiplatform.googleapis.com/v1", "gcp.vertex_ai"),
        ("openai", "https://api.openai.com/v1", "openai"),
        ("openai", "https://mine.openai.azure.com/openai", "azure.ai.openai"),
        ("flux", "http://10.0.0.7:9000", "flux"),
        ("google", "not an address:port", "gcp.gemini"),
    ],
)
def test_the_provider_has_the_name_of_the_conventions(
    provider: str, base_url: str, expected: str
) -> None:
    """The provider's name depends on the address, whose credentials are not exported."""
    from resilient_imagen.telemetry.attributes import route

    assert route(provider, "m", base_url)["gen_ai.provider.name"] == expected
    with_password = route("google", "m", "https://me:sesame@proxy.example:8443/x?key=sesame")
    assert with_password["server.address"] == "proxy.example"
    assert with_password["server.port"] == 8443
    assert "sesame" not in str(with_password)


def test_the_vendors_names_are_bounded() -> None:
    """Model, id and finish reason are limited; a name that looks like a key is omitted."""

    async def scene(scenario: TelemetryScenario) -> None:
        answers = [
            ("resp_1", "STOP", "gemini-3-pro-image-001"),
            ("sk-" + "x" * 40, "A lighthouse", "m"),
        ]

        async def generate(request: Any, model: str) -> ProviderResult:
            response_id, finish, served = answers.pop(0)
            return ProviderResult(
                (ProviderImage(TINY_PNG, "image/png"),),
                served,
                response_id=response_id,
                finish_reason=finish,
            )

        scenario.google.generate = generate  # type: ignore[method-assign]
        await scenario.ask()
        await scenario.ask()
        first, second = (attributes(span) for span in scenario.telemetry.attempts())
        assert first["gen_ai.response.model"] == "gemini-3-pro-image-001"
        assert first["gen_ai.response.id"] == "resp_1"
        assert first["gen_ai.response.finish_reasons"] == ("stop",)
        assert "gen_ai.usage.input_tokens" not in first
        assert second["gen_ai.response.id"] == "[…]"
        assert "gen_ai.response.finish_reasons" not in second

    run_telemetry_scenario(scene, **FAST)


def test_the_exception_event_has_the_redacted_message_and_no_stack() -> None:
    """A stack trace could contain source lines or local variables."""

    async def scene(scenario: TelemetryScenario) -> None:
        error = RateLimitedError(
            vendor_message="slow down, sk-" + "k" * 30, vendor_error="APIError"
        )
        scenario.google.generate = raising(error)  # type: ignore[method-assign]
        await scenario.ask()
        (event,) = scenario.telemetry.attempts()[0].events
        assert event.name == "exception"
        assert dict(event.attributes or {}) == {
            "exception.type": "APIError",
            "exception.message": "slow down, […]",
        }

    def raising(error: Exception) -> Any:
        async def generate(request: Any, model: str) -> Any:
            raise error

        return generate

    run_telemetry_scenario(scene, max_retries=0)


def test_the_number_of_remembered_openers_is_limited() -> None:
    """The remembered openers are bounded, although callers choose the names of models."""
    sink = SpanSink(Telemetry().tracers)
    for number in range(200):
        sink._remember(f"google:model-{number}", trace.INVALID_SPAN_CONTEXT)
    assert list(sink._openers) == [f"google:model-{number}" for number in range(136, 200)]
