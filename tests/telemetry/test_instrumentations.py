"""Official instrumentations: HTTP spans are children, and each model call has one span."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind
from providers_kit import KEY, google_body, http, openai_body, raw_server
from telemetry_kit import Telemetry, attributes

from resilient_imagen import ImageClient, Settings
from resilient_imagen.providers.google import GoogleProvider
from resilient_imagen.providers.openai import OpenAIProvider

Instrument = Callable[[Any], None]

ROUTES = {"google": "google:gemini-3-pro-image", "openai": "openai:gpt-image-2.5-flare"}


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


@pytest.fixture
def instrument(telemetry: Telemetry) -> Iterator[Instrument]:
    """Switch an instrumentation on for one test."""
    used: list[Any] = []

    def on(instrumentor: Any) -> None:
        instrumentor.instrument(
            tracer_provider=telemetry.tracers,
            meter_provider=telemetry.meters,
            skip_dep_check=True,
        )
        used.append(instrumentor)

    yield on
    for instrumentor in used:
        instrumentor.uninstrument()


def http_instrumentor() -> Any:
    module = pytest.importorskip(
        "opentelemetry.instrumentation.httpx",
        reason="pip install opentelemetry-instrumentation-httpx",
    )
    if not hasattr(module, "HTTPX2ClientInstrumentor"):
        pytest.skip("this opentelemetry-instrumentation-httpx does not know httpx2")
    return module.HTTPX2ClientInstrumentor()


def google_instrumentor() -> Any:
    return pytest.importorskip(
        "opentelemetry.instrumentation.google_genai",
        reason="pip install opentelemetry-instrumentation-google-genai",
    ).GoogleGenAiSdkInstrumentor()


def openai_instrumentor() -> Any:
    return pytest.importorskip(
        "opentelemetry.instrumentation.genai.openai",
        reason="pip install opentelemetry-instrumentation-genai-openai",
    ).OpenAIInstrumentor()


def use(name: str, telemetry: Telemetry) -> None:
    """Run one call whose first request gets a 503, over a real socket."""

    async def main() -> None:
        answers = iter([http(503), *[http(200, good)] * 9])
        async with raw_server(lambda _request: next(answers)) as server:
            provider = (
                GoogleProvider(api_key=KEY, base_url=server.url)
                if name == "google"
                else OpenAIProvider(api_key=KEY, base_url=f"{server.url}/v1")
            )
            async with ImageClient(
                Settings(routes=ROUTES[name], retry_base_delay=0, ipm=60_000),
                providers=[provider],
                tracer_provider=telemetry.tracers,
                meter_provider=telemetry.meters,
            ) as client:
                await client.generate("a lighthouse")

    good = google_body() if name == "google" else openai_body()
    asyncio.run(main())


@pytest.mark.parametrize("name", ["google", "openai"])
def test_http_spans_are_children_of_their_attempt(
    name: str, telemetry: Telemetry, instrument: Instrument
) -> None:
    """Each request sent has one HTTP span, below the attempt that sent it, in the same trace."""
    instrument(http_instrumentor())
    use(name, telemetry)
    first, second = telemetry.attempts()
    sent = telemetry.spans("POST")
    assert [span.parent for span in sent] == [first.context, second.context]
    (root,) = telemetry.roots()
    traces = {span.get_span_context().trace_id for span in telemetry.spans()}  # type: ignore[union-attr]
    assert traces == {root.get_span_context().trace_id}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "instrumentor"), [("google", google_instrumentor), ("openai", openai_instrumentor)]
)
def test_a_model_call_has_one_inference_span(
    name: str, instrumentor: Callable[[], Any], telemetry: Telemetry, instrument: Instrument
) -> None:
    """The SDK's instrumentation adds no second span, and HTTP spans keep their parent."""
    instrument(instrumentor())
    instrument(http_instrumentor())
    use(name, telemetry)
    inference = [span for span in telemetry.spans() if "gen_ai.operation.name" in attributes(span)]
    assert inference == telemetry.attempts()
    assert len(inference) == 2
    assert {span.kind for span in inference} == {SpanKind.CLIENT}
    assert [span.parent for span in telemetry.spans("POST")] == [s.context for s in inference]
    durations = telemetry.points("gen_ai.client.operation.duration")
    assert sum(count for _, (count, _) in durations) == 2, (
        "the metric is not recorded twice, either"
    )


def test_an_sdk_without_the_library_has_the_span_of_its_instrumentation(
    telemetry: Telemetry, instrument: Instrument
) -> None:
    """The instrumentation is active: a call of the SDK without the library has its span."""
    instrument(google_instrumentor())

    async def main() -> None:
        from google import genai

        async with raw_server(http(200, google_body())) as server:
            sdk = genai.Client(api_key=KEY, http_options={"base_url": server.url})
            with trace.use_span(trace.INVALID_SPAN):
                await sdk.aio.models.generate_content(model="m", contents="a lighthouse")
            await sdk.aio.aclose()

    asyncio.run(main())
    assert [span.name for span in telemetry.spans()] == ["generate_content m"]
