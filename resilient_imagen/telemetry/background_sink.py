"""A queue and a thread for sinks that may be slow, so that no call waits for them."""

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
"""Maximum number of waiting events; further ones are dropped and counted."""
_CAPACITY_BYTES: Final = 64_000_000
"""Maximum bytes of images, references and prompts in them; further events are dropped."""

_Item: TypeAlias = "tuple[contextvars.Context, Event, int] | threading.Event"
"""An event with its context and size, or a flag to set once all earlier events are handled."""


class BackgroundSink:
    """Passes events to sinks, in order, from one daemon thread that starts with the first event.

    Args:
        sinks: The sinks.
        pass_to: Passes one event to each of the sinks, and never raises.
        capacity: Maximum number of waiting events.
        capacity_bytes: Maximum bytes of images in them; a single larger one may wait alone.
    """

    def __init__(
        self,
        sinks: Sequence[EventSink],
        pass_to: Callable[[Sequence[EventSink], Event], None],
        *,
        capacity: int = _CAPACITY,
        capacity_bytes: int = _CAPACITY_BYTES,
    ) -> None:
        self._sinks = sinks
        self._pass_to = pass_to
        self._capacity_bytes = capacity_bytes
        self._held = 0
        """Bytes in events that not all sinks have handled."""
        self._lock = threading.Lock()
        self._queue: queue.Queue[_Item] = queue.Queue(capacity)
        self._thread: threading.Thread | None = None
        self.dropped: int = 0
        """Events that were dropped because the sinks were too slow."""

    def add(self, sink: EventSink) -> None:
        """Pass events to ``sink``, too, from the next one that is handled."""
        self._sinks = (*self._sinks, sink)

    def put(self, event: Event) -> None:
        """Queue ``event`` with a copy of the present context; never waits."""
        if self._thread is None or not self._thread.is_alive():  # a fork leaves threads behind
            self._thread = threading.Thread(
                target=self._run, name="resilient_imagen sinks", daemon=True
            )
            self._thread.start()
        size = _bytes_in(event)
        try:
            if self._held and size and self._held + size > self._capacity_bytes:
                raise queue.Full  # noqa: TRY301 - handled as a queue that is full by number
            self._queue.put_nowait((contextvars.copy_context(), event, size))
        except queue.Full:
            self.dropped += 1
            if self.dropped == 1:
                _log.warning("slow sinks: events are being dropped")
        else:
            self._hold(size)

    def close(self, seconds: float) -> None:
        """Wait until all queued events are handled, for at most so many seconds."""
        if self._thread is None or not self._thread.is_alive():
            return
        handled = threading.Event()
        try:
            self._queue.put(handled, timeout=seconds)
        except queue.Full:
            handled.set()
        if not handled.wait(seconds) or self.dropped:
            _log.warning(
                "slow sinks: %d events dropped, %d not yet handled",
                self.dropped,
                self._queue.qsize(),
            )

    def _run(self) -> None:
        while True:
            item = self._queue.get()
            if isinstance(item, threading.Event):
                item.set()
                continue
            context, event, size = item
            context.run(self._pass_to, self._sinks, event)
            self._hold(-size)
            del item, context, event  # not kept while waiting for the next one

    def _hold(self, size: int) -> None:
        if size:
            with self._lock:
                self._held += size


def _bytes_in(event: Event) -> int:
    """Return the bytes of images and prompts that an event keeps in memory."""
    if isinstance(event, RequestEnded):
        return 0 if event.result is None else sum(map(len, event.result.images))
    if isinstance(event, RequestStarted):
        request = event.request
        return len(request.prompt) + sum(len(reference.data) for reference in request.references)
    return 0
