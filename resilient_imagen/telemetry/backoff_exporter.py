"""An exporter that pauses while the collector is unreachable. Needs OpenTelemetry's SDK."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.sdk.trace import ReadableSpan

__all__ = ["BackoffExporter"]

_PAUSE: Final = 30.0
"""Seconds during which nothing is sent to a collector that did not answer."""


class BackoffExporter(SpanExporter):
    """Sends through another exporter, and waits for an unreachable collector only once.

    Args:
        exporter: Sends spans.
        address: The collector's, as it may be shown.
        warn: Called at the end with one line about the lost spans, if there are any.
        clock: Returns seconds.
    """

    def __init__(
        self,
        exporter: SpanExporter,
        address: str,
        warn: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._exporter = exporter
        self._address = address
        self._warn = warn
        self._clock = clock
        self._retry_at = 0.0
        self.lost: int = 0
        """Spans that did not arrive."""
        self._lock = threading.Lock()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send the spans, or drop them at once during the pause after a failure."""
        with self._lock:
            if self._clock() >= self._retry_at:
                if self._delivered(spans):
                    return SpanExportResult.SUCCESS
                self._retry_at = self._clock() + _PAUSE
            self.lost += len(spans)
        return SpanExportResult.FAILURE

    def _delivered(self, spans: Sequence[ReadableSpan]) -> bool:
        try:
            return self._exporter.export(spans) is SpanExportResult.SUCCESS
        except Exception:  # noqa: BLE001 - newer exporters return this failure instead
            return False

    def shutdown(self) -> None:
        """Close, and warn of spans that were lost."""
        self._exporter.shutdown()
        if self.lost:
            self._warn(
                f"{self.lost} spans could not be sent to {self._address}: is a collector there?"
            )

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Let the exporter send what it still holds."""
        return self._exporter.force_flush(timeout_millis)
