"""Redis connections: redis-py's protocol on streams that are opened here.

redis-py's client is not used: its pool, retries and health checks have separate time-outs (with the
defaults of version 8, a silent server delays a caller by 13 seconds). Two plain connections are
sufficient, one for commands and one for messages, and the caller bounds every wait by
`asyncio.timeout`. The streams are opened here, because redis-py would resolve names in the loop's
executor and read certificates on the loop.
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

from resilient_imagen.daemon_thread import DaemonThreadCall
from resilient_imagen.distributed.redis_errors import translate_redis_errors
from resilient_imagen.distributed.scripts import SCRIPTS
from resilient_imagen.distributed.store import MisconfiguredError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from resilient_imagen.distributed.redis_address import Address
    from resilient_imagen.distributed.scripts import ScriptCall

__all__ = ["RedisConnection", "RedisEndpoint"]

_CLOSING: Final = 0.1
"""Seconds that closing a connection may take before it is dropped."""


class RedisEndpoint:
    """The host, credentials and TLS settings of one Redis.

    Creating one reads certificate files, so it must not be done on the loop. URL options for host,
    credentials and TLS are used; options for redis-py's client are ignored.

    Args:
        address: The address of Redis.

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
        """Connect, subscribe and load the scripts. Raises as `ConnectionFactory.open`."""
        link = RedisConnection(self)
        try:
            await link.connect()
        except BaseException:
            await link.aclose()
            raise
        return link

    @contextlib.asynccontextmanager
    async def look(self) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
        """Open one connection for single commands."""
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
        """Open a new stream to Redis.

        Raises:
            OSError: No connection can be made.
        """
        if self._path is not None:
            return await asyncio.open_unix_connection(self._path)
        name = None if self._tls is None else self._host
        failure: OSError = ConnectionError()
        for address in [self._host] if _is_literal(self._host) else await self._look_up():
            try:
                return await asyncio.open_connection(
                    address, self._port, ssl=self._tls, server_hostname=name
                )
            except OSError as error:
                failure = error
        raise failure

    def _addresses(self) -> list[str]:
        found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(each[4][0]) for each in found))


class RedisConnection:
    """Two connections to one Redis: a `StoreConnection`."""

    def __init__(self, wire: RedisEndpoint) -> None:
        self._steps, self._news = _RedisSocket(wire), _RedisSocket(wire)
        self._channel = wire.channel

    async def connect(self) -> None:
        """Connect both, subscribe, load the scripts. Raises as `ConnectionFactory.open`."""
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
        """Run the commands in one round trip and return their answers; see `StoreConnection`."""
        commands = [
            ("EVALSHA", step.script.sha, len(step.keys), *step.keys, *step.arguments)
            for step in steps
        ]
        with translate_redis_errors():
            answers = await self._exchange(commands)
            if forgotten := [n for n, a in enumerate(answers) if isinstance(a, NoScriptError)]:
                await self._load()  # another client has flushed the scripts
                again = await self._exchange([commands[n] for n in forgotten])
                for n, answer in zip(forgotten, again, strict=True):
                    answers[n] = answer
            for answer in answers:
                if isinstance(answer, ResponseError):
                    raise answer
        return answers

    async def news(self) -> bytes | None:
        """Return the next published record, or None for a pong; see `StoreConnection`."""
        with translate_redis_errors():
            kind, *rest = await self._news.read_response()
        return bytes(rest[-1]) if kind == b"message" else None

    async def ping(self) -> None:
        """Send a ping on the channel's connection; see `StoreConnection`."""
        if not self._news.is_connected:
            raise StoreUnavailableError("connection lost")
        with translate_redis_errors():
            await self._news.send_command("PING")

    async def aclose(self) -> None:
        """Close both connections; never raises."""
        for connection in (self._steps, self._news):
            await _close(connection)

    async def _load(self) -> None:
        answers = await self._exchange([("SCRIPT", "LOAD", script.source) for script in SCRIPTS])
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer

    async def _exchange(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send all commands, then read all answers; an error reply is an answer, not raised."""
        connection = self._steps
        if not connection.is_connected:
            raise StoreUnavailableError("connection lost")  # redis-py would reconnect silently
        await connection.send_packed_command(connection.pack_commands(commands))
        answers: list[Any] = []
        for _ in commands:
            try:
                answers.append(await connection.read_response())
            except ResponseError as refused:
                answers.append(refused)
        return answers


class _RedisSocket(AbstractConnection):
    """A redis-py connection that uses a stream opened by `RedisEndpoint`."""

    def __init__(self, wire: RedisEndpoint) -> None:
        super().__init__(
            **wire.signing_in,
            protocol=2,  # every server and proxy supports the older protocol
            socket_timeout=None,
            socket_connect_timeout=None,
            client_name="resilient-imagen",
        )
        self._wire = wire

    async def sign_in(self) -> None:
        """Connect and authenticate. Raises as `ConnectionFactory.open`."""
        with translate_redis_errors():
            await self.connect()  # type: ignore[no-untyped-call]

    async def _connect(self) -> None:
        self._reader, self._writer = await self._wire.stream()

    def _host_error(self) -> str:
        return "Redis"

    def repr_pieces(self) -> list[tuple[str, str]]:
        return []


async def _close(connection: _RedisSocket) -> None:
    with contextlib.suppress(Exception):  # the connection is not used any more
        async with asyncio.timeout(_CLOSING):
            await connection.disconnect(nowait=True)


def _read(url: str) -> Any:
    """Return an unconnected redis-py connection, to use its parsed URL options."""
    try:
        return ConnectionPool.from_url(url).make_connection()  # type: ignore[no-untyped-call]
    except Exception:  # noqa: BLE001 - the type differs between its versions
        raise MisconfiguredError(
            "redis-py cannot parse the URL; check the options after the '?'"
        ) from None


def _trust(found: Any) -> ssl.SSLContext:
    try:
        context: ssl.SSLContext = found.ssl_context.get()
    except (ssl.SSLError, ValueError):
        raise MisconfiguredError("the URL names an invalid certificate or key") from None
    except OSError:
        raise MisconfiguredError("the URL names a certificate or key that cannot be read") from None
    return context


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
