"""Blocking calls in a daemon thread, beside the event loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from threading import Thread
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DaemonThreadCall"]

T = TypeVar("T")


class DaemonThreadCall(Generic[T]):
    """A call that may block, run in a separate daemon thread, at most once at a time.

    Concurrent callers wait for the same result. If the call hangs, it occupies only this thread:
    neither the loop's executor nor the exit of the process waits for it.
    """

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._thread: Thread | None = None
        self._outcome: Future[T] = Future()

    async def __call__(self) -> T:
        """Return the call's result; start the call unless it is running."""
        if self._thread is None or not self._thread.is_alive():  # no thread survives a fork
            self._outcome = Future()
            self._outcome.set_running_or_notify_cancel()  # a cancelled waiter does not cancel it
            self._thread = Thread(
                target=self._run, args=(self._outcome,), name="resilient_imagen fleet", daemon=True
            )
            self._thread.start()
        return await asyncio.wrap_future(self._outcome)

    def _run(self, outcome: Future[T]) -> None:
        try:
            answer = self._call()
        except BaseException as error:  # noqa: BLE001 - the waiting caller gets it
            outcome.set_exception(error)
        else:
            outcome.set_result(answer)
