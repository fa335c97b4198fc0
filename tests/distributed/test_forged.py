"""Against a real Redis: a record or a pace that is damaged, or that somebody else has written."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from cli_kit import run
from loop_kit import LoopScenario, run_loop_scenario, until
from redis_kit import RedisServer

from resilient_imagen import CircuitOpenError, Snapshot
from resilient_imagen.distributed.breaker_record import BreakerRecord

pytestmark = pytest.mark.redis

YEARS = 10**15
"""Microseconds: 31 years."""
HOUR = 3600 * 10**6
ESCAPES = "\x1b[2J\x1b]0;owned\x07 call +1 555 0100"


def joined(snapshot: Snapshot) -> bool:
    """Whether the client takes part in the fleet."""
    return snapshot["fleet"] is not None and snapshot["fleet"]["joined"]


def micros(server: RedisServer) -> int:
    """The server's clock."""
    seconds, _, micro = server.ask("TIME").split(b"\r\n")[2:5]
    return int(seconds) * 10**6 + int(micro)


def forge(server: RedisServer, kind: str, name: str, **fields: object) -> None:
    """Overwrite what Redis holds of a route or a provider."""
    words = [str(part) for pair in fields.items() for part in pair]
    server.ask("HSET", f"resilient_imagen:{{{name}}}:{kind}", *words)


def forge_opening(server: RedisServer, ahead: int, **more: object) -> None:
    now = micros(server)
    fields = {"state": "open", "till": now + ahead, "cause": "overloaded", "summary": "503", **more}
    forge(server, "circuit", "google:pro", generation=7, version=99, **fields)


def message(**fields: object) -> bytes:
    """Return a published record."""
    record = {
        "protocol": 2,
        "route": "google:pro",
        "epoch": "e",
        "version": 1,
        "generation": 2,
        "state": "open",
        "left": 1,
        "openings": 1,
        "closes": False,
        "cause": "overloaded",
        "summary": "503",
        "lease": 0,
        "workers": 1,
        "settings": "",
        "granted": False,
    }
    return json.dumps({**record, **fields}).encode()


async def refused(world: LoopScenario) -> CircuitOpenError | None:
    try:
        await world.ask()
    except CircuitOpenError as error:
        return error
    return None


@pytest.mark.parametrize(
    ("ahead", "more"),
    [
        (YEARS, {}),
        (YEARS, {"hinted": 7}),
        (YEARS, {"cause": "quota_exhausted"}),
        (HOUR, {"cause": "no reason at all"}),
        (700 * 10**6, {}),
        (700 * 10**6, {"cause": "rate_limited", "hinted": 7}),
    ],
)
def test_an_opening_that_no_worker_can_have_meant_ends(
    server: RedisServer, ahead: int, more: dict[str, object]
) -> None:
    """Longer than RESET_MAX, or a day for a fatal failure: workers probe and close it for all."""

    async def scene() -> None:
        worlds = [LoopScenario(server.url, breaker_reset_max=600) for _ in range(3)]
        for world in worlds:
            await world.ask()
        forge_opening(server, ahead, **more)
        await until(lambda: all(world.state != "closed" for world in worlds) or "hinted" in more)
        served = [0] * len(worlds)
        async with asyncio.timeout(20):
            while not all(served):
                for index, world in enumerate(worlds):
                    served[index] += await refused(world) is None
                await asyncio.sleep(0.01)
        await until(lambda: all(world.state == "closed" for world in worlds))
        for world in worlds:
            await world.client.aclose()

    run_loop_scenario(scene())
    assert b"closed" in server.ask("HGET", "resilient_imagen:{google:pro}:circuit", "state")


def test_an_opening_that_may_be_meant_is_believed(server: RedisServer) -> None:
    """A used-up quota may last a day, and every worker stays away."""

    async def scene() -> None:
        world = LoopScenario(server.url)
        async with world.client:
            await world.ask()
            forge_opening(server, 20 * HOUR, cause="quota_exhausted", summary="429 DAILY_LIMIT")
            await until(lambda: world.state == "open")
            error = await refused(world)
            assert error is not None
            assert error.retry_after == pytest.approx(72_000, abs=60)
            assert "429 DAILY_LIMIT" in str(error)

    run_loop_scenario(scene())


