"""Redis connections: redis-py's client on streams that are opened here.

The caller bounds every wait by `asyncio.timeout`, so redis-py's own time-outs and retries are off
(with the defaults of version 8, a silent server delays a caller by 13 seconds). A small connection
class opens the streams, because redis-py would resolve names in the loop's executor and read
certificates on the loop for each connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING, Any, Final

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError

from resilient_imagen.distributed.redis_errors import translate_redis_errors
from resilient_imagen.distributed.scripts import SCRIPTS
from resilient_imagen.distributed.store import MisconfiguredError
from resilient_imagen.dns import HostResolver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

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
        options = _parse(address.url)
        self.channel: str = address.channel
        self._credentials = {
            name: getattr(options, name) for name in ("db", "username", "password")
        }
        self._path: str | None = getattr(options, "path", None)
        self._host: str = getattr(options, "host", "")
        self._port: int = getattr(options, "port", 0)
        self._tls = _tls_context(options) if address.url.startswith("rediss:") else None
        self._resolver = HostResolver(max_threads=1)

    def client(self) -> Redis:
        """Return a client without connections; it connects with its first command."""
        pool = ConnectionPool(
            connection_class=_StreamConnection,
            endpoint=self,
            **self._credentials,
            protocol=2,  # every server and proxy supports the older protocol
            socket_timeout=None,
            socket_connect_timeout=None,
            retry=Retry(NoBackoff(), 0),
            client_name="resilient-imagen",
        )
        return Redis(connection_pool=pool)

    async def open(self) -> RedisConnection:
        """Connect, subscribe and load the scripts. Raises as `ConnectionFactory.open`."""
        connection = RedisConnection(self)
        try:
            await connection.connect()
        except BaseException:
            await connection.aclose()
            raise
        return connection

    @contextlib.asynccontextmanager
    async def reader(self) -> AsyncIterator[Redis]:
        """Provide a client; its errors are raised as those of `open`."""
        client = self.client()
        try:
            with translate_redis_errors():
                yield client
        finally:
            await _close(client)

    async def stream(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a new stream to Redis.

        Raises:
            OSError: No connection can be made.
        """
        if self._path is not None:
            return await asyncio.open_unix_connection(self._path)
        name = None if self._tls is None else self._host
        failure: OSError = ConnectionError()
        for address in await self._resolver.resolve(self._host, self._port):
            try:
                return await asyncio.open_connection(
                    address, self._port, ssl=self._tls, server_hostname=name
                )
            except OSError as error:
                failure = error
        raise failure


class RedisConnection:
    """A client with two connections, one for commands and one for messages: a `StoreConnection`."""

    def __init__(self, endpoint: RedisEndpoint) -> None:
        self._client = endpoint.client()
        self._messages = self._client.pubsub()
        self._channel = endpoint.channel

    async def connect(self) -> None:
        """Subscribe and load the scripts. Raises as `ConnectionFactory.open`."""
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._load())
                both.create_task(self._subscribe())
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def run(self, calls: Sequence[ScriptCall]) -> list[Any]:
        """Run the commands in one round trip and return their answers; see `StoreConnection`."""
        with translate_redis_errors():
            answers = await self._evaluate(calls)
            if forgotten := [n for n, a in enumerate(answers) if isinstance(a, NoScriptError)]:
                await self._load()  # another client has flushed the scripts
                again = await self._evaluate([calls[n] for n in forgotten])
                for n, answer in zip(forgotten, again, strict=True):
                    answers[n] = answer
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
        return answers

    async def next_message(self) -> bytes | None:
        """Return the next message, or None for a pong; see `StoreConnection`."""
        with translate_redis_errors():
            message = await self._messages.get_message(timeout=None)
        return bytes(message["data"]) if message and message["type"] == "message" else None

    async def ping(self) -> None:
        """Send a ping on the channel's connection; see `StoreConnection`."""
        with translate_redis_errors():
            await self._messages.ping()

    async def aclose(self) -> None:
        """Close both connections; never raises."""
        await _close(self._client)

    async def _subscribe(self) -> None:
        with translate_redis_errors():
            await self._messages.subscribe(self._channel)
            await self._messages.get_message(timeout=None)

    async def _load(self) -> None:
        with translate_redis_errors():
            pipeline = self._client.pipeline(transaction=False)
            for script in SCRIPTS:
                pipeline.script_load(script.source)
            await pipeline.execute()

    async def _evaluate(self, calls: Sequence[ScriptCall]) -> list[Any]:
        """Send all commands, then read all answers; an error reply is an answer, not raised."""
        pipeline = self._client.pipeline(transaction=False)
        for call in calls:
            pipeline.evalsha(call.script.sha, len(call.keys), *call.keys, call.encoded())
        return await pipeline.execute(raise_on_error=False)


class _StreamConnection(AbstractConnection):
    """A redis-py connection that uses a stream opened by `RedisEndpoint`."""

    def __init__(self, *, endpoint: RedisEndpoint, **options: Any) -> None:
        super().__init__(**options)
        self._endpoint = endpoint

    async def _connect(self) -> None:
        self._reader, self._writer = await self._endpoint.stream()

    def _host_error(self) -> str:
        return "Redis"

    def repr_pieces(self) -> list[tuple[str, str]]:
        return []


async def _close(client: Redis) -> None:
    with contextlib.suppress(Exception):  # the client is not used any more
        async with asyncio.timeout(_CLOSING):
            await client.connection_pool.disconnect()


def _parse(url: str) -> Any:
    """Return an unconnected redis-py connection, to use its parsed URL options."""
    try:
        return ConnectionPool.from_url(url).make_connection()  # type: ignore[no-untyped-call]
    except Exception:  # noqa: BLE001 - the type differs between its versions
        raise MisconfiguredError(
            "redis-py cannot parse the URL; check the options after the '?'"
        ) from None


def _tls_context(options: Any) -> ssl.SSLContext:
    try:
        context: ssl.SSLContext = options.ssl_context.get()
    except (ssl.SSLError, ValueError):
        raise MisconfiguredError("the URL names an invalid certificate or key") from None
    except OSError:
        raise MisconfiguredError("the URL names a certificate or key that cannot be read") from None
    return context
