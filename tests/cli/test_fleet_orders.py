"""``breaker``, ``settings`` and ``status`` with a real Redis, and clients that obey."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_kit import Ended, cli
from fleet_proxy import Proxy
from order_cases import REFUSALS
from redis import Redis
from redis_kit import RedisServer

from resilient_imagen import Settings, sync
from resilient_imagen.control import Order
from resilient_imagen.control.fleet import FleetOrders, SharedOrder
from resilient_imagen.distributed import Address
from resilient_imagen.distributed.order_board import open_board
from resilient_imagen.providers.base import Endpoint
from resilient_imagen.telemetry.events import OrderApplied, OrderEnded
from resilient_imagen.testing import FakeProvider, RecordingSink

pytestmark = pytest.mark.redis

SECRET = "a secret of the operators"
PATIENCE = 30.0


@contextlib.contextmanager
def worker(
    server: RedisServer, sinks: Sequence[RecordingSink] = (), account: str = "", **settings: Any
) -> Iterator[sync.ImageClient]:
    """Run a client on the shared loop's thread, while commands run in this one."""
    made = Settings(redis_url=server.url, **settings)
    providers = [FakeProvider("google", latency=0.0), FakeProvider("openai", latency=0.0)]
    providers[0].endpoint = Endpoint("google", account=account)
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
    """It prints the number of workers that obey, and returns when all do."""
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


def test_status_shows_orders_and_the_workers_that_obey(
    server: RedisServer, command: Callable[[str], Ended]
) -> None:
    """Each order has author, reason, remaining time and workers.

    `settings show` prints them, too.
    """
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
        assert orders[0]["answer"] == "1 of 2 workers obey; 1 not: IMAGE_GEN_CONTROL is off"
        rows = json.loads(command("settings show --json").out)
        (row,) = [row for row in rows if row["variable"] == "IMAGE_GEN_IPM"]
        assert row["value"] == "7"
        assert row["source"].startswith("ordered by ")
        (row,) = [row for row in rows if row["variable"] == "IMAGE_GEN_REDIS_URL"]
        assert (row["value"], row["source"]) == ("set, not shown", "--redis-url")


@pytest.mark.parametrize(
    ("model", "account"), [("gemini-3-pro-image", "3f2a9c1d"), ("painter@20260101", "acme")]
)
def test_an_order_may_name_a_route_as_status_prints_it(
    model: str, account: str, server: RedisServer, command: Callable[[str], Ended]
) -> None:
    """The account's identifier is left out; a part of the model's name is not."""
    routes = f"google:{model},openai:gpt-image-2"
    with worker(server, account=account, routes=routes) as client:
        (printed, _) = (
            each["route"] for each in json.loads(command("status --json").out)["routes"]
        )
        assert printed == f"google:{model}@{account}"
        done = command(f"breaker open {printed}")
        assert done.out.startswith(f"breaker open google:{model} until ")
        assert state(client) == "forced_open"
        assert command(f"breaker reset google:{model}").code == 0
        assert state(client) == "closed"


