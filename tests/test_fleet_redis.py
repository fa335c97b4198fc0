"""Against a real Redis: what an application meets when it is wrong, gone, silent, or full."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from redis_kit import RedisServer, free_port, redis_server

from resilient_imagen import ConfigurationError, ImageClient, Settings
from resilient_imagen.reasons import Reason
from resilient_imagen.telemetry.events import Warned
from resilient_imagen.testing import FakeProvider, RecordingSink

pytestmark = pytest.mark.redis

PATIENCE = 20.0
"""Seconds after which a test is taken for hanging."""


@pytest.fixture(scope="module")
def shared_server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture
def server(shared_server: RedisServer) -> RedisServer:
    shared_server.ask("FLUSHALL")
    return shared_server


class World:
    """One client over a scripted Google, and what it warned of."""

    def __init__(self, url: str, **more: Any) -> None:
        self.google = FakeProvider("google", latency=0.005)
        self.sink = RecordingSink()
        numbers = {"ipm": 60_000, "max_retries": 0, "breaker_reset_timeout": 1.0, **more}
        settings = Settings(redis_url=url, routes="google:pro", **numbers)
        self.client = ImageClient(settings, providers=[self.google], sinks=[self.sink])

    async def ask(self) -> None:
        await self.client.generate("a lighthouse")

    @property
    def joined(self) -> bool:
        return bool(self.client.snapshot()["fleet"]["joined"])

    @property
    def state(self) -> str:
        state: str = self.client.snapshot()["routes"][0]["breaker"]["state"]
        return state

    async def warnings(self) -> list[str]:
        await self.client._hub.close()
        return [event.message for event in self.sink.events if isinstance(event, Warned)]


async def until(true: Callable[[], bool]) -> None:
    """Wait for it, as long as a test may take."""
    async with asyncio.timeout(PATIENCE):
        while not true():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.005)


def play(scene: Coroutine[Any, Any, None]) -> None:
    """Run it, and leave no task behind."""

    async def main() -> None:
        async with asyncio.timeout(3 * PATIENCE):
            await scene
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert others == set()

    asyncio.run(main())


@pytest.mark.parametrize(
    "url",
    ["http://localhost", "localhost:6379", "redis://", "redis://host/zero", "redis://h:port/0",
     "unix://", "redis://:hunter2@host:99999/0", "redis://:hunter2@host/0?no_such_option=1"],
)  # fmt: skip
def test_a_url_that_cannot_be_right_is_an_error_at_once(url: str) -> None:
    """The client is not even made; the text names the variable and repeats nothing."""
    with pytest.raises(ConfigurationError, match="IMAGE_GEN_REDIS_URL") as caught:
        World(url)
    assert "hunter2" not in str(caught.value)


def test_a_wrong_password_is_an_error_at_start_and_never_shown() -> None:
    """Warm-up and each call say so; a right one works."""

    async def scene(server: RedisServer) -> None:
        for credentials in ("", ":hunter2@", "me:hunter2@"):
            world = World(f"redis://{credentials}127.0.0.1:{server.port}/0")
            async with world.client:
                for attempt in (world.client.warm_up, world.ask, world.ask):
                    with pytest.raises(ConfigurationError, match="password") as caught:
                        await attempt()
                    assert "hunter2" not in repr(caught.value)
                assert world.google.sent == []
        world = World(f"redis://:secret@127.0.0.1:{server.port}/0")
        async with world.client:
            await world.ask()
            assert world.joined
            assert "secret" not in json.dumps(world.client.snapshot())

    with redis_server("--requirepass", "secret") as server:
        play(scene(server))


def test_a_database_that_is_not_there_is_an_error_at_start(server: RedisServer) -> None:
    """The URL's number is wrong, and waiting would not help."""

    async def scene() -> None:
        world = World(f"redis://127.0.0.1:{server.port}/4711")
        async with world.client:
            with pytest.raises(ConfigurationError, match="no database of that number"):
                await world.client.warm_up()

    play(scene())


def test_a_user_who_may_not_write_is_an_error_at_start() -> None:
    """Redis is there and the password is right, but the rights are missing."""

    async def scene(server: RedisServer) -> None:
        server.ask("ACL", "SETUSER", "reader", "on", ">pw", "~*", "&*", "+@read", "+@connection")
        world = World(f"redis://reader:pw@127.0.0.1:{server.port}/0")
        async with world.client:
            with pytest.raises(ConfigurationError, match="does not permit"):
                await world.client.warm_up()

    with redis_server() as server:
        play(scene(server))


def test_no_redis_at_start_is_told_once_and_costs_no_call() -> None:
    """Images come; one warning; when Redis is started, the client joins by itself."""

    async def scene(server: RedisServer) -> None:
        server.kill()
        world = World(server.url)
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
        play(scene(server))


