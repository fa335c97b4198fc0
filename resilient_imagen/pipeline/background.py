"""Requests that continue after their call: hedged probes, and requests that are slow to end."""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import TYPE_CHECKING, Any

from resilient_imagen.pipeline.overlap import SECONDS_TO_END, CancelCause
from resilient_imagen.tracebacks import clear_frame_locals

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from resilient_imagen.pipeline.route_state import RouteState

__all__ = ["BackgroundRequests"]


class BackgroundRequests:
    """The requests of a client that no caller waits for.

    The outcome of a hedged probe still counts for the breaker. It is cancelled when its
    round of probes has ended, and by ``aclose``.
    """

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[None], RouteState] = {}

    def __len__(self) -> int:
        """Return the number of requests that continue without a caller."""
        return len(self._tasks)

    def go_on_with(self, state: RouteState) -> None:
        """Let a hedged probe continue until its own time limit, or until its round has ended."""
        state.detach()
        self._watch(state, self._until_its_round_ends(state))

    def wait_for(self, state: RouteState) -> None:
        """Keep a cancelled request that does not end, so that its end is recorded."""
        if state.task is not None:
            self._watch(state, _until_done(state.task))

    async def drained(self) -> None:
        """Wait until no request continues without a caller."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def aclose(self) -> None:
        """Cancel all requests of the running loop, and give them a moment to end."""
        loop = asyncio.get_running_loop()
        tasks = {task: state for task, state in self._tasks.items() if task.get_loop() is loop}
        # The others were cancelled with their call, and have had their moment.
        active = [task for task, state in tasks.items() if state.cancel_cause is None]
        for task in active:
            tasks[task].cancel(CancelCause.CALLER)
        if active:
            await asyncio.wait(active, timeout=SECONDS_TO_END)
        for task in tasks:
            task.cancel()

    def _watch(self, state: RouteState, watching: Coroutine[None, None, None]) -> None:
        loop = asyncio.get_running_loop()
        for task in [each for each in self._tasks if each.get_loop().is_closed()]:
            del self._tasks[task]
        # A separate context: that of the call would be kept for as long.
        task = loop.create_task(watching, context=Context())
        self._tasks[task] = state
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)

    async def _until_its_round_ends(self, state: RouteState) -> None:
        task, permit = state.task, state.permit
        if task is None or permit is None:
            return
        while not task.done():
            changed = state.route.breaker.wait_for_change()
            try:
                await asyncio.wait({task, changed}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()
            if permit.stale and not task.done():
                state.cancel(CancelCause.ROUND_ENDED)
                break
        await _until_done(task)


async def _until_done(task: asyncio.Task[Any]) -> None:
    await asyncio.wait({task})
    if task.cancelled():
        return
    if (error := task.exception()) is not None:
        clear_frame_locals(error)  # no caller gets it; its frames hold the request
    elif isinstance(ended := task.result(), BaseException):
        raise ended  # it ends the program
