"""Telemetry test kit: a client whose spans, metrics and events are recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pipeline_kit import ONE_AT_A_TIME, PipelineScenario, run_with_client

from resilient_imagen import Settings
from resilient_imagen.providers.base import Endpoint
from resilient_imagen.testing import FakeProvider, RecordingSink

T = TypeVar("T")

Attributes = dict[str, Any]


@dataclass
class Telemetry:
    """A separate OpenTelemetry SDK, without global providers."""

    exporter: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)
    reader: InMemoryMetricReader = field(default_factory=InMemoryMetricReader)

    def __post_init__(self) -> None:
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader])

    def spans(self, name: str = "") -> list[ReadableSpan]:
        """Return finished spans whose name begins with ``name``, in the order of their ends."""
        return [span for span in self.exporter.get_finished_spans() if span.name.startswith(name)]

    def roots(self) -> list[ReadableSpan]:
        return self.spans("imagegen.")

    def attempts(self) -> list[ReadableSpan]:
        return self.spans("generate_content")

    def rejects(self) -> list[ReadableSpan]:
        return self.spans("circuit_breaker reject")

    def points(self, metric: str) -> list[tuple[Attributes, Any]]:
        """Return attributes and value (a number, or count and sum) of all points of a metric."""
        return [
            (
                dict(point.attributes or {}),
                point.value if hasattr(point, "value") else (point.count, point.sum),
            )
            for found in self.metrics()
            if found.name == metric
            for point in found.data.data_points
        ]

    def metric_names(self) -> list[str]:
        return [found.name for found in self.metrics()]

    def metrics(self) -> Iterator[Any]:
        """Collect and yield the metrics."""
        data = self.reader.get_metrics_data()
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                yield from scope.metrics


@dataclass
class TelemetryScenario(PipelineScenario):
    """A pipeline scenario whose telemetry is recorded."""

    telemetry: Telemetry

    async def leave(self) -> None:
        """Cancel a call while Google does not answer."""
        self.google.hang()
        call = asyncio.create_task(self.ask())
        await asyncio.sleep(1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    async def overlap_three_requests(self) -> None:
        """Start two hanging requests, one second apart, and a third one before they end."""
        self.google.hang(times=2)
        first = asyncio.create_task(self.ask())
        await asyncio.sleep(1)
        second = asyncio.create_task(self.ask())
        await asyncio.sleep(14)
        await self.ask()
        await asyncio.gather(first, second)


def attributes(span: ReadableSpan) -> Attributes:
    return dict(span.attributes or {})


def run_telemetry_scenario(
    scene: Callable[[TelemetryScenario], Awaitable[T]],
    *,
    endpoint: Endpoint | None = None,
    **settings: Any,
) -> T:
    """Run ``scene`` on virtual time with these settings, and another endpoint of Google's."""
    telemetry, events = Telemetry(), RecordingSink()
    google, openai = FakeProvider("google"), FakeProvider("openai", latency=2.0)
    google.endpoint = google.endpoint if endpoint is None else endpoint
    return run_with_client(
        lambda client: scene(TelemetryScenario(google, openai, client, events, telemetry)),
        Settings(**{**ONE_AT_A_TIME, **settings}),
        [google, openai],
        sinks=[events],
        tracer_provider=telemetry.tracers,
        meter_provider=telemetry.meters,
    )
