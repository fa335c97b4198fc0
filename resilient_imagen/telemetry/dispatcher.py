"""The dispatcher: passes each event to every sink, and shields calls from the sinks."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from resilient_imagen.telemetry.background_sink import BackgroundSink
from resilient_imagen.telemetry.events import AttemptEnded, RequestEnded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resilient_imagen.telemetry.events import Event
    from resilient_imagen.telemetry.sink import EventSink

__all__ = ["SinkDispatcher"]

_log = logging.getLogger("resilient_imagen")

_ENDINGS = frozenset({AttemptEnded, RequestEnded})


class SinkDispatcher:
    """Passes events to the sinks, in order.

    Endings reach the sinks in reverse order, like nested context managers: the log record about
    the end of an attempt is written while the span of that attempt is still the current one.
    """

    def __init__(self, sinks: Sequence[EventSink]) -> None:
        self._inline: tuple[EventSink, ...] = ()
        self._reversed: tuple[EventSink, ...] = ()
        self._background: BackgroundSink | None = None
        self._failed: set[int] = set()
        """Identities of the sinks whose first failure was logged."""
        for sink in sinks:
            self.add(sink)

    def add(self, sink: EventSink) -> None:
        """Pass all further events to ``sink``, too."""
        if getattr(sink, "inline", False):
            self._inline = (*self._inline, sink)
            self._reversed = tuple(reversed(self._inline))
        elif self._background is None:
            self._background = BackgroundSink((sink,), self._pass_to)
        else:
            self._background.add(sink)

    def emit(self, event: Event) -> None:
        """Pass ``event`` to every sink; never raises."""
        ending = type(event) in _ENDINGS
        if ending and self._background is not None:
            self._background.put(event)
        self._pass_to(self._reversed if ending else self._inline, event)
        if not ending and self._background is not None:
            self._background.put(event)

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
        for sink in sinks:
            try:
                sink.handle(event)
            except (Exception, asyncio.CancelledError, SystemExit) as error:  # noqa: BLE001 - see emit
                if id(sink) not in self._failed:
                    self._failed.add(id(sink))
                    _log.warning("sink %s failed: %s", type(sink).__name__, type(error).__name__)
