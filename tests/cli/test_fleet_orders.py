"""``breaker``, ``settings`` and ``status`` with a real Redis, and clients that obey."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from cli_kit import Ended, cli
from redis_kit import RedisServer

from resilient_imagen import Settings, sync
from resilient_imagen.telemetry.events import OrderApplied, OrderEnded
from resilient_imagen.testing import FakeProvider, RecordingSink

pytestmark = pytest.mark.redis

SECRET = "a secret of the operators"
PATIENCE = 30.0


@contextlib.contextmanager
def worker(
    server: RedisServer, sinks: Sequence[RecordingSink] = (), **settings: Any
) -> Iterator[sync.ImageClient]:
    """Run a client on the shared loop's thread, while commands run in this one."""
    made = Settings(redis_url=server.url, **settings)
    providers = [FakeProvider("google", latency=0.0), FakeProvider("openai", latency=0.0)]
    with sync.ImageClient(made, providers=providers, sinks=sinks) as client:
        client.warm_up()
        yield client


def state(client: sync.ImageClient) -> str:
    return client.snapshot()["routes"][0]["breaker"]["state"]


def until(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


@pytest.fixture
def command(server: RedisServer, capsys: pytest.CaptureFixture[str]) -> Callable[[str], Ended]:
    return lambda line: cli(capsys, *line.split(), "--redis-url", server.url)


def test_a_command_waits_until_all_workers_obey(
    server: RedisServer, command: Callable[[str], Ended]
) -> None:
    """It prints how many do, and the workers have obeyed by then."""
    with worker(server) as first, worker(server) as second:
        done = command("breaker open google --for 20s --why incident")
        assert done.code == 0
        assert done.out.startswith("breaker open google until ")
        assert done.out.endswith(": 2 of 2 workers obey\n")
        assert (state(first), state(second)) == ("forced_open", "forced_open")
        assert first.generate("a lighthouse").provider == "openai"
        assert command("breaker reset google").out == (
            "breaker reset google: 2 of 2 workers obey\n"
        )
        assert (state(first), state(second)) == ("closed", "closed")
        assert command("settings set IMAGE_GEN_BREAKER_FAIL_MAX=5").code == 0
        thresholds = [
            client.snapshot()["routes"][0]["breaker"]["fail_max"] for client in (first, second)
        ]
        assert thresholds == [5, 5]


def test_status_shows_orders_and_who_lags(
    server: RedisServer, command: Callable[[str], Ended]
) -> None:
    """Each with author, reason, what is left and the workers; and so does settings show."""
    with worker(server), worker(server, control="off"):
        done = command("breaker open google --for 3h --why incident")
        assert done.code == 1
        assert "1 of 2 workers obey; 1 not: IMAGE_GEN_CONTROL is off" in done.complaint
        command("settings set IMAGE_GEN_IPM=7")
        shown = command("status").out
        assert "breaker open google, ordered by " in shown
        assert "(incident), 3 h left: 1 of 2 workers obey; 1 not: IMAGE_GEN_CONTROL" in shown
        orders = json.loads(command("status --json").out)["orders"]
        assert [each["target"] for each in orders] == ["google", "IMAGE_GEN_IPM"]
        assert sorted(orders[0]["workers"].values()) == ["off", "ok"]
        rows = json.loads(command("settings show --json").out)
        (row,) = [row for row in rows if row["variable"] == "IMAGE_GEN_IPM"]
        assert row["value"] == "7"
        assert row["source"].startswith("ordered by ")


def test_without_a_worker_the_command_fails(command: Callable[[str], Ended]) -> None:
    """The order is stored, and the line says that nobody obeys it yet."""
    done = command("breaker open google")
    assert (done.code, done.complaint) == (1, "breaker open google: no worker is connected")


def test_signed_orders_are_obeyed_and_others_are_not(
    server: RedisServer, command: Callable[[str], Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tool signs with the variable of the workers."""
    with worker(server, control_secret=SECRET) as client:
        done = command("breaker open google")
        assert (done.code, state(client)) == (1, "closed")
        assert "0 of 1 worker obeys; 1 not: the signature is not that" in done.complaint
        monkeypatch.setenv("IMAGE_GEN_CONTROL_SECRET", SECRET)
        assert command("breaker open google").out.endswith(": 1 of 1 worker obeys\n")
        assert state(client) == "forced_open"


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("breaker open googel", "0 of 1 worker obeys; 1 not: no such route"),
        ("settings set IMAGE_GEN_BREAKER_RESET_TIMEOUT=9000", "1 not: the value does not fit"),
        ("breaker close openai", "1 not: forced open by their own settings"),
    ],
)
def test_refusals_are_explained(
    line: str, answer: str, server: RedisServer, command: Callable[[str], Ended]
) -> None:
    """The exit code says that not all workers obey."""
    with worker(server, force_open="openai"):
        done = command(line)
        assert (done.code, answer in done.complaint) == (1, True)


def test_an_order_outlives_redis_and_ends_by_itself(
    server: RedisServer, command: Callable[[str], Ended]
) -> None:
    """The worker obeys without Redis, and stops at the order's end, not before."""
    sink = RecordingSink()
    with worker(server, sinks=[sink]) as client:
        assert command("breaker open google --for 2s").code == 0
        server.kill()
        try:
            until(lambda: sink.of(OrderEnded))
            assert state(client) == "closed"
            fleet = client.snapshot()["fleet"]
            assert fleet is not None
            assert not fleet["joined"]
            (begun,), (ended,) = sink.of(OrderApplied), sink.of(OrderEnded)
            assert ended.at - begun.at >= (begun.lasts_s or 0) - 0.01
        finally:
            server.start()


def test_a_redis_that_does_not_answer(server: RedisServer, command: Callable[[str], Ended]) -> None:
    """One line with the address and the cause."""
    server.kill()
    try:
        done = command("breaker open google")
        assert done.code == 2
        assert f"Redis at {server.url}" in done.complaint
    finally:
        server.start()
