"""The leanest event loop that the production pipeline runs on: timers and callbacks, no I/O.

It stands in for `VirtualTimeLoop` where thousands of days are played: no selector is asked, no
socket watched and no thread waited for. Time jumps to the next timer when nothing else is to do.
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
"""Seconds; a timer in the future always moves the clock at least so far."""

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


class _Plain:
    """A callback, and no more."""

    __slots__ = ("_args", "_callback")
    _cancelled = False

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self._callback = callback
        self._args = args

    def _run(self) -> None:
        self._callback(*self._args)


class LeanLoop(asyncio.AbstractEventLoop):
    """An asyncio loop on virtual time, in seconds from 0, for tasks, futures and timers alone.

    Raises:
        RuntimeError: From `run_until_complete`, when every task waits and no timer is left.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._ready: deque[asyncio.Handle | _Plain] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle | _Plain]] = []
        self._timers_made = 0
        self._broken: BaseException | None = None

    def time(self) -> float:
        """Seconds of virtual time."""
        return self._now

    def get_debug(self) -> bool:
        """Never: debugging is what the other loops are for."""
        return False

    def is_running(self) -> bool:
        """Return whether it is this thread's running loop."""
        return asyncio._get_running_loop() is self  # noqa: SLF001 - public by asyncio's own word

    def is_closed(self) -> bool:
        """Never: there is nothing to close."""
        return False

    def call_soon(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Run after what is ready already."""
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
        if 0 < delay < _SMALLEST_STEP:  # beside a large time it would be lost
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
        """As `call_at`, for what is never cancelled and needs no context: half the price."""
        self._timers_made += 1
        heapq.heappush(self._timers, (when, self._timers_made, _Plain(callback, args)))

    def create_future(self) -> asyncio.Future[Any]:
        """A future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Generator[Any, None, _T] | Coroutine[Any, Any, _T],
        *,
        name: str | None = None,
        **options: Any,
    ) -> asyncio.Task[_T]:
        """A task of this loop."""
        return asyncio.Task(coro, loop=self, name=name, **options)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """A callback's error ends the run: a simulation must not go on half broken."""
        self._broken = context.get("exception") or RuntimeError(str(context.get("message")))

    def run_until_complete(self, future: Any) -> Any:
        """Run a coroutine to its end, and return its result."""
        task = asyncio.ensure_future(future, loop=self)
        asyncio._set_running_loop(self)  # noqa: SLF001 - meant for loops, says its documentation
        try:
            self._run_ready()
            while not task.done():
                self._jump()
                self._run_ready()
        finally:
            asyncio._set_running_loop(None)  # noqa: SLF001 - likewise
        return task.result()

    def _run_ready(self) -> None:
        ready = self._ready
        while ready:
            handle = ready.popleft()
            if not handle._cancelled:  # noqa: SLF001 - the method's call would be felt
                handle._run()  # noqa: SLF001 - what loops do with handles
        if self._broken is not None:
            raise self._broken

    def _jump(self) -> None:
        """Move the clock to the next timer; all that are due then become ready."""
        timers = self._timers
        while timers and timers[0][2]._cancelled:  # noqa: SLF001 - as above
            heapq.heappop(timers)
        if not timers:
            raise RuntimeError("deadlock: every task waits, and no timer is pending")
        self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= self._now:
            self._ready.append(heapq.heappop(timers)[2])

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is dropped when its time comes."""


def run_lean(main: Coroutine[Any, Any, _T]) -> _T:
    """Run ``main`` on a fresh LeanLoop and return its result.

    Raises:
        RuntimeError: A loop is running in this thread: it would not survive another one.
    """
    if asyncio._get_running_loop() is not None:  # noqa: SLF001 - public by asyncio's own word
        main.close()
        raise RuntimeError(
            "simulate, replay and sweep run a loop of their own: inside of another one call them"
            " by asyncio.to_thread"
        )
    loop = LeanLoop()  # type: ignore[abstract]  # what it lacks is what it does not do
    result: _T = loop.run_until_complete(main)
    return result
