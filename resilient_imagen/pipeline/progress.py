"""Progress of a call: the events for its caller, and their delivery to a callback."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from resilient_imagen.pipeline.on_start import ends_the_program

if TYPE_CHECKING:
    from resilient_imagen.pipeline.route import Route
    from resilient_imagen.reasons import Reason
    from resilient_imagen.result import ImageResult

__all__ = [
    "SECONDS_AFTER_CALL",
    "OnProgress",
    "Progress",
    "ProgressBuffer",
    "ProgressKind",
    "ProgressReporter",
    "log_callback_failure",
]

_log = logging.getLogger("resilient_imagen")

ProgressKind: TypeAlias = Literal[
    "queued", "sending", "retrying", "falling_back", "partial_image", "finishing", "done"
]

SECONDS_AFTER_CALL: Final = 10.0
"""Seconds after its call in which an async callback may receive the rest of the events."""
_MOST_WAITING: Final = 64
"""Events that wait for a slow consumer; beyond that the oldest ones are dropped."""
_STEPS_TO_END: Final = 10
"""Rounds of the event loop for a quick async callback to end before its call does."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of a call. Fields that do not apply are None."""

    kind: ProgressKind
    """``queued``: the call waits for a slot of the provider, or for an open circuit.
    ``sending``: a request is about to be sent.
    ``retrying``: a request failed for ``reason``; the route gets another request after ``wait_s``.
    ``falling_back``: the next route, which ``provider`` and ``model`` name, is used because of
    ``reason``, instead of the route before it or beside its request in flight.
    ``partial_image``: a preview has come. It may be of a request that is cancelled later.
    ``finishing``: an image has come, and is checked and fitted to the request.
    ``done``: the call has its result. It is the last event; a call that fails has no last event."""
    provider: str | None = None
    model: str | None = None
    position: int | None = None
    """Of a queued call: its place in the queue. Of a preview: its number. Both from 1."""
    wait_s: float | None = None
    """Seconds until the call continues, as far as can be estimated."""
    reason: Reason | None = None
    image_bytes: bytes | None = field(default=None, repr=False)
    """``partial_image``: the preview, as the vendor sent it. ``done``: the first image."""


OnProgress: TypeAlias = Callable[[Progress], Awaitable[object] | object]
"""A sync or async callable that receives each ``Progress`` of a call, in order.

It cannot fail or delay the call; an exception that it raises is logged. A sync one runs on the
event loop and must not block. An async one runs beside the call, one event at a time. While it is
busy, events wait for it: a newer preview replaces an older one of the same route, and of more than
64 events the oldest are dropped. It may continue for 10 seconds after the call; if the caller
cancels the call, it is cancelled, too.
"""


class ProgressBuffer:
    """Events that wait for a slow consumer, in limited memory; any thread may use it."""

    def __init__(self) -> None:
        self._events: deque[Progress] = deque()
        self._lock = threading.Lock()

    def put(self, event: Progress) -> bool:
        """Add an event; return whether it is the only one."""
        with self._lock:
            if event.kind == "partial_image":
                for waiting in self._events:
                    if (waiting.kind, waiting.provider, waiting.model) == (
                        event.kind,
                        event.provider,
                        event.model,
                    ):
                        self._events.remove(waiting)
                        break
            if len(self._events) >= _MOST_WAITING:
                self._events.popleft()
            self._events.append(event)
            return len(self._events) == 1

    def take(self) -> Progress | None:
        """Remove and return the oldest event; None if there is none."""
        with self._lock:
            return self._events.popleft() if self._events else None


class ProgressReporter:
    """Reports the steps of one call to a callback, and keeps the callback's behaviour away from it.

    Args:
        on_progress: Receives the events.
    """

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self._waiting = ProgressBuffer()
        self._task: asyncio.Task[None] | None = None
        self._ended = False

    def report(
        self,
        kind: ProgressKind,
        route: Route,
        *,
        position: int | None = None,
        wait_s: float | None = None,
        reason: Reason | None = None,
        image_bytes: bytes | None = None,
    ) -> None:
        """Report a step on a route; do nothing once the call has ended."""
        name = route.provider.name
        self._emit(Progress(kind, name, route.model, position, wait_s, reason, image_bytes))

    def done(self, result: ImageResult) -> None:
        """Report the end of a call that has a result."""
        self._emit(Progress("done", result.provider, result.model, image_bytes=result.image_bytes))

    async def finish(self) -> None:
        """End the reports; a callback that is behind may continue for a limited time."""
        self._ended = True
        task, error = self._task, sys.exception()
        if task is None or task.done():
            return
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            with suppress(RuntimeError):  # the loop is closed
                task.cancel()
            return
        loop = asyncio.get_running_loop()
        timer = loop.call_later(SECONDS_AFTER_CALL, task.cancel)
        task.add_done_callback(lambda _: timer.cancel())
        for _ in range(_STEPS_TO_END):
            if task.done():
                return
            await asyncio.sleep(0)

    def _emit(self, event: Progress) -> None:
        if self._ended:
            return
        if self._task is not None and not self._task.done():
            self._waiting.put(event)
        elif (answer := self._call(event)) is not None:
            self._task = asyncio.create_task(self._deliver(answer))
            _running.add(self._task)
            self._task.add_done_callback(_running.discard)

    def _call(self, event: Progress) -> Awaitable[object] | None:
        """Call the callback; return what is to be awaited, if anything."""
        try:
            answer = self._on_progress(event)
        except BaseException as error:
            if ends_the_program(error):
                raise
            log_callback_failure(error)
            return None
        return answer if inspect.isawaitable(answer) else None

    async def _deliver(self, answer: Awaitable[object] | None) -> None:
        """Await a callback, and call it with the events that have come meanwhile."""
        while True:
            if answer is not None:
                try:
                    await answer
                except asyncio.CancelledError as error:
                    task = asyncio.current_task()
                    if task is None or task.cancelling():
                        raise
                    log_callback_failure(error)  # the callback raised it by itself
                except Exception as error:  # noqa: BLE001 - it must not fail the call
                    log_callback_failure(error)
            if (event := self._waiting.take()) is None:
                return
            answer = self._call(event)


_running: Final[set[asyncio.Task[None]]] = set()
"""Callbacks that run. The event loop itself keeps weak references only."""


def log_callback_failure(error: BaseException) -> None:
    """Log that ``on_progress`` raised, without its text, which may contain anything."""
    _log.warning("on_progress failed: %s", type(error).__name__)
