"""Lean event loop on virtual time: timers and callbacks without I/O.

It replaces `VirtualTimeLoop` for simulating thousands of days: it has no selector, sockets or
threads. Time jumps to the next timer when no callback is ready.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator
    from contextvars import Context

__all__ = ["LeanLoop", "run_lean"]

_SMALLEST_STEP = 1e-8
"""Seconds by which a timer in the future moves the clock at least."""

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


class _Plain:
    """A handle with a callback, without a context and without cancellation."""

    __slots__ = ("_args", "_callback")
    _cancelled = False

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self._callback = callback
        self._args = args

    def _run(self) -> None:
        self._callback(*self._args)


class LeanLoop(asyncio.AbstractEventLoop):
    """An asyncio loop on virtual time, in seconds from 0, with tasks, futures and timers only.

    Raises:
        RuntimeError: From `run_until_complete`, if every task waits and no timer is pending.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._ready: deque[asyncio.Handle | _Plain] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle | _Plain]] = []
        self._timers_made = 0
        self._broken: BaseException | None = None

    def time(self) -> float:
        """Return the seconds of virtual time."""
        return self._now

    def get_debug(self) -> bool:
        """Return False: there is no debug mode."""
        return False

    def is_running(self) -> bool:
        """Return whether this is the thread's running loop."""
        return asyncio._get_running_loop() is self  # noqa: SLF001 - documented by asyncio as public

    def is_closed(self) -> bool:
        """Return False: there are no resources to close."""
        return False

    def call_soon(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Run after the callbacks that are ready already."""
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Run in ``delay`` seconds."""
        if 0 < delay < _SMALLEST_STEP:  # it would be lost in the sum with a large time
            delay = _SMALLEST_STEP
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Run at ``when``."""
        if when > self._now:
            when = max(when, self._now + _SMALLEST_STEP)
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._timers_made += 1
        heapq.heappush(self._timers, (when, self._timers_made, handle))
        return handle

    def plain_at(self, when: float, callback: Callable[[*_Ts], object], *args: *_Ts) -> None:
        """Run at ``when``, without context and cancellation, at half the cost of `call_at`."""
        self._timers_made += 1
        heapq.heappush(self._timers, (when, self._timers_made, _Plain(callback, args)))

    def create_future(self) -> asyncio.Future[Any]:
        """Return a future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Generator[Any, None, _T] | Coroutine[Any, Any, _T],
        *,
        name: str | None = None,
        **options: Any,
    ) -> asyncio.Task[_T]:
        """Return a task of this loop."""
        return asyncio.Task(coro, loop=self, name=name, **options)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """End the run with a callback's error: a simulation must not continue after a bug."""
        self._broken = context.get("exception") or RuntimeError(str(context.get("message")))

    def run_until_complete(self, future: Any) -> Any:
        """Run a coroutine until it is complete, and return its result."""
        task = asyncio.ensure_future(future, loop=self)
        asyncio._set_running_loop(self)  # noqa: SLF001 - documented for event loops
        try:
            self._run_ready()
            while not task.done():
                self._jump()
                self._run_ready()
        finally:
            asyncio._set_running_loop(None)  # noqa: SLF001 - documented for event loops
        return task.result()

    def _run_ready(self) -> None:
        ready = self._ready
        while ready:
            handle = ready.popleft()
            if not handle._cancelled:  # noqa: SLF001 - faster than the method
                handle._run()  # noqa: SLF001 - the interface of handles for loops
        if self._broken is not None:
            raise self._broken

    def _jump(self) -> None:
        """Advance the clock to the next timer, and make all timers that are due ready."""
        timers = self._timers
        while timers and timers[0][2]._cancelled:  # noqa: SLF001 - as above
            heapq.heappop(timers)
        if not timers:
            raise RuntimeError("deadlock: every task waits, and no timer is pending")
        self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= self._now:
            self._ready.append(heapq.heappop(timers)[2])

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Do nothing: a cancelled handle is dropped when it is due."""


def run_lean(main: Coroutine[Any, Any, _T]) -> _T:
    """Run ``main`` on a new LeanLoop and return its result.

    Raises:
        RuntimeError: A loop is already running in this thread.
    """
    if asyncio._get_running_loop() is not None:  # noqa: SLF001 - documented by asyncio as public
        main.close()
        raise RuntimeError(
            "simulate, replay and sweep run their own event loop; inside a running loop, call them"
            " by asyncio.to_thread"
        )
    loop = LeanLoop()  # type: ignore[abstract]  # I/O methods are not implemented
    result: _T = loop.run_until_complete(main)
    return result
