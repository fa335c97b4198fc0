"""Spans nest in the caller's trace and around the provider's work, and leave no context."""

from __future__ import annotations

import asyncio
import gc
import sys
from types import ModuleType
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider, sampling
from pipeline_kit import FAST
from telemetry_kit import Telemetry, TelemetryScenario, run_telemetry_scenario

from resilient_imagen import (
    ImageClient,
    Reason,
    Settings,
)
from resilient_imagen.providers.base import ProviderImage, ProviderResult
from resilient_imagen.providers.genai_compat import suppress_instrumentation
from resilient_imagen.telemetry.events import RequestStarted
from resilient_imagen.telemetry.spans import SpanSink
from resilient_imagen.testing import TINY_PNG, FakeProvider, run_virtual


def test_the_callers_own_span_is_the_parent_and_is_current_again() -> None:
    """The root span is a child of the caller's span, which is current again afterwards."""

    async def scene(scenario: TelemetryScenario) -> None:
        tracer = scenario.telemetry.tracers.get_tracer("app")
        with tracer.start_as_current_span("handler") as mine:
            before = otel_context.get_current()
            await scenario.ask()
            assert otel_context.get_current() == before
            assert trace.get_current_span() is mine
        handler = scenario.telemetry.spans("handler")[0]
        assert scenario.telemetry.roots()[0].parent == handler.context

    run_telemetry_scenario(scene)


def test_spans_during_the_call_are_children_of_its_spans() -> None:
    """Spans of on_start are children of the root, those of a provider of its attempt."""

    async def scene(scenario: TelemetryScenario) -> None:
        tracer = scenario.telemetry.tracers.get_tracer("app")
        generate = scenario.google.generate

        async def over_http(request: Any, model: str) -> Any:
            with tracer.start_as_current_span("POST"):
                return await generate(request, model)

        async def on_start() -> None:
            with tracer.start_as_current_span("callback"):
                await asyncio.sleep(0)

        scenario.google.generate = over_http  # type: ignore[method-assign]
        await scenario.ask(on_start=on_start)
        assert (
            scenario.telemetry.spans("POST")[0].parent == scenario.telemetry.attempts()[0].context
        )
        assert (
            scenario.telemetry.spans("callback")[0].parent == scenario.telemetry.roots()[0].context
        )

    run_telemetry_scenario(scene)


def test_concurrent_calls_have_separate_traces() -> None:
    """Attempts of concurrent calls belong to their own call's root."""

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.google.fail(Reason.SERVER_ERROR, status=500, times=2)
        await asyncio.gather(*(scenario.ask() for _ in range(8)))
        roots = {span.context.trace_id: span.context for span in scenario.telemetry.roots()}
        assert len(roots) == 8
        attempts = scenario.telemetry.attempts()
        assert len(attempts) == 10
        for span in attempts:
            assert span.parent == roots[span.context.trace_id]

    run_telemetry_scenario(scene, max_concurrent=8, **FAST)


def test_a_nested_call_has_its_own_root_span() -> None:
    """A call that on_start makes has a root span below that of the first call."""

    async def scene(scenario: TelemetryScenario) -> None:
        async def on_start() -> None:
            await scenario.ask()

        await scenario.ask(on_start=on_start)
        inner, outer = scenario.telemetry.roots()
        assert inner.parent == outer.context
        parents = [span.parent for span in scenario.telemetry.attempts()]
        assert parents in ([inner.context, outer.context], [outer.context, inner.context])

    run_telemetry_scenario(scene, **FAST)


def test_an_abandoned_call_leaves_no_state() -> None:
    """If a call never ends, the sink keeps no state of it, and the next call has its own trace."""
    telemetry = Telemetry()
    sink = SpanSink(telemetry.tracers)

    async def main() -> None:
        google = FakeProvider("google").hang()
        client = ImageClient(
            Settings(routes="google:gemini-3-pro-image"),
            providers=[google],
            tracer_provider=telemetry.tracers,
        )
        client._dispatcher._inline = (sink,)
        coroutine = client.generate("a lighthouse")
        context = otel_context.get_current()
        coroutine.send(None)  # started, never driven on, as by a loop that died
        otel_context.attach(context)
        assert len(sink._traces) == 1
        coroutine.close()

    run_virtual(main())
    gc.collect()
    assert len(sink._traces) == 0


@pytest.mark.parametrize("sampler", [sampling.ALWAYS_OFF, None])
def test_without_a_recording_sdk_calls_work_and_the_context_is_untouched(
    sampler: sampling.Sampler | None,
) -> None:
    """Without sampling, or without an SDK, the call works and the context is unchanged."""
    provider = TracerProvider(sampler=sampler) if sampler else trace.NoOpTracerProvider()

    async def main() -> None:
        async with ImageClient(
            Settings(), providers=[FakeProvider("google"), FakeProvider("openai")],
            tracer_provider=provider,
        ) as client:  # fmt: skip
            before = otel_context.get_current()
            await client.generate("a lighthouse")
            assert otel_context.get_current() == before

    run_virtual(main())


def test_events_of_untraced_calls_are_ignored() -> None:
    """A sink ignores events of calls that began before it was added, or outside any trace."""
    telemetry = Telemetry()

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503, times=3)
        await scenario.ask()
        await scenario.ask()
        late = SpanSink(telemetry.tracers)
        for event in scenario.events.events:
            if not isinstance(event, RequestStarted):
                late.handle(event)

    run_telemetry_scenario(scene, **FAST)
    assert telemetry.spans() == []


class Util(ModuleType):
    """The part of opentelemetry-util-genai that is used."""

    CLIENT_INFERENCE_CONTEXT_KEY = "the key"
    InferenceData = dict


@pytest.mark.parametrize("util", [Util("util"), ModuleType("of another version"), None])
def test_sdk_instrumentations_are_suppressed_during_the_attempt_only(
    util: ModuleType | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The context key is set while the provider works, with any version of the package."""
    if util is not None:
        monkeypatch.setitem(sys.modules, "opentelemetry.util.genai.invocation", util)
    seen: list[object] = []

    async def scene(scenario: TelemetryScenario) -> None:
        async def generate(request: Any, model: str) -> ProviderResult:
            seen.append(otel_context.get_value("the key"))
            return ProviderResult((ProviderImage(TINY_PNG, "image/png"),), model)

        scenario.google.generate = generate  # type: ignore[method-assign]
        await scenario.ask(on_start=lambda: seen.append(otel_context.get_value("the key")))
        seen.append(otel_context.get_value("the key"))

    run_telemetry_scenario(scene)
    assert seen == [None, {} if isinstance(util, Util) else None, None]
    with suppress_instrumentation():
        assert otel_context.get_value("the key") == ({} if isinstance(util, Util) else None)
    assert otel_context.get_value("the key") is None
