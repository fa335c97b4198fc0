"""Kinds of servers: restricted users, clusters, replicas, and servers with long round trips."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_kit import run
from fake_redis import FakeRedisCluster
from fleet_kit import open_breaker, run_with_fake_redis, started_workers
from fleet_proxy import Proxy
from loop_kit import LoopScenario, run_loop_scenario, until
from ports import free_port
from redis_kit import RedisServer, redis_server

import resilient_imagen.distributed

pytestmark = pytest.mark.redis

GUIDE = Path(resilient_imagen.distributed.__file__).with_name("README.md")


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


async def share_an_outage(url: str) -> None:
    """Check that two clients share an outage through a Redis, without a warning."""
    scenarios = [LoopScenario(url), LoopScenario(url)]
    for scenario in scenarios:
        await scenario.client.warm_up()
    await until(lambda: all(scenario.joined for scenario in scenarios))
    await scenarios[0].open_breaker()
    await until(lambda: scenarios[1].state == "open")
    await asyncio.sleep(1.3)
    await scenarios[1].ask()
    await until(lambda: scenarios[0].state == "closed")
    for scenario in scenarios:
        await scenario.client.aclose()
        assert await scenario.warnings() == []


def test_the_permissions_of_the_guide_are_sufficient(server: RedisServer, tmp_path: Path) -> None:
    """A user with the permissions that the guide lists can share, and read the status."""
    (rules,) = re.findall(r"^ACL SETUSER imagen (.*)$", GUIDE.read_text("utf-8"), re.MULTILINE)
    words = [word.strip("'\"") for word in rules.split()]
    assert server.ask("ACL", "SETUSER", "imagen", "reset", *words) == b"+OK\r\n"
    (password,) = (word[1:] for word in words if word.startswith(">"))
    url = f"redis://imagen:{password}@127.0.0.1:{server.port}/0"

    run_loop_scenario(share_an_outage(url))
    shown = run("status", "--redis-url", url, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr


@contextlib.contextmanager
def cluster(shards: int) -> Iterator[list[RedisServer]]:
    """Run a cluster; the slots are divided evenly."""
    with contextlib.ExitStack() as stack:
        buses = [free_port() for _ in range(shards)]
        nodes = [
            stack.enter_context(
                redis_server("--cluster-enabled", "yes", "--cluster-port", str(bus))
            )
            for bus in buses
        ]
        size = 16384 // shards
        for number, node in enumerate(nodes):
            first = str(number * size)
            assert node.ask("CLUSTER", "ADDSLOTSRANGE", first, str(number * size + size - 1))
            node.ask("CLUSTER", "MEET", "127.0.0.1", str(nodes[0].port), str(buses[0]))
        deadline = time.monotonic() + 60
        while not all(b"cluster_state:ok" in node.ask("CLUSTER", "INFO") for node in nodes):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield nodes


@pytest.mark.ci
def test_a_cluster_of_one_shard_is_shared() -> None:
    """All keys are on one node, which is used like any other Redis."""
    with cluster(1) as (node,):
        run_loop_scenario(share_an_outage(node.url))


def test_a_cluster_of_two_shards_is_an_error_at_the_start() -> None:
    """A node serves only the keys of its own slots, and the error states this."""
    with cluster(2) as (node, _):
        scenario = LoopScenario(node.url)
        run_loop_scenario(scenario.refuses("it is one node of a cluster"))


def test_a_read_only_replica_counts_as_unavailable_until_it_is_promoted(
    server: RedisServer,
) -> None:
    """A client that is connected to a replica works locally, and shares once the replica is
    promoted.
    """

    async def scene() -> None:
        scenario = LoopScenario(server.url)
        async with scenario.client:
            await scenario.ask()
            server.ask("REPLICAOF", "127.0.0.1", "1")
            await until(lambda: not scenario.joined)
            await scenario.ask()
            server.ask("REPLICAOF", "NO", "ONE")
            await until(lambda: scenario.joined)

    run_loop_scenario(scene())


def test_a_server_with_long_round_trips_is_shared(server: RedisServer) -> None:
    """With round trips of 0.2 s a client connects, and no call waits for more than a second."""

    async def scene() -> None:
        with Proxy(server.port) as proxy:
            proxy.delay = 0.2
            scenario = LoopScenario(proxy.url)
            async with scenario.client:
                await scenario.client.warm_up()
                await until(lambda: scenario.joined)
                await scenario.ask()
                assert scenario.joined

    run_loop_scenario(scene())


@pytest.mark.parametrize("trip", [0.1, 0.12])
def test_workers_share_over_slow_round_trips(trip: float) -> None:
    """Two round trips, as for a command posted during another one, take less than half a second."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 2) as workers:
            await asyncio.sleep(5)
            assert all(worker.coordinator.joined for worker in workers)
            await workers[0].fail(3)
            await asyncio.sleep(2)
            assert workers[1].state == "open"

    run_with_fake_redis(scene, latency=trip)


def test_a_forged_version_does_not_stop_later_updates() -> None:
    """Workers that adopted a forged record with a huge version share the next outage."""

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 3) as workers:
            await asyncio.sleep(2)
            record = redis.store.hashes["resilient_imagen:{google:pro}:circuit"]
            forged = {
                "protocol": 2,
                "route": "google:pro",
                "epoch": record["epoch"],
                "version": 2**52,
                "generation": 2**52,
                "state": "closed",
                "left": 0,
                "openings": 0,
                "closes": False,
                "cause": "",
                "summary": "",
                "lease": 0,
                "workers": 1,
                "settings": "",
                "granted": False,
            }
            for worker in workers:
                worker.connection.receive(json.dumps(forged).encode())
            await asyncio.sleep(3)
            await open_breaker(workers)

    run_with_fake_redis(scene)


def test_the_status_reads_only_the_keys_of_its_index(server: RedisServer, tmp_path: Path) -> None:
    """Other keys in the database do not slow the command down; it shows workers and settings."""

    async def scene() -> None:
        server.ask("FLUSHALL")
        server.ask("CONFIG", "RESETSTAT")
        scenario = LoopScenario(server.url)
        async with scenario.client:
            await scenario.ask()
            ended = await asyncio.to_thread(
                run, "status", "--json", "--redis-url", server.url, cwd=tmp_path
            )
            shown = await asyncio.to_thread(run, "status", "--redis-url", server.url, cwd=tmp_path)
        status = json.loads(ended.stdout)
        (worker,) = status["workers"]
        assert worker["protocol"] == 2
        assert "fail_max=3" in worker["settings"]["google:pro"]
        assert "per_minute=60000" in worker["settings"]["google"]
        assert worker["name"] in shown.stdout
        statistics = server.ask("INFO", "commandstats").decode()
        assert "cmdstat_scan" not in statistics
        assert "cmdstat_keys" not in statistics

    run_loop_scenario(scene())
