"""Redis coordinator: one background task that communicates with Redis for the whole process.

No other task waits for Redis. Breakers and limiters (`Participant`) post commands, and are called
back on the loop. Posted commands are sent in batches and answered in order. If Redis does not
answer in time, the callbacks get None, `joined` is False, and all participants work locally until
the task has reconnected.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import re
import socket
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from uuid import uuid4
from weakref import WeakSet

from resilient_imagen.distributed.connection import RedisConnectionFactory
from resilient_imagen.distributed.participant import Participant, PendingCommand
from resilient_imagen.distributed.scripts import PROTOCOL, REGISTER, ScriptCall, microseconds
from resilient_imagen.distributed.session import ANSWER_WITHIN, Session, by, running_loop
from resilient_imagen.distributed.store import MisconfiguredError, StoreUnavailableError
from resilient_imagen.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from resilient_imagen.distributed.participant import Answer
    from resilient_imagen.distributed.redis_address import Address
    from resilient_imagen.distributed.store import ConnectionFactory
    from resilient_imagen.snapshots import FleetSnapshot

__all__ = ["HEARTBEAT_SECONDS", "Counters", "RedisCoordinator", "registry_keys"]

Counters: TypeAlias = "tuple[Iterable[tuple[float, Mapping[str, float]]], Callable[[], None]]"
"""Counters by name with their ages in seconds, and a function that lets them be taken again."""

HEARTBEAT_SECONDS: Final = 1.0
"""Seconds between heartbeats, whose answers make up for lost messages."""
_REGISTER_EVERY: Final = 10
"""Number of heartbeats between two registrations."""
_MAX_HEARTBEATS_PER_SECOND: Final = 500.0
"""Maximum heartbeats per second of all workers; with many workers, each sends fewer."""
_CONNECT_WITHIN: Final = 5.0
"""Seconds for connecting, authenticating and the first answers: ten slow round trips."""
_JOIN_WITHIN: Final = 1.0
"""Maximum seconds that a call waits for the first attempt to connect."""
_PAUSES: Final = (0.0, 0.2, 0.5, 1.0, 2.0)
"""Seconds before each attempt to connect; the last value is repeated."""
_STEADY: Final = 5.0
"""Seconds of connection after which its loss is reported."""
_SHARE: Final = 0.1
"""Maximum share of a call's remaining time that it waits for the first connection attempt."""


_CHANGING: Final = 5.0
"""Seconds in which all processes receive a changed setting."""
_MAX_WARNINGS: Final = 100
"""Maximum number of different warnings about other workers."""


_version = cache(version)
"""The version of a distribution; its files are read once, not at each registration."""


def _ignore(_: object) -> None:
    """Ignore an answer."""


def _no_counters() -> Counters:
    return (), lambda: None


def registry_keys(address: Address) -> tuple[str, ...]:
    """Return the keys of `register.lua`."""
    return tuple(address.key(kind, "fleet") for kind in ("topics", "members", "seen", "minutes"))


