"""Callbacks of a call on the background loop, called in the thread that waits for the call.

The awaitable of an async callback is awaited on a new event loop in that thread, or in a separate
thread if a loop is running there, as in a notebook.
"""

from __future__ import annotations

import asyncio
import threading
import time
from contextvars import copy_context
from functools import partial
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from resilient_imagen.pipeline.on_start import OnStartHook, ends_the_program
from resilient_imagen.pipeline.progress import (
    SECONDS_AFTER_CALL,
    ProgressBuffer,
    log_callback_failure,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from concurrent.futures import Future

    from resilient_imagen.background_loop import BackgroundCall
    from resilient_imagen.pipeline.on_start import OnStart
    from resilient_imagen.pipeline.progress import OnProgress, Progress

__all__ = ["ProgressRelay", "start_in_caller"]


def start_in_caller(on_start: OnStart, call: BackgroundCall[Any]) -> OnStart:
    """Return a callback for the loop that has `on_start` called in the thread of the call."""
    return partial(call.do_in_caller, partial(_call_on_start, on_start, call.ended))


class ProgressRelay:
    """Receives progress on the loop, and passes it to a callback in the calling thread."""

    def __init__(self, on_progress: OnProgress, call: BackgroundCall[Any]) -> None:
        self._on_progress = on_progress
        self._call = call
        self._waiting = ProgressBuffer()
        self._gave_up = False

    def __call__(self, event: Progress) -> None:
        """Pass one event on; called on the loop."""
        if self._waiting.put(event):
            self._call.do_in_caller(self._deliver)

    def _deliver(self) -> None:
        while not self._gave_up and (event := self._waiting.take()) is not None:
            try:
                awaitable = self._on_progress(event)
                if isawaitable(awaitable):
                    _await_in_this_thread(
                        awaitable,
                        self._call.ended,
                        name="on_progress",
                        grace=self._remaining_seconds(),
                    )
                    self._gave_up = not self._remaining_seconds()
            except BaseException as error:
                if ends_the_program(error):
                    raise
                log_callback_failure(error)

    def _remaining_seconds(self) -> float:
        """Return the seconds after the call that are left for an async callback's events."""
        if self._call.ended_at is None:
            return SECONDS_AFTER_CALL
        return max(0.0, self._call.ended_at + SECONDS_AFTER_CALL - time.monotonic())


def _call_on_start(on_start: OnStart, ended: Future[None]) -> None:
    """Call ``on_start``; await its awaitable, which is cancelled if the image's call ends first."""
    returned: list[object] = []
    OnStartHook(lambda: returned.append(on_start())).fire()
    for awaitable in returned:
        if isawaitable(awaitable):
            _await_in_this_thread(awaitable, ended)


def _await_in_this_thread(
    awaitable: Awaitable[object],
    ended: Future[None],
    *,
    name: str = "on_start",
    grace: float = 0.0,
) -> None:
    """Await a callback's awaitable in this thread, or in another one if a loop is running here.

    Args:
        awaitable: It is cancelled after the call.
        ended: Resolved when the call has ended.
        name: The callback's name in log lines.
        grace: Seconds for which the awaitable may continue after the call.
    """

    def run() -> None:
        # With a factory the runner leaves the thread's current loop as it is.
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            runner.run(_await_with_grace(awaitable, ended, name, grace))

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        run()
    else:
        thread = threading.Thread(
            target=copy_context().run, args=(run,), name="resilient-imagen-callback", daemon=True
        )
        thread.start()
        thread.join()


async def _await_with_grace(
    awaitable: Awaitable[object], ended: Future[None], name: str, grace: float
) -> None:
    """Await until the awaitable is done, or cancel it ``grace`` seconds after the call's end."""
    done = asyncio.Event()

    async def wait() -> None:
        try:
            await awaitable
        finally:
            done.set()

    hook = OnStartHook(wait, name)
    hook.fire()
    loop = asyncio.get_running_loop()
    over = asyncio.wrap_future(ended)
    over.add_done_callback(lambda _: loop.call_later(grace, done.set))
    try:
        await done.wait()
    finally:
        over.cancel()
        await hook.finish()
