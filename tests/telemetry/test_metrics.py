"""Metrics count calls and requests with few and fixed attributes."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry.metrics import MeterProvider
from opentelemetry.sdk.metrics import Counter
from opentelemetry.sdk.metrics import MeterProvider as SdkMeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from pipeline_kit import FAST
from telemetry_kit import Telemetry, TelemetryScenario, run_telemetry_scenario

from resilient_imagen import ImageClient, ImageGenerationError, Reason, Settings
from resilient_imagen.providers.base import Endpoint, ProviderImage, ProviderResult
from resilient_imagen.telemetry import instruments
from resilient_imagen.telemetry.metrics import MetricSink
from resilient_imagen.testing import TINY_PNG, FakeProvider, run_virtual

CUMULATIVE = AggregationTemporality.CUMULATIVE
PRIMARY, SECOND = "google:gemini-3-pro-image", "openai:gpt-image-2.5-flare"


def test_a_fallback_is_counted_in_all_its_metrics() -> None:
    """A fallback is counted in retries, votes, transitions, rejections, durations and tokens."""

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503, times=3)
        await scenario.ask()
        await scenario.ask()
        points = scenario.telemetry.points
        gemini = {"gen_ai.provider.name": "gcp.gemini", "error.type": "overloaded"}
        assert points("imagegen.retries") == [(gemini, 2)]
        edge = {"imagegen.fallback.from": PRIMARY, "imagegen.fallback.to": SECOND}
        assert points("imagegen.fallbacks") == [
            ({**edge, "imagegen.fallback.cause": "overloaded"}, 1),
            ({**edge, "imagegen.fallback.cause": "circuit_open"}, 1),
        ]
        votes = {
            (found["imagegen.circuit_breaker.name"], found["imagegen.circuit_breaker.result"]): n
            for found, n in points("imagegen.circuit_breaker.calls")
        }
        assert votes == {
            (PRIMARY, "failure"): 3,
            (PRIMARY, "not_permitted"): 1,
            (SECOND, "success"): 2,
        }
        opened = {
            "imagegen.circuit_breaker.name": PRIMARY,
            "imagegen.circuit_breaker.from": "closed",
            "imagegen.circuit_breaker.to": "open",
        }
        assert points("imagegen.circuit_breaker.transitions") == [(opened, 1)]
        durations = points("gen_ai.client.operation.duration")
        assert [
            (found.get("error.type"), found.get("gen_ai.response.model"), count)
            for found, (count, _) in durations
        ] == [("overloaded", None, 3), (None, "gpt-image-2.5-flare", 2)]
        assert {
            found["gen_ai.response.model"] for found, _ in points("gen_ai.client.token.usage")
        } == {"gpt-image-2.5-flare"}
        tokens = {
            found["gen_ai.token.type"]: value
            for found, value in points("gen_ai.client.token.usage")
        }
        assert tokens == {"input": (2, 20), "output": (2, 200)}
        assert points("imagegen.operation.attempts") == [
            ({"imagegen.operation": "generate", "imagegen.outcome": "success"}, (2, 5))
        ]
        ((found, (count, total)),) = points("imagegen.operation.duration")
        assert found == {
            "imagegen.operation": "generate",
            "imagegen.outcome": "success",
            "imagegen.provider.served": "openai",
            "imagegen.fallback.used": True,
        }
        assert count == 2
        assert total > 4

    run_telemetry_scenario(scene, **FAST)


def test_durations_have_exemplars_with_their_trace() -> None:
    """Durations have exemplars: the call's of its root, the request's of its span."""

    async def scene(scenario: TelemetryScenario) -> None:
        await scenario.ask()
        leads = {
            metric.name: [
                exemplar.span_id
                for point in metric.data.data_points
                for exemplar in getattr(point, "exemplars", ())
            ]
            for metric in scenario.telemetry.metrics()
        }
        (root,), (attempt,) = scenario.telemetry.roots(), scenario.telemetry.attempts()
        assert leads.pop("imagegen.operation.duration") == [root.context.span_id]
        assert leads.pop("gen_ai.client.operation.duration") == [attempt.context.span_id]
        assert {name for name, spans in leads.items() if spans} == set()

    run_telemetry_scenario(scene, **FAST)


@pytest.mark.parametrize("preferred", [CUMULATIVE, AggregationTemporality.DELTA])
def test_counters_support_both_temporalities(
    preferred: AggregationTemporality,
) -> None:
    """Counters work with the temporality that the backend prefers."""
    reader = InMemoryMetricReader({Counter: preferred})

    def votes() -> dict[str, Any]:
        data: Any = reader.get_metrics_data()
        return {
            point.attributes["imagegen.circuit_breaker.result"]: point.value
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == "imagegen.circuit_breaker.calls"
            for point in metric.data.data_points
            if metric.data.is_monotonic and metric.data.aggregation_temporality is preferred
        }

    async def scene() -> None:
        google = FakeProvider("google")
        settings = Settings(routes="google:gemini-3-pro-image", **FAST)
        meters = SdkMeterProvider([reader])
        async with ImageClient(settings, providers=[google], meter_provider=meters) as client:
            await client.generate("a lighthouse")
            assert votes() == {"success": 1}
            await client.generate("a lighthouse")
            await client.generate("a lighthouse")
            assert votes() == {"success": 3 if preferred is CUMULATIVE else 2}

    run_virtual(scene())


def test_gauges_show_the_breakers_as_they_are_now() -> None:
    """The gauge of the current state is 1 and of the others 0, as read at collection."""

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503, times=3)
        await scenario.ask()

        def state() -> dict[str, int]:
            return {
                found["imagegen.circuit_breaker.state"]: value
                for found, value in scenario.telemetry.points("imagegen.circuit_breaker.state")
                if found["imagegen.circuit_breaker.name"] == PRIMARY
            }

        assert state() == {"closed": 0, "open": 1, "half_open": 0, "forced_open": 0}
        rates = scenario.telemetry.points("imagegen.circuit_breaker.failure_rate")
        assert [value for _, value in rates] == [1.0, 0.0] or [v for _, v in rates] == [0.0, 1.0]
        calls = scenario.telemetry.points("imagegen.circuit_breaker.window.calls")
        assert sorted(value for _, value in calls) == [1, 3]
        await asyncio.sleep(100)
        await scenario.ask()
        assert state() == {"closed": 1, "open": 0, "half_open": 0, "forced_open": 0}

    run_telemetry_scenario(scene, **FAST)


def test_two_clients_share_one_set_of_instruments() -> None:
    """Gauges are registered once per meter, and omit breakers of deleted clients."""
    telemetry = Telemetry()

    async def use(name: str) -> None:
        client = ImageClient(
            Settings(routes=f"{name}:m"),
            providers=[FakeProvider(name)],
            meter_provider=telemetry.meters,
        )
        await client.generate("a lighthouse")
        await client.aclose()

    run_virtual(use("one"))
    run_virtual(use("two"))
    names = telemetry.metric_names()
    assert names.count("imagegen.circuit_breaker.window.calls") <= 1
    assert len(names) == len(set(names))
    gc.collect()
    assert telemetry.points("imagegen.circuit_breaker.state") == []


def test_a_closed_clients_breakers_are_not_reported() -> None:
    """The breakers of a closed client are not reported, even if the client is still referenced."""
    telemetry = Telemetry()

    async def main() -> None:
        client = ImageClient(
            Settings(routes="one:m"),
            providers=[FakeProvider("one")],
            meter_provider=telemetry.meters,
        )
        await client.generate("a lighthouse")
        assert telemetry.points("imagegen.circuit_breaker.state")
        await client.aclose()
        assert telemetry.points("imagegen.circuit_breaker.state") == []
        assert client.snapshot()["routes"][0]["breaker"]["state"] == "closed"

    run_virtual(main())


def test_two_clients_with_the_same_route_are_one_series() -> None:
    """The series has the worse state, the higher rate and the sum of the calls."""
    telemetry = Telemetry()

    async def main() -> None:
        clients = []
        for failing in (True, False):
            google = FakeProvider("google")
            if failing:
                google.fail(Reason.OVERLOADED, status=503)
            clients.append(
                ImageClient(
                    Settings(**FAST),
                    providers=[google, FakeProvider("openai")],
                    meter_provider=telemetry.meters,
                )
            )
            await clients[-1].generate("a lighthouse")

        def of_primary(metric: str) -> list[tuple[object, int]]:
            return [
                (found.get("imagegen.circuit_breaker.state"), value)
                for found, value in telemetry.points(f"imagegen.circuit_breaker.{metric}")
                if found["imagegen.circuit_breaker.name"] == PRIMARY
            ]

        assert sorted(of_primary("state"), key=str) == [
            ("closed", 0), ("forced_open", 0), ("half_open", 0), ("open", 1)
        ]  # fmt: skip
        assert of_primary("failure_rate") == [(None, 1.0)]
        assert of_primary("window.calls") == [(None, 4)]
        await clients[0].aclose()
        assert dict(of_primary("state"))["closed"] == 1
        assert of_primary("window.calls") == [(None, 1)]
        await clients[1].aclose()

    run_virtual(main())


def test_gauges_read_by_an_exporters_thread_are_current() -> None:
    """The window slides between calls, on the loop and in other threads."""

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503, times=1)
        await scenario.ask()

        def calls() -> int:
            points = scenario.telemetry.points("imagegen.circuit_breaker.window.calls")
            return sum(value for _, value in points)

        assert await asyncio.to_thread(calls) == calls() == 2
        await asyncio.sleep(20)
        assert await asyncio.to_thread(calls) == 0
        assert calls() == 0

    run_telemetry_scenario(scene, max_retries=0, breaker_window=10, **FAST)


def test_instruments_are_freed_with_their_meter() -> None:
    """No global state grows with the number of meter providers."""
    gc.collect()
    before = len(instruments._per_meter)
    provider: MeterProvider = SdkMeterProvider()
    MetricSink(provider)
    assert len(instruments._per_meter) == before + 1
    provider.shutdown()  # type: ignore[attr-defined]
    del provider
    gc.collect()
    assert len(instruments._per_meter) == before


def test_a_model_that_only_a_caller_named_is_other() -> None:
    """All caller-named models share one attribute value."""

    async def scene(scenario: TelemetryScenario) -> None:
        for name in ("flux-1", "flux-2", "flux-3"):
            await scenario.ask(model=name)
        models = {
            found["gen_ai.request.model"]
            for found, _ in scenario.telemetry.points("gen_ai.client.operation.duration")
        }
        assert models == {"other"}
        gauges = {
            found["imagegen.circuit_breaker.name"]
            for found, _ in scenario.telemetry.points("imagegen.circuit_breaker.state")
        }
        assert gauges == {"google:gemini-3-pro-image", "google:other", "custom:m"}
        served = scenario.telemetry.attempts()[0].attributes or {}
        assert served["gen_ai.request.model"] == "flux-1"

    async def main() -> None:
        telemetry = Telemetry()
        google, custom = FakeProvider("google"), FakeProvider("custom")
        async with ImageClient(
            Settings(routes="google:gemini-3-pro-image,custom:m", **FAST),
            providers=[google, custom],
            tracer_provider=telemetry.tracers,
            meter_provider=telemetry.meters,
        ) as client:
            await scene(TelemetryScenario(google, custom, client, None, telemetry))  # type: ignore[arg-type]

    run_virtual(main())


def test_queue_time_and_cost_are_recorded() -> None:
    """The second call waits for its place; each request costs what its response states."""

    async def scene(scenario: TelemetryScenario) -> None:
        await asyncio.gather(scenario.ask(), scenario.ask())
        points = scenario.telemetry.points
        labels = {"imagegen.operation": "generate", "imagegen.outcome": "success"}
        ((found, queue),) = points("imagegen.queue.duration")
        assert found == labels
        assert queue == (2, pytest.approx(10))
        paid = {"imagegen.provider": "google", "imagegen.model": "gemini-3-pro-image"}
        assert points("imagegen.cost") == [(paid, pytest.approx(2 * 0.134))]

    run_telemetry_scenario(scene, ipm=6)


def test_an_open_breaker_of_a_model_that_only_a_caller_named_is_shown() -> None:
    """Caller-named models share one gauge, which has the worst of their states."""

    async def scene(scenario: TelemetryScenario) -> None:
        await scenario.ask(model="gemini-2.5-flash-image")
        scenario.google.fail(Reason.OVERLOADED, status=503, times=3)
        await scenario.ask(model="gemini-3.1-flash-image")

        def shown(metric: str) -> list[Any]:
            return [
                (found.get("imagegen.circuit_breaker.state"), value)
                for found, value in scenario.telemetry.points(f"imagegen.circuit_breaker.{metric}")
                if found["imagegen.circuit_breaker.name"] == "google:other"
            ]

        assert dict(shown("state")) == {"closed": 0, "open": 1, "half_open": 0, "forced_open": 0}
        assert shown("failure_rate") == [(None, 1.0)]
        assert shown("window.calls") == [(None, 4)]
        await scenario.client.aclose()
        assert scenario.telemetry.points("imagegen.circuit_breaker.state") == []

    run_telemetry_scenario(scene, **FAST)


@pytest.mark.no_cover
def test_breakers_are_read_while_callers_add_more(caplog: pytest.LogCaptureFixture) -> None:
    """An exporter's thread can read the gauges while callers add routes."""

    async def scene(scenario: TelemetryScenario) -> None:
        ended = threading.Event()

        def read() -> int:
            readings = 0
            while not ended.is_set() or not readings:
                readings += bool(scenario.telemetry.points("imagegen.circuit_breaker.state"))
            return readings

        with ThreadPoolExecutor(1) as exporter:
            reading = exporter.submit(read)
            for number in range(200):
                await scenario.ask(model=f"gemini-{number}-image")
            ended.set()
            assert reading.result() > 0

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        run_telemetry_scenario(scene, **FAST)
    finally:
        sys.setswitchinterval(interval)
    assert [record for record in caplog.records if record.name.startswith("opentelemetry")] == []


