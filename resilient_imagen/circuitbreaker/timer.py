"""The running loop's time, and one timer on it."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Clock", "Timer", "running_loop"]


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The running loop of this thread, or None."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class Clock:
    """Seconds that never run backwards, read from whichever loop is running.

    Loops may follow one another: where the next one counts from an earlier number (a virtual loop
    begins at 0), time goes on from where it was. Other threads are told the time of the loop that
    was met last, while it runs; without any, time stands still.

    Args:
        source: Read instead of the loop's time, for use without a loop.
        left: Called with the loop that was used before, when another one is met.
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
        """Seconds by this clock.

        Raises:
            RuntimeError: If `strict`, and no loop is running here, nor was a source given.
        """
        if self._source is not None:
            now = self._source()
        else:
            loop = running_loop()
            if loop is None:
                if strict:
                    raise RuntimeError("a gate without a clock of its own needs a running loop")
                loop = self._loop
                if loop is None or not loop.is_running():
                    return self._last
            elif loop is not self._loop:
                self._adopt(loop)
            now = loop.time() + self._shift
        self._last = max(self._last, now)
        return self._last

    def loop_time(self, moment: float) -> float:
        """`moment` of this clock as the running loop counts it."""
        return moment - self._shift

    def _adopt(self, loop: asyncio.AbstractEventLoop) -> None:
        behind = self._last - (loop.time() + self._shift)
        if self._loop is None or behind > 0:
            self._shift += behind
        before, self._loop = self._loop, loop
        if before is not None and self._left is not None:
            self._left(before)


class Timer:
    """Calls `ring` once a moment has come, while a loop is running.

    It may ring too early, never too late: who is stage looks at the clock and sets it again.
    """

    __slots__ = ("_callback", "_due", "_handle", "_loop")

    def __init__(self, ring: Callable[[], None]) -> None:
        self._callback = ring
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._due = math.inf

    def set(self, due: float, clock: Clock) -> None:
        """Ring at `due`, seconds by `clock`; `math.inf` cancels."""
        if due == math.inf and self._handle is None:
            return
        loop = running_loop()
        if loop is None:
            return
        if self._handle is not None:
            if loop is self._loop:
                if self._due <= due < math.inf:
                    return  # it rings early and is set again: cheaper than a new timer a call
                self._handle.cancel()
            # The handle of another loop is not ours to touch from here; it rings for nothing.
            self._handle = None
        if due < math.inf:
            self._loop, self._due = loop, due
            self._handle = loop.call_later(max(due - clock.now(), 0.0), self._fire, loop)

    def _fire(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop is self._loop:
            self._handle = None
        self._callback()
