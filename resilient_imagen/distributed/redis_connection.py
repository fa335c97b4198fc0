"""Bare connections to one Redis, and the only place that knows redis-py.

redis-py's client is not used: its pool, retries and health checks each wait in places of their own
(with what version 8 does by default, a silent server costs a caller 13 seconds). Two bare
connections are all that is needed, one for steps and one for news, and every wait on them has
one bound, set by the caller with `asyncio.timeout`. The streams under them are opened here:
redis-py would have names looked up in the loop's own threads, and read certificates on the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from typing import TYPE_CHECKING, Any, Final

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoScriptError, ResponseError

from resilient_imagen.distributed.daemon_thread import DaemonThreadCall
from resilient_imagen.distributed.redis_errors import translate_redis_errors
from resilient_imagen.distributed.scripts import SCRIPTS
from resilient_imagen.distributed.store import MisconfiguredError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from resilient_imagen.distributed.redis_address import Address
    from resilient_imagen.distributed.scripts import ScriptCall

__all__ = ["RedisConnection", "RedisEndpoint"]

_CLOSING: Final = 0.1
"""Seconds that closing a connection may take before it is simply dropped."""


class RedisEndpoint:
    """How one Redis is reached. Making it reads files: not on the loop.

    Of the URL's options those are heeded that say where Redis is, who we are and whom to trust;
    the others are about redis-py's own client.

    Args:
        address: Where it is.

    Raises:
        MisconfiguredError: redis-py cannot read the URL, or a certificate cannot be used.
    """

    def __init__(self, address: Address) -> None:
        found = _read(address.url)
        self.channel: str = address.channel
        self.signing_in: dict[str, Any] = {
            name: getattr(found, name) for name in ("db", "username", "password")
        }
        self._path: str | None = getattr(found, "path", None)
        self._host: str = getattr(found, "host", "")
        self._port: int = getattr(found, "port", 0)
        self._tls = _trust(found) if address.url.startswith("rediss:") else None
        self._look_up = DaemonThreadCall(self._addresses)

    async def link(self) -> RedisConnection:
        """Connect, subscribe and load the scripts; errors as in `ConnectionFactory.open`."""
        link = RedisConnection(self)
        try:
            await link.connect()
        except BaseException:
            await link.aclose()
            raise
        return link

    @contextlib.asynccontextmanager
    async def look(self) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
        """One connection for single commands."""
        connection = _RedisSocket(self)

        async def ask(*command: str | int) -> Any:
            with translate_redis_errors():
                await connection.send_command(*command)
                return await connection.read_response()

        try:
            await connection.sign_in()
            yield ask
        finally:
            await _close(connection)

    async def stream(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A new stream to it.

        Raises:
            OSError: There is none to be had.
        """
        if self._path is not None:
            return await asyncio.open_unix_connection(self._path)
        name = None if self._tls is None else self._host
        trouble: OSError = ConnectionError()
        for address in [self._host] if _is_literal(self._host) else await self._look_up():
            try:
                return await asyncio.open_connection(
                    address, self._port, ssl=self._tls, server_hostname=name
                )
            except OSError as error:
                trouble = error
        raise trouble

    def _addresses(self) -> list[str]:
        found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(each[4][0]) for each in found))


class RedisConnection:
    """Two connections to one Redis: a `StoreConnection`."""

    def __init__(self, wire: RedisEndpoint) -> None:
        self._steps, self._news = _RedisSocket(wire), _RedisSocket(wire)
        self._channel = wire.channel

    async def connect(self) -> None:
        """Connect both, subscribe, load the scripts; errors as in `ConnectionFactory.open`."""
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._steps.sign_in())
                both.create_task(self._news.sign_in())
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        with translate_redis_errors():
            await self._news.send_command("SUBSCRIBE", self._channel)
            await self._news.read_response()
            await self._load()

    async def run(self, steps: Sequence[ScriptCall]) -> list[Any]:
        """As the protocol says."""
        commands = [
            ("EVALSHA", step.script.sha, len(step.keys), *step.keys, *step.arguments)
            for step in steps
        ]
        with translate_redis_errors():
            answers = await self._exchange(commands)
            if forgotten := [n for n, a in enumerate(answers) if isinstance(a, NoScriptError)]:
                await self._load()  # somebody has flushed the scripts
                again = await self._exchange([commands[n] for n in forgotten])
                for n, answer in zip(forgotten, again, strict=True):
                    answers[n] = answer
            for answer in answers:
                if isinstance(answer, ResponseError):
                    raise answer
        return answers

    async def news(self) -> bytes | None:
        """As the protocol says."""
        with translate_redis_errors():
            kind, *rest = await self._news.read_response()
        return bytes(rest[-1]) if kind == b"message" else None

    async def ping(self) -> None:
        """As the protocol says."""
        if not self._news.is_connected:
            raise StoreUnavailableError("connection lost")
        with translate_redis_errors():
            await self._news.send_command("PING")

    async def aclose(self) -> None:
        """As the protocol says."""
        for connection in (self._steps, self._news):
            await _close(connection)

    async def _load(self) -> None:
        answers = await self._exchange([("SCRIPT", "LOAD", script.source) for script in SCRIPTS])
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer

    async def _exchange(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send all, then read all. What Redis refuses is an answer; what breaks off is raised."""
        connection = self._steps
        if not connection.is_connected:
            raise StoreUnavailableError("connection lost")  # redis-py would quietly connect anew
        await connection.send_packed_command(connection.pack_commands(commands))
        answers: list[Any] = []
        for _ in commands:
            try:
                answers.append(await connection.read_response())
            except ResponseError as refused:
                answers.append(refused)
        return answers


class _RedisSocket(AbstractConnection):
    """redis-py's protocol on a stream of ours."""

    def __init__(self, wire: RedisEndpoint) -> None:
        super().__init__(
            **wire.signing_in,
            protocol=2,  # the older protocol is understood by every server and proxy
            socket_timeout=None,
            socket_connect_timeout=None,
            client_name="resilient-imagen",
        )
        self._wire = wire

    async def sign_in(self) -> None:
        """Connect, and say who we are; errors as in `ConnectionFactory.open`."""
        with translate_redis_errors():
            await self.connect()  # type: ignore[no-untyped-call]

    async def _connect(self) -> None:
        self._reader, self._writer = await self._wire.stream()

    def _host_error(self) -> str:
        return "Redis"

    def repr_pieces(self) -> list[tuple[str, str]]:
        return []


async def _close(connection: _RedisSocket) -> None:
    with contextlib.suppress(Exception):  # it is being thrown away
        async with asyncio.timeout(_CLOSING):
            await connection.disconnect(nowait=True)


def _read(url: str) -> Any:
    """A connection as redis-py makes it of the URL, for what it has understood."""
    try:
        return ConnectionPool.from_url(url).make_connection()  # type: ignore[no-untyped-call]
    except Exception:  # noqa: BLE001 - each of its versions has other ways to say so
        raise MisconfiguredError(
            "redis-py cannot read the URL; look at what follows the '?'"
        ) from None


def _trust(found: Any) -> ssl.SSLContext:
    try:
        context: ssl.SSLContext = found.ssl_context.get()
    except (ssl.SSLError, ValueError):
        raise MisconfiguredError("a certificate or key that the URL names is none") from None
    except OSError:
        raise MisconfiguredError("a certificate or key that the URL names cannot be read") from None
    return context


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
