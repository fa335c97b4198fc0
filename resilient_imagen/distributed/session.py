"""Session: exchange commands and messages of all participants on one connection."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from typing import TYPE_CHECKING, Final

from resilient_imagen.distributed.breaker_record import BreakerRecord
from resilient_imagen.distributed.store import StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from resilient_imagen.distributed.participant import Participant, PendingCommand
    from resilient_imagen.distributed.store import StoreConnection

__all__ = ["ANSWER_WITHIN", "Session", "by", "running_loop"]

ANSWER_WITHIN: Final = 0.5
"""Seconds in which Redis has to answer; the maximum delay of a request by Redis."""


class Session:
    """An open connection on the loop that created it.

    Args:
        link: The connection; `aclose` closes it.
        members: The participants.
        period: Returns the seconds until the next heartbeat; called before each.
    """

    def __init__(
        self, link: StoreConnection, members: Iterable[Participant], period: Callable[[], float]
    ) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._link = link
        self._members = members
        self._period = period
        self._outbox: deque[PendingCommand] = deque()
        self._under_way: deque[PendingCommand] = deque()
        self._waiting_since = math.inf
        """Loop time since which the first posted command waits for the answers of earlier ones."""
        self._wake = asyncio.Event()
        self._over = self._leaving = False
        self._sign_of_life = True
        self._listener = asyncio.ensure_future(self._listen())
        self._listener.add_done_callback(lambda _: self._wake.set())

    def post(self, command: PendingCommand) -> None:
        """Send a command soon; may be called from any thread."""
        if running_loop() is self.loop:
            self._put(command)
        else:
            self.loop.call_soon_threadsafe(self._put, command)

    def leave(self) -> None:
        """Send the release commands; then `talk` returns."""
        self._leaving = True
        self._wake.set()

    def give_up(self) -> None:
        """Answer all pending commands with None."""
        self._over = True
        for commands in (self._under_way, self._outbox):
            while commands:
                commands.popleft().answer(None)

    async def join(self) -> None:
        """Exchange the first heartbeats.

        Raises:
            StoreUnavailableError: Redis is unavailable.
        """
        self._check_in()
        await self._exchange()

    async def talk(self) -> None:
        """Exchange commands and messages; return only after `leave`.

        Raises:
            StoreUnavailableError: Redis is unavailable.
        """
        due = self.loop.time() + self._period()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._wake.wait()
            self._wake.clear()
            if self._listener.done():
                self._listener.result()
            if self.loop.time() >= due:
                due = self.loop.time() + self._period()
                self._check_in()
                await self._look_after()
            if self._outbox:
                async with by(min(self._waiting_since, self.loop.time()) + ANSWER_WITHIN):
                    await self._exchange()
            if self._leaving:
                async with by(self.loop.time() + ANSWER_WITHIN):
                    releases = [
                        step for member in self._members for step in member.release_commands()
                    ]
                    await self._link.run(releases)
                return

    async def aclose(self) -> None:
        """Drop the connection."""
        self._listener.cancel()
        await asyncio.wait({self._listener})
        if not self._listener.cancelled():
            self._listener.exception()  # retrieved, so that asyncio does not log it
        await self._link.aclose()

    def _put(self, command: PendingCommand) -> None:
        if self._over:
            command.answer(None)
            return
        if not self._outbox:
            self._waiting_since = self.loop.time() if self._under_way else math.inf
        self._outbox.append(command)
        self._wake.set()

    def _check_in(self) -> None:
        for member in list(self._members):
            self._put(member.heartbeat())

    async def _exchange(self) -> None:
        """Send all posted commands in one round trip, and deliver the answers."""
        self._under_way, self._outbox = self._outbox, deque()
        for answer in await self._link.run([command.call for command in self._under_way]):
            self._under_way.popleft().answer(answer)

    async def _look_after(self) -> None:
        """Ping the subscribed connection, which otherwise does not notice that it is broken."""
        if not self._sign_of_life:
            raise StoreUnavailableError("no answer")
        self._sign_of_life = False
        async with by(self.loop.time() + ANSWER_WITHIN):
            await self._link.ping()

    async def _listen(self) -> None:
        while True:
            news = await self._link.next_message()
            self._sign_of_life = True
            if news is None:
                continue
            try:
                record = BreakerRecord.parse(news)
            except ValueError:
                continue  # another kind of message
            for member in list(self._members):
                if member.resource == record.route:
                    member.on_update(record)


@contextlib.asynccontextmanager
async def by(moment: float) -> AsyncIterator[None]:
    """Limit the block like `asyncio.timeout_at`; raise StoreUnavailableError at the time-out."""
    try:
        async with asyncio.timeout_at(moment):
            yield
    except TimeoutError:
        raise StoreUnavailableError("no answer") from None


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return this thread's running loop, or None."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
