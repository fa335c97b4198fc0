"""Telemetry: events, and the sinks that turn them into spans, metrics and log records."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilient_imagen.telemetry.logs import LogSink
from resilient_imagen.telemetry.metrics import MetricSink
from resilient_imagen.telemetry.spans import SpanSink

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from resilient_imagen.telemetry.sink import EventSink

__all__ = ["default_sinks"]


def default_sinks(
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    *,
    capture_content: bool = False,
) -> Sequence[EventSink]:
    """Return the built-in sinks: spans first, so that metrics and log records find the current one.

    Args:
        tracer_provider: For spans; the global one when None.
        meter_provider: For metrics; the global one when None.
        capture_content: Record prompts on spans.
    """
    spans = SpanSink(tracer_provider, capture_content=capture_content)
    return (spans, MetricSink(meter_provider), LogSink(spans))
