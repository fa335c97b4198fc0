"""Blocking calls in a daemon thread, beside the event loop."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DaemonThreadCall"]

T = TypeVar("T")


class _Started(Executor):
    """An executor whose only work runs already."""

    def __init__(self, outcome: Future[Any]) -> None:
        self._outcome = outcome

    def submit(self, *_: object, **_options: object) -> Future[Any]:
        """Return the future result of that work."""
        return self._outcome


class DaemonThreadCall(Generic[T]):
    """A call that may block, run in a separate daemon thread, at most once at a time.

    Concurrent callers, on any event loop, wait for the same result. If the call hangs, it occupies
    only this thread: neither the loop's executor nor the exit of the process waits for it.

    Args:
        call: The call.
        thread_name: The name of its thread.
    """

    def __init__(self, call: Callable[[], T], thread_name: str = "resilient_imagen fleet") -> None:
        self._call = call
        self._thread_name = thread_name
        self._thread: threading.Thread | None = None
        self._outcome: Future[T] = Future()
        self._lock = threading.Lock()

    async def __call__(self) -> T:
        """Return the call's result; start the call unless it is running."""
        # Not wrap_future: a loop on virtual time stops its clock for the work of executors only.
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(_Started(self.start()), self._call)

    def start(self) -> Future[T]:
        """Start the call unless it is running, and return its future result."""
        with self._lock:
            running = self._thread is not None and self._thread.is_alive()  # not after a fork
            if not running or self._outcome.done():
                self._outcome = Future()
                # A cancelled waiter must not cancel it.
                self._outcome.set_running_or_notify_cancel()
                self._thread = threading.Thread(
                    target=self._run, args=(self._outcome,), name=self._thread_name, daemon=True
                )
                self._thread.start()
            return self._outcome

    def _run(self, outcome: Future[T]) -> None:
        try:
            answer = self._call()
        except BaseException as error:  # noqa: BLE001 - the waiting caller gets it
            outcome.set_exception(error)
        else:
            outcome.set_result(answer)
