"""One connection's life: what all members say on it, together and in order, and what they hear."""

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
"""Seconds from asking in which Redis has to answer; the most that a request can lose by it."""


class Session:
    """A link in use, on the loop that it was made on.

    Args:
        link: The connection; closed by `aclose`.
        members: Who speaks and listens.
        period: Seconds to the next check-in, asked before each.
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
        """Loop time since when the first of the outbox waits for another answer to come first."""
        self._wake = asyncio.Event()
        self._over = self._leaving = False
        self._sign_of_life = True
        self._listener = asyncio.ensure_future(self._listen())
        self._listener.add_done_callback(lambda _: self._wake.set())

    def post(self, errand: PendingCommand) -> None:
        """Have a step taken soon; from any thread."""
        if running_loop() is self.loop:
            self._put(errand)
        else:
            self.loop.call_soon_threadsafe(self._put, errand)

    def leave(self) -> None:
        """Say goodbye; `talk` returns then."""
        self._leaving = True
        self._wake.set()

    def give_up(self) -> None:
        """Tell everybody who waits for an answer that none will come."""
        self._over = True
        for errands in (self._under_way, self._outbox):
            while errands:
                errands.popleft().answer(None)

    async def join(self) -> None:
        """The first check-in.

        Raises:
            StoreUnavailableError: Redis is away.
        """
        self._check_in()
        await self._exchange()

    async def talk(self) -> None:
        """Take steps and listen; returns only when we leave.

        Raises:
            StoreUnavailableError: Redis is away.
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
                    goodbyes = [
                        step for member in self._members for step in member.release_commands()
                    ]
                    await self._link.run(goodbyes)
                return

    async def aclose(self) -> None:
        """Drop the connection."""
        self._listener.cancel()
        await asyncio.wait({self._listener})
        if not self._listener.cancelled():
            self._listener.exception()  # looked at, whether or not it was what ended us
        await self._link.aclose()

    def _put(self, errand: PendingCommand) -> None:
        if self._over:
            errand.answer(None)
            return
        if not self._outbox:
            self._waiting_since = self.loop.time() if self._under_way else math.inf
        self._outbox.append(errand)
        self._wake.set()

    def _check_in(self) -> None:
        for member in list(self._members):
            self._put(member.heartbeat())

    async def _exchange(self) -> None:
        """Take all steps in one round trip, and give out the answers."""
        self._under_way, self._outbox = self._outbox, deque()
        for answer in await self._link.run([errand.call for errand in self._under_way]):
            self._under_way.popleft().answer(answer)

    async def _look_after(self) -> None:
        """A connection that only listens notices nothing when it breaks: it is asked to answer."""
        if not self._sign_of_life:
            raise StoreUnavailableError("no answer")
        self._sign_of_life = False
        async with by(self.loop.time() + ANSWER_WITHIN):
            await self._link.ping()

    async def _listen(self) -> None:
        while True:
            news = await self._link.news()
            self._sign_of_life = True
            if news is None:
                continue
            try:
                record = BreakerRecord.parse(news)
            except ValueError:
                continue  # whatever else is told on that channel
            for member in list(self._members):
                if member.resource == record.route:
                    member.on_update(record)


@contextlib.asynccontextmanager
async def by(moment: float) -> AsyncIterator[None]:
    """`asyncio.timeout_at` whose end is that Redis is away."""
    try:
        async with asyncio.timeout_at(moment):
            yield
    except TimeoutError:
        raise StoreUnavailableError("no answer") from None


def running_loop() -> asyncio.AbstractEventLoop | None:
    """That of this thread, if one is running."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
