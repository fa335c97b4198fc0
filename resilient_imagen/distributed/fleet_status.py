"""Fleet status: the shared state in Redis, read without participating."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from resilient_imagen.circuitbreaker.types import BreakerState
from resilient_imagen.distributed.breaker_record import trusted_texts
from resilient_imagen.distributed.connection import RedisConnectionFactory
from resilient_imagen.distributed.store import JOIN_WITHIN, StoreUnavailableError
from resilient_imagen.errors import ConfigurationError

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from resilient_imagen.distributed.redis_address import Address

__all__ = ["FleetStatus", "LimiterStatus", "RouteStatus", "read_status"]

_MICRO = 1e-6
_LIVE = 60.0
_STATES = frozenset(map(str, BreakerState))
_NUMBER = re.compile(r"-?[0-9]{1,18}")
_COUNTS = 3
"""Numbers in a worker's entry: generation, calls, failures."""


class RouteStatus(NamedTuple):
    """The shared breaker of one route."""

    route: str
    """``provider:model``, followed by @ and the account's identifier if there is one."""
    state: str
    """closed, open or half_open; open with 0 seconds left is due for a probe. Any other stored
    value is shown as unknown."""
    since_s: float
    left_s: float
    """Remaining seconds of the open period."""
    openings_in_a_row: int
    why: str | None
    brief: str | None
    failures_in_a_row: int
    window_calls: int
    window_failures: int
    probes: int
    """Number of leases in use."""
    workers: int
    """Number of workers with a heartbeat within the last minute."""


class LimiterStatus(NamedTuple):
    """The shared rate limit of one provider."""

    provider: str
    """The provider's name, followed by @ and the account's identifier if there is one."""
    wait_s: float
    """Seconds until the next new place."""
    returned: int
    """Number of future places that were given back and are free."""


class FleetStatus(NamedTuple):
    """The shared state of all routes and providers at one moment."""

    redis: str
    namespace: str
    """The prefix of every key."""
    routes: tuple[RouteStatus, ...]
    paces: tuple[LimiterStatus, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the status as plain JSON."""
        return {
            "redis": self.redis,
            "namespace": self.namespace,
            "routes": [route._asdict() for route in self.routes],
            "paces": [pace._asdict() for pace in self.paces],
        }


async def read_status(address: Address) -> FleetStatus:
    """Read the record of every route and the rate limit of every provider.

    Raises:
        ConfigurationError: Redis cannot be read; the text has the cause.
    """
    factory = RedisConnectionFactory(address)
    try:
        async with asyncio.timeout(5 * JOIN_WITHIN), factory.reader() as redis:
            seconds, micros = await redis.time()
            now = seconds * 1_000_000 + micros
            names = await _names(redis, address.key("circuit", "*"))
            routes = [await _route(redis, address, name, now) for name in names]
            names = await _names(redis, address.key("pace", "*"))
            paces = [await _pace(redis, address, name, now) for name in names]
    except TimeoutError:
        raise ConfigurationError(f"Redis at {address.shown}: no answer") from None
    except StoreUnavailableError as error:
        raise ConfigurationError(f"Redis at {address.shown}: {error}") from None
    return FleetStatus(address.shown, address.namespace, tuple(routes), tuple(paces))


async def _names(redis: Redis, pattern: str) -> list[str]:
    """Return the sorted parts of keys that match the star of a pattern."""
    before, _, after = pattern.partition("*")
    found = {
        _text(key)[len(before) : -len(after)]
        async for key in redis.scan_iter(match=pattern, count=500)
    }
    return sorted(name for name in found if name.isprintable())


async def _route(redis: Redis, address: Address, name: str, now: int) -> RouteStatus:
    record = await _hash(redis, address.key("circuit", name))
    workers = await _hash(redis, address.key("workers", name))
    live = await redis.zcount(address.key("seen", name), now - int(_LIVE / _MICRO), "+inf")
    probes = await redis.zcount(address.key("leases", name), now, "+inf")
    state = record.get("state", "closed")
    entries = [entry.split(":") for entry in workers.values()]
    generation = record.get("generation")
    counts = [
        (_integer(calls), _integer(failures))
        for own, calls, failures in (entry for entry in entries if len(entry) == _COUNTS)
        if own == generation
    ]
    why, brief = trusted_texts(record.get("cause", ""), record.get("brief", ""))
    left = max(0.0, (_integer(record.get("till"), now) - now) * _MICRO)
    return RouteStatus(
        route=name,
        state=state if state in _STATES else "unknown",
        since_s=max(0.0, (now - _integer(record.get("since"), now)) * _MICRO),
        left_s=left if state == "open" else 0.0,
        openings_in_a_row=_integer(record.get("openings")),
        why=why,
        brief=brief,
        failures_in_a_row=_integer(record.get("streak")),
        window_calls=sum(calls for calls, _ in counts),
        window_failures=sum(failures for _, failures in counts),
        probes=probes,
        workers=live,
    )


async def _pace(redis: Redis, address: Address, name: str, now: int) -> LimiterStatus:
    pace = await _hash(redis, address.key("pace", name))
    returned = await redis.zcount(address.key("free", name), now, "+inf")
    wait = max(0.0, (_integer(pace.get("next"), now) - now) * _MICRO)
    return LimiterStatus(name, wait, returned)


async def _hash(redis: Redis, key: str) -> dict[str, str]:
    return {_text(k): _text(v) for k, v in (await redis.hgetall(key)).items()}


def _text(stored: Any) -> str:
    return bytes(stored).decode(errors="replace")


def _integer(text: str | None, default: int = 0) -> int:
    """Return a stored integer; the default if it is damaged or forged."""
    return int(text) if text is not None and _NUMBER.fullmatch(text) else default
