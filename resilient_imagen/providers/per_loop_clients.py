"""SDK clients by event loop: built in a thread on first use, and closed with their loop.

Connections belong to the event loop that opened them. An application may run several loops, in
succession or in threads; each gets its own client automatically.
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
    """The client being built; all callers that need it wait for the same future."""
    guard: AsyncGenerator[None] | None = None
    """A generator that closes the connections when `aclose`, or the end of the loop, closes it."""
    process: int = field(default_factory=os.getpid)
    """The process whose connections they are; a forked child leaves them alone."""


class PerLoopClients(Generic[_Sdk]):
    """A cache of SDK clients with one entry for each event loop.

    Args:
        build: Imports the SDK and builds client and connections; runs in a thread.
    """

    def __init__(self, build: Callable[[], tuple[_Sdk, CapturingClient]]) -> None:
        self._build = build
        self._sessions: dict[asyncio.AbstractEventLoop, _Session[_Sdk]] = {}
        self._closed = False

    async def get(self) -> _Sdk:
        """Return the SDK client of the running loop, built on first use.

        Raises:
            RuntimeError: The provider was closed.
        """
        self._refuse_if_closed()
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None or session.building.cancelled():
            self._forget_dead_loops()
            session = self._sessions[loop] = _Session(asyncio.ensure_future(off_loop(self._build)))
        try:
            # Shielded: a cancelled caller must not cancel the build for the callers that wait.
            sdk, http = await asyncio.shield(session.building)
        except Exception:
            self._sessions.pop(loop, None)  # the next caller tries again
            raise
        self._refuse_if_closed()
        if session.guard is None:
            session.guard = _closing(http)
            await anext(session.guard)
        return sdk

    async def aclose(self) -> None:
        """Close the connections of every loop of this process that is still running."""
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
    """Close ``http`` when the generator is closed; a loop that ends closes its generators."""
    try:
        yield
    finally:
        await http.aclose()


async def _end(session: _Session[_Sdk]) -> None:
    if session.guard is not None:
        await session.guard.aclose()
    elif not session.building.cancelled():
        with suppress(Exception):  # it is raised to the callers that wait for the build
            _, http = await asyncio.shield(session.building)
            await http.aclose()
