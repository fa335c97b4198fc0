"""Fake Redis: the real Lua scripts on a store in memory, on the loop's time.

`LuaStore` implements the dozen Redis commands that the scripts use; test_scripts.py compares it
with a real Redis. `FakeRedisCluster` adds latency, message loss and outages.
"""

from __future__ import annotations

import asyncio
import copy
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from lupa import lua51  # type: ignore[import-untyped]

from resilient_imagen.distributed import Address, RedisCoordinator
from resilient_imagen.distributed.scripts import LuaScript, ScriptCall
from resilient_imagen.distributed.store import StoreUnavailableError

START = 1_760_000_000.0
"""The server's time when the loop's time is 0."""
ADDRESS = Address.parse("redis://fake")


class LuaStore:
    """One Redis, limited to the commands that the scripts use.

    Args:
        now: The server's clock, in seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._lua = lua51.LuaRuntime(unpack_returned_tuples=True)
        self._scripts: dict[str, Any] = {}
        self.hashes: dict[str, dict[str, str]] = {}
        self.zsets: dict[str, dict[str, float]] = {}
        self.expires: dict[str, float] = {}
        self.published: list[tuple[str, str]] = []
        """Published messages: channel and message."""
        self.steps = 0
        self.commands = 0

    def flush(self) -> None:
        """Delete all data, like a restart without persistence."""
        self.hashes.clear()
        self.zsets.clear()
        self.expires.clear()

    def copy_data(self) -> Any:
        """Return a snapshot of all data."""
        return copy.deepcopy((self.hashes, self.zsets, self.expires))

    def restore(self, snapshot: Any) -> None:
        """Replace all data by a snapshot."""
        self.hashes, self.zsets, self.expires = copy.deepcopy(snapshot)

    def take(self, step: ScriptCall) -> Any:
        """Run one script call; return its answer in redis-py's types."""
        self.steps += 1
        now = self._now()
        for key in [key for key, when in self.expires.items() if when <= now]:
            self._delete(key)
        table = self._lua.table_from
        run = self._compiled(step.script)
        return _as_redis_py(run(table(list(step.keys)), table([step.encoded()])))

    def _compiled(self, script: LuaScript) -> Any:
        if script.sha not in self._scripts:
            make = self._lua.eval(
                "function(call, encode, decode)\n"
                "local redis = {call = call}\n"
                "local cjson = {encode = encode, decode = decode}\n"
                f"return function(KEYS, ARGV)\n{script.source}\nend\nend"
            )
            self._scripts[script.sha] = make(self._call, _encode, self._decode)
        return self._scripts[script.sha]

    def _call(self, command: str, *arguments: Any) -> Any:
        self.commands += 1
        answer = getattr(self, f"_{command.lower()}")(*map(_text, arguments))
        if answer is None:
            return False
        return self._lua.table_from(answer) if isinstance(answer, list) else answer

    def _decode(self, text: str) -> Any:
        return self._lua.table_from(json.loads(text), recursive=True)

    def _delete(self, key: str) -> None:
        for kind in (self.hashes, self.zsets, self.expires):
            kind.pop(key, None)

    def _time(self) -> list[str]:
        micros = round(self._now() * 1_000_000)
        return [str(micros // 1_000_000), str(micros % 1_000_000)]

    def _hget(self, key: str, name: str) -> str | None:
        return self.hashes.get(key, {}).get(name)

    def _hmget(self, key: str, *names: str) -> list[Any]:
        return [self.hashes.get(key, {}).get(name, False) for name in names]

    def _hgetall(self, key: str) -> list[str]:
        return [part for pair in self.hashes.get(key, {}).items() for part in pair]

    def _hset(self, key: str, *pairs: str) -> int:
        stored = self.hashes.setdefault(key, {})
        before = len(stored)
        stored.update(zip(pairs[::2], pairs[1::2], strict=True))
        return len(stored) - before

    def _hvals(self, key: str) -> list[str]:
        return list(self.hashes.get(key, {}).values())

    def _hdel(self, key: str, *names: str) -> int:
        return self._drop(self.hashes, key, names)

    def _zadd(self, key: str, score: str, member: str) -> int:
        self.zsets.setdefault(key, {})[member] = float(score)
        return 0

    def _zincrby(self, key: str, by: str, member: str) -> str:
        scores = self.zsets.setdefault(key, {})
        scores[member] = scores.get(member, 0.0) + float(by)
        return _text(scores[member])

    def _zrem(self, key: str, *members: str) -> int:
        return self._drop(self.zsets, key, members)

    def _zcard(self, key: str) -> int:
        return len(self.zsets.get(key, {}))

    def _zscore(self, key: str, member: str) -> str | None:
        score = self.zsets.get(key, {}).get(member)
        return None if score is None else _text(score)

    def _zrank(self, key: str, member: str) -> int | None:
        members = [each for _, each in self._sorted(key)]
        return members.index(member) if member in members else None

    def _zrange(self, key: str, start: str, stop: str, *options: str) -> list[str]:
        last = None if int(stop) == -1 else int(stop) + 1
        chosen = self._sorted(key)[int(start) : last]
        if "WITHSCORES" in options:
            return [part for score, member in chosen for part in (member, _text(score))]
        return [member for _, member in chosen]

    def _zrangebyscore(self, key: str, low: str, high: str, *_limit: str) -> list[str]:
        return [member for score, member in self._sorted(key) if _within(score, low, high)]

    def _zremrangebyscore(self, key: str, low: str, high: str) -> int:
        return self._drop(self.zsets, key, tuple(self._zrangebyscore(key, low, high)))

    def _pexpire(self, key: str, milliseconds: str) -> int:
        if key in self.hashes or key in self.zsets:
            self.expires[key] = self._now() + int(milliseconds) / 1000
        return 1

    def _del(self, *keys: str) -> int:
        for key in keys:
            self._delete(key)
        return len(keys)

    def _publish(self, channel: str, message: str) -> int:
        self.published.append((channel, message))
        return 1

    def _sorted(self, key: str) -> list[tuple[float, str]]:
        return sorted((score, member) for member, score in self.zsets.get(key, {}).items())

    def _drop(self, kind: dict[str, Any], key: str, names: Sequence[str]) -> int:
        kept = kind.get(key, {})
        dropped = [name for name in names if kept.pop(name, None) is not None]
        if key in kind and not kept:
            self._delete(key)
        return len(dropped)


class FakeRedisCluster:
    """One store and the connections of all workers to it, on the running loop's time.

    Args:
        latency: Seconds one way.
    """

    def __init__(self, latency: float = 0.001) -> None:
        self.loop = asyncio.get_running_loop()
        self.clock_skew = 0.0
        self.store = LuaStore(lambda: START + self.loop.time() + self.clock_skew)
        self.latency = latency
        self.up = True
        self.trips = 0
        """Number of round trips, including pings and connects."""
        self.deliveries = 0
        """Number of published messages that reached a worker."""
        self.connections: list[FakeConnection] = []
        self.connections_of: dict[str, list[FakeConnection]] = {}
        """All connections of each worker; the present one is last."""
        self.factories: list[FakeConnectionFactory] = []
        self.warnings: list[str] = []
        self.texts: list[str] = []
        """The texts of the warnings."""

    def coordinator(self, host: str = "") -> RedisCoordinator:
        """Return the coordinator of a new worker, on a host of its own or on ``host``."""

        def warn(code: str, text: str) -> None:
            self.warnings.append(code)
            self.texts.append(text)

        factory = FakeConnectionFactory(self)
        self.factories.append(factory)
        coordinator = factory.coordinator = RedisCoordinator(ADDRESS, warn, factory=factory)
        number = len(self.factories)
        coordinator.worker = f"{host or f'host-{number}'}/{number}/0"
        return coordinator

    async def round_trip(self) -> None:
        """Wait for a round trip."""
        self.trips += 1
        if not self.up:
            raise StoreUnavailableError("ConnectionError")
        await asyncio.sleep(2 * self.latency)

    def stop(self) -> None:
        """Stop the server and break all connections."""
        self.up = False
        for link in self.connections:
            link.break_off()

    def restart(self, *, empty: bool) -> None:
        """Restart the server, with or without its data."""
        self.up = True
        if empty:
            self.store.flush()

    def deliver(self) -> None:
        """Deliver the published messages."""
        published, self.store.published = self.store.published, []
        for _, message in published:
            for link in self.connections:
                self.deliveries += 1
                self.loop.call_later(self.latency, link.receive, message.encode())


class FakeConnectionFactory:
    """The `ConnectionFactory` of one worker."""

    def __init__(self, redis: FakeRedisCluster) -> None:
        self.redis = redis
        self.coordinator: RedisCoordinator | None = None
        self.refuses: Exception | None = None
        """The error to raise instead of opening a connection."""
        self.takes = 0.0
        """Additional seconds for opening a connection."""
        self.stuck = False
        """Whether new connections never answer."""

    async def prepare(self) -> None:
        return

    async def open(self) -> FakeConnection:
        await asyncio.sleep(self.takes)
        await self.redis.round_trip()
        if self.refuses is not None:
            raise self.refuses
        link = FakeConnection(self.redis)
        link.stuck = self.stuck
        self.redis.connections.append(link)
        if self.coordinator is not None:
            self.redis.connections_of.setdefault(self.coordinator.worker, []).append(link)
        return link


class FakeConnection:
    """The connection of one worker."""

    def __init__(self, redis: FakeRedisCluster) -> None:
        self.redis = redis
        self.drops_messages = False
        """Whether published messages get lost."""
        self.stuck = False
        """Whether it never answers."""
        self.drops_answers = False
        """Whether scripts run, but their answers get lost."""
        self._messages: asyncio.Queue[bytes | StoreUnavailableError | None] = asyncio.Queue()
        self._broken = False

    async def run(self, steps: Sequence[ScriptCall]) -> list[Any]:
        if self.stuck:
            await asyncio.Event().wait()
        if self._broken:
            raise StoreUnavailableError("ConnectionError")
        self.redis.trips += 1
        await asyncio.sleep(self.redis.latency)
        if self._broken:
            raise StoreUnavailableError("ConnectionError")
        answers = [self.redis.store.take(step) for step in steps]
        self.redis.deliver()
        if self.drops_answers:
            await asyncio.Event().wait()
        await asyncio.sleep(self.redis.latency)
        if self._broken:
            raise StoreUnavailableError("ConnectionError")
        return answers

    async def next_message(self) -> bytes | None:
        message = await self._messages.get()
        if isinstance(message, StoreUnavailableError):
            raise message
        return message

    async def ping(self) -> None:
        self.redis.trips += 1
        if not (self.stuck or self._broken):
            self._messages.put_nowait(None)

    def receive(self, message: bytes) -> None:
        if not (self.drops_messages or self.stuck or self._broken):
            self._messages.put_nowait(message)

    def break_off(self) -> None:
        self._broken = True
        self._messages.put_nowait(StoreUnavailableError("ConnectionError"))

    async def aclose(self) -> None:
        self._broken = True
        if self in self.redis.connections:
            self.redis.connections.remove(self)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and math.isfinite(value):
        return str(int(value))
    return str(value)


def _within(score: float, low: str, high: str) -> bool:
    above = score > float(low[1:]) if low.startswith("(") else score >= float(low)
    below = score < float(high[1:]) if high.startswith("(") else score <= float(high)
    return above and below


def _encode(table: Any) -> str:
    return json.dumps(_as_json(table))


def _as_json(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if lua51.lua_type(value) != "table":
        return value
    names = list(value)
    if names and names == list(range(1, len(names) + 1)):
        return [_as_json(each) for each in value.values()]
    return {name: _as_json(each) for name, each in value.items()}  # an empty table, as in Redis


def _as_redis_py(answer: Any) -> Any:
    if isinstance(answer, str):
        return answer.encode()
    if isinstance(answer, int | float):
        return int(answer)
    return [_as_redis_py(each) for each in answer.values()]
