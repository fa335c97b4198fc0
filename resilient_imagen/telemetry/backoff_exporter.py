"""An exporter that leaves a dead collector alone for a while. Needs OpenTelemetry's SDK."""

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
    """Sends through another exporter, and waits for a dead collector once, not once a batch.

    Args:
        exporter: Sends spans.
        where: The collector's address, for people.
        complain: Is told, at the end and in one line, how many spans were lost.
        clock: Seconds.
    """

    def __init__(
        self,
        exporter: SpanExporter,
        where: str,
        complain: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._exporter = exporter
        self._where = where
        self._complain = complain
        self._clock = clock
        self._retry_at = 0.0
        self.lost: int = 0
        """Spans that did not arrive."""
        self._lock = threading.Lock()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send them, or drop them at once while the collector is left alone."""
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
        except Exception:  # noqa: BLE001 - older exporters raise what newer ones answer
            return False

    def shutdown(self) -> None:
        """Close, and say what could not be delivered."""
        self._exporter.shutdown()
        if self.lost:
            self._complain(
                f"{self.lost} spans could not be sent to {self._where}: is a collector there?"
            )

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Let the exporter send what it still holds."""
        return self._exporter.force_flush(timeout_millis)