@pytest.mark.parametrize(
    ("error", "word"),
    [(Reason.INVALID_REQUEST, "invalid_request"), (KeyError("x"), "_OTHER")],
)
def test_error_types_come_from_a_fixed_list(error: Reason | Exception, word: str) -> None:
    """The error type is the reason; the type of an unexpected exception is not an attribute."""

    async def scene(scenario: TelemetryScenario) -> None:
        if isinstance(error, Reason):
            scenario.google.fail(error, status=400)
        else:
            scenario.google.crash(error)
        with pytest.raises((ImageGenerationError, KeyError)):
            await scenario.ask()
        for metric in ("gen_ai.client.operation.duration", "imagegen.operation.duration"):
            ((found, _),) = scenario.telemetry.points(metric)
            assert found["error.type"] == word

    run_telemetry_scenario(scene)


def test_a_cancelled_request_has_a_separate_error_type() -> None:
    """A cancelled request's duration has a separate error type; its vote is neutral."""

    async def scene(scenario: TelemetryScenario) -> None:
        await scenario.leave()
        with pytest.raises(TimeoutError):
            await scenario.ask(deadline=1)
        durations = scenario.telemetry.points("gen_ai.client.operation.duration")
        assert [found["error.type"] for found, _ in durations] == [
            "cancelled",
            "timeout",  # cut short by the reserve for the next route
            "deadline",
        ]
        votes = scenario.telemetry.points("imagegen.circuit_breaker.calls")
        assert [(found["imagegen.circuit_breaker.result"], n) for found, n in votes] == [
            ("neutral", 2),
            ("neutral", 1),
        ]

    run_telemetry_scenario(scene, **FAST)


