"""Recorder: a sink that writes calls, requests and rejections as rows of a recording."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from resilient_imagen.effective_settings import as_text
from resilient_imagen.reasons import Reason
from resilient_imagen.telemetry import events
from resilient_imagen.tuning.rows import Asked, Attempted, Configured, Rejected

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_imagen.tuning.rows import Row

__all__ = ["Recorder"]

_ANSWERLESS = frozenset({Reason.TIMEOUT, Reason.CANCELLED, Reason.DEADLINE})


class Recorder:
    """Converts events to rows: ``ImageClient(sinks=[Recorder(rows.append)])``.

    Args:
        keep: Called with each row.
        epoch: Offset from loop time to seconds since the epoch; None means by the present time.
    """

    inline = True

    def __init__(self, keep: Callable[[Row], object], *, epoch: float | None = None) -> None:
        self._keep = keep
        self._epoch = epoch

    def handle(self, event: events.Event) -> None:
        """Record an event if a replay needs it."""
        if isinstance(event, events.RequestEnded):
            self._keep(self._call(event))
        elif isinstance(event, events.SettingsReported):
            settings = as_text(event.variables)
            self._keep(Configured(self._when(event.at), event.client_id, settings))
        elif isinstance(event, events.ShortCircuited):
            route = f"{event.provider}:{event.model}"
            self._keep(Rejected(self._when(event.at), event.call_id, route))
        elif isinstance(event, events.AttemptEnded) and not _own_bug(event):
            self._keep(self._attempt(event))

    def _call(self, event: events.RequestEnded) -> Asked:
        result = event.result
        return Asked(
            at=self._when(event.at) - event.latency_s,
            call=event.call_id,
            took=event.latency_s,
            outcome=event.outcome,
            served=None if result is None else f"{result.provider}:{result.model}",
        )

    def _attempt(self, event: events.AttemptEnded) -> Attempted:
        return Attempted(
            at=self._when(event.at) - event.latency_s,
            call=event.call_id,
            route=f"{event.provider}:{event.model}",
            latency=event.latency_s,
            reason=event.reason,
            hint=event.retry_after,
            cost=None if event.usage is None else event.usage["cost_usd"],
            queue=event.queue_s,
            given_up=event.reason in _ANSWERLESS and event.status is None,
            probe=event.probe,
        )

    def _when(self, at: float) -> float:
        epoch = time.time() - time.monotonic() if self._epoch is None else self._epoch
        return round(at + epoch, 6)


def _own_bug(event: events.AttemptEnded) -> bool:
    return event.reason is None and event.error_type is not None
