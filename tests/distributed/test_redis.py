"""Against a real Redis: what an application meets when it is gone, silent, slow, or full."""

from __future__ import annotations

import asyncio
import time

import pytest
from fleet_proxy import Proxy
from loop_kit import LoopScenario, run_loop_scenario, until
from ports import free_port
from redis_kit import RedisServer, redis_server

from resilient_imagen.distributed import coordinator
from resilient_imagen.reasons import Reason

pytestmark = pytest.mark.redis


def test_no_redis_at_start_is_told_once_and_costs_no_call() -> None:
    """Images come; one warning; when Redis is started, the client joins by itself."""

    async def scene(server: RedisServer) -> None:
        server.kill()
        world = LoopScenario(server.url)
        async with world.client:
            await asyncio.gather(*(world.ask() for _ in range(5)))
            await asyncio.sleep(1.5)
            await world.ask()
            server.start()
            await until(lambda: world.joined)
            await world.ask()
        warnings = await world.warnings()
        assert len(warnings) == 1
        assert f"127.0.0.1:{server.port}" in warnings[0]

    with redis_server() as server:
        run_loop_scenario(scene(server))


def test_a_killed_redis_costs_no_call_and_the_fleet_joins_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three clients under load; Redis is killed and started empty: no failed call, one event."""

    async def scene(server: RedisServer) -> None:
        worlds = [LoopScenario(server.url) for _ in range(3)]
        stop = asyncio.Event()

        async def load(world: LoopScenario) -> None:
            while not stop.is_set():
                await world.ask()

        for world in worlds:
            await world.client.warm_up()
        loads = [asyncio.ensure_future(load(world)) for world in worlds]
        await asyncio.sleep(1)
        server.kill()
        await until(lambda: not any(world.joined for world in worlds))
        counts = [len(world.google.sent) for world in worlds]
        await asyncio.sleep(1)
        for world, count in zip(worlds, counts, strict=True):
            assert len(world.google.sent) > count
        server.start()
        await until(lambda: all(world.joined for world in worlds))
        stop.set()
        await asyncio.gather(*loads)
        for world in worlds:
            await world.client.aclose()
            assert len(await world.warnings()) == 1

    # Losing Redis is an event of its own from then on.
    monkeypatch.setattr(coordinator, "_STEADY", 0.5)
    with redis_server() as server:
        run_loop_scenario(scene(server))


def test_a_frozen_redis_is_gone_within_a_second() -> None:
    """It keeps connections and answers nothing: who asks loses half a second, the next ones none.

    The best of three times counts: a machine that is busy with something else is no failure.
    """

    async def scene(server: RedisServer) -> None:
        first: list[float] = []
        rest: list[float] = []
        world = LoopScenario(server.url)
        async with world.client:
            await world.client.warm_up()
            for _ in range(3):
                server.freeze()
                began = time.monotonic()
                await asyncio.gather(*(world.ask() for _ in range(3)))
                first.append(time.monotonic() - began)
                assert not world.joined
                began = time.monotonic()
                await asyncio.gather(*(world.ask() for _ in range(20)))
                rest.append(time.monotonic() - began)
                server.thaw()
                await until(lambda: world.joined)
        assert 0.4 < min(first) < 1.0
        assert min(rest) < 0.3

    with redis_server() as server:
        run_loop_scenario(scene(server))


def test_a_redis_that_answers_slowly_is_as_good_as_none(server: RedisServer) -> None:
    """Answers come, each after a second: images do not wait for them, until it is quick again."""

    async def scene() -> None:
        with Proxy(server.port) as proxy:
            world = LoopScenario(proxy.url)
            async with world.client:
                await world.client.warm_up()
                proxy.delay = 1.0
                end = time.monotonic() + 2
                while time.monotonic() < end:
                    await world.ask()
                assert len(world.google.sent) > 10
                assert not world.joined
                proxy.delay = 0.0
                await until(lambda: world.joined)
            assert len(await world.warnings()) == 1

    run_loop_scenario(scene())


@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_a_redis_that_refuses_to_write_is_as_good_as_none(trouble: str) -> None:
    """Full, or turned into a replica: every call is served, and the client joins again."""
    commands = {
        "full": (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
        "read-only": (("REPLICAOF", "127.0.0.1", str(free_port())), ("REPLICAOF", "NO", "ONE")),
    }

    async def scene(server: RedisServer) -> None:
        wrong, right = commands[trouble]
        world = LoopScenario(server.url)
        async with world.client:
            await world.ask()
            server.ask(*wrong)
            for _ in range(10):
                await world.ask()
            server.ask(*right)
            await until(lambda: world.joined)
            await world.ask()

    with redis_server() as server:
        run_loop_scenario(scene(server))


def test_two_fleets_share_one_redis_and_nothing_else(server: RedisServer) -> None:
    """`?namespace=` keeps them apart: one fleet's outage is none of the other's."""

    async def scene() -> None:
        one, two = (
            LoopScenario(f"{server.url}?namespace=one"),
            LoopScenario(f"{server.url}?namespace=two"),
        )
        async with one.client, two.client:
            await asyncio.gather(one.ask(), two.ask())
            await one.outage()
            await asyncio.sleep(0.2)
            assert (one.state, two.state) == ("open", "closed")

    run_loop_scenario(scene())


def test_two_accounts_share_one_redis_and_nothing_else(server: RedisServer) -> None:
    """Same route, other key: neither the used-up quota nor the pace is the other's business.

    Who has the same key shares both; and no key is ever sent to Redis.
    """

    async def scene() -> None:
        one, same, other = (
            LoopScenario(server.url, api_key=key, ipm=1)
            for key in ("key-of-one", "key-of-one", "key-of-another")
        )
        async with one.client, same.client, other.client:
            for world in (one, same, other):
                await world.client.warm_up()
            await asyncio.gather(one.ask(), other.ask())  # each is its account's first in a minute
            await until(lambda: same.route.limiter.shortest_wait() > 30)
            one.route.breaker.force_trip(cause=Reason.QUOTA_EXHAUSTED, summary="429")
            await until(lambda: same.state == "open")
            assert other.state == "closed"

    run_loop_scenario(scene())
    keys = server.ask("KEYS", "*")
    assert keys.count(b":circuit") == 2
    assert b"key-of" not in keys
