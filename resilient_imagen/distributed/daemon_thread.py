"""What may block, done beside the loop."""

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
    """One call that may block, once at a time, in a thread that nobody else needs.

    Should it hang, that costs this one thread: whoever asks meanwhile waits for the same answer,
    and neither the loop's own threads nor the end of the process wait for it.
    """

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._thread: Thread | None = None
        self._outcome: Future[T] = Future()

    async def __call__(self) -> T:
        """Its answer; begins it unless it is under way."""
        if self._thread is None or not self._thread.is_alive():  # no thread survives a fork
            self._outcome = Future()
            self._outcome.set_running_or_notify_cancel()  # who waits may leave, and ends nothing
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
