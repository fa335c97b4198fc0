"""Order board: give orders in Redis, and read which workers obey."""

from __future__ import annotations

import asyncio
import contextlib
import json
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from resilient_imagen.distributed.connection import RedisConnectionFactory
from resilient_imagen.distributed.coordinator import registry_keys
from resilient_imagen.distributed.shared_orders import history_key, order_keys
from resilient_imagen.distributed.store import StoreUnavailableError
from resilient_imagen.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from redis.asyncio import Redis

    from resilient_imagen.distributed.redis_address import Address
    from resilient_imagen.distributed.scripts import ScriptCall

__all__ = ["Board", "OrderBoard", "Stage", "WorkerReport", "open_board", "parse_report"]

_MICRO: Final = 1_000_000
_SILENT: Final = 4.0
"""Seconds without a heartbeat after which a worker counts as gone: more than three periods."""
_WORKERS_PER_SECOND: Final = 500.0
"""Heartbeats per second of all workers; see `coordinator`."""
_TIMEOUT: Final = 5.0


class WorkerReport(NamedTuple):
    """The last report of a worker."""

    worker: str
    silent_s: float
    """Seconds since its last heartbeat."""
    known: int
    """The serial up to which it has read the orders."""
    orders: Mapping[int, str]
    """By serial: `ok`, or the code of the refusal."""
    causes: Mapping[int, str]
    """By serial: the cause of a refusal, in the worker's words; not from older versions."""


class Board(NamedTuple):
    """All orders and reports at one moment."""

    now: int
    """The server's time, in microseconds since 1970."""
    texts: list[str]
    """The stored orders, unchanged."""
    reports: list[WorkerReport]
    """The reports of all present workers."""


class Stage(Enum):
    """How far giving an order has come, whatever follows."""

    NOT_GIVEN = "not given"
    SENT = "it is not known whether it was given"
    """Redis has not answered yet."""
    GIVEN = "given, but it is not known which workers obey"
    """Redis has stored it, so that workers obey it."""


class OrderBoard:
    """Reads and writes the orders of one Redis.

    Args:
        redis: A client.
        address: The address of Redis.
    """

    def __init__(self, redis: Redis, address: Address) -> None:
        self._redis: Any = redis  # its annotations include responses of type str
        self._address = address
        self._keys = order_keys(address)

    async def read(self) -> Board:
        """Return all orders, and the reports of the workers that have not been silent for long."""
        orders, obeyed, seen = self._keys
        seconds, micros = await self._redis.time()
        now = int(seconds) * _MICRO + int(micros)
        stored = await self._redis.hgetall(orders)
        texts = [
            _text(value).partition(" ")[2] for key, value in stored.items() if key != b"serial"
        ]
        reports = await self._redis.hgetall(obeyed)
        times = await self._redis.zrangebyscore(seen, "-inf", "+inf", withscores=True)
        longest = _SILENT * max(1.0, len(times) / _WORKERS_PER_SECOND)
        found = [
            parse_report(_text(name), reports.get(name, b""), max(0.0, (now - at) / _MICRO))
            for name, at in times
        ]
        return Board(now, texts, [each for each in found if each.silent_s <= longest])

    async def history(self, count: int) -> list[str]:
        """Return the last orders that were given within a week, the latest first; 100 at most."""
        found = await self._redis.zrange(history_key(self._address), -count, -1)
        return [_text(order) for order in reversed(found)]

    async def resources(self) -> list[str]:
        """Return the names of all shared routes and providers."""
        topics, *_ = registry_keys(self._address)
        return [_text(name) for name in await self._redis.zrange(topics, 0, -1)]

    async def put(self, call: ScriptCall, on_stage: Callable[[Stage], object]) -> bool:
        """Give an order. Return False if the orders, or the time, have changed since `read`.

        Args:
            call: The command, as `order_call` returns it.
            on_stage: Called when the command is sent and when it is answered.
        """
        from redis.exceptions import NoPermissionError, OutOfMemoryError, ReadOnlyError

        await self._redis.script_load(call.script.source)
        on_stage(Stage.SENT)
        try:
            answer = await self._redis.evalsha(
                call.script.sha, len(call.keys), *call.keys, call.encoded()
            )
        except (NoPermissionError, OutOfMemoryError, ReadOnlyError):
            on_stage(Stage.NOT_GIVEN)
            raise
        is_stored = int(answer) == 1
        on_stage(Stage.GIVEN if is_stored else Stage.NOT_GIVEN)
        return is_stored


@contextlib.asynccontextmanager
async def open_board(address: Address, seconds: float = _TIMEOUT) -> AsyncIterator[OrderBoard]:
    """Provide the board for at most some seconds.

    Raises:
        ConfigurationError: Redis cannot be used, or does not answer; the text has the cause.
    """
    factory = RedisConnectionFactory(address)
    try:
        await factory.prepare()  # a busy machine may take seconds for the import of redis-py
        async with asyncio.timeout(seconds), factory.reader() as redis:
            yield OrderBoard(redis, address)
    except TimeoutError:
        raise ConfigurationError(f"Redis at {address.shown}: no answer") from None
    except StoreUnavailableError as error:
        raise ConfigurationError(f"Redis at {address.shown}: {error}") from None


def parse_report(worker: str, text: bytes, silent_s: float) -> WorkerReport:
    """Return the report in a stored text; without orders if the text is damaged.

    Versions of this library share the format. It may get more fields; readers ignore unknown ones.
    """
    try:
        found = json.loads(text)
        orders = {int(serial): str(code) for serial, code in found["orders"].items()}
        causes = {int(serial): str(cause) for serial, cause in found.get("causes", {}).items()}
        return WorkerReport(worker, silent_s, int(found["known"]), orders, causes)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return WorkerReport(worker, silent_s, 0, {}, {})  # damaged, or of another version


def _text(stored: bytes) -> str:
    return stored.decode(errors="replace")
