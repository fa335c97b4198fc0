"""Time for a breaker: a clock that follows the running event loop, and one timer on that loop."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Clock", "Timer", "running_loop"]


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the running event loop of this thread, or None."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class Clock:
    """A monotonic clock in seconds, read from the running event loop.

    Loops may follow one another. If the next loop starts at an earlier time (a virtual loop starts
    at 0), the clock continues from its last value. A thread without a loop reads the time of the
    last loop while that loop runs; if it has stopped, the clock does not advance.

    Args:
        source: Replaces the loop's time, for use without a loop.
        left: Called with the previous loop when the loop changes.
    """

    __slots__ = ("_last", "_left", "_loop", "_shift", "_source")

    def __init__(
        self,
        source: Callable[[], float] | None = None,
        left: Callable[[asyncio.AbstractEventLoop], None] | None = None,
    ) -> None:
        self._source = source
        self._left = left
        self._loop: asyncio.AbstractEventLoop | None = None
        self._shift = 0.0
        self._last = 0.0 if source is None else -math.inf

    def now(self, *, strict: bool = False) -> float:
        """Return the time in seconds.

        Raises:
            RuntimeError: `strict` is set, no loop is running here, and there is no source.
        """
        if self._source is not None:
            now = self._source()
        else:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                if strict:
                    message = "a breaker without a clock needs a running event loop"
                    raise RuntimeError(message) from None
                if self._loop is None or not self._loop.is_running():
                    return self._last
                loop = self._loop
            if loop is not self._loop:
                self._adopt(loop)
            now = loop.time() + self._shift
        self._last = max(self._last, now)
        return self._last

    @property
    def is_readable(self) -> bool:
        """Whether the time advances here: there is a source, or a loop runs in this thread."""
        return self._source is not None or running_loop() is not None

    def loop_time(self, moment: float) -> float:
        """Convert a time of this clock to the time of the event loop."""
        return moment - self._shift

    def breaker_time(self, moment: float) -> float:
        """Convert a time of the event loop to a time of this clock; the reverse of `loop_time`."""
        return moment + self._shift

    def _adopt(self, loop: asyncio.AbstractEventLoop) -> None:
        behind = self._last - (loop.time() + self._shift)
        if self._loop is None or behind > 0:
            self._shift += behind
        before, self._loop = self._loop, loop
        if before is not None and self._left is not None:
            self._left(before)


class Timer:
    """Calls `callback` at a given time, while an event loop is running.

    It may fire early but never late; the callback must check the clock and set the timer again.
    """

    __slots__ = ("_callback", "_due", "_handle", "_loop")

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._due = math.inf

    def set(self, due: float, clock: Clock) -> None:
        """Fire at `due`, a time of `clock`; infinity cancels the timer."""
        if due == math.inf and self._handle is None:
            return
        loop = running_loop()
        if loop is None:
            return
        if self._handle is not None:
            if loop is self._loop:
                if self._due <= due < math.inf:
                    return  # it fires early and is set again: cheaper than a new timer per call
                self._handle.cancel()
            # A handle of another loop cannot be cancelled from here; its callback has no effect.
            self._handle = None
        if due < math.inf:
            self._loop, self._due = loop, due
            self._handle = loop.call_later(max(due - clock.now(), 0.0), self._fire, loop)

    def _fire(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop is self._loop:
            self._handle = None
        self._callback()
