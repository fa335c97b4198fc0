"""The dispatcher: passes each event to every sink, and shields calls from the sinks."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from resilient_imagen.telemetry.background_sink import BackgroundSink
from resilient_imagen.telemetry.events import AttemptEnded, RequestEnded
from resilient_imagen.telemetry.sink import SelectiveSink

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from resilient_imagen.telemetry.events import Event
    from resilient_imagen.telemetry.sink import EventSink

__all__ = ["SinkDispatcher"]

_log = logging.getLogger("resilient_imagen")

_ENDINGS = frozenset({AttemptEnded, RequestEnded})

_Handler: TypeAlias = "tuple[object, Callable[[Any], None]]"
"""A sink, and its function for events of one type."""


class SinkDispatcher:
    """Passes events to the sinks, in order.

    Endings reach the sinks in reverse order, like nested context managers: the log record about
    the end of an attempt is written while the span of that attempt is still the current one.
    """

    def __init__(self, sinks: Sequence[EventSink]) -> None:
        self._inline: tuple[EventSink, ...] = ()
        self._handlers: dict[type[Event], tuple[_Handler, ...]] = {}
        """The handlers of each type of event, in order; found with its first event."""
        self._background: BackgroundSink | None = None
        self._failed: set[int] = set()
        """Identities of the sinks whose first failure was logged."""
        for sink in sinks:
            self.add(sink)

    def add(self, sink: EventSink) -> None:
        """Pass all further events to ``sink``, too."""
        if getattr(sink, "inline", False):
            self._inline = (*self._inline, sink)
        elif self._background is None:
            self._background = BackgroundSink((sink,), self._pass_to)
        else:
            self._background.add(sink)
        self._handlers = {}

    def emit(self, event: Event) -> None:
        """Pass ``event`` to every sink; never raises."""
        kind = type(event)
        known = self._handlers  # another thread may add a sink meanwhile
        handlers = known.get(kind)
        if handlers is None:
            handlers = known[kind] = self._handlers_of(kind)
        for sink, handle in handlers:
            try:
                handle(event)
            except (Exception, asyncio.CancelledError, SystemExit) as error:  # noqa: BLE001 - see emit
                self._note_failure(sink, error)

    def _handlers_of(self, kind: type[Event]) -> tuple[_Handler, ...]:
        found: list[_Handler] = []
        for sink in self._inline:
            # A subclass of a built-in sink may define `handle`, too.
            if not isinstance(sink, SelectiveSink) or type(sink).handle is not SelectiveSink.handle:
                found.append((sink, partial(_handle, sink)))
            elif (handler := sink.handler_of(kind)) is not None:
                found.append((sink, handler))
        if self._background is not None:
            found.append((self._background, self._background.put))
        return tuple(reversed(found) if kind in _ENDINGS else found)

    async def close(self, timeout: float = 1.0) -> None:  # noqa: ASYNC109 - a thread is waited for
        """Let slow sinks handle the events that they were sent, for at most ``timeout`` seconds."""
        for sink in self._inline:
            if (closed := getattr(sink, "client_closed", None)) is not None:
                closed()  # a built-in sink that watches the client's breakers
        if self._background is None:
            return
        pool = ThreadPoolExecutor(1)  # the loop's own pool may be busy
        try:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(pool, self._background.close, timeout)
        finally:
            pool.shutdown(wait=False)

    def _pass_to(self, sinks: Sequence[EventSink], event: Event) -> None:
        """Pass an event to the sinks of the background thread."""
        for sink in sinks:
            try:
                sink.handle(event)
            except (Exception, asyncio.CancelledError, SystemExit) as error:  # noqa: BLE001 - see emit
                self._note_failure(sink, error)

    def _note_failure(self, sink: object, error: BaseException) -> None:
        if id(sink) not in self._failed:
            self._failed.add(id(sink))
            _log.warning("sink %s failed: %s", type(sink).__name__, type(error).__name__)


def _handle(sink: EventSink, event: Event) -> None:
    """Call a sink's ``handle``, which may be replaced between events."""
    sink.handle(event)
