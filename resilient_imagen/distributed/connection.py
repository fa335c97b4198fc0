"""A connection to Redis, as the fleet needs it, and the door through which it is had.

redis-py is known to `fleet.wire` alone. That is imported in a thread, and so is done whatever else
may take long: reading certificates, looking up the host's name.
"""

from __future__ import annotations

import contextlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Protocol

from resilient_imagen.distributed.daemon_thread import DaemonThreadCall
from resilient_imagen.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from resilient_imagen.distributed.redis_address import Address
    from resilient_imagen.distributed.redis_connection import RedisEndpoint
    from resilient_imagen.distributed.scripts import ScriptCall

__all__ = [
    "JOIN_WITHIN",
    "ConnectionFactory",
    "MisconfiguredError",
    "RedisConnectionFactory",
    "StoreConnection",
    "StoreUnavailableError",
]

JOIN_WITHIN: Final = 1.0
"""Seconds in which connecting, signing in and the first news have to be done."""


class StoreUnavailableError(Exception):
    """Redis is away: gone, silent, full, or not to be written to. The text is short, for people."""


class MisconfiguredError(StoreUnavailableError):
    """Redis or the URL itself says that it cannot be right; waiting does not help."""


class StoreConnection(Protocol):
    """What a fleet needs of a store."""

    async def run(self, steps: Sequence[ScriptCall]) -> list[Any]:
        """Take the steps, in this order, in one round trip; their answers.

        Raises:
            StoreUnavailableError: One of them was not taken, or it is not known.
        """
        ...

    async def news(self) -> bytes | None:
        """The next record told on the channel; None for a sign of life.

        Raises:
            StoreUnavailableError: There will be no more.
        """
        ...

    async def ping(self) -> None:
        """Ask the channel's connection for a sign of life, which `news` receives.

        Raises:
            StoreUnavailableError: It cannot be asked.
        """
        ...

    async def aclose(self) -> None:
        """Drop both connections; quick, and never raises."""
        ...


class ConnectionFactory(Protocol):
    """Where links are had."""

    async def prepare(self) -> None:
        """Do what needs no Redis, once.

        Raises:
            MisconfiguredError: The URL cannot be right.
        """
        ...

    async def open(self) -> StoreConnection:
        """Connect, subscribe and load the scripts.

        Raises:
            StoreUnavailableError: Redis is away.
            MisconfiguredError: It is there, and refuses us.
        """
        ...


class RedisConnectionFactory:
    """The door to a real Redis.

    Args:
        address: Where it is.

    Raises:
        ConfigurationError: redis-py is not installed.
    """

    def __init__(self, address: Address) -> None:
        if find_spec("redis") is None:
            raise ConfigurationError(
                "IMAGE_GEN_REDIS_URL is set, but redis is not installed: "
                "pip install 'resilient-imagen[redis]'"
            )
        self._address = address
        self._wire: RedisEndpoint | None = None
        self._make = DaemonThreadCall(self._make_wire)

    async def prepare(self) -> None:
        """As the protocol says."""
        await self._prepared()

    async def open(self) -> StoreConnection:
        """As the protocol says."""
        return await (await self._prepared()).link()

    @contextlib.asynccontextmanager
    async def look(self) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
        """One connection for single commands, for those who only look; errors as `open`."""
        async with (await self._prepared()).look() as ask:
            yield ask

    async def _prepared(self) -> RedisEndpoint:
        if self._wire is None:
            self._wire = await self._make()
        return self._wire

    def _make_wire(self) -> RedisEndpoint:
        from resilient_imagen.distributed.redis_connection import RedisEndpoint

        return RedisEndpoint(self._address)
