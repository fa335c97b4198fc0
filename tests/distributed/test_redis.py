"""Applications with a real Redis that is down, silent, slow, or full."""

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


def test_a_missing_redis_at_the_start_is_reported_once_and_fails_no_call() -> None:
    """Calls are served, with one warning; when Redis is started, the client connects."""

    async def scene(server: RedisServer) -> None:
        server.kill()
        scenario = LoopScenario(server.url)
        async with scenario.client:
            await asyncio.gather(*(scenario.ask() for _ in range(5)))
            await asyncio.sleep(1.5)
            await scenario.ask()
            server.start()
            await until(lambda: scenario.joined)
            await scenario.ask()
        warnings = await scenario.warnings()
        assert len(warnings) == 1
        assert f"127.0.0.1:{server.port}" in warnings[0]

    with redis_server() as server:
        run_loop_scenario(scene(server))


@pytest.mark.ci
def test_a_killed_redis_fails_no_call_and_the_fleet_reconnects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Redis is killed and restarted empty under load of three clients: no call fails, each client
    warns once.
    """

    async def scene(server: RedisServer) -> None:
        scenarios = [LoopScenario(server.url) for _ in range(3)]
        stop = asyncio.Event()

        async def load(scenario: LoopScenario) -> None:
            while not stop.is_set():
                await scenario.ask()

        for scenario in scenarios:
            await scenario.client.warm_up()
        loads = [asyncio.ensure_future(load(scenario)) for scenario in scenarios]
        await asyncio.sleep(1)
        server.kill()
        await until(lambda: not any(scenario.joined for scenario in scenarios))
        counts = [len(scenario.google.sent) for scenario in scenarios]
        await asyncio.sleep(1)
        for scenario, count in zip(scenarios, counts, strict=True):
            assert len(scenario.google.sent) > count
        server.start()
        await until(lambda: all(scenario.joined for scenario in scenarios))
        stop.set()
        await asyncio.gather(*loads)
        for scenario in scenarios:
            await scenario.client.aclose()
            assert len(await scenario.warnings()) == 1

    # After this time the loss of Redis is reported as a new event.
    monkeypatch.setattr(coordinator, "_STEADY", 0.5)
    with redis_server() as server:
        run_loop_scenario(scene(server))


@pytest.mark.ci
def test_a_frozen_redis_delays_calls_by_half_a_second_once() -> None:
    """A Redis that keeps connections without answering delays the first call by half a second,
    later ones not at all.

    The best of three measurements counts, since a busy machine may delay the others.
    """

    async def scene(server: RedisServer) -> None:
        first: list[float] = []
        rest: list[float] = []
        scenario = LoopScenario(server.url)
        async with scenario.client:
            await scenario.client.warm_up()
            for _ in range(3):
                server.freeze()
                began = time.monotonic()
                await asyncio.gather(*(scenario.ask() for _ in range(3)))
                first.append(time.monotonic() - began)
                assert not scenario.joined
                began = time.monotonic()
                await asyncio.gather(*(scenario.ask() for _ in range(20)))
                rest.append(time.monotonic() - began)
                server.thaw()
                await until(lambda: scenario.joined)
        assert 0.4 < min(first) < 1.0
        assert min(rest) < 0.3

    with redis_server() as server:
        run_loop_scenario(scene(server))


@pytest.mark.ci
def test_a_redis_with_slow_answers_is_not_waited_for(server: RedisServer) -> None:
    """Answers take a second each: calls do not wait for them, until Redis is quick again."""

    async def scene() -> None:
        with Proxy(server.port) as proxy:
            scenario = LoopScenario(proxy.url)
            async with scenario.client:
                await scenario.client.warm_up()
                proxy.delay = 1.0
                end = time.monotonic() + 2
                while time.monotonic() < end:
                    await scenario.ask()
                assert len(scenario.google.sent) > 10
                assert not scenario.joined
                proxy.delay = 0.0
                await until(lambda: scenario.joined)
            assert len(await scenario.warnings()) == 1

    run_loop_scenario(scene())


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_redis_that_rejects_writes_fails_no_call(fault: str) -> None:
    """Redis is full, or became a replica: every call is served, and the client reconnects
    afterwards.
    """
    commands = {
        "full": (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
        "read-only": (("REPLICAOF", "127.0.0.1", str(free_port())), ("REPLICAOF", "NO", "ONE")),
    }

    async def scene(server: RedisServer) -> None:
        wrong, right = commands[fault]
        scenario = LoopScenario(server.url)
        async with scenario.client:
            await scenario.ask()
            server.ask(*wrong)
            for _ in range(10):
                await scenario.ask()
            server.ask(*right)
            await until(lambda: scenario.joined)
            await scenario.ask()

    with redis_server() as server:
        run_loop_scenario(scene(server))


def test_namespaces_separate_fleets(server: RedisServer) -> None:
    """An outage of one fleet does not open the breaker of a fleet with another `?namespace=`."""

    async def scene() -> None:
        one, two = (
            LoopScenario(f"{server.url}?namespace=one"),
            LoopScenario(f"{server.url}?namespace=two"),
        )
        async with one.client, two.client:
            await asyncio.gather(one.ask(), two.ask())
            await one.open_breaker()
            await asyncio.sleep(0.2)
            assert (one.state, two.state) == ("open", "closed")

    run_loop_scenario(scene())


def test_accounts_are_separate_in_redis(server: RedisServer) -> None:
    """Workers with other keys share neither an exhausted quota nor the limit; those with the same
    key share both.

    No key is sent to Redis.
    """

    async def scene() -> None:
        one, same, other = (
            LoopScenario(server.url, api_key=key, ipm=1)
            for key in ("key-of-one", "key-of-one", "key-of-another")
        )
        async with one.client, same.client, other.client:
            for scenario in (one, same, other):
                await scenario.client.warm_up()
            await asyncio.gather(
                one.ask(), other.ask()
            )  # the first request of each account in a minute
            await until(lambda: same.route.limiter.shortest_wait() > 30)
            one.route.breaker.force_trip(cause=Reason.QUOTA_EXHAUSTED, summary="429")
            await until(lambda: same.state == "open")
            assert other.state == "closed"

    run_loop_scenario(scene())
    keys = server.ask("KEYS", "*")
    assert keys.count(b":circuit") == 2
    assert b"key-of" not in keys
