"""This process's part in the fleet: one background task that talks to Redis for everybody.

Nobody else waits for Redis. Breakers and limiters (`Member`) leave steps here and are called back
on the loop; all steps left meanwhile go out together and are answered in order. When Redis does not
answer in time the callbacks get None, `joined` is False, and everybody goes on alone until the
task has joined up again.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
from typing import TYPE_CHECKING, Final
from uuid import uuid4
from weakref import WeakSet

from resilient_imagen.distributed.connection import RedisConnectionFactory
from resilient_imagen.distributed.participant import Participant, PendingCommand
from resilient_imagen.distributed.session import ANSWER_WITHIN, Session, by, running_loop
from resilient_imagen.distributed.store import (
    JOIN_WITHIN,
    MisconfiguredError,
    StoreUnavailableError,
)
from resilient_imagen.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from resilient_imagen.distributed.participant import Answer
    from resilient_imagen.distributed.redis_address import Address
    from resilient_imagen.distributed.scripts import ScriptCall
    from resilient_imagen.distributed.store import ConnectionFactory
    from resilient_imagen.snapshots import FleetSnapshot

__all__ = ["HEARTBEAT_SECONDS", "RedisCoordinator"]

HEARTBEAT_SECONDS: Final = 1.0
"""Seconds between signs of life, by which news that got lost is made up for."""
_MAX_HEARTBEATS_PER_SECOND: Final = 500.0
"""Workers that check in per second, at most: a large fleet's take turns."""
_PAUSES: Final = (0.0, 0.2, 0.5, 1.0, 2.0)
"""Seconds before each new try to join; the last one for all that follow."""
_STEADY: Final = 5.0
"""Seconds of taking part after which losing Redis is a new event, worth telling."""
_SHARE: Final = 0.1
"""Part of its time that a call with a deadline may lose waiting for the first try to join."""


def _ignore(_: object) -> None:
    """Nobody wants to know."""


