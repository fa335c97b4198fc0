"""Who is told about a change: listeners that hear of each, and callers that wait for the next."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from typing import TYPE_CHECKING

from resilient_imagen.breaker.timing import running_loop

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_imagen.breaker.views import Transition

__all__ = ["Listeners", "Waiters"]

_logger = logging.getLogger("resilient_imagen")


class Listeners:
    """Tells transitions, one after the other, in the order they happened.

    `put` only queues; `deliver` is called when the gate's state is consistent and its lock free.
    A listener that causes another transition hears of it after this one has been told to all.
    """

    __slots__ = ("_busy", "_listeners", "_lock", "_queue")

    def __init__(self) -> None:
        self._listeners: tuple[Callable[[Transition], None], ...] = ()
        self._queue: deque[Transition] = deque()
        self._lock = threading.Lock()
        self._busy = False

    def subscribe(
        self, listener: Callable[[Transition], None], *, inline: bool
    ) -> Callable[[], None]:
        """Tell `listener` from now on, in a thread or at once; call the result to stop."""
        if inspect.iscoroutinefunction(listener):
            raise TypeError("a listener must be an ordinary function, not a coroutine function")
        entry = [listener]  # its own identity: the same listener may subscribe twice

        def tell(transition: Transition) -> None:
            if inline:
                entry[0](transition)
            else:
                _aside(partial(_tell, entry[0], transition))

        def unsubscribe() -> None:
            with self._lock:
                self._listeners = tuple(each for each in self._listeners if each is not tell)

        with self._lock:
            self._listeners += (tell,)
        return unsubscribe

    def put(self, transition: Transition) -> None:
        """Queue a transition."""
        self._queue.append(transition)

    def deliver(self) -> None:
        """Tell what is queued, unless somebody is telling already (who then tells this too)."""
        while self._queue:
            with self._lock:
                if self._busy or not self._queue:
                    return
                self._busy = True
                transition = self._queue.popleft()
            try:
                for listener in self._listeners:
                    _tell(listener, transition)
            finally:
                self._busy = False


@cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="resilient-imagen-listeners")


# A forked child inherits the pool without its thread: nobody there would ever be told.
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_thread.cache_clear)


def _aside(work: Callable[[], None]) -> None:
    """Do it soon, in order, in the one thread for listeners that may be slow."""
    with suppress(RuntimeError):  # the interpreter is ending: nobody is left to be told
        _thread().submit(work)


def _tell(listener: Callable[[Transition], None], transition: Transition) -> None:
    try:
        listener(transition)
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - no call may break by it
        _logger.warning(
            "a listener of breaker %s failed with %s", transition.name, type(error).__name__
        )


class Waiters:
    """Futures that are resolved together, each in its own loop, the longest waiting first."""

    __slots__ = ("_futures",)

    def __init__(self) -> None:
        self._futures: dict[asyncio.Future[None], None] = {}

    def new(self) -> asyncio.Future[None]:
        """A future of the running loop: one per caller, so that cancelling it concerns no other.

        Raises:
            RuntimeError: No loop is running.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._futures[future] = None
        future.add_done_callback(self._forget)
        return future

    def _forget(self, future: asyncio.Future[None]) -> None:
        self._futures.pop(future, None)

    def wake(self) -> None:
        """Resolve all of them."""
        if not self._futures:
            return
        futures = tuple(self._futures)  # a copy: the loops of others discard theirs meanwhile
        self._futures = {}
        running = running_loop()
        for future in futures:
            loop = future.get_loop()
            if loop is running:
                _resolve(future)
            else:
                with suppress(RuntimeError):  # that loop has closed, and nobody waits there
                    loop.call_soon_threadsafe(_resolve, future)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