def test_a_killed_redis_costs_no_call_and_the_fleet_joins_again() -> None:
    """Three clients under load; Redis is killed and started empty: no failed call, one event."""

    async def scene(server: RedisServer) -> None:
        worlds = [World(server.url) for _ in range(3)]
        stop = asyncio.Event()

        async def load(world: World) -> None:
            while not stop.is_set():
                await world.ask()

        for world in worlds:
            await world.client.warm_up()
        loads = [asyncio.ensure_future(load(world)) for world in worlds]
        await asyncio.sleep(6)  # long enough that losing Redis is an event of its own
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

    with redis_server() as server:
        play(scene(server))


def test_a_frozen_redis_is_gone_within_a_second() -> None:
    """It keeps connections and answers nothing: each client loses half a second, once."""

    async def scene(server: RedisServer) -> None:
        world = World(server.url)
        async with world.client:
            await world.ask()
            server.freeze()
            began = time.monotonic()
            await world.ask()
            first = time.monotonic() - began
            began = time.monotonic()
            await asyncio.gather(*(world.ask() for _ in range(20)))
            rest = time.monotonic() - began
            server.thaw()
            await until(lambda: world.joined)
            assert 0.3 < first < 5
            assert rest < 5

    with redis_server() as server:
        play(scene(server))


@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_a_redis_that_refuses_to_write_is_as_good_as_none(trouble: str) -> None:
    """Full, or turned into a replica: every call is served, and the client joins again."""
    commands = {
        "full": (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
        "read-only": (("REPLICAOF", "127.0.0.1", str(free_port())), ("REPLICAOF", "NO", "ONE")),
    }

    async def scene(server: RedisServer) -> None:
        wrong, right = commands[trouble]
        world = World(server.url)
        async with world.client:
            await world.ask()
            server.ask(*wrong)
            for _ in range(10):
                await world.ask()
            server.ask(*right)
            await until(lambda: world.joined)
            await world.ask()

    with redis_server() as server:
        play(scene(server))


def test_a_closed_client_leaves_nothing(server: RedisServer) -> None:
    """No task, no connection, no lease; and no worker is counted that is not there."""

    async def scene() -> None:
        worlds = [World(server.url) for _ in range(3)]
        for world in worlds:
            await world.ask()
        for world in worlds:
            await world.client.aclose()
            await world.client.aclose()

    play(scene())
    keys = "resilient_imagen:{google:pro}:"
    assert server.ask("ZCARD", f"{keys}seen") == b":0\r\n"
    deadline = time.monotonic() + PATIENCE
    while b"name=resilient-imagen" in server.ask("CLIENT", "LIST"):
        assert time.monotonic() < deadline


def test_a_loop_that_ends_without_closing_leaves_no_warning(server: RedisServer) -> None:
    """`asyncio.run` once per image, with one client: each run connects anew, and all are served."""
    world = World(server.url)
    for _ in range(3):
        asyncio.run(world.ask())
    assert len(world.google.sent) == 3
    asyncio.run(world.client.aclose())


def test_loops_in_threads_have_their_own_connections(server: RedisServer) -> None:
    """Four threads, each with its client and loop, share one circuit and disturb nobody."""
    worlds = [World(server.url) for _ in range(4)]
    joined = threading.Barrier(4)
    done = threading.Barrier(4)
    states: list[str] = []

    async def main(index: int) -> None:
        world = worlds[index]
        async with world.client:
            await world.client.warm_up()
            await asyncio.to_thread(joined.wait, PATIENCE)
            if index == 0:
                world.google.fail(Reason.OVERLOADED, status=503, latency=0)
                for _ in range(3):
                    with pytest.raises(Exception, match="503"):
                        await world.ask()
            await until(lambda: world.state == "open")
            states.append(world.state)
            await asyncio.to_thread(done.wait, PATIENCE)

    threads = [threading.Thread(target=asyncio.run, args=(main(n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert states == ["open"] * 4


def test_callers_that_are_cancelled_at_any_moment_leave_nothing(server: RedisServer) -> None:
    """A hundred calls, cancelled at moments spread over the round trips: everything is free."""

    async def scene() -> None:
        world = World(server.url, max_concurrent=3)
        async with world.client:
            await world.client.warm_up()
            for step in range(100):
                tasks = [asyncio.ensure_future(world.ask()) for _ in range(3)]
                await asyncio.sleep(step * 0.00003)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            await world.ask()
            queue = world.client.snapshot()["routes"][0]["queue"]
            assert (queue["in_flight"], queue["waiting"]) == (0, 0)
            assert world.joined

    play(scene())


def test_two_fleets_share_one_redis_and_nothing_else(server: RedisServer) -> None:
    """`?namespace=` keeps them apart: one fleet's outage is none of the other's."""

    async def scene() -> None:
        one, two = World(f"{server.url}?namespace=one"), World(f"{server.url}?namespace=two")
        async with one.client, two.client:
            await asyncio.gather(one.ask(), two.ask())
            one.google.fail(Reason.OVERLOADED, status=503, latency=0)
            for _ in range(3):
                with pytest.raises(Exception, match="503"):
                    await one.ask()
            await asyncio.sleep(0.2)
            assert (one.state, two.state) == ("open", "closed")

    play(scene())
