"""A connection to Redis, and the only place that knows redis-py.

redis-py's client is not used: its pool, retries and health checks each wait in places of their own
(with what version 8 does by default, a silent server costs a caller 13 seconds). Two bare
connections are all that is needed, one for steps and one for news, and every wait on them has
one bound, set by the caller with `asyncio.timeout`.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final, Protocol

from resilient_imagen.errors import ConfigurationError
from resilient_imagen.fleet.steps import SCRIPTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

    from resilient_imagen.fleet.address import Address
    from resilient_imagen.fleet.steps import Step

__all__ = [
    "JOIN_WITHIN",
    "Link",
    "LinkError",
    "MisconfiguredError",
    "RedisLink",
    "check",
    "open_link",
    "read",
]

JOIN_WITHIN: Final = 1.0
"""Seconds in which connecting, signing in and the first news have to be done."""
_CLOSING: Final = 0.1
"""Seconds that closing a connection may take before it is simply dropped."""


class LinkError(Exception):
    """Redis is away: gone, silent, full, or not to be written to. The text is short, for people."""


class MisconfiguredError(LinkError):
    """Redis is there and says that the URL cannot be right; waiting does not help."""


class Link(Protocol):
    """What a fleet needs of a store."""

    async def run(self, steps: Sequence[Step]) -> list[Any]:
        """Take the steps, in this order, in one round trip; their answers.

        Raises:
            LinkError: One of them was not taken, or it is not known.
        """
        ...

    async def news(self) -> bytes | None:
        """The next record told on the channel; None for a sign of life.

        Raises:
            LinkError: There will be no more.
        """
        ...

    async def ping(self) -> None:
        """Ask the channel's connection for a sign of life, which `news` receives.

        Raises:
            LinkError: It cannot be asked.
        """
        ...

    async def aclose(self) -> None:
        """Drop both connections; quick, and never raises."""
        ...


def check(address: Address) -> None:
    """Find out early, and without a connection, what can never work.

    Raises:
        ConfigurationError: redis-py is not installed, or it cannot read the URL.
    """
    _connections(address)


async def open_link(address: Address) -> Link:
    """Connect, subscribe and load the scripts.

    Raises:
        LinkError: Redis is away.
        MisconfiguredError: It is there, and refuses us.
        ConfigurationError: redis-py is not installed, or it cannot read the URL.
    """
    link = RedisLink(address)
    try:
        await link.connect()
    except BaseException:
        await link.aclose()
        raise
    return link


@contextlib.asynccontextmanager
async def read(address: Address) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """One connection for single commands, for those who only look.

    Raises:
        LinkError: Redis is away, or refuses us.
        ConfigurationError: redis-py is not installed, or it cannot read the URL.
    """
    connection = _connections(address)()

    async def ask(*command: str | int) -> Any:
        with _in_our_words():
            await connection.send_command(*command)
            return await connection.read_response()

    try:
        with _in_our_words():
            await connection.connect()
        yield ask
    finally:
        await _close(connection)


def _connections(address: Address) -> Callable[[], Any]:
    """What makes bare connections, ready to sign in."""
    try:
        from redis.asyncio import ConnectionPool
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError:
        raise ConfigurationError(
            "IMAGE_GEN_REDIS_URL is set, but redis is not installed: "
            "pip install 'resilient-imagen[redis]'"
        ) from None
    try:
        pool = ConnectionPool.from_url(
            address.url,
            retry=Retry(NoBackoff(), 0),
            protocol=2,  # the older protocol is understood by every server and proxy
            socket_timeout=None,
            socket_connect_timeout=None,
            client_name="resilient-imagen",
        )
        make: Callable[[], Any] = pool.make_connection
        make()
    except (TypeError, ValueError):
        raise ConfigurationError(
            "IMAGE_GEN_REDIS_URL: redis-py cannot read it; look at what follows the '?'"
        ) from None
    return make


async def _close(connection: Any) -> None:
    with contextlib.suppress(Exception):  # it is being thrown away
        async with asyncio.timeout(_CLOSING):
            await connection.disconnect(nowait=True)


class RedisLink:
    """Two connections to one Redis.

    Args:
        address: Where it is.

    Raises:
        ConfigurationError: redis-py is not installed, or it cannot read the URL.
    """

    def __init__(self, address: Address) -> None:
        make = _connections(address)
        self._steps, self._news = make(), make()
        self._channel = address.channel

    async def connect(self) -> None:
        """Connect both, subscribe, load the scripts.

        Raises:
            LinkError: Redis is away.
            MisconfiguredError: It is there, and refuses us.
        """
        with _in_our_words():
            await self._steps.connect()
            await self._news.connect()
            await self._news.send_command("SUBSCRIBE", self._channel)
            await self._news.read_response()
            await self._load()

    async def run(self, steps: Sequence[Step]) -> list[Any]:
        """As the protocol says."""
        from redis.exceptions import NoScriptError, ResponseError

        commands = [
            ("EVALSHA", step.script.sha, len(step.keys), *step.keys, *step.arguments)
            for step in steps
        ]
        with _in_our_words():
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
        with _in_our_words():
            kind, *rest = await self._news.read_response()
        return bytes(rest[-1]) if kind == b"message" else None

    async def ping(self) -> None:
        """As the protocol says."""
        if not self._news.is_connected:
            raise LinkError("connection lost")
        with _in_our_words():
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
        from redis.exceptions import ResponseError

        connection = self._steps
        if not connection.is_connected:
            raise LinkError("connection lost")  # redis-py would quietly connect anew
        await connection.send_packed_command(connection.pack_commands(commands))
        answers: list[Any] = []
        for _ in commands:
            try:
                answers.append(await connection.read_response())
            except ResponseError as refused:
                answers.append(refused)
        return answers


@contextlib.contextmanager
def _in_our_words() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever redis-py raises: Redis is away
        raise _trouble(error) from None


def _trouble(error: Exception) -> LinkError:
    """Short, for people; redis-py's own text may hold what was sent."""
    from redis import exceptions as theirs

    if isinstance(error, LinkError):
        return error
    text = str(error)
    if isinstance(error, theirs.AuthenticationError) or text.startswith(("NOAUTH", "WRONGPASS")):
        return MisconfiguredError("it refuses the user name or password, or wants one")
    if isinstance(error, theirs.NoPermissionError) or text.startswith("NOPERM"):
        return MisconfiguredError("it does not permit this user to use what we need")
    if isinstance(error, theirs.ResponseError) and "DB index" in text:
        return MisconfiguredError("it has no database of that number")
    if isinstance(error, theirs.InvalidResponse):
        return MisconfiguredError("what answers there is not Redis")
    word = text.partition(" ")[0]
    refused = isinstance(error, theirs.ResponseError) and word.isupper() and word.isalpha()
    return LinkError(word if refused else type(error).__name__)
