"""The shared steps: the store in memory that tests use does as Redis does."""

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
    GIVE_BACK,
    LEASE,
    LEAVE,
    OPEN,
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


async def open_link(server: RedisServer) -> StoreConnection:
    return await RedisConnectionFactory(Address.parse(server.url)).open()


workers = st.sampled_from(["a", "b", "c"])
tokens = st.sampled_from(["t1", "t2", "t3"])
fences = st.integers(0, 2)
"""How many states behind the present one the speaker is."""

actions = st.one_of(
    st.tuples(
        st.just(VOTE), workers, fences, st.sampled_from(["", "success", "failure"]),
        st.sampled_from([1, 3]), st.booleans(), st.booleans(), st.integers(0, 9), st.integers(0, 9),
    ),
    st.tuples(st.just(OPEN), workers, fences, st.sampled_from([0, HOUR]), st.booleans(),
              st.sampled_from(["seen", "told", "late", "memory"]), st.integers(0, 3), tokens,
              st.booleans()),
    st.tuples(st.just(SHORTEN), workers, fences, st.sampled_from([0, HOUR, 2 * HOUR])),
    st.tuples(st.just(LEASE), workers, tokens, st.sampled_from([1, 2])),
    st.tuples(st.just(SETTLE), workers, fences, tokens, st.integers(1, 2), st.sampled_from([1, 2])),
    st.tuples(st.just(RELEASE), workers, tokens),
    st.tuples(st.just(LEAVE), workers),
    st.tuples(st.just(TAKE), st.integers(0, 4), st.sampled_from([0, 2])),
    st.tuples(st.just(GIVE_BACK), st.integers(0, 2), st.sampled_from([0, 2])),
)  # fmt: skip


class Speaker:
    """Turns actions into steps, with what it heard before."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.epoch = "?"
        self.generation = 1
        self.places: list[str] = []

    def step(self, action: Any) -> ScriptCall:
        script: LuaScript = action[0]
        if script in {TAKE, GIVE_BACK}:
            keys = tuple(f"{self.prefix}:{kind}" for kind in ("pace", "free"))
            if script is TAKE:
                return ScriptCall(script, keys, (action[1], HOUR, action[2] * HOUR))
            names = [self.places.pop() for _ in range(min(action[1], len(self.places)))]
            return ScriptCall(script, keys, (HOUR, action[2] * HOUR, *names))
        keys = tuple(f"{self.prefix}:{kind}" for kind in CIRCUIT)
        fixed = (action[1], f"{self.prefix}:news", "google:pro")
        if script in {LEASE, RELEASE, LEAVE}:
            more = (action[2], HOUR, action[3]) if script is LEASE else action[2:]
            return ScriptCall(script, keys, (*fixed, *more))
        fence = (self.epoch, self.generation - action[2])
        if script is VOTE:
            vote, weight, answered, share, calls, failures = action[3:]
            rest: tuple[Any, ...] = (
                *(vote, weight, int(answered), int(share), max(calls, failures), failures),
                *(HOUR, "overloaded", "503", 3, 0.5, 6),
            )
        elif script is OPEN:
            pause, answered, basis, openings, token, closes = action[3:]
            rest = (pause, "timeout", "timed out", int(answered), basis, openings, token)
            rest = (*rest, int(closes))
        else:
            rest = action[3:]
        return ScriptCall(script, keys, (*fixed, *fence, *rest))

    def hear(self, script: LuaScript, answer: Any) -> Any:
        """What of the answer does not depend on the clock."""
        if script is TAKE:
            self.places += [name.decode() for name in answer[1:-1:2]]
            return [round(int(wait) / HOUR) for wait in answer[::2]]
        if script is GIVE_BACK:
            return answer
        told = json.loads(answer)
        self.epoch, self.generation = told.pop("epoch"), told["generation"]
        return {**told, "left": round(told["left"] / HOUR), "lease": round(told["lease"] / HOUR)}


@pytest.mark.redis
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(script=st.lists(actions, min_size=1, max_size=25))
def test_the_store_in_memory_does_as_redis_does(server: RedisServer, script: list[Any]) -> None:
    """Random steps are answered alike by a real Redis and by the same Lua on our own store."""

    async def play() -> None:
        link = await open_link(server)
        try:
            server.ask("FLUSHALL")
            store = LuaStore(time.time)
            real, ours = Speaker("x"), Speaker("x")
            for action in script:
                answer = (await link.run([real.step(action)]))[0]
                assert real.hear(action[0], answer) == ours.hear(
                    action[0], store.take(ours.step(action))
                )
        finally:
            await link.aclose()

    asyncio.run(play())


@pytest.mark.redis
def test_scripts_that_were_flushed_are_loaded_again(server: RedisServer) -> None:
    """SCRIPT FLUSH costs one more round trip, and nothing else."""

    async def play() -> None:
        link = await open_link(server)
        try:
            server.ask("SCRIPT", "FLUSH")
            step = ScriptCall(TAKE, ("p:pace", "p:free"), (1, 1000, 0))
            assert len((await link.run([step, step]))[1]) == 3
        finally:
            await link.aclose()

    asyncio.run(play())


@pytest.mark.redis
def test_every_key_dies_when_nobody_uses_it(server: RedisServer) -> None:
    """Each step leaves a time to live on every key it wrote."""

    async def play() -> None:
        link = await open_link(server)
        try:
            speaker = Speaker("ttl")
            for action in (
                (VOTE, "a", 0, "failure", 3, True, True, 1, 1),
                (TAKE, 3, 0),
            ):
                answer = (await link.run([speaker.step(action)]))[0]
                speaker.hear(action[0], answer)
            speaker.places = speaker.places[1:2]  # neither the one due now nor the last
            await link.run([speaker.step((GIVE_BACK, 1, 0))])
        finally:
            await link.aclose()
        keys = [word for word in server.ask("KEYS", "*").decode().split("\r\n") if ":" in word]
        assert {"ttl:circuit", "ttl:workers", "ttl:seen", "ttl:pace", "ttl:free"} == set(keys)
        for key in keys:
            assert int(server.ask("PTTL", key).strip()[1:]) > 0

    asyncio.run(play())


@pytest.mark.redis
def test_a_step_that_redis_refuses_is_a_link_error(server: RedisServer) -> None:
    """What a full Redis answers to a write breaks off, and its text says no more than that."""
    source = "return redis.call('SET', KEYS[1], ARGV[1])"
    greedy = LuaScript("greedy", source, sha1(source.encode()).hexdigest())

    async def play() -> None:
        link = await open_link(server)
        server.ask("SCRIPT", "LOAD", source)
        server.ask("CONFIG", "SET", "maxmemory", "1")
        try:
            with pytest.raises(StoreUnavailableError, match=r"^it is full$"):
                await link.run([ScriptCall(greedy, ("key",), ("value",))])
        finally:
            server.ask("CONFIG", "SET", "maxmemory", "0")
            await link.aclose()

    asyncio.run(play())


@pytest.mark.redis
def test_our_own_steps_still_work_in_a_full_redis(server: RedisServer) -> None:
    """They begin by freeing memory, after which Redis lets a script finish: a few bytes each."""

    async def play() -> None:
        link = await open_link(server)
        server.ask("CONFIG", "SET", "maxmemory", "1")
        try:
            speaker = Speaker("full")
            steps = [speaker.step((TAKE, 1, 0)), speaker.step((VOTE, "a", 0, "", 1, 0, 0, 0, 0))]
            assert len(await link.run(steps)) == 2
        finally:
            server.ask("CONFIG", "SET", "maxmemory", "0")
            await link.aclose()

    asyncio.run(play())