def test_the_state_in_status_is_that_of_the_order_in_force(
    server: RedisServer, command: Callable[[str], Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the author, what is left, and the number of workers if not all obey."""
    monkeypatch.setattr("resilient_imagen.cli.orders._author", lambda: "ana")

    def states() -> list[str]:
        rows: list[str] = []
        for line in command("status").out.splitlines():
            if line.startswith("│"):
                _, route, shown, *_ = map(str.strip, line.split("│"))
                if route:
                    rows.append(shown)
                elif shown:  # a narrow terminal wraps it
                    rows[-1] += f" {shown}"
        return rows

    with worker(server, account="1f"):
        command("breaker open google --for 3h")
        command("breaker close openai --hold --for 3h")
        assert states() == ["forced open by ana, 3 h left", "held closed by ana, 3 h left"]
        routes = json.loads(command("status --json").out)["routes"]
        assert [each["ordered"] for each in routes] == ["open", "hold"]
        command("breaker reset google:gemini-3-pro-image")  # other routes of google stay out
        with worker(server, account="1f", control="off"):
            assert states() == ["closed", "held closed by ana, 3 h left, in 1 of 2 workers"]
    assert states()[1] == "closed"


def test_status_shows_past_orders(
    server: RedisServer, command: Callable[[str], Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past orders are printed with author, time and reason.

    Those with another signature than the shell's secret gives are marked: workers without a secret
    obeyed them nevertheless.
    """
    assert "No order was given within a week." in command("status --history").out
    monkeypatch.setattr("resilient_imagen.cli.orders._author", lambda: "ana")
    with worker(server, control_secret=SECRET):
        command("breaker open openai --why forged")
        monkeypatch.setenv("IMAGE_GEN_CONTROL_SECRET", SECRET)
        command("breaker open google --for 2h --why incident")
        command("breaker reset google")
    shown = command("status --history").out.partition("Orders of the last week, ")[2].splitlines()
    assert shown[0] == "the latest first:"
    assert [line[20:] for line in shown[1:]] == [
        "ana: breaker reset google",
        "ana: breaker open google for 2 h (incident)",
        "ana: breaker open openai for 30 min (forged); not signed with the secret of this shell",
    ]
    assert time.strptime(shown[1][:19], "%Y-%m-%d %H:%M:%S")
    history = json.loads(command("status --history --json").out)["history"]
    assert [(each["why"], each["trusted"]) for each in history] == [
        ("", True), ("incident", True), ("forged", False),
    ]  # fmt: skip
    assert all("signature" not in each and each["age_s"] < 60 for each in history)
    assert "history" not in json.loads(command("status --json").out)


@pytest.mark.ci
def test_without_a_worker_the_command_fails(command: Callable[[str], Ended]) -> None:
    """The order is stored, and the message states that no worker obeys it yet."""
    done = command("breaker open google")
    assert (done.code, done.complaint) == (1, "breaker open google: no worker is connected")


def test_signed_orders_are_obeyed_and_others_are_not(
    server: RedisServer, command: Callable[[str], Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command signs with the variable of the workers."""
    with worker(server, control_secret=SECRET) as client:
        done = command("breaker open google")
        assert (done.code, state(client)) == (1, "closed")
        assert "0 of 1 worker obeys; 1 not: it is not signed with" in done.complaint
        monkeypatch.setenv("IMAGE_GEN_CONTROL_SECRET", SECRET)
        assert command("breaker open google").out.endswith(": 1 of 1 worker obeys\n")
        assert state(client) == "forced_open"


@pytest.mark.parametrize("secret", [None, "another secret of theirs"])
def test_an_order_that_no_worker_trusts_displaces_no_other(
    secret: str | None,
    server: RedisServer,
    command: Callable[[str], Ended],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Workers that start later obey the signed orders, until those are ended by signed ones."""
    monkeypatch.setenv("IMAGE_GEN_CONTROL_SECRET", SECRET)
    with worker(server, control_secret=SECRET):
        for line in ("breaker open google --for 1h", "settings set IMAGE_GEN_IPM=7"):
            assert command(line).code == 0
        if secret is None:
            monkeypatch.delenv("IMAGE_GEN_CONTROL_SECRET")
        else:
            monkeypatch.setenv("IMAGE_GEN_CONTROL_SECRET", secret)
        for line in (
            "breaker reset google", "breaker close google", "breaker open google",
            "settings set IMAGE_GEN_IPM=9", "settings unset IMAGE_GEN_IPM",
        ):  # fmt: skip
            assert "1 not: it is not signed with" in command(line).complaint
        monkeypatch.setenv("IMAGE_GEN_CONTROL_SECRET", SECRET)
        with worker(server, control_secret=SECRET) as later:
            orders = [each["order"] for each in later.snapshot()["control"]["orders"]]
            assert orders == ["breaker open google", "IMAGE_GEN_IPM=7"]
            assert command("breaker reset google").out.endswith(": 2 of 2 workers obey\n")
        with worker(server, control_secret=SECRET) as later:
            assert state(later) == "closed"
        assert "2 orders are not shown" in command("status").complaint


@pytest.mark.parametrize(("line", "answer"), REFUSALS)
def test_refusals_are_explained(
    line: str, answer: str, server: RedisServer, command: Callable[[str], Ended]
) -> None:
    """The message names the cause, and the exit code states that not all workers obey."""
    with worker(server, force_open="openai"):
        done = command(line)
        assert (done.code, answer in done.complaint) == (1, True)


@pytest.mark.ci
def test_an_order_stays_in_force_without_redis_until_its_end(
    server: RedisServer, command: Callable[[str], Ended]
) -> None:
    """The worker obeys without Redis, and stops at the order's end."""
    sink = RecordingSink()
    with worker(server, sinks=[sink]) as client:
        assert command("breaker open google --for 5s").code == 0
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


def silent_worker(server: RedisServer) -> None:
    """Register a worker that never reports anything."""
    seconds = int(time.time()) + 60  # it stays there for as long as the command waits
    key = "resilient_imagen:{fleet}:heard"
    assert b":1" in server.ask("ZADD", key, f"{seconds}000000", "host/1/silent")


@pytest.mark.parametrize("end", ["killed", "interrupted"])
def test_an_order_that_was_given_before_the_command_ended_early(
    end: str, server: RedisServer, tmp_path: Path
) -> None:
    """The message states that the order was given, since it is not withdrawn."""
    silent_worker(server)
    running = started(server.url, tmp_path)
    try:
        until(lambda: is_stored(server))
        # It has read the answer, and waits for the workers.
        until(lambda: b"cmd=zrangebyscore" in server.ask("CLIENT", "LIST"))
        if end == "killed":
            server.kill()
        else:
            running.send_signal(signal.SIGINT)
        _, complaint = running.communicate(timeout=PATIENCE)
    finally:
        running.kill()
        if end == "killed":
            server.start()
    assert "breaker open google: given, but it is not known which workers obey" in complaint
    assert running.returncode == (1 if end == "killed" else 130)


@pytest.mark.parametrize("end", ["disconnected", "interrupted"])
def test_an_order_whose_answer_was_not_received(
    end: str, server: RedisServer, tmp_path: Path
) -> None:
    """The message states that workers may obey it."""
    with Proxy(server.port) as proxy:
        proxy.unanswered = b"EVALSHA"
        running = started(proxy.url, tmp_path)
        try:
            until(lambda: is_stored(server))
            if end == "disconnected":
                proxy.disconnect(0.0)
            else:
                running.send_signal(signal.SIGINT)
            _, complaint = running.communicate(timeout=PATIENCE)
        finally:
            running.kill()
    assert "breaker open google: it is not known whether it was given" in complaint
    assert running.returncode == (1 if end == "disconnected" else 130)


def started(url: str, folder: Path) -> subprocess.Popen[str]:
    words = ("breaker", "open", "google", "--redis-url", url)
    return subprocess.Popen(
        [sys.executable, "-m", "resilient_imagen", *words],
        stderr=subprocess.PIPE, text=True, cwd=folder,
    )  # fmt: skip


def is_stored(server: RedisServer) -> bool:
    return b"google" in server.ask("HGETALL", "resilient_imagen:{fleet}:orders")


def test_a_string_that_is_not_utf8_keeps_no_order_from_the_workers(
    server: RedisServer, command: Callable[[str], Ended]
) -> None:
    """A damaged or forged string beside valid orders is ignored."""
    with worker(server) as client:
        assert command("breaker open openai").code == 0
        redis = Redis.from_url(server.url)
        redis.hset("resilient_imagen:{fleet}:orders", "IMAGE_GEN_IPM", b"9999999999999999 \xff\xfe")
        redis.close()
        assert command("breaker open google").out.endswith(": 1 of 1 worker obeys\n")
        assert state(client) == "forced_open"


def test_a_value_that_all_workers_refuse_ends_no_earlier_order(
    server: RedisServer, command: Callable[[str], Ended]
) -> None:
    """A worker that starts later obeys the earlier order, too. The history has each order once."""
    with worker(server):
        assert command("settings set IMAGE_GEN_BREAKER_RESET_TIMEOUT=90 --for 1h").code == 0
        assert command("settings set IMAGE_GEN_BREAKER_RESET_TIMEOUT=9000").code == 1
        assert "RESET_TIMEOUT=90, ordered by " in command("status").out
        with worker(server) as later:
            shown = [each["order"] for each in later.snapshot()["control"]["orders"]]
            assert shown == ["IMAGE_GEN_BREAKER_RESET_TIMEOUT=90"]
        history = json.loads(command("status --history --json").out)["history"]
        assert [each["value"] for each in history] == ["9000", "90"]


def test_orders_with_another_signature_are_counted(
    server: RedisServer, command: Callable[[str], Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator with a wrong secret sees that there are orders."""
    monkeypatch.setenv("IMAGE_GEN_CONTROL_SECRET", SECRET)
    with worker(server, control_secret=SECRET):
        assert command("breaker open google").code == 0
        assert command("status").err == ""
        monkeypatch.setenv("IMAGE_GEN_CONTROL_SECRET", "another secret of theirs")
        for line in ("status", "settings show"):
            assert "1 order is not shown: not signed with the IMAGE_GEN" in command(line).complaint
        assert json.loads(command("status --json").out)["orders"] == []


def test_an_order_that_another_one_replaced_at_once_is_not_waited_for(
    server: RedisServer,
) -> None:
    """The message states the replacement, not that workers lag behind."""
    draft = Order(action="open", target="google", ttl=60, by="ops", serial=1)
    fleet = FleetOrders(Address.parse(server.url), None)
    with worker(server):

        async def replaced() -> SharedOrder:
            first = await fleet.give(draft)
            await fleet.give(replace(draft, action="close"))
            async with open_board(fleet.address) as board:
                return SharedOrder(first.order, 60, (await board.read()).reports)

        shown = asyncio.run(replaced())
    assert shown.answer == (
        "0 of 1 worker obeys; 1 not: it is over there, or a later order has replaced it"
    )


def test_a_redis_that_does_not_answer(server: RedisServer, command: Callable[[str], Ended]) -> None:
    """One line has the address and the cause."""
    server.kill()
    try:
        done = command("breaker open google")
        assert done.code == 2
        assert f"Redis at {server.url}" in done.complaint
    finally:
        server.start()
