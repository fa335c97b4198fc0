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
from typing import TYPE_CHECKING, Final

from resilient_imagen.circuitbreaker.timer import running_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from resilient_imagen.circuitbreaker.types import Transition

__all__ = ["ChangeNotifier", "EventDispatcher"]

_logger = logging.getLogger("resilient_imagen")

_ROUNDS: Final = 3
"""Rounds of the event loop in which a woken caller has asked for its place: one to resume a task,
one more when it waits through `asyncio.wait`, one more when it then starts another task."""


class EventDispatcher:
    """Tells transitions, one after the other, in the order they happened.

    `put` only queues; `deliver` is called when the breaker's state is consistent and its lock free.
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


class ChangeNotifier:
    """Futures of callers that wait for a change, resolved in the order in which they came.

    Args:
        lock: Held while futures are added and taken out; loops of several threads may wait.
    """

    __slots__ = ("_futures", "_lock", "_number")

    def __init__(self, lock: threading.RLock) -> None:
        self._futures: dict[asyncio.AbstractEventLoop, dict[asyncio.Future[None], int]] = {}
        """By loop, each with its number in order of arrival."""
        self._lock = lock
        self._number = 0

    def __len__(self) -> int:
        """Return how many futures are not yet resolved, cancelled or dropped."""
        return sum(map(len, self._futures.values()))

    def new(self) -> asyncio.Future[None]:
        """A future of the running loop: one per caller, so that cancelling it concerns no other.

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
        """Forget the futures of closed loops, and so the calls that wait for them."""
        for loop in [loop for loop in self._futures if loop.is_closed()]:
            del self._futures[loop]

    def wake(self) -> None:
        """Resolve all of them: the change concerns everybody."""
        if self._futures:
            for loop in tuple(self._futures):
                self._wake_loop(loop)

    def wake_for(self, places: Callable[[], int]) -> None:
        """Resolve as many as there are places, the longest waiting first.

        A woken caller may leave, or may not want a place. As long as places are left a moment
        later, the next callers are woken, until each of those that wait now had its chance.

        Args:
            places: Returns the number of free places. Called with the lock held, now and later.
        """
        running = running_loop()
        for loop in tuple(self._futures):
            if loop is running:
                self._offer(loop, places, self._number, 0)
            else:  # it may not be running: nothing can be left to the callers there
                self._wake_loop(loop)

    def _offer(
        self, loop: asyncio.AbstractEventLoop, places: Callable[[], int], last: int, rounds: int
    ) -> None:
        """Wake callers up to number `last`, after so many more rounds of the loop."""
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
            with suppress(RuntimeError):  # that loop has closed, and nobody waits there
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
