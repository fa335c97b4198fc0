"""Tells sinks that may be slow from a thread of their own, so that no call waits for them."""

from __future__ import annotations

import contextvars
import logging
import queue
import threading
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from resilient_imagen.telemetry.events import Event
    from resilient_imagen.telemetry.hub import Sink

__all__ = ["Background"]

_log = logging.getLogger("resilient_imagen")

_CAPACITY: Final = 10_000
"""Events that wait to be told; the next ones are dropped and counted."""

_Told: TypeAlias = "tuple[contextvars.Context, Event] | threading.Event"
"""What waits in the queue; a threading.Event is set when everything before it was told."""


class Background:
    """One daemon thread, started with the first event, that tells the sinks in order.

    Args:
        sinks: Who is told.
        tell: Tells one sink one event, and never raises.
        capacity: Events that may wait.
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        tell: Callable[[Sink, Event], None],
        *,
        capacity: int = _CAPACITY,
    ) -> None:
        self._sinks = sinks
        self._tell = tell
        self._queue: queue.Queue[_Told] = queue.Queue(capacity)
        self._thread: threading.Thread | None = None
        self.dropped = 0
        """Events that came faster than the sinks took them."""

    def put(self, event: Event) -> None:
        """Have ``event`` told soon, in a copy of the present context; never waits."""
        if self._thread is None or not self._thread.is_alive():  # a fork leaves threads behind
            self._thread = threading.Thread(
                target=self._run, name="resilient_imagen sinks", daemon=True
            )
            self._thread.start()
        try:
            self._queue.put_nowait((contextvars.copy_context(), event))
        except queue.Full:
            self.dropped += 1
            if self.dropped == 1:
                _log.warning("slow sinks: events are being dropped")

    def close(self, seconds: float) -> None:
        """Wait until what was put is told, for at most so many seconds."""
        if self._thread is None or not self._thread.is_alive():
            return
        told = threading.Event()
        try:
            self._queue.put(told, timeout=seconds)
        except queue.Full:
            told.set()
        if not told.wait(seconds) or self.dropped:
            _log.warning(
                "slow sinks: %d events dropped, %d not yet told",
                self.dropped,
                self._queue.qsize(),
            )

    def _run(self) -> None:
        while True:
            told = self._queue.get()
            if isinstance(told, threading.Event):
                told.set()
                continue
            context, event = told
            for sink in self._sinks:
                context.run(self._tell, sink, event)
