"""Who is told what happened: events, and the sinks that turn them into spans and log lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from resilient_imagen.telemetry.hub import Sink

__all__ = ["default_sinks"]


def default_sinks(
    tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None
) -> Sequence[Sink]:
    """OpenTelemetry first, so that log lines find the current span; then structlog."""
    del tracer_provider, meter_provider
    return ()
