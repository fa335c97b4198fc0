"""Notification of state changes: listeners receive each one, waiting callers the next one."""

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
from typing import TYPE_CHECKING, Final

from resilient_imagen.circuitbreaker.timer import running_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from resilient_imagen.circuitbreaker.types import Transition

__all__ = ["ChangeNotifier", "EventDispatcher"]

_logger = logging.getLogger("resilient_imagen")

_ROUNDS: Final = 3
"""Iterations of the event loop after which a woken caller has taken its place: one to resume a
task, one more if it waits through `asyncio.wait`, one more if it then starts another task."""


class EventDispatcher:
    """Delivers transitions to listeners, one at a time and in order.

    `put` only queues. `deliver` is called when the breaker's state is consistent and its lock is
    released. If a listener causes another transition, all listeners receive the first one before.
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
        """Add a listener, called in a thread or inline. The returned function removes it."""
        if inspect.iscoroutinefunction(listener):
            raise TypeError("a listener must be an ordinary function, not a coroutine function")
        entry = [listener]  # a new object: the same listener may subscribe twice

        def notify(transition: Transition) -> None:
            if inline:
                entry[0](transition)
            else:
                _run_in_thread(partial(_call, entry[0], transition))

        def unsubscribe() -> None:
            with self._lock:
                self._listeners = tuple(each for each in self._listeners if each is not notify)

        with self._lock:
            self._listeners += (notify,)
        return unsubscribe

    def put(self, transition: Transition) -> None:
        """Queue a transition."""
        self._queue.append(transition)

    def deliver(self) -> None:
        """Deliver the queue, unless another thread is already delivering it."""
        while self._queue:
            with self._lock:
                if self._busy or not self._queue:
                    return
                self._busy = True
                transition = self._queue.popleft()
            try:
                for listener in self._listeners:
                    _call(listener, transition)
            finally:
                self._busy = False


@cache
def _listener_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="resilient-imagen-listeners")


# A forked child inherits the pool without its thread, so its listeners would never be called.
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_listener_thread.cache_clear)


def _run_in_thread(work: Callable[[], None]) -> None:
    """Run it soon and in order, in the one thread for listeners that may be slow."""
    with suppress(RuntimeError):  # the interpreter is exiting
        _listener_thread().submit(work)


def _call(listener: Callable[[Transition], None], transition: Transition) -> None:
    try:
        listener(transition)
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - a listener must not fail a call
        _logger.warning(
            "a listener of breaker %s failed with %s", transition.name, type(error).__name__
        )


class ChangeNotifier:
    """Futures of callers that wait for a change, resolved in order of arrival.

    Args:
        lock: Held while futures are added and removed; loops of several threads may wait.
    """

    __slots__ = ("_futures", "_lock", "_number")

    def __init__(self, lock: threading.RLock) -> None:
        self._futures: dict[asyncio.AbstractEventLoop, dict[asyncio.Future[None], int]] = {}
        """The futures of each loop, with their numbers in order of arrival."""
        self._lock = lock
        self._number = 0

    def __len__(self) -> int:
        """Return the number of futures that are not yet resolved, cancelled or dropped."""
        return sum(map(len, self._futures.values()))

    def new(self) -> asyncio.Future[None]:
        """Create a future on the running loop, one per caller, so that each can be cancelled alone.

        Raises:
            RuntimeError: No loop is running.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._lock:
            if loop not in self._futures:
                self.drop_closed_loops()
                self._futures[loop] = {}
            self._number += 1
            self._futures[loop][future] = self._number
        future.add_done_callback(self._forget)
        return future

    def drop_closed_loops(self) -> None:
        """Remove the futures of closed loops, which frees the calls that wait for them."""
        for loop in [loop for loop in self._futures if loop.is_closed()]:
            del self._futures[loop]

    def wake(self) -> None:
        """Resolve all futures."""
        if self._futures:
            for loop in tuple(self._futures):
                self._wake_loop(loop)

    def wake_for(self, places: Callable[[], int]) -> None:
        """Resolve as many futures as there are places, the longest waiting first.

        A woken caller may leave or not take a place. While places are free after `_ROUNDS`
        iterations of the loop, the next callers are woken, up to the last one that waits now.

        Args:
            places: Returns the number of free places. Called with the lock held, now and later.
        """
        running = running_loop()
        for loop in tuple(self._futures):
            if loop is running:
                self._offer(loop, places, self._number, 0)
            else:  # that loop may not be running, so its callers cannot be woken one by one
                self._wake_loop(loop)

    def _offer(
        self, loop: asyncio.AbstractEventLoop, places: Callable[[], int], last: int, rounds: int
    ) -> None:
        """Wake callers up to number `last`, after `rounds` more iterations of the loop."""
        if rounds:
            loop.call_soon(self._offer, loop, places, last, rounds - 1)
            return
        with self._lock:
            free = places()
            futures = self._futures.get(loop, {})
            while futures and free > 0:
                future = next(iter(futures))
                if futures[future] > last:
                    return
                del futures[future]
                if not future.done():
                    future.set_result(None)
                    free -= 1
            if futures and places() > 0:
                loop.call_soon(self._offer, loop, places, last, _ROUNDS)

    def _wake_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        futures = self._futures.pop(loop)
        if loop is running_loop():
            _resolve(futures)
        else:
            with suppress(RuntimeError):  # that loop is closed, so no caller waits there
                loop.call_soon_threadsafe(_resolve, futures)

    def _forget(self, future: asyncio.Future[None]) -> None:
        loop = future.get_loop()
        with self._lock:
            futures = self._futures.get(loop)
            if futures is not None:
                futures.pop(future, None)
                if not futures:
                    del self._futures[loop]


def _resolve(futures: Iterable[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
