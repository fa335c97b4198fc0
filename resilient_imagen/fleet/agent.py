"""This process's part in the fleet: one background task that talks to Redis for everybody.

Nobody else waits for Redis. Gates and pacers (`Member`) leave steps here and are called back on
the loop; all steps left meanwhile go out together and are answered in order. When Redis does not
answer in time the callbacks get None, `joined` is False, and everybody goes on alone until the
task has joined up again.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4
from weakref import WeakSet

from resilient_imagen.errors import ConfigurationError
from resilient_imagen.fleet.link import JOIN_WITHIN, LinkError, MisconfiguredError, check, open_link
from resilient_imagen.fleet.member import Errand, Member
from resilient_imagen.fleet.record import Record

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from resilient_imagen.fleet.address import Address
    from resilient_imagen.fleet.link import Link
    from resilient_imagen.fleet.member import Answer
    from resilient_imagen.fleet.steps import Step

__all__ = ["ANSWER_WITHIN", "CHECK_IN", "Fleet"]

ANSWER_WITHIN: Final = 0.5
"""Seconds in which Redis has to answer; the most that a request can lose by it."""
CHECK_IN: Final = 1.0
"""Seconds between signs of life, by which news that got lost is made up for."""
_CHECK_INS: Final = 500.0
"""Workers that check in per second, at most: a large fleet's take turns."""
_PAUSES: Final = (0.0, 0.2, 0.5, 1.0, 2.0)
"""Seconds before each new try to join; the last one for all that follow."""
_STEADY: Final = 5.0
"""Seconds of taking part after which losing Redis is a new event, worth telling."""


def _ignore(_: object) -> None:
    """Nobody wants to know."""