class RedisCoordinator:
    """The connection to the other processes, for one event loop at a time.

    Args:
        address: Where Redis is.
        warn: Told, with a code and a text, once each time that Redis is lost.
        accounts: A word for the account with each provider; what is shared is shared within it.
        door: Where connections are had; that of `address` when None.

    Raises:
        ConfigurationError: redis-py is not installed.
    """

    def __init__(
        self,
        address: Address,
        warn: Callable[[str, str], None],
        *,
        accounts: Mapping[str, str] | None = None,
        door: ConnectionFactory | None = None,
    ) -> None:
        self.address = address
        self.worker: str = _new_worker()
        self.workers = 1
        """Workers heard of within the last minute, this one included."""
        self._process = os.getpid()
        self._warn = warn
        self._accounts = accounts or {}
        self._factory = RedisConnectionFactory(address) if door is None else door
        self._participants: WeakSet[Participant] = WeakSet()
        self._session: Session | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._first_try: asyncio.Future[None] | None = None
        self._refused: str | None = None
        self._started = False
        """Redis was joined, or away, once: from then on nothing that it says stops a call."""
        self._joined_at = math.inf
        self._leaving = False

    @property
    def joined(self) -> bool:
        """Whether the others are in reach."""
        return self._session is not None

    # -- for breakers and limiters
    # ---------------------------------------------------------------------

    def resource_name(self, name: str) -> str:
        """What is shared about a provider, or a route of its, goes by this name."""
        account = self._accounts.get(name.partition(":")[0])
        return f"{name}@{account}" if account else name

    def add(self, member: Participant) -> None:
        """Let it take part, for as long as anybody else holds it."""
        self._participants.add(member)
        if self._session is not None:
            self._session.post(member.heartbeat())

    def post(self, step: ScriptCall, answer: Answer = _ignore) -> bool:
        """Have a step taken soon. False, and `answer` is never called, unless `joined`."""
        session = self._session
        if session is None or session.loop.is_closed():
            return False
        session.post(PendingCommand(step, answer))
        return True

    # -- for the client ---------------------------------------------------------------------------

    async def ready(self, deadline: float = math.inf) -> None:
        """Begin to take part, and wait for the first try to join; later calls do not wait.

        Args:
            deadline: Loop time by which the caller has to be done with everything: it loses but a
                small share of what is left. Others wait as long as the first try takes.

        Raises:
            ConfigurationError: At the start, Redis or the URL says that it cannot be right.
        """
        self._start()
        first_try = self._first_try
        if first_try is not None and not first_try.done():
            left = max(deadline - asyncio.get_running_loop().time(), 0.0)
            patience = None if math.isinf(left) else min(left * _SHARE, JOIN_WITHIN)
            await asyncio.wait({first_try}, timeout=patience)
        if self._refused is not None:
            raise ConfigurationError(
                f"IMAGE_GEN_REDIS_URL: Redis at {self.address.shown}: {self._refused}"
            )

    async def aclose(self) -> None:
        """Say goodbye, if that is quick, and end the background task."""
        task, self._task = self._task, None
        if task is None or task.done() or self._loop is None or self._process != os.getpid():
            return
        if running_loop() is not self._loop:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(task.cancel)
            return
        self._leaving = True
        if self._session is not None:
            self._session.leave()
        try:
            await asyncio.wait({task}, timeout=ANSWER_WITHIN if self.joined else 0)
        finally:
            task.cancel()
        await asyncio.wait({task})

    def snapshot(self) -> FleetSnapshot:
        """Whether it takes part, where, and with how many others, as plain JSON."""
        return {
            "redis": self.address.shown,
            "namespace": self.address.namespace,
            "joined": self.joined,
            "worker": self.worker,
            "workers": self.workers if self.joined else 1,
        }

    # -- the background task ----------------------------------------------------------------------

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        if self._process != os.getpid():  # forked: another worker, and the task is not here
            self._process, self.worker, self._task = os.getpid(), _new_worker(), None
        if self._task is not None and self._loop is not None:
            if self._loop is loop and not self._task.done():
                return
            if self._loop is not loop and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._task.cancel)
        self._end_session(self._session)
        self._loop = loop
        self._first_try = loop.create_future()
        self._refused = None
        self._leaving = False
        self._task = loop.create_task(self._run(self._first_try), name="resilient_imagen fleet")

    async def _run(self, first_try: asyncio.Future[None]) -> None:
        loop = asyncio.get_running_loop()
        tries = 0
        told: set[str] = set()
        while not self._leaving:
            final = False
            self._joined_at = math.inf
            try:
                await self._run_session(first_try)
            except StoreUnavailableError as error:
                why, final = str(error), isinstance(error, MisconfiguredError)
                if final and not self._started:
                    self._refused = why
                    return
            except Exception as error:  # noqa: BLE001 - a bug of ours may cost no image either
                why = type(error).__name__
            else:
                return
            finally:
                if running_loop() is loop:
                    _done(first_try)
            self._started = True
            if loop.time() - self._joined_at >= _STEADY:  # lost for a moment only is not told
                tries, told = 0, set()
            elif not told or (final and why not in told):
                told.add(why)
                self._warn("redis_away", self._disconnect_message(why))
            pause = _PAUSES[min(tries, len(_PAUSES) - 1)]
            tries += 1
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))

    def _disconnect_message(self, why: str) -> str:
        return (
            f"Redis at {self.address.shown} is away ({why}): "
            "breakers and pacing are this process's own until it is back"
        )

    async def _run_session(self, first_try: asyncio.Future[None]) -> None:
        """Join, then talk and listen; returns only when we leave.

        Raises:
            StoreUnavailableError: Redis is away.
        """
        loop = asyncio.get_running_loop()
        session: Session | None = None
        await self._factory.prepare()
        try:
            async with by(loop.time() + JOIN_WITHIN):
                session = Session(await self._factory.open(), self._participants, self._period)
                await session.join()
            self._session = session
            self._started = True
            self._joined_at = loop.time()
            for member in list(self._participants):
                member.on_connected()
            _done(first_try)
            await session.talk()
        finally:
            # Where a loop was closed under us, nothing can be awaited, and `_start` sees to the
            # rest: another loop may have begun since.
            if session is not None and running_loop() is loop:
                self._end_session(session)
                await session.aclose()

    def _end_session(self, session: Session | None) -> None:
        """It is over. From now on everybody goes on alone, unless it is another's turn already."""
        if session is None:
            return
        ours = self._session is session
        if ours:
            self._session = None
        session.give_up()
        if ours:
            for member in list(self._participants):
                member.on_disconnected()

    def _period(self) -> float:
        """Seconds to the next check-in."""
        return max(HEARTBEAT_SECONDS, self.workers / _MAX_HEARTBEATS_PER_SECOND) * random.uniform(
            0.9, 1.1
        )


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _new_worker() -> str:
    return uuid4().hex[:12]
