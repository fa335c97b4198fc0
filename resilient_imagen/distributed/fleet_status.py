"""Fleet status: the shared state in Redis, read without participating."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from resilient_imagen.circuitbreaker.types import BreakerState
from resilient_imagen.distributed.breaker_record import trusted_texts
from resilient_imagen.distributed.connection import RedisConnectionFactory
from resilient_imagen.distributed.coordinator import registry_keys
from resilient_imagen.distributed.store import StoreUnavailableError
from resilient_imagen.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from redis.asyncio import Redis

    from resilient_imagen.distributed.redis_address import Address

__all__ = [
    "FleetStatus",
    "LimiterStatus",
    "RouteStatus",
    "WorkerStatus",
    "read_status",
    "without_account",
]

_MICRO = 1e-6
_LIVE = 60.0
_TIMEOUT: Final = 5.0
_STATES = frozenset(map(str, BreakerState))
_NUMBER = re.compile(r"-?[0-9]{1,18}")
_COUNTER = re.compile(r"([0-9]{1,12}) ([a-z_]{1,40})")
_AMOUNT = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,6})?")
_MINUTE: Final = 60_000_000
_MINUTES: Final = 60
_WORDS = re.compile(r"[\w.=: @/+-]{0,500}", re.ASCII)
"""Texts of other workers that may be shown."""


class RouteStatus(NamedTuple):
    """The shared breaker of one route."""

    route: str
    """``provider:model``, followed by @ and the account's identifier if there is one."""
    name: str
    """``provider:model``."""
    state: str
    """closed, open or half_open; open with 0 seconds left is due for a probe. Any other stored
    value is shown as unknown."""
    since_s: float
    left_s: float
    """Remaining seconds of the open period."""
    openings_in_a_row: int
    why: str | None
    summary: str | None
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
    """Seconds until the next place."""
    per_minute: float
    """Images per minute: the lowest setting of all workers; 0 if unknown."""
    waiting: int
    """Number of workers that wait for a place."""


class WorkerStatus(NamedTuple):
    """A worker with a heartbeat within the last minute."""

    name: str
    """``host/process/number``."""
    version: str
    """The version of this library."""
    protocol: int
    """The version of the data in Redis that it uses."""
    silent_s: float
    """Seconds since its last registration, which it sends about every ten seconds."""
    settings: dict[str, str]
    """The settings of each route and provider."""


class FleetStatus(NamedTuple):
    """The shared state of all routes and providers at one moment."""

    redis: str
    namespace: str
    """The prefix of every key."""
    routes: tuple[RouteStatus, ...]
    paces: tuple[LimiterStatus, ...]
    workers: tuple[WorkerStatus, ...]
    minutes: tuple[Mapping[str, float], ...] | None
    """The counters of all workers for each minute of the last hour, the current one last; None if
    there are none."""

    def to_json(self) -> dict[str, Any]:
        """Return the status as plain JSON."""
        return {
            "redis": self.redis,
            "namespace": self.namespace,
            "routes": [route._asdict() for route in self.routes],
            "paces": [pace._asdict() for pace in self.paces],
            "workers": [worker._asdict() for worker in self.workers],
        }


async def read_status(address: Address) -> FleetStatus:
    """Read the record of every route, the rate limit of every provider and all workers.

    Raises:
        ConfigurationError: Redis cannot be read; the text has the cause.
    """
    factory = RedisConnectionFactory(address)
    try:
        await factory.prepare()  # a busy machine may take seconds for the import of redis-py
        async with asyncio.timeout(_TIMEOUT), factory.reader() as redis:
            seconds, micros = await redis.time()
            now = seconds * 1_000_000 + micros
            topics, members, seen, counters = registry_keys(address)
            names = [_text(name) for name in await redis.zrange(topics, 0, -1)]
            names = sorted(name for name in names if name.isprintable())
            routes = [
                await _route(redis, address, name, without_account(name, names), now)
                for name in names
                if ":" in name
            ]
            paces = [await _pace(redis, address, name, now) for name in names if ":" not in name]
            workers = await _workers(redis, members, seen, now)
            minutes = _minutes(await _hash(redis, counters), now)
    except TimeoutError:
        raise ConfigurationError(f"Redis at {address.shown}: no answer") from None
    except StoreUnavailableError as error:
        raise ConfigurationError(f"Redis at {address.shown}: {error}") from None
    return FleetStatus(
        address.shown, address.namespace, tuple(routes), tuple(paces), workers, minutes
    )


