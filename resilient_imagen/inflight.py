"""The calls of a client that are in flight: to wait for them, or to end them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["CallsInFlight"]

_SECONDS_TO_END: Final = 1.0
"""Seconds that ended calls have to close their connections; a provider may ignore cancellation."""


class CallsInFlight:
    """Calls that have begun and not ended, on whichever event loop.

    Calls of a loop that has been closed never end; only those of the running loop count. They are
    dropped when a call begins on another loop, since an entry keeps its call and pictures alive.
    """

    def __init__(self) -> None:
        self._calls: dict[asyncio.Timeout, asyncio.AbstractEventLoop] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: list[asyncio.Future[None]] = []

    def __bool__(self) -> bool:
        """Whether a call of the running loop is in flight."""
        return bool(self._here())

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[None]:
        """Count the block as a call.

        Raises:
            RuntimeError: The call was ended by `end`.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop = loop
            self._drop_closed_loops()
        try:
            async with asyncio.timeout(None) as scope:
                self._calls[scope] = loop
                try:
                    yield
                finally:
                    self._calls.pop(scope, None)
                    self._tell()
        except TimeoutError:
            if not scope.expired():
                raise
            raise RuntimeError("the ImageClient was closed during the call") from None

    async def drained(self) -> None:
        """Wait until no call of the running loop is in flight."""
        while self._here():
            waiting = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            await waiting

    async def end(self) -> None:
        """End every call of the running loop, and give them a moment to clean up."""
        loop = asyncio.get_running_loop()
        calls = self._here()
        for scope in calls:
            scope.reschedule(loop.time())
        if calls:
            drained = asyncio.ensure_future(self.drained())
            await asyncio.wait({drained}, timeout=_SECONDS_TO_END)
            drained.cancel()

    def _drop_closed_loops(self) -> None:
        self._calls = {scope: home for scope, home in self._calls.items() if not home.is_closed()}

    def _here(self) -> list[asyncio.Timeout]:
        loop = asyncio.get_running_loop()
        return [scope for scope, home in self._calls.items() if home is loop]

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done() and not future.get_loop().is_closed():
                future.set_result(None)
