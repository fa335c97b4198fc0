"""Tells every sink what happened, and never lets a sink touch the call."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from resilient_imagen.telemetry.events import AttemptEnded, RequestEnded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resilient_imagen.telemetry.events import Event

__all__ = ["Hub", "Sink"]

_log = logging.getLogger("resilient_imagen")


class Sink(Protocol):
    """Somebody who is told."""

    def handle(self, event: Event) -> None:
        """Take note of ``event``. Must not block; what it raises is swallowed and logged once."""
        ...


class Hub:
    """The one place through which events leave.

    Endings are told in reverse order, like nested context managers: a log line about the end of
    an attempt is written while that attempt's span is still the current one.
    """

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = tuple(sinks)
        self._reversed = tuple(reversed(self._sinks))
        self._complained: set[int] = set()

    def tell(self, event: Event) -> None:
        """Tell every sink; never raises."""
        ending = isinstance(event, AttemptEnded | RequestEnded)
        for sink in self._reversed if ending else self._sinks:
            try:
                sink.handle(event)
            except Exception as error:  # noqa: BLE001 - a sink's failure is never the caller's
                self._complain(sink, error)

    def _complain(self, sink: Sink, error: Exception) -> None:
        if id(sink) not in self._complained:
            self._complained.add(id(sink))
            _log.warning("sink %s failed: %s", type(sink).__name__, type(error).__name__)