def without_account(route: str, resources: Iterable[str]) -> str:
    """Return the ``provider:model`` of a shared route.

    A model's name may contain @, too, so that the account is found by the provider's own resource.

    Args:
        route: The route as ``RouteStatus.route`` has it.
        resources: The names of all shared routes and providers.
    """
    for resource in resources:
        provider, _, account = resource.partition("@")
        ours = account and ":" not in provider and route.startswith(f"{provider}:")
        if ours and route.endswith(f"@{account}"):
            return route.removesuffix(f"@{account}")
    return route


async def _route(redis: Redis, address: Address, route: str, name: str, now: int) -> RouteStatus:
    record = await _hash(redis, address.key("circuit", route))
    workers = await _hash(redis, address.key("workers", route))
    live = await redis.zcount(address.key("seen", route), now - int(_LIVE / _MICRO), "+inf")
    probes = await redis.zcount(address.key("leases", route), now, "+inf")
    state = record.get("state", "closed")
    entries = [entry.split(":") for entry in workers.values()]
    generation = record.get("generation")
    counts = [
        (_integer(calls), _integer(failures))
        for own, calls, failures in (entry for entry in entries if len(entry) == len("gcf"))
        if own == generation
    ]
    why, summary = trusted_texts(record.get("cause", ""), record.get("summary", ""))
    left = max(0.0, (_integer(record.get("till"), now) - now) * _MICRO)
    return RouteStatus(
        route=route,
        name=name,
        state=state if state in _STATES else "unknown",
        since_s=max(0.0, (now - _integer(record.get("since"), now)) * _MICRO),
        left_s=left if state == "open" else 0.0,
        openings_in_a_row=_integer(record.get("openings")),
        why=why,
        summary=summary,
        failures_in_a_row=_integer(record.get("streak")),
        window_calls=sum(calls for calls, _ in counts),
        window_failures=sum(failures for _, failures in counts),
        probes=probes,
        workers=live,
    )


async def _pace(redis: Redis, address: Address, name: str, now: int) -> LimiterStatus:
    pace = await _hash(redis, address.key("pace", name))
    wait = max(0.0, (_integer(pace.get("next"), now) - now) * _MICRO)
    interval = _integer(pace.get("interval")) * _MICRO
    per_minute = round(60.0 / interval, 3) if interval > 0 else 0.0
    return LimiterStatus(name, wait, per_minute, await redis.zcard(address.key("queue", name)))


async def _workers(redis: Redis, members: str, seen: str, now: int) -> tuple[WorkerStatus, ...]:
    described = await _hash(redis, members)
    since = now - int(_LIVE / _MICRO)
    live: Any = await redis.zrangebyscore(seen, since, "+inf", withscores=True)
    return tuple(
        _worker(_text(name), described.get(_text(name), ""), max(0.0, (now - at) * _MICRO))
        for name, at in sorted(live)
        if _WORDS.fullmatch(_text(name))
    )


def _worker(name: str, description: str, silent_s: float) -> WorkerStatus:
    try:
        fields = json.loads(description)
        settings = {str(key): str(value) for key, value in fields["settings"].items()}
        version, protocol = str(fields["version"]), int(fields["protocol"])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return WorkerStatus(name, "unknown", 0, silent_s, {})  # damaged or forged
    shown = {
        key: value
        for key, value in settings.items()
        if _WORDS.fullmatch(key) and _WORDS.fullmatch(value)
    }
    return WorkerStatus(
        name, version if _WORDS.fullmatch(version) else "unknown", protocol, silent_s, shown
    )


def _minutes(stored: Mapping[str, str], now: int) -> tuple[Mapping[str, float], ...] | None:
    current = now // _MINUTE
    rows: dict[int, dict[str, float]] = {}
    for field, value in stored.items():
        counter = _COUNTER.fullmatch(field)
        if counter is not None and _AMOUNT.fullmatch(value):
            rows.setdefault(int(counter[1]), {})[counter[2]] = float(value)
    recent = range(current - _MINUTES + 1, current + 1)
    return tuple(rows.get(minute, {}) for minute in recent) if rows else None


async def _hash(redis: Redis, key: str) -> Mapping[str, str]:
    return {_text(k): _text(v) for k, v in (await redis.hgetall(key)).items()}


def _text(stored: Any) -> str:
    return bytes(stored).decode(errors="replace")


def _integer(text: str | None, default: int = 0) -> int:
    """Return a stored integer; the default if it is damaged or forged."""
    return int(text) if text is not None and _NUMBER.fullmatch(text) else default