@pytest.mark.parametrize("cause", ["overloaded", ESCAPES])
def test_no_text_of_a_record_reaches_an_error(
    server: RedisServer, cause: str, tmp_path: Path
) -> None:
    """Reasons and an error's own words only: elsewhere, a fixed phrase stands for the text."""

    async def scene() -> None:
        world = LoopScenario(server.url)
        async with world.client:
            await world.ask()
            forge_opening(server, 60 * 10**6, cause=cause, summary=ESCAPES)
            await until(lambda: world.state == "open")
            error = await refused(world)
            assert error is not None
            known = cause == "overloaded"
            phrase = "temporarily unavailable" if known else "a failure in another process"
            assert str(error).endswith(f"skipped after {phrase}")
            snapshot = json.dumps(world.client.snapshot())
            assert "+1 555" not in snapshot
            assert "\\u001b" not in snapshot

    run_loop_scenario(scene())
    server.ask("HSET", "resilient_imagen:{a:\x1b[2J}:circuit", "state", "\x1b[2J")
    server.ask("ZADD", "resilient_imagen:{fleet}:topics", "1", "a:\x1b[2J")
    server.ask("HSET", "resilient_imagen:{fleet}:members", "a/1/b", ESCAPES)
    forge(server, "circuit", "google:pro", streak="many", till=ESCAPES)
    for options in ((), ("--json",)):
        shown = run("status", *options, "--redis-url", server.url, cwd=tmp_path)
        assert shown.returncode == 0, shown.stderr
        assert "google:pro" in shown.stdout
        assert "+1 555" not in shown.stdout
        assert "\x1b" not in shown.stdout.replace("\\u001b", "\x1b")


@pytest.mark.parametrize(
    "summary",
    [
        "503",
        "503 UNAVAILABLE",
        "timed out",
        "429 too many requests",
        "UNAVAILABLE",
        "402 quota used up",
    ],
)
def test_the_words_of_errors_pass(summary: str) -> None:
    """What one worker's error says, another worker's rejection says."""
    record = BreakerRecord.parse(message(summary=summary))

    assert (record.cause, record.summary) == ("overloaded", summary)


@pytest.mark.parametrize(
    "damage",
    [
        {"till": "soon", "openings": "many", "streak": "nan", "at": "-"},
        {"till": "1e300", "since": "1e300", "generation": "inf"},
        {"places": "none", "successes": "x", "answered": "?"},
    ],
)
def test_numbers_that_are_none_are_read_as_their_defaults(
    server: RedisServer, damage: dict[str, str]
) -> None:
    """The fleet goes on to share: no script fails on them."""

    async def scene() -> None:
        one, two = LoopScenario(server.url), LoopScenario(server.url)
        async with one.client, two.client:
            await one.ask()
            await two.ask()
            forge(server, "circuit", "google:pro", **damage)
            forge(server, "pace", "google", next="later", at="nan")
            for world in (one, two):
                await world.ask()
            await one.outage()
            await until(lambda: two.state == "open")
            assert (one.joined, two.joined, one.losses, two.losses) == (True, True, [], [])

    run_loop_scenario(scene())


def test_a_lease_that_nobody_can_hold_blocks_no_probe(server: RedisServer) -> None:
    """One that ends in 31 years is dropped: the next caller probes, and the circuit closes."""

    async def scene() -> None:
        world = LoopScenario(server.url, breaker_reset_timeout=0.2)
        async with world.client:
            await world.outage()
            await until(lambda: joined(world.client.snapshot()))
            forever = str(micros(server) + YEARS)
            server.ask("ZADD", "resilient_imagen:{google:pro}:leases", forever, "nobody:1")
            async with asyncio.timeout(20):
                while await refused(world) is not None:  # noqa: ASYNC110 - a caller
                    await asyncio.sleep(0.02)
            assert world.state == "closed"

    run_loop_scenario(scene())


def test_a_pace_hours_ahead_saturates_nobody(server: RedisServer) -> None:
    """Such a place cannot have been taken in advance: the pace begins at the present again."""

    async def scene() -> None:
        for _ in range(2):
            forge(server, "pace", "google", next=micros(server) + 10 * HOUR)
            world = LoopScenario(server.url, deadline=10)
            async with world.client:
                await world.client.warm_up()
                for _ in range(3):
                    await world.ask()

    run_loop_scenario(scene())