def test_breaker_votes_have_documented_values() -> None:
    """A throttled request counts as failure; a slow request has a separate value."""

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.google.fail(Reason.RATE_LIMITED, status=429, times=1)
        await scenario.ask()
        scenario.google.latency = 20.0
        await scenario.ask()
        votes = {
            found["imagegen.circuit_breaker.result"]: count
            for found, count in scenario.telemetry.points("imagegen.circuit_breaker.calls")
            if found["imagegen.circuit_breaker.name"] == PRIMARY
        }
        assert votes == {"failure": 1, "slow": 1}

    run_telemetry_scenario(scene, breaker_slow_call=10, max_retries=0, **FAST)


def test_a_retry_names_the_service_that_its_attempt_named() -> None:
    """Attempt and retry name Vertex AI or the Gemini API by the address."""

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503, times=1)
        await scenario.ask()
        ((found, count),) = scenario.telemetry.points("imagegen.retries")
        assert (found["gen_ai.provider.name"], count) == ("gcp.vertex_ai", 1)
        attempt = scenario.telemetry.attempts()[0].attributes or {}
        assert attempt["gen_ai.provider.name"] == "gcp.vertex_ai"

    endpoint = Endpoint("google", "https://europe-west4-aiplatform.googleapis.com")
    run_telemetry_scenario(scene, endpoint=endpoint, **FAST)


