"""The Lua scripts: a real Redis and the fake Redis give the same answers."""

from __future__ import annotations

import asyncio
import json
import time
from hashlib import sha1
from typing import Any

import pytest
from fake_redis import LuaStore
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis_kit import RedisServer

from resilient_imagen.distributed.connection import RedisConnectionFactory
from resilient_imagen.distributed.redis_address import Address
from resilient_imagen.distributed.scripts import (
    LEASE,
    LEAVE,
    OPEN,
    REGISTER,
    RELEASE,
    SETTLE,
    SHORTEN,
    TAKE,
    VOTE,
    LuaScript,
    ScriptCall,
)
from resilient_imagen.distributed.store import StoreConnection, StoreUnavailableError

HOUR = 3600 * 1_000_000
CIRCUIT = ("circuit", "leases", "workers", "seen")
PACE = ("pace", "queue", "wants", "pacers", "intervals")


async def open_link(server: RedisServer) -> StoreConnection:
    return await RedisConnectionFactory(Address.parse(server.url)).open()


workers = st.sampled_from(["a", "b", "c"])
tokens = st.sampled_from(["t1", "t2", "t3"])
fences = st.integers(-1, 2)
"""How many states behind the present one the worker is; -1: it knows a newer one."""

actions = st.one_of(
    st.tuples(
        st.just(VOTE), workers, fences, st.sampled_from(["", "success", "failure"]),
        st.sampled_from([1, 3]), st.booleans(), st.booleans(), st.integers(0, 9), st.integers(0, 9),
    ),
    st.tuples(st.just(OPEN), workers, fences, st.sampled_from([0, HOUR]), st.booleans(),
              st.sampled_from(["seen", "hinted", "late", "memory"]), st.integers(0, 3), tokens,
              st.booleans()),
    st.tuples(st.just(SHORTEN), workers, fences, st.sampled_from([0, HOUR, 2 * HOUR])),
    st.tuples(st.just(LEASE), workers, fences, tokens, st.sampled_from([1, 2])),
    st.tuples(st.just(SETTLE), workers, fences, tokens, st.integers(1, 2), st.sampled_from([1, 2])),
    st.tuples(st.just(RELEASE), workers, fences, tokens),
    st.tuples(st.just(LEAVE), workers, fences),
    st.tuples(st.just(TAKE), workers, st.sampled_from([None, 0, 1, 4]), st.sampled_from([1, 3]),
              st.sampled_from([HOUR, 2 * HOUR]), st.sampled_from([0, HOUR]), st.integers(0, 2),
              st.booleans()),
)  # fmt: skip


