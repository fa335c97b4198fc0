"""One SDK client with its connections per event loop, built off the loop, gone with it.

Connections belong to the loop that opened them. Applications run several, one after the other or
in threads, and must not have to know.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from resilient_imagen.images.worker_pool import off_loop

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from resilient_imagen.providers.http import CapturingClient

__all__ = ["PerLoopClients"]

_Sdk = TypeVar("_Sdk")


@dataclass(slots=True)
class _Session(Generic[_Sdk]):
    building: asyncio.Future[tuple[_Sdk, CapturingClient]]
    """Shared by all who wait for it."""
    guard: AsyncGenerator[None] | None = None
    """Closes the connections when it is closed, by us or by the end of the loop."""
    process: int = field(default_factory=os.getpid)
    """The process whose connections they are; a forked child leaves them alone."""


class PerLoopClients(Generic[_Sdk]):
    """Hands out the running loop's SDK client.

    Args:
        build: Imports the SDK and makes client and connections; runs in a thread.
    """

    def __init__(self, build: Callable[[], tuple[_Sdk, CapturingClient]]) -> None:
        self._build = build
        self._sessions: dict[asyncio.AbstractEventLoop, _Session[_Sdk]] = {}
        self._closed = False

    async def get(self) -> _Sdk:
        """The SDK client for the running loop, built on first use.

        Raises:
            RuntimeError: The sessions were closed.
        """
        self._refuse_if_closed()
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None or session.building.cancelled():
            self._forget_dead_loops()
            session = self._sessions[loop] = _Session(asyncio.ensure_future(off_loop(self._build)))
        try:
            # Shielded: the one who came first may leave without the others going empty-handed.
            sdk, http = await asyncio.shield(session.building)
        except Exception:
            self._sessions.pop(loop, None)  # the next one tries anew
            raise
        self._refuse_if_closed()
        if session.guard is None:
            session.guard = _closing(http)
            await anext(session.guard)
        return sdk

    async def aclose(self) -> None:
        """Close the connections of every loop of this process that still runs."""
        self._closed = True
        here = os.getpid()
        sessions = [each for each in self._sessions.items() if each[1].process == here]
        for loop, session in sessions:
            del self._sessions[loop]
            if loop is asyncio.get_running_loop():
                await _end(session)
            elif loop.is_running():
                asyncio.run_coroutine_threadsafe(_end(session), loop)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise RuntimeError("the provider was closed")

    def _forget_dead_loops(self) -> None:
        for loop in [loop for loop in self._sessions if loop.is_closed()]:
            del self._sessions[loop]


async def _closing(http: CapturingClient) -> AsyncGenerator[None]:
    """Close ``http`` when closed: a loop that ends closes the generators begun on it."""
    try:
        yield
    finally:
        await http.aclose()


async def _end(session: _Session[_Sdk]) -> None:
    if session.guard is not None:
        await session.guard.aclose()
    elif not session.building.cancelled():
        with suppress(Exception):  # the callers that wait for the build get it
            _, http = await asyncio.shield(session.building)
            await http.aclose()
