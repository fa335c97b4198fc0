"""One event loop in a daemon thread, shared by all threads of the process, and calls to it.

`anyio.from_thread.BlockingPortal` does the same for most purposes. It is not used because a caller
here must run callbacks while it waits, must be able to cancel a call at any moment of starting it,
gives up waiting at the exit of the process, and survives a fork.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from contextvars import Context
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["BackgroundCall", "BackgroundLoop", "background_loop", "has_background_loop"]

_T = TypeVar("_T")

_POLL: Final = 0.25
"""Seconds between two looks of a waiting thread at its exceptions. Those that another thread raises
in it, and Ctrl-C on Windows, do not interrupt the wait."""
_SECONDS_TO_CANCEL: Final = 0.5
"""Seconds that a cancelled call has to close its connection before the caller continues."""
_SECONDS_TO_STOP: Final = 3.0
"""Seconds for which the exit of the process waits for the loop to close its connections."""


class BackgroundLoop:
    """An event loop in a daemon thread.

    Args:
        at_exit: Closes what the loop's code has opened, before the loop is closed.

    Raises:
        RuntimeError: No thread could be started.
    """

    def __init__(self, at_exit: Callable[[], Coroutine[Any, Any, object]]) -> None:
        self._at_exit = at_exit
        self._started: Future[asyncio.AbstractEventLoop] = Future()
        self._stopping: asyncio.Event
        # An empty context: the variables of the first calling thread must not apply to others.
        self._thread = threading.Thread(
            target=Context().run, args=(self._run,), name="resilient-imagen-loop", daemon=True
        )
        self._thread.start()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop, as soon as it runs.

        Raises:
            OSError: No loop could be made, for example because too many files are open.
        """
        return self._started.result()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs; it does not in a forked child."""
        return self._thread.is_alive()

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is the loop's own."""
        return self._thread is threading.current_thread()

    def stop(self, seconds: float) -> None:
        """Stop the loop, and wait for its end for at most so many seconds."""
        with suppress(RuntimeError):  # it was closed
            self.loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(seconds)

    def _run(self) -> None:
        runner = asyncio.Runner()
        try:
            runner.run(self._serve())
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)
        finally:
            # At exit Python starts no thread any more, not even to end the loop's default threads.
            with suppress(RuntimeError):
                runner.close()

    async def _serve(self) -> None:
        self._stopping = asyncio.Event()
        self._started.set_result(asyncio.get_running_loop())
        await self._stopping.wait()
        await self._at_exit()


class BackgroundCall(Generic[_T]):
    """One call from a thread to a coroutine function on the background loop.

    The coroutine has a copy of the calling thread's context variables.
    """

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None
        self._result: _T
        self._error: BaseException | None = None
        self._abandoned = False
        self._inbox: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        """Work for the calling thread; None when the coroutine has ended."""
        self.ended: Future[None] = Future()
        """Resolved when the coroutine has ended."""
        self.ended_at: float | None = None
        """When the coroutine ended, by ``time.monotonic``."""
        self.ended.set_running_or_notify_cancel()  # so that a waiter's end does not cancel it

    def run(
        self, background: BackgroundLoop, function: Callable[[], Coroutine[Any, Any, _T]]
    ) -> _T:
        """Run `function` on the loop and wait, doing the work that `do_in_caller` requests.

        An exception in the calling thread, such as KeyboardInterrupt, cancels the coroutine and is
        raised half a second later at the latest.

        Raises:
            RuntimeError: The calling thread is the loop's own, or the loop has ended.
            BaseException: Any exception of the coroutine.
        """
        if background.is_current:
            raise RuntimeError(
                "resilient_imagen.sync was called on its own event loop, which would wait for "
                "itself; await the functions of resilient_imagen there, or call from a thread"
            )
        try:
            background.loop.call_soon_threadsafe(self._begin, function)
            while (work := self._next(background)) is not None:
                work()
        except BaseException:
            if background.is_alive:
                with suppress(RuntimeError, TimeoutError):  # the loop was closed just now; too slow
                    background.loop.call_soon_threadsafe(self._cancel)
                    self.ended.result(_SECONDS_TO_CANCEL)
            raise
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # this frame is in its traceback
        return self._result

    def do_in_caller(self, work: Callable[[], object]) -> None:
        """Have the calling thread do `work` while it waits. An exception of it ends the call."""
        self._inbox.put(work)

    def _next(self, background: BackgroundLoop) -> Callable[[], object] | None:
        while True:
            try:
                return self._inbox.get(timeout=_POLL)
            except Empty:
                if not background.is_alive and self._inbox.empty():
                    raise RuntimeError("the background event loop has ended") from None

    # On the loop

    def _begin(self, function: Callable[[], Coroutine[Any, Any, _T]]) -> None:
        self._task = asyncio.get_running_loop().create_task(self._main(function))
        self._task.add_done_callback(self._end)  # then no frame of the coroutine runs any more

    async def _main(self, function: Callable[[], Coroutine[Any, Any, _T]]) -> None:
        try:
            self._result = await function()
        except BaseException as error:  # noqa: BLE001 - the caller gets it; one may not end the loop
            self._error = error

    def _end(self, task: asyncio.Task[None]) -> None:
        # A task that is cancelled before its first step never runs `_main`.
        if task.cancelled() or isinstance(self._error, asyncio.CancelledError):
            self._error = RuntimeError("the call was cancelled on the background event loop")
        if self._abandoned:
            self._error = None  # a cycle: its traceback holds the call
        self.ended_at = time.monotonic()
        self.ended.set_result(None)
        self._inbox.put(None)

    def _cancel(self) -> None:
        self._abandoned, self._error = True, None
        if self._task is not None:
            self._task.cancel()


_lock = threading.RLock()
_current: BackgroundLoop | None = None
_inherited: Final[list[BackgroundLoop]] = []
"""Loops of the processes that this one was forked from. They are kept, as freeing their sockets and
generators would write to the sockets that the parent uses."""


def background_loop(at_exit: Callable[[], Coroutine[Any, Any, object]]) -> BackgroundLoop:
    """Return the process's loop; start it on first use, with `at_exit` to close what it opens."""
    global _current  # noqa: PLW0603 - one per process is the purpose
    found = _current
    if found is not None and found.is_alive:
        return found
    with _lock:
        if _current is None or not _current.is_alive:
            _current = BackgroundLoop(at_exit)
        return _current


def has_background_loop() -> bool:
    """Return whether the process has a loop, without starting one."""
    return _current is not None and _current.is_alive


@atexit.register
def _stop_at_exit() -> None:
    if _current is not None and _current.is_alive:
        _current.stop(_SECONDS_TO_STOP)


def _begin_in_child() -> None:
    global _current, _lock  # noqa: PLW0603 - as above
    _lock = threading.RLock()  # a thread that is not here may have held it
    if _current is not None:
        _inherited.append(_current)
        _current = None


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_begin_in_child)