class Fleet:
    """The connection to the other processes, for one event loop at a time.

    Args:
        address: Where Redis is.
        warn: Told, with a code and a text, once each time that Redis is lost.
        connect: Makes the connection.

    Raises:
        ConfigurationError: redis-py is not installed, or it cannot read the URL.
    """

    def __init__(
        self,
        address: Address,
        warn: Callable[[str, str], None],
        *,
        connect: Callable[[Address], Awaitable[Link]] = open_link,
    ) -> None:
        if connect is open_link:
            check(address)
        self.address = address
        self.worker = uuid4().hex[:12]
        self.joined = False
        self.workers = 1
        """Workers heard of within the last minute, this one included."""
        self._warn = warn
        self._connect = connect
        self._members: WeakSet[Member] = WeakSet()
        self._outbox: list[Errand] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._first_try: asyncio.Future[None] | None = None
        self._refused: str | None = None
        self._ever_joined = False
        self._joined_at = math.inf
        self._leaving = False
        self._wake = asyncio.Event()
        self._sign_of_life = True

    # -- for gates and pacers ---------------------------------------------------------------------

    def add(self, member: Member) -> None:
        """Let it take part, for as long as anybody else holds it."""
        self._members.add(member)
        if self.joined:
            self.post(*member.check_in())

    def post(self, step: Step, answer: Answer = _ignore) -> bool:
        """Have a step taken soon. False, and `answer` is never called, unless `joined`."""
        if not self.joined or self._loop is None:
            return False
        if _running_loop() is self._loop:
            self._put(Errand(step, answer))
        else:
            self._loop.call_soon_threadsafe(self._put, Errand(step, answer))
        return True

    def _put(self, errand: Errand) -> None:
        self._outbox.append(errand)
        self._wake.set()

    # -- for the client ---------------------------------------------------------------------------

    async def ready(self) -> None:
        """Begin to take part, and wait for the first try to join; later calls do not wait.

        Raises:
            ConfigurationError: Redis is there and refuses us.
        """
        self._start()
        first_try = self._first_try
        if first_try is not None and not first_try.done():
            await asyncio.wait({first_try})
        if self._refused is not None:
            raise ConfigurationError(
                f"IMAGE_GEN_REDIS_URL: Redis at {self.address.shown}: {self._refused}"
            )

    async def aclose(self) -> None:
        """Say goodbye, if that is quick, and end the background task."""
        task, self._task = self._task, None
        if task is None or task.done() or self._loop is None:
            return
        if _running_loop() is not self._loop:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(task.cancel)
            return
        self._leaving = True
        self._wake.set()
        try:
            await asyncio.wait({task}, timeout=ANSWER_WITHIN if self.joined else 0)
        finally:
            task.cancel()
        await asyncio.wait({task})

    def snapshot(self) -> dict[str, Any]:
        """Whether it takes part, where, and with how many others, as plain JSON."""
        return {
            "redis": self.address.shown,
            "joined": self.joined,
            "worker": self.worker,
            "workers": self.workers if self.joined else 1,
        }

    # -- the background task ----------------------------------------------------------------------

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is loop and self._task is not None and not self._task.done():
            return
        if self._task is not None and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._go_alone()
        self._loop = loop
        self._wake = asyncio.Event()
        self._first_try = loop.create_future()
        self._refused = None
        self._leaving = False
        self._task = loop.create_task(self._run(self._first_try), name="resilient_imagen fleet")

    async def _run(self, first_try: asyncio.Future[None]) -> None:
        loop = asyncio.get_running_loop()
        tries = 0
        warned = False
        while not self._leaving:
            self._joined_at = math.inf
            try:
                await self._take_part(first_try)
            except MisconfiguredError as error:
                why = str(error)
                if not self._ever_joined:
                    self._refused = why
                    return
            except LinkError as error:
                why = str(error)
            except Exception as error:  # noqa: BLE001 - a bug of ours may cost no image either
                why = type(error).__name__
            else:
                return
            finally:
                self._go_alone()
                _done(first_try)
            if loop.time() - self._joined_at >= _STEADY:  # lost for a moment only is not told
                tries, warned = 0, False
            elif not warned:
                warned = True
                self._warn("redis_away", self._farewell(why))
            pause = _PAUSES[min(tries, len(_PAUSES) - 1)]
            tries += 1
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))

    def _farewell(self, why: str) -> str:
        return (
            f"Redis at {self.address.shown} is away ({why}): "
            "breakers and pacing are this process's own until it is back"
        )

    async def _take_part(self, first_try: asyncio.Future[None]) -> None:
        """Join, then talk and listen; returns only when we leave.

        Raises:
            LinkError: Redis is away.
        """
        async with _within(JOIN_WITHIN):
            link = await self._connect(self.address)
        listener = asyncio.ensure_future(self._listen(link))
        listener.add_done_callback(lambda _: self._wake.set())
        try:
            async with _within(JOIN_WITHIN):
                await self._exchange(link, [member.check_in() for member in self._members])
            self.joined = self._ever_joined = True
            self._joined_at = asyncio.get_running_loop().time()
            for member in list(self._members):
                member.joined()
            _done(first_try)
            await self._talk(link, listener)
        finally:
            listener.cancel()
            await asyncio.wait({listener})
            if not listener.cancelled():
                listener.exception()  # looked at, whether or not it was what ended us
            await link.aclose()

    async def _talk(self, link: Link, listener: asyncio.Future[None]) -> None:
        loop = asyncio.get_running_loop()
        self._sign_of_life = True
        due = loop.time() + self._period()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._wake.wait()
            self._wake.clear()
            if listener.done():
                listener.result()
            if loop.time() >= due:
                due = loop.time() + self._period()
                self._outbox += [member.check_in() for member in self._members]
                await self._look_after(link)
            errands, self._outbox = self._outbox, []
            async with _within(ANSWER_WITHIN):
                await self._exchange(link, errands)
                if self._leaving:
                    await link.run([step for member in self._members for step in member.goodbye()])
                    return

    def _period(self) -> float:
        """Seconds to the next check-in."""
        return max(CHECK_IN, self.workers / _CHECK_INS) * random.uniform(0.9, 1.1)

    async def _look_after(self, link: Link) -> None:
        """A connection that only listens notices nothing when it breaks: it is asked to answer."""
        if not self._sign_of_life:
            raise LinkError("no answer")
        self._sign_of_life = False
        async with _within(ANSWER_WITHIN):
            await link.ping()

    async def _listen(self, link: Link) -> None:
        while True:
            news = await link.news()
            self._sign_of_life = True
            if news is None:
                continue
            try:
                record = Record.parse(news)
            except ValueError:
                continue  # whatever else is told on that channel
            for member in list(self._members):
                if member.name == record.route:
                    member.hear(record)

    async def _exchange(self, link: Link, errands: list[Errand]) -> None:
        """Take the steps and give out the answers; None to all of them if it fails."""
        if not errands:
            return
        try:
            answers = await link.run([errand.step for errand in errands])
        except BaseException:
            self._outbox = [*errands, *self._outbox]  # they are told when we go on alone
            raise
        for errand, answer in zip(errands, answers, strict=True):
            errand.answer(answer)

    def _go_alone(self) -> None:
        was_joined, self.joined = self.joined, False
        errands, self._outbox = self._outbox, []
        for errand in errands:
            errand.answer(None)
        if was_joined:
            for member in list(self._members):
                member.left()


@contextlib.asynccontextmanager
async def _within(seconds: float) -> AsyncIterator[None]:
    """`asyncio.timeout` whose end is that Redis is away."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise LinkError("no answer") from None


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
