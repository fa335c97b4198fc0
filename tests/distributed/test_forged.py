"""Records in a real Redis that are damaged, or were written by another program."""

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
    """Return whether the client takes part in the fleet."""
    return snapshot["fleet"] is not None and snapshot["fleet"]["joined"]


def micros(server: RedisServer) -> int:
    """Return the server's clock in microseconds."""
    seconds, _, micro = server.ask("TIME").split(b"\r\n")[2:5]
    return int(seconds) * 10**6 + int(micro)


def forge(server: RedisServer, kind: str, name: str, **fields: object) -> None:
    """Overwrite fields that Redis holds of a route or a provider."""
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


async def refused(scenario: LoopScenario) -> CircuitOpenError | None:
    try:
        await scenario.ask()
    except CircuitOpenError as error:
        return error
    return None


@pytest.mark.no_cover
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
def test_an_impossibly_long_open_period_is_ended_by_a_probe(
    server: RedisServer, ahead: int, more: dict[str, object]
) -> None:
    """A period beyond `reset_max`, or beyond a day after a fatal failure: workers probe and close
    it for all.
    """

    async def scene() -> None:
        scenarios = [LoopScenario(server.url, breaker_reset_max=600) for _ in range(3)]
        for scenario in scenarios:
            await scenario.ask()
        forge_opening(server, ahead, **more)
        await until(
            lambda: all(scenario.state != "closed" for scenario in scenarios) or "hinted" in more
        )
        served = [0] * len(scenarios)
        async with asyncio.timeout(20):
            while not all(served):
                for index, scenario in enumerate(scenarios):
                    served[index] += await refused(scenario) is None
                await asyncio.sleep(0.01)
        await until(lambda: all(scenario.state == "closed" for scenario in scenarios))
        for scenario in scenarios:
            await scenario.client.aclose()

    run_loop_scenario(scene())
    assert b"closed" in server.ask("HGET", "resilient_imagen:{google:pro}:circuit", "state")


def test_a_plausible_open_period_is_adopted(server: RedisServer) -> None:
    """An exhausted quota may last a day: no worker sends a request."""

    async def scene() -> None:
        scenario = LoopScenario(server.url)
        async with scenario.client:
            await scenario.ask()
            forge_opening(server, 20 * HOUR, cause="quota_exhausted", summary="429 DAILY_LIMIT")
            await until(lambda: scenario.state == "open")
            error = await refused(scenario)
            assert error is not None
            assert error.retry_after == pytest.approx(72_000, abs=60)
            assert "429 DAILY_LIMIT" in str(error)

    run_loop_scenario(scene())


@pytest.mark.parametrize("cause", ["overloaded", ESCAPES])
def test_free_text_of_a_record_does_not_reach_errors(
    server: RedisServer, cause: str, tmp_path: Path
) -> None:
    """Only known reasons and summaries of the library's form are passed on.

    Other text is replaced by a fixed phrase.
    """

    async def scene() -> None:
        scenario = LoopScenario(server.url)
        async with scenario.client:
            await scenario.ask()
            forge_opening(server, 60 * 10**6, cause=cause, summary=ESCAPES)
            await until(lambda: scenario.state == "open")
            error = await refused(scenario)
            assert error is not None
            known = cause == "overloaded"
            phrase = "temporarily unavailable" if known else "a failure in another process"
            assert str(error).endswith(f"skipped after {phrase}")
            snapshot = json.dumps(scenario.client.snapshot())
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
def test_summaries_of_errors_are_passed_on(summary: str) -> None:
    """The summary of one worker's error is part of another worker's rejection."""
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
def test_invalid_numbers_are_read_as_their_defaults(
    server: RedisServer, damage: dict[str, str]
) -> None:
    """Sharing continues: no script fails on a field that is not a number."""

    async def scene() -> None:
        one, two = LoopScenario(server.url), LoopScenario(server.url)
        async with one.client, two.client:
            await one.ask()
            await two.ask()
            forge(server, "circuit", "google:pro", **damage)
            forge(server, "pace", "google", next="later", at="nan")
            for scenario in (one, two):
                await scenario.ask()
            await one.open_breaker()
            await until(lambda: two.state == "open")
            assert (one.joined, two.joined, one.losses, two.losses) == (True, True, [], [])

    run_loop_scenario(scene())


def test_a_lease_with_an_impossible_end_blocks_no_probe(server: RedisServer) -> None:
    """A lease that ends in 31 years is deleted: the next caller probes, and the circuit closes."""

    async def scene() -> None:
        scenario = LoopScenario(server.url, breaker_reset_timeout=0.2)
        async with scenario.client:
            await scenario.open_breaker()
            await until(lambda: joined(scenario.client.snapshot()))
            forever = str(micros(server) + YEARS)
            server.ask("ZADD", "resilient_imagen:{google:pro}:leases", forever, "nobody:1")
            async with asyncio.timeout(20):
                while await refused(scenario) is not None:  # noqa: ASYNC110 - a caller
                    await asyncio.sleep(0.02)
            assert scenario.state == "closed"

    run_loop_scenario(scene())


def test_an_impossible_pacing_schedule_is_reset(server: RedisServer) -> None:
    """A schedule hours ahead cannot result from requests: pacing starts again at the present."""

    async def scene() -> None:
        for _ in range(2):
            forge(server, "pace", "google", next=micros(server) + 10 * HOUR)
            scenario = LoopScenario(server.url, deadline=10)
            async with scenario.client:
                await scenario.client.warm_up()
                for _ in range(3):
                    await scenario.ask()

    run_loop_scenario(scene())
