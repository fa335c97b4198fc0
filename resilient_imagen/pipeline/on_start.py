"""The ``on_start`` hook: calls an application's callback when the first request is sent."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeAlias

__all__ = ["OnStart", "OnStartHook", "ends_the_program"]

_log = logging.getLogger("resilient_imagen")

OnStart: TypeAlias = Callable[[], Awaitable[object] | object]
"""A sync or async callable without arguments, called once, just before the first request is sent.

It cannot fail or delay the call: an async one runs beside the request and is cancelled when the
call is over; what it raises is logged. A sync one runs on the event loop and must not block.
"""


class OnStartHook:
    """Calls ``on_start`` once and keeps its failure, its slowness and its end away from the call.

    An ordinary function runs on the event loop, so it must not block. What an async one returns
    becomes a task beside the request; it is cancelled when the call is over. Whatever they raise is
    logged, but for KeyboardInterrupt and SystemExit, which end the program as anywhere else.
    """

    def __init__(self, on_start: OnStart, name: str = "on_start") -> None:
        self._on_start: OnStart | None = on_start
        self._name = name
        self._task: asyncio.Task[object] | None = None

    def fire(self) -> None:
        """Call ``on_start`` the first time, with the request ready to be sent; later do nothing."""
        on_start, self._on_start = self._on_start, None
        if on_start is None:
            return
        try:
            answer = on_start()
            if inspect.isawaitable(answer):
                running = answer if inspect.iscoroutine(answer) else _run(answer)
                self._task = asyncio.create_task(running)
                self._task.add_done_callback(self._note_end)
        except BaseException as error:
            if ends_the_program(error):
                raise
            self._log_failure(error)

    async def finish(self) -> None:
        """Cancel an ``on_start`` that still runs. Does not wait for one that ignores it."""
        task, self._task = self._task, None
        if task is None:
            return
        thrown_away = isinstance(sys.exception(), GeneratorExit)  # then nothing can be awaited
        try:
            if not thrown_away:
                await asyncio.sleep(0)  # a request that failed at once has not let it begin
        finally:
            if not task.done():
                _end(task, self._name)
        for _ in range(0 if thrown_away else _STEPS_TO_END):
            if task.done():
                return
            await asyncio.sleep(0)

    def _note_end(self, task: asyncio.Task[object]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log_failure(error)

    def _log_failure(self, error: BaseException) -> None:
        _log.warning("%s failed: %s", self._name, type(error).__name__)


_STEPS_TO_END: Final = 10
"""Rounds of the event loop in which a cancelled ``on_start`` can end before its call does."""

_unending: Final[set[asyncio.Task[object]]] = set()
"""Cancelled callbacks that have not ended yet. The event loop itself keeps weak references only."""


def _end(task: asyncio.Task[object], name: str) -> None:
    _log.warning("%s was not done when the call was, and is cancelled", name)
    with suppress(RuntimeError):  # the loop is closed
        task.cancel()
        _unending.add(task)
        task.add_done_callback(_unending.discard)


def ends_the_program(error: BaseException) -> bool:
    """Return whether a callback's exception is not the callback's alone: Ctrl-C, an exit."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup((KeyboardInterrupt, SystemExit)) is not None
    return isinstance(error, KeyboardInterrupt | SystemExit)


async def _run(answer: Awaitable[object]) -> None:
    await answer
