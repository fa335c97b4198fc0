"""A client whose spans, metrics and events are caught: what the telemetry tests share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pipeline_kit
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from resilient_imagen import ImageClient, Settings
from resilient_imagen.testing import FakeProvider, RecordingSink, run_virtual

T = TypeVar("T")

Attributes = dict[str, Any]

FAST: dict[str, Any] = {"ipm": 600_000}
"""Pacing out of the way."""


@dataclass
class Telemetry:
    """An SDK of one's own: nothing global is touched."""

    exporter: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)
    reader: InMemoryMetricReader = field(default_factory=InMemoryMetricReader)

    def __post_init__(self) -> None:
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader])

    def spans(self, name: str = "") -> list[ReadableSpan]:
        """Finished spans whose name begins so, in the order they ended."""
        return [span for span in self.exporter.get_finished_spans() if span.name.startswith(name)]

    def roots(self) -> list[ReadableSpan]:
        return self.spans("imagegen.")

    def attempts(self) -> list[ReadableSpan]:
        return self.spans("generate_content")

    def rejects(self) -> list[ReadableSpan]:
        return self.spans("circuit_breaker reject")

    def points(self, metric: str) -> list[tuple[Attributes, Any]]:
        """Attributes and value (a number, or count and sum) of every point of a metric."""
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
        """As they are collected now."""
        data = self.reader.get_metrics_data()
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                yield from scope.metrics


@dataclass
class TelemetryScenario(pipeline_kit.PipelineScenario):
    """The pipeline's, and all that an SDK catches of it."""

    telemetry: Telemetry

    async def leave(self) -> None:
        """A caller is cancelled while Google does not answer."""
        self.google.hang()
        call = asyncio.create_task(self.ask())
        await asyncio.sleep(1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    async def drag(self) -> None:
        """Two requests hang, one begun a second after the other; a third comes before they end."""
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
    scene: Callable[[TelemetryScenario], Awaitable[T]], **settings: Any
) -> T:
    """Run ``scene`` on virtual time with these settings."""

    async def main() -> T:
        telemetry, told = Telemetry(), RecordingSink()
        google, openai = FakeProvider("google"), FakeProvider("openai", latency=2.0)
        async with ImageClient(
            Settings(**settings),
            providers=[google, openai],
            sinks=[told],
            tracer_provider=telemetry.tracers,
            meter_provider=telemetry.meters,
        ) as client:
            return await scene(TelemetryScenario(google, openai, client, told, telemetry))

    return run_virtual(main())
