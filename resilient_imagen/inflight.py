"""Calls in flight of a client: a registry to wait for them, or to cancel them."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import Final

__all__ = ["CallsInFlight"]

_SECONDS_TO_END: Final = 1.0
"""Seconds for cancelled calls to close connections; a provider may ignore cancellation."""


class CallsInFlight:
    """The calls in flight, by event loop.

    Only calls of the running loop count. Calls of a closed loop never end; they are dropped when a
    call begins on another loop, because an entry keeps its call and images in memory.
    """

    def __init__(self) -> None:
        self._calls: dict[asyncio.Timeout, asyncio.AbstractEventLoop] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = os.getpid()
        self._waiting: list[asyncio.Future[None]] = []

    def __bool__(self) -> bool:
        """Return whether a call of the running loop is in flight."""
        return bool(self._here())

    def enter(self, timer: asyncio.Timeout, loop: asyncio.AbstractEventLoop) -> None:
        """Count a call that begins, until `leave` is called.

        Args:
            timer: The time limit of the call, which `end` lets expire at once.
            loop: The running loop.

        Raises:
            RuntimeError: Calls of another loop that is running are in flight.
        """
        if loop is not self._loop:
            self._change_loop(loop)
        self._calls[timer] = loop

    def leave(self, timer: asyncio.Timeout) -> None:
        """Remove a call, and wake the callers of `drained` after the last one."""
        self._calls.pop(timer, None)
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done() and not future.get_loop().is_closed():
                future.set_result(None)

    async def drained(self) -> None:
        """Wait until no call of the running loop is in flight."""
        while self._here():
            waiting = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            await waiting

    async def end(self) -> None:
        """Cancel every call of the running loop, and wait briefly for their cleanup."""
        loop = asyncio.get_running_loop()
        calls = self._here()
        for timer in calls:
            with suppress(RuntimeError):  # the call is past its time limit, which ends it
                timer.reschedule(loop.time())
        if calls:
            drained = asyncio.ensure_future(self.drained())
            await asyncio.wait({drained}, timeout=_SECONDS_TO_END)
            drained.cancel()

    def _change_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Drop the calls of closed loops; refuse if another loop is running, as it would hang."""
        if self._process == os.getpid():
            self._calls = {call: home for call, home in self._calls.items() if not home.is_closed()}
        else:  # in a forked child, whose copies of the parent's loops do not run
            self._calls, self._process = {}, os.getpid()
        if any(home is not loop and home.is_running() for home in self._calls.values()):
            raise RuntimeError(
                "this ImageClient serves calls of another event loop, in another thread; use "
                "resilient_imagen.sync, or one client for each loop"
            )
        self._loop = loop

    def _here(self) -> list[asyncio.Timeout]:
        loop = asyncio.get_running_loop()
        return [timer for timer, home in self._calls.items() if home is loop]
