"""Tells every sink what happened, and never lets a sink touch the call."""

from __future__ import annotations

import asyncio
import logging
import math
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from resilient_imagen.telemetry.background_sink import BackgroundSink
from resilient_imagen.telemetry.events import AttemptEnded, RequestEnded
from resilient_imagen.telemetry.sink import ChoosySink

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resilient_imagen.telemetry.events import Event
    from resilient_imagen.telemetry.sink import EventSink

__all__ = ["SinkDispatcher"]

_log = logging.getLogger("resilient_imagen")

_ENDINGS = frozenset({AttemptEnded, RequestEnded})


class SinkDispatcher:
    """The one place through which events leave.

    Endings are told in reverse order, like nested context managers: a log line about the end of
    an attempt is written while that attempt's span is still the current one.
    """

    def __init__(self, sinks: Sequence[EventSink]) -> None:
        inline = tuple(sink for sink in sinks if getattr(sink, "inline", False))
        others = tuple(sink for sink in sinks if not getattr(sink, "inline", False))
        self._inline = inline
        self._reversed = tuple(reversed(inline))
        self._background = BackgroundSink(others, self._tell) if others else None
        self._complained: set[int] = set()
        self._choosy = tuple(sink for sink in sinks if isinstance(sink, ChoosySink))
        self._all_are_choosy = len(self._choosy) == len(sinks)

    def told_from(self) -> float:
        """The level from which on any sink makes something of the events of a call beginning now.

        Others are not worth putting together. Never raises.
        """
        lowest = math.inf if self._all_are_choosy else 0.0
        for sink in self._choosy:
            try:
                lowest = min(lowest, sink.told_from())
            except (Exception, asyncio.CancelledError, SystemExit) as error:  # noqa: BLE001 - never the caller's
                self._complain(sink, error)
                lowest = 0.0
        return lowest

    def emit(self, event: Event) -> None:
        """Tell every sink; never raises."""
        ending = type(event) in _ENDINGS
        if ending and self._background is not None:
            self._background.put(event)
        for sink in self._reversed if ending else self._inline:
            self._tell(sink, event)
        if not ending and self._background is not None:
            self._background.put(event)

    async def close(self, timeout: float = 1.0) -> None:  # noqa: ASYNC109 - a thread is waited for
        """Let slow sinks finish what they were told, for at most ``timeout`` seconds."""
        for sink in self._inline:
            if (closed := getattr(sink, "client_closed", None)) is not None:
                closed()  # one of ours, that watches the client's breakers
        if self._background is None:
            return
        pool = ThreadPoolExecutor(1)  # the loop's own may be busy with what others wait for
        try:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(pool, self._background.close, timeout)
        finally:
            pool.shutdown(wait=False)

    def _tell(self, sink: EventSink, event: Event) -> None:
        try:
            sink.handle(event)
        except (Exception, asyncio.CancelledError, SystemExit) as error:  # noqa: BLE001 - never the caller's
            self._complain(sink, error)

    def _complain(self, sink: EventSink, error: BaseException) -> None:
        if id(sink) not in self._complained:
            self._complained.add(id(sink))
            _log.warning("sink %s failed: %s", type(sink).__name__, type(error).__name__)
