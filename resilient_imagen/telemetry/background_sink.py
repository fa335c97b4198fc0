"""Tells sinks that may be slow from a thread of their own, so that no call waits for them."""

from __future__ import annotations

import contextvars
import logging
import queue
import threading
from typing import TYPE_CHECKING, Final, TypeAlias

from resilient_imagen.telemetry.events import RequestEnded, RequestStarted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from resilient_imagen.telemetry.events import Event
    from resilient_imagen.telemetry.sink import EventSink

__all__ = ["BackgroundSink"]

_log = logging.getLogger("resilient_imagen")

_CAPACITY: Final = 10_000
"""Events that wait to be told; the next ones are dropped and counted."""
_CAPACITY_BYTES: Final = 64_000_000
"""Bytes of pictures, references and prompts in them; likewise."""

_Told: TypeAlias = "tuple[contextvars.Context, Event, int] | threading.Event"
"""What waits in the queue, with its bytes; a threading.Event is set when all before it was told."""


class BackgroundSink:
    """One daemon thread, started with the first event, that tells the sinks in order.

    Args:
        sinks: Who is told.
        tell: Tells one sink one event, and never raises.
        capacity: Events that may wait.
        capacity_bytes: Bytes of pictures that may wait in them; a single larger one may, too.
    """

    def __init__(
        self,
        sinks: Sequence[EventSink],
        tell: Callable[[EventSink, Event], None],
        *,
        capacity: int = _CAPACITY,
        capacity_bytes: int = _CAPACITY_BYTES,
    ) -> None:
        self._sinks = sinks
        self._tell = tell
        self._capacity_bytes = capacity_bytes
        self._held = 0
        """Bytes that cannot be freed before the sinks were told."""
        self._lock = threading.Lock()
        self._queue: queue.Queue[_Told] = queue.Queue(capacity)
        self._thread: threading.Thread | None = None
        self.dropped: int = 0
        """Events that came faster than the sinks took them."""

    def put(self, event: Event) -> None:
        """Have ``event`` told soon, in a copy of the present context; never waits."""
        if self._thread is None or not self._thread.is_alive():  # a fork leaves threads behind
            self._thread = threading.Thread(
                target=self._run, name="resilient_imagen sinks", daemon=True
            )
            self._thread.start()
        size = _bytes_in(event)
        try:
            if self._held and size and self._held + size > self._capacity_bytes:
                raise queue.Full  # noqa: TRY301 - full by size is as full as by number
            self._queue.put_nowait((contextvars.copy_context(), event, size))
        except queue.Full:
            self.dropped += 1
            if self.dropped == 1:
                _log.warning("slow sinks: events are being dropped")
        else:
            self._hold(size)

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
            context, event, size = told
            for sink in self._sinks:
                context.run(self._tell, sink, event)
            self._hold(-size)
            del told, context, event  # the next one may be long in coming

    def _hold(self, size: int) -> None:
        if size:
            with self._lock:
                self._held += size


def _bytes_in(event: Event) -> int:
    """What an event holds that could fill the memory."""
    if isinstance(event, RequestEnded):
        return 0 if event.result is None else len(event.result.image_bytes)
    if isinstance(event, RequestStarted):
        request = event.request
        return len(request.prompt) + sum(len(reference.data) for reference in request.references)
    return 0
