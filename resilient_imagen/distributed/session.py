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
    from collections.abc import AsyncIterator, Callable, Collection, Iterable

    from resilient_imagen.distributed.participant import Participant, PendingCommand
    from resilient_imagen.distributed.scripts import ScriptCall
    from resilient_imagen.distributed.store import StoreConnection

__all__ = ["ANSWER_WITHIN", "Session", "by", "running_loop"]

ANSWER_WITHIN: Final = 0.5
"""Seconds in which Redis has to answer; the maximum delay of a request by Redis."""
_STALLED: Final = 0.05
"""Seconds by which a timer is late if the event loop was blocked."""
_READ_WITHIN: Final = 0.1
"""Seconds for reading an answer that arrived while the event loop was blocked."""


class Session:
    """An open connection on the loop that created it.

    Args:
        connection: The connection; `aclose` closes it.
        participants: Receive the messages.
        heartbeats: Returns the commands of the next heartbeat.
        period: Returns the seconds until the next heartbeat; called before each.
        on_message: Called with each message that is not a record.
    """

    def __init__(
        self,
        connection: StoreConnection,
        participants: Collection[Participant],
        heartbeats: Callable[[], Iterable[PendingCommand]],
        period: Callable[[], float],
        on_message: Callable[[bytes], None],
    ) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._connection = connection
        self._participants = participants
        self._heartbeats = heartbeats
        self._period = period
        self._on_message = on_message
        self._outbox: deque[PendingCommand] = deque()
        self._in_flight: deque[PendingCommand] = deque()
        self._waiting_since = math.inf
        """Loop time since which the first posted command waits for the answers of earlier ones."""
        self._wake = asyncio.Event()
        self._over = False
        self._last_calls: list[ScriptCall] | None = None
        self._answered_ping = True
        self._listener = asyncio.ensure_future(self._listen())
        self._listener.add_done_callback(lambda _: self._wake.set())

    def post(self, command: PendingCommand) -> None:
        """Send a command soon; may be called from any thread."""
        if running_loop() is self.loop:
            self._put(command)
        else:
            self.loop.call_soon_threadsafe(self._put, command)

    def leave(self, last_calls: Iterable[ScriptCall]) -> None:
        """Send the last commands; then `talk` returns."""
        self._last_calls = list(last_calls)
        self._wake.set()

    def give_up(self) -> None:
        """Answer all pending commands with None."""
        self._over = True
        for commands in (self._in_flight, self._outbox):
            while commands:
                commands.popleft().answer(None)

    async def join(self) -> None:
        """Exchange the first heartbeats.

        Raises:
            StoreUnavailableError: Redis is unavailable.
        """
        self._post_heartbeats()
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
                await self._ping(stalled=self.loop.time() - due > _STALLED)
                due = self.loop.time() + self._period()
                self._post_heartbeats()
            if self._outbox:
                async with by(min(self._waiting_since, self.loop.time()) + ANSWER_WITHIN):
                    await self._exchange()
            if self._last_calls is not None:
                async with by(self.loop.time() + ANSWER_WITHIN):
                    await self._connection.run(self._last_calls)
                return

    async def aclose(self) -> None:
        """Drop the connection."""
        self._listener.cancel()
        await asyncio.wait({self._listener})
        if not self._listener.cancelled():
            self._listener.exception()  # retrieved, so that asyncio does not log it
        await self._connection.aclose()

    def _put(self, command: PendingCommand) -> None:
        if self._over:
            command.answer(None)
            return
        if not self._outbox:
            self._waiting_since = self.loop.time() if self._in_flight else math.inf
        self._outbox.append(command)
        self._wake.set()

    def _post_heartbeats(self) -> None:
        for command in self._heartbeats():
            self._put(command)

    async def _exchange(self) -> None:
        """Send all posted commands in one round trip, and deliver the answers."""
        self._in_flight, self._outbox = self._outbox, deque()
        for answer in await self._connection.run([command.call for command in self._in_flight]):
            self._in_flight.popleft().answer(answer)

    async def _ping(self, *, stalled: bool) -> None:
        """Ping the subscribed connection, which otherwise does not notice that it is broken."""
        if not self._answered_ping and not stalled:  # otherwise the answer may not be read yet
            raise StoreUnavailableError("no answer")
        self._answered_ping = False
        async with by(self.loop.time() + ANSWER_WITHIN):
            await self._connection.ping()

    async def _listen(self) -> None:
        while True:
            message = await self._connection.next_message()
            self._answered_ping = True
            if message is None:
                continue
            try:
                record = BreakerRecord.parse(message)
            except ValueError:  # not a record, or of another version
                self._on_message(message)
                continue
            for participant in list(self._participants):
                if participant.resource == record.route:
                    participant.on_update(record)


@contextlib.asynccontextmanager
async def by(moment: float) -> AsyncIterator[None]:
    """Limit the block like `asyncio.timeout_at`; raise StoreUnavailableError at the time-out.

    If the event loop itself was blocked at that time, an answer may have arrived meanwhile, so the
    block gets a moment to read it.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(None) as limit:

            def expire() -> None:
                now = loop.time()
                limit.reschedule(now + (_READ_WITHIN if now - moment > _STALLED else 0.0))

            timer = loop.call_at(moment, expire)
            try:
                yield
            finally:
                timer.cancel()
    except TimeoutError:
        raise StoreUnavailableError("no answer") from None


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return this thread's running loop, or None."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
