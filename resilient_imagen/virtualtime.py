"""Virtual time: an event loop whose clock jumps instead of waiting.

Sleeping for an hour takes no time: when nothing is ready to run, the clock jumps to the next timer.
The clock is stopped while work in a thread is pending, so that thread pools behave as on an
ordinary loop.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from contextvars import Context

__all__ = ["VirtualTimeLoop", "run_virtual"]

_SMALLEST_STEP = 1e-8
"""Seconds; more than the clock's resolution, within which asyncio runs timers early."""

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


class _JumpingSelector(selectors.BaseSelector):
    """A selector that never waits for timers: if no file is ready, it advances the loop's clock."""

    def __init__(self) -> None:
        self._real = selectors.DefaultSelector()
        self.loop: VirtualTimeLoop | None = None

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._real.select(0)
        if ready or timeout == 0 or self.loop is None:
            return ready
        if self.loop.threads_pending:
            return self._real.select(None)  # a thread that finishes writes to the loop's pipe
        if timeout is None:
            message = "deadlock: every task waits, and no timer or thread is pending"
            raise RuntimeError(message)
        self.loop.advance(timeout)
        return []

    def close(self) -> None:
        self._real.close()

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop on virtual time, in seconds from 0.

    Raises:
        RuntimeError: In the running call, if every task waits and neither a timer nor a thread is
            pending that could wake a task.
    """

    def __init__(self) -> None:
        selector = _JumpingSelector()
        self._virtual_now = 0.0
        self.threads_pending: int = 0
        super().__init__(selector)
        selector.loop = self

    def time(self) -> float:
        """Return the seconds of virtual time since the loop was created."""
        return self._virtual_now

    def advance(self, seconds: float) -> None:
        """Advance the clock; timers that become due run in the loop's next iteration."""
        target = self._virtual_now + seconds
        self._virtual_now = max(target, self._virtual_now)

    def call_later(
        self,
        delay: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call back after ``delay`` seconds; a delay above 0 always moves the clock.

        A tiny delay is enlarged: in floating point, its sum with the time could equal the time.
        """
        if 0 < delay < _SMALLEST_STEP:
            delay = _SMALLEST_STEP
        return self.call_at(self._virtual_now + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call back at ``when``; a time in the future always moves the clock.

        asyncio runs a timer that is due within the clock's resolution at once. On an ordinary loop
        time advances meanwhile; here ``while now < then: sleep(then - now)`` would never end.
        """
        if when > self._virtual_now:
            when = max(when, self._virtual_now + _SMALLEST_STEP)
        return super().call_at(when, callback, *args, context=context)

    def run_in_executor(
        self, executor: Any, func: Callable[[*_Ts], _T], *args: *_Ts
    ) -> asyncio.Future[_T]:
        """Run ``func`` in an executor; virtual time is stopped until it has finished."""
        future = super().run_in_executor(executor, func, *args)
        self.threads_pending += 1
        future.add_done_callback(self._thread_done)
        return future

    async def shutdown_default_executor(self, *args: Any) -> None:
        """Shut down the default executor; virtual time is stopped until its thread has finished."""
        self.threads_pending += 1
        try:
            await super().shutdown_default_executor(*args)
        finally:
            self.threads_pending -= 1

    def _thread_done(self, _future: asyncio.Future[Any]) -> None:
        self.threads_pending -= 1


def run_virtual(main: Coroutine[Any, Any, _T]) -> _T:
    """Run ``main`` on a new VirtualTimeLoop, like asyncio.run, and return its result."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