def test_the_number_of_response_models_in_metrics_is_limited() -> None:
    """The number of distinct response model names is limited."""

    async def scene(scenario: TelemetryScenario) -> None:
        served = (f"gemini-{number}" for number in range(100))

        async def generate(request: object, model: str) -> ProviderResult:
            return ProviderResult((ProviderImage(TINY_PNG, "image/png"),), next(served))

        scenario.google.generate = generate  # type: ignore[method-assign]
        for _ in range(100):
            await scenario.ask()
        durations = scenario.telemetry.points("gen_ai.client.operation.duration")
        named = {found["gen_ai.response.model"] for found, _ in durations}
        assert len(named) == 33
        assert "other" in named

    run_telemetry_scenario(scene, **FAST)


def test_shadow_decisions_are_not_counted_as_transitions() -> None:
    """Decisions of shadow mode are logged, but not counted as transitions."""

    async def scene(scenario: TelemetryScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503, times=3)
        await scenario.ask()
        assert scenario.telemetry.points("imagegen.circuit_breaker.transitions") == []
        votes = {
            found["imagegen.circuit_breaker.result"]
            for found, _ in scenario.telemetry.points("imagegen.circuit_breaker.calls")
        }
        assert "not_permitted" not in votes

    run_telemetry_scenario(scene, breaker_mode="shadow", **FAST)
