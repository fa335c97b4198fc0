"""Redis connection factory: imports redis-py only for the first connection.

Only `redis_connection` and `redis_errors` use redis-py. They are imported in a thread, because the
import and the reading of certificates would block the event loop.
"""

from __future__ import annotations

import contextlib
from importlib.util import find_spec
from typing import TYPE_CHECKING

from resilient_imagen.daemon_thread import DaemonThreadCall
from resilient_imagen.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from resilient_imagen.distributed.redis_address import Address
    from resilient_imagen.distributed.redis_connection import RedisEndpoint
    from resilient_imagen.distributed.store import StoreConnection

__all__ = ["RedisConnectionFactory"]


class RedisConnectionFactory:
    """The `ConnectionFactory` for a real Redis.

    Args:
        address: The address of Redis.

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
        self._endpoint: RedisEndpoint | None = None
        self._make = DaemonThreadCall(self._make_endpoint)

    async def prepare(self) -> None:
        """Read the URL and its certificates, once. Raises as `ConnectionFactory.prepare`."""
        await self._prepared()

    async def open(self) -> StoreConnection:
        """Connect, subscribe and load the scripts. Raises as `ConnectionFactory.open`."""
        return await (await self._prepared()).open()

    @contextlib.asynccontextmanager
    async def reader(self) -> AsyncIterator[Redis]:
        """Provide a client for read commands; its errors are raised as those of `open`."""
        async with (await self._prepared()).reader() as client:
            yield client

    async def _prepared(self) -> RedisEndpoint:
        if self._endpoint is None:
            self._endpoint = await self._make()
        return self._endpoint

    def _make_endpoint(self) -> RedisEndpoint:
        from resilient_imagen.distributed.redis_connection import RedisEndpoint

        return RedisEndpoint(self._address)