class ScriptCaller:
    """Turns actions into script calls, with the last record and places that were received."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.known: dict[str, Any] = {"epoch": "?", "version": 0, "generation": 1}
        self.places: list[str] = []

    def step(self, action: Any) -> ScriptCall:
        script: LuaScript = action[0]
        if script is TAKE:
            return self._take(*action[1:])
        worker, behind, *more = action[1:]
        keys = tuple(f"{self.prefix}:{kind}" for kind in CIRCUIT)
        known = {**self.known, "generation": self.known["generation"] - behind}
        common = {
            "worker": worker,
            "channel": f"{self.prefix}:news",
            "route": "google:pro",
            "settings": f"fail_max={len(worker)}",
            **known,
        }
        cause = {"pause": HOUR, "cause": "timeout", "summary": "timed out"}
        names = {
            VOTE: ("vote", "weight", "answered", "share", "calls", "failures"),
            OPEN: ("pause", "answered", "basis", "openings", "token", "closes"),
            SHORTEN: ("longest",),
            LEASE: ("token", "places"),
            SETTLE: ("token", "successes", "needed"),
            RELEASE: ("token",),
            LEAVE: (),
        }[script]
        rules = {"fail_max": 3, "failure_rate": 0.5, "min_calls": 6, "deadline": HOUR}
        own = dict(zip(names, more, strict=True))
        if script is VOTE:
            own["calls"] = max(own["calls"], own["failures"])
        return ScriptCall(script, keys, {**common, **cause, **rules, **own})

    def _take(
        self,
        worker: str,
        want: int | None,
        burst: int,
        interval: int,
        ahead: int,
        returned: int,
        leaving: bool,
    ) -> ScriptCall:
        keys = tuple(f"{self.prefix}:{kind}" for kind in PACE)
        arguments = {
            "worker": worker,
            "burst": burst,
            "interval": interval,
            "known": ahead > 0,
            "ahead": ahead,
            "leaving": leaving,
            "returned": [self.places.pop() for _ in range(min(returned, len(self.places)))],
        }
        return ScriptCall(TAKE, keys, arguments if want is None else {**arguments, "want": want})

    def receive(self, script: LuaScript, answer: Any) -> Any:
        """Return the parts of the answer that do not depend on the clock."""
        decoded = json.loads(answer)
        if script is TAKE:
            places = decoded.pop("places") or []
            self.places += [name for _, name in places]
            waits = [wait for wait, _ in places] + [decoded.pop("next"), decoded.pop("again")]
            return {**decoded, "waits": [round(wait / HOUR) for wait in waits]}
        self.known = {name: decoded[name] for name in self.known}
        del decoded["epoch"]
        return {
            **decoded,
            "left": round(decoded["left"] / HOUR),
            "lease": round(decoded["lease"] / HOUR),
        }


@pytest.mark.redis
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(script=st.lists(actions, min_size=1, max_size=25))
def test_the_fake_redis_answers_like_a_real_one(server: RedisServer, script: list[Any]) -> None:
    """A real Redis and the store in memory give the same answers to random commands."""

    async def scene() -> None:
        link = await open_link(server)
        try:
            server.ask("FLUSHALL")
            store = LuaStore(time.time)
            real, ours = ScriptCaller("x"), ScriptCaller("x")
            for action in script:
                answer = (await link.run([real.step(action)]))[0]
                assert real.receive(action[0], answer) == ours.receive(
                    action[0], store.take(ours.step(action))
                )
        finally:
            await link.aclose()

    asyncio.run(scene())


@pytest.mark.redis
def test_scripts_that_were_flushed_are_loaded_again(server: RedisServer) -> None:
    """SCRIPT FLUSH costs one more round trip."""

    async def scene() -> None:
        link = await open_link(server)
        try:
            server.ask("SCRIPT", "FLUSH")
            step = ScriptCaller("p").step((TAKE, "a", 1, 1, 1000, 0, 0, False))
            assert len(json.loads((await link.run([step, step]))[1])["places"]) == 1
        finally:
            await link.aclose()

    asyncio.run(scene())


@pytest.mark.redis
def test_every_key_expires(server: RedisServer) -> None:
    """Each command sets a time to live on every key that it writes."""

    async def scene() -> None:
        link = await open_link(server)
        try:
            caller = ScriptCaller("ttl")
            actions = (
                (VOTE, "a", 0, "failure", 3, True, True, 1, 1),
                (TAKE, "a", 3, 1, HOUR, 0, 0, False),
            )
            calls = [caller.step(action) for action in actions]
            about = {
                "worker": "a", "description": "{}", "resources": ["r"], "leaving": False,
                "minutes": [{"age": 0, "counts": {"calls": 1}}],
            }  # fmt: skip
            names = tuple(f"ttl:{kind}" for kind in ("topics", "members", "seen", "minutes"))
            await link.run([*calls, ScriptCall(REGISTER, names, about)])
        finally:
            await link.aclose()
        keys = [word for word in server.ask("KEYS", "*").decode().split("\r\n") if ":" in word]
        kinds = "circuit workers seen pace queue wants pacers intervals topics members minutes"
        assert {f"ttl:{kind}" for kind in kinds.split()} == set(keys)
        for key in keys:
            assert int(server.ask("PTTL", key).strip()[1:]) > 0

    asyncio.run(scene())


@pytest.mark.redis
def test_a_rejected_write_is_a_store_error(server: RedisServer) -> None:
    """The error of a full Redis breaks the connection off, and its text contains no data."""
    source = "return redis.call('SET', KEYS[1], ARGV[1])"
    greedy = LuaScript("greedy", source, sha1(source.encode()).hexdigest())

    async def scene() -> None:
        link = await open_link(server)
        server.ask("SCRIPT", "LOAD", source)
        server.ask("CONFIG", "SET", "maxmemory", "1")
        try:
            with pytest.raises(StoreUnavailableError, match=r"^it is full$"):
                await link.run([ScriptCall(greedy, ("key",), {})])
        finally:
            server.ask("CONFIG", "SET", "maxmemory", "0")
            await link.aclose()

    asyncio.run(scene())


@pytest.mark.redis
def test_scripts_that_free_memory_work_in_a_full_redis(server: RedisServer) -> None:
    """Redis completes a script whose first write frees memory."""

    async def scene() -> None:
        link = await open_link(server)
        server.ask("CONFIG", "SET", "maxmemory", "1")
        try:
            caller = ScriptCaller("full")
            steps = [
                caller.step((TAKE, "a", 1, 1, HOUR, 0, 0, False)),
                caller.step((VOTE, "a", 0, "", 1, False, False, 0, 0)),
            ]
            assert len(await link.run(steps)) == 2
        finally:
            server.ask("CONFIG", "SET", "maxmemory", "0")
            await link.aclose()

    asyncio.run(scene())