class RedisCoordinator:
    """The connection to the other processes, for one event loop at a time.

    Args:
        address: The address of Redis.
        warn: Called with a code and a message each time that Redis is lost.
        accounts: The account identifier of each provider; state is shared within an account.
        factory: Opens connections; None means a factory for `address`.

    Raises:
        ConfigurationError: redis-py is not installed.
    """

    def __init__(
        self,
        address: Address,
        warn: Callable[[str, str], None],
        *,
        accounts: Mapping[str, str] | None = None,
        factory: ConnectionFactory | None = None,
    ) -> None:
        self.address = address
        self.worker: str = _new_worker()
        self.workers = 1
        """Number of workers with a heartbeat within the last minute, including this one."""
        self.on_message: Callable[[bytes], None] = _ignore
        """Called on the loop with each message that is not about a breaker."""
        self.take_counters: Callable[[], Counters] = _no_counters
        """Returns the new counters, to be added to those of all workers. Counters whose names begin
        with `longest_` are maxima, others are sums."""
        self._process = os.getpid()
        self._warn = warn
        self._accounts = dict(accounts or {})
        self._factory = RedisConnectionFactory(address) if factory is None else factory
        self._participants: WeakSet[Participant] = WeakSet()
        self._session: Session | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._first_try: asyncio.Future[None] | None = None
        self._refused: str | None = None
        self._started = False
        """Whether the first attempt is over; after it, no error of Redis fails a call."""
        self._joined_at = math.inf
        self._leaving = False
        self._heartbeats = 0
        self._settled_at = -math.inf
        """Loop time from which all processes should have the same settings."""
        self._warnings: set[str] = set()

    @property
    def joined(self) -> bool:
        """Whether Redis is connected."""
        return self._session is not None

    # For breakers and limiters

    def resource_name(self, name: str) -> str:
        """Return the name of the shared state of a provider or a route."""
        account = self._accounts.get(name.partition(":")[0])
        return f"{name}@{account}" if account else name

    def add_account(self, provider: str, account: str) -> None:
        """Add the account identifier of a provider; its breakers and limiter are added later."""
        self._accounts[provider] = account

    def add(self, member: Participant) -> None:
        """Add a participant; only a weak reference is kept."""
        self._participants.add(member)
        if self._session is not None:
            self._session.post(member.heartbeat())

    def post(self, step: ScriptCall, answer: Answer = _ignore) -> bool:
        """Send a command soon. Return False, and never call `answer`, unless `joined`."""
        session = self._session
        if session is None or session.loop.is_closed():
            return False
        session.post(PendingCommand(step, answer))
        return True

    def warn_newer_protocol(self, protocol: int) -> None:
        """Warn once that the data in Redis belong to workers of a newer version."""
        self._warn_once(
            "redis_protocol",
            f"Redis at {self.address.shown}: its processes use protocol {protocol}, but this "
            f"version supports only {PROTOCOL}: breakers and pacing are local to this process "
            "until it is updated, or until those processes have been silent for a minute",
        )

    def expect_changes(self) -> None:
        """Accept different settings for a while, because an operator changes all processes."""
        self._settled_at = asyncio.get_running_loop().time() + _CHANGING

    def warn_different_settings(self, resource: str, differences: str) -> None:
        """Warn once that another process has other settings; empty differences are ignored."""
        if differences and asyncio.get_running_loop().time() >= self._settled_at:
            self._warn_once(
                "fleet_settings",
                f"Redis at {self.address.shown}: processes that share {resource} have different "
                f"settings: {differences}",
            )

    def _warn_once(self, code: str, text: str) -> None:
        if text not in self._warnings and len(self._warnings) < _MAX_WARNINGS:
            self._warnings.add(text)
            self._warn(code, text)

    # For the client

    async def ready(self, deadline: float = math.inf) -> None:
        """Start the background task, and wait for the first connection attempt.

        Later calls do not wait.

        Args:
            deadline: The caller's deadline in loop time, of which only a small share may be spent
                waiting. Without a deadline it waits for at most a second once redis-py is loaded.

        Raises:
            ConfigurationError: The first attempt shows that the URL or Redis is misconfigured.
        """
        self._start()
        first_try = self._first_try
        if first_try is not None and not first_try.done():
            left = max(deadline - asyncio.get_running_loop().time(), 0.0)
            timeout = None if math.isinf(left) else min(left * _SHARE, _JOIN_WITHIN)
            await asyncio.wait({first_try}, timeout=timeout)
        if self._refused is not None:
            raise ConfigurationError(
                f"IMAGE_GEN_REDIS_URL: Redis at {self.address.shown}: {self._refused}"
            )

    async def aclose(self) -> None:
        """Release the leases and places if that is quick, and end the background task."""
        task, self._task = self._task, None
        if task is None or task.done() or self._loop is None or self._process != os.getpid():
            return
        if running_loop() is not self._loop:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(task.cancel)
            return
        self._leaving = True
        if self._session is not None:
            self._session.leave(self._last_calls())
        try:
            await asyncio.wait({task}, timeout=ANSWER_WITHIN if self.joined else 0)
        finally:
            task.cancel()
        await asyncio.wait({task})

    def snapshot(self) -> FleetSnapshot:
        """Return the address, whether it is connected, and the number of workers, as plain JSON."""
        return {
            "redis": self.address.shown,
            "namespace": self.address.namespace,
            "joined": self.joined,
            "worker": self.worker,
            "workers": self.workers if self.joined else 1,
        }

    # The background task

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        forked = self._process != os.getpid()
        if forked:  # the process is a new worker, without the task
            self._process, self.worker, self._task = os.getpid(), _new_worker(), None
        if self._task is not None and self._loop is not None:
            if self._loop is loop and not self._task.done():
                return
            if self._loop is not loop and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._task.cancel)
        self._end_session(self._session)
        if forked:
            self.take_counters()  # the parent sends them
        self._loop = loop
        self._first_try = loop.create_future()
        self._refused = None
        self._leaving = False
        self._task = loop.create_task(self._run(self._first_try), name="resilient_imagen fleet")

    async def _run(self, first_try: asyncio.Future[None]) -> None:
        loop = asyncio.get_running_loop()
        tries = 0
        warned: set[str] = set()
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
            except Exception as error:  # noqa: BLE001 - a bug here must not fail a call either
                why = type(error).__name__
            else:
                return
            finally:
                if running_loop() is loop:
                    _done(first_try)
            self._started = True
            if loop.time() - self._joined_at >= _STEADY:  # a short connection is not reported
                tries, warned = 0, set()
            elif not warned or (final and why not in warned):
                warned.add(why)
                self._warn("redis_away", self._disconnect_message(why))
            pause = _PAUSES[min(tries, len(_PAUSES) - 1)]
            tries += 1
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))

    def _disconnect_message(self, why: str) -> str:
        return (
            f"Redis at {self.address.shown} is unavailable ({why}): "
            "breakers and rate limits are local to this process until it is back"
        )

    async def _run_session(self, first_try: asyncio.Future[None]) -> None:
        """Connect and exchange commands and messages; return only after `aclose`.

        Raises:
            StoreUnavailableError: Redis is unavailable.
        """
        loop = asyncio.get_running_loop()
        session: Session | None = None
        await self._factory.prepare()
        loop.call_later(_JOIN_WITHIN, _done, first_try)
        try:
            async with by(loop.time() + _CONNECT_WITHIN):
                connection = await self._factory.open()
                session = Session(
                    connection,
                    self._participants,
                    self._next_heartbeats,
                    self._period,
                    self._pass_on,
                )
                await session.join()
            self._session = session
            self._started = True
            self._joined_at = loop.time()
            for member in list(self._participants):
                member.on_connected()
            _done(first_try)
            await session.talk()
        finally:
            # On a closed loop nothing can be awaited. `_start` cleans up on the next loop, which
            # may already be running.
            if session is not None and running_loop() is loop:
                self._end_session(session)
                await session.aclose()

    def _end_session(self, session: Session | None) -> None:
        """Disconnect the participants, unless a newer session has replaced this one."""
        if session is None:
            return
        ours = self._session is session
        if ours:
            self._session = None
        session.give_up()
        if ours:
            for member in list(self._participants):
                member.on_disconnected()

    def _pass_on(self, message: bytes) -> None:
        self.on_message(message)

    def _next_heartbeats(self) -> Iterator[PendingCommand]:
        """Return the heartbeats of all participants and, at intervals, the registration."""
        if self._session is None or self._heartbeats % _REGISTER_EVERY == 0:
            yield self._registration()
        self._heartbeats += 1
        for member in list(self._participants):
            yield member.heartbeat()

    def _last_calls(self) -> Iterator[ScriptCall]:
        for member in list(self._participants):
            yield from member.release_commands()
        counters, _ = self.take_counters()
        yield self._register_call(counters, leaving=True)

    def _registration(self) -> PendingCommand:
        counters, put_back = self.take_counters()

        def answered(answer: Any) -> None:
            if answer is None:  # whether Redis has added them is unknown: rather twice than never
                put_back()

        return PendingCommand(self._register_call(counters), answered)

    def _register_call(
        self, counters: Iterable[tuple[float, Mapping[str, float]]], *, leaving: bool = False
    ) -> ScriptCall:
        members = [member for member in self._participants if member.settings]
        settings = {member.resource: member.settings for member in members}
        description = {
            "version": _version("resilient-imagen"),
            "protocol": PROTOCOL,
            "settings": settings,
        }
        arguments = {
            "worker": self.worker,
            "description": json.dumps(description),
            "resources": sorted(settings),
            "leaving": leaving,
            "minutes": [{"age": microseconds(age), "counts": counts} for age, counts in counters],
        }
        return ScriptCall(REGISTER, registry_keys(self.address), arguments)

    def _period(self) -> float:
        """Return the seconds until the next heartbeat."""
        return max(HEARTBEAT_SECONDS, self.workers / _MAX_HEARTBEATS_PER_SECOND) * random.uniform(
            0.9, 1.1
        )


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _new_worker() -> str:
    """Return a name by which workers of one host and of one process are recognized."""
    host = re.sub(r"[^\w.-]", "-", socket.gethostname(), flags=re.ASCII)[:60]
    return f"{host}/{os.getpid()}/{uuid4().hex[:6]}"
