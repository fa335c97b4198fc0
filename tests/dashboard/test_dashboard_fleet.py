"""The command ``dashboard``: the page of all processes that share one Redis."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from cli_kit import cli, started
from dashboard_kit import TOKEN, request, serving, snapshot, watching
from redis_kit import RedisServer

from resilient_imagen import ConfigurationError, ImageClient, Reason, Settings
from resilient_imagen.control import new_order
from resilient_imagen.control.fleet import FleetOrders
from resilient_imagen.dashboard.application import serve
from resilient_imagen.dashboard.fleet import FleetSource
from resilient_imagen.distributed import Address
from resilient_imagen.providers.base import Endpoint
from resilient_imagen.testing import FakeProvider

pytestmark = pytest.mark.redis

SECRET = "a secret of the operators"


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 100))


def worker(url: str, account: str = "", **options: Any) -> ImageClient:
    """Return a client that shares its state; Google fails."""
    google = FakeProvider("google", latency=0).fail(Reason.OVERLOADED, status=503, latency=0)
    google.endpoint = Endpoint("google", account=account)
    settings = Settings(
        redis_url=url, routes="google:pro,openai:flare", max_retries=0, ipm=60_000, **options
    )
    return ImageClient(settings, providers=[google, FakeProvider("openai", latency=0)])


def page_of(url: str) -> Any:
    fleet = FleetOrders(Address.parse(url), None)
    source = FleetSource(
        fleet, [step.accounts for step in Settings(routes="google:pro,openai:flare").routes]
    )
    return serve(source, token=TOKEN, jaeger_url=None, hosts=None)


def test_an_outage_and_an_order(server: RedisServer) -> None:
    """The page shows the shared state, and an order from the page reaches every process."""

    async def main() -> None:
        async with (
            worker(server.url) as one,
            worker(server.url) as other,
            serving(page_of(server.url)) as port,
        ):
            await other.warm_up()
            for _ in range(5):
                await one.generate("a lighthouse")
            view = await until(port, lambda view: view["status"] == "degraded")
            assert view["headline"] == "Images come from openai: google is out (overloaded)."
            google = view["routes"][0]
            assert (google["route"], google["state"]) == ("google:pro", "open")
            assert 0 < google["next_probe_s"] <= 66
            assert (view["fallbacks"], view["hedging"]) == (None, None)
            assert [each.partition(" (")[0] for each in view["workers"]] == ["2 processes"]

            order = {"action": "open", "target": "openai", "by": "ana", "seconds": 60}
            answer = await request(
                port, "/orders", method="POST", body=json.dumps(order).encode(),
                headers={
                    "Origin": f"http://127.0.0.1:{port}", "Content-Type": "application/json",
                    "Authorization": f"Bearer {TOKEN}",
                },
            )  # fmt: skip
            assert json.loads(answer.body)["answer"] == "2 of 2 workers obey"
            view = await until(port, lambda view: view["status"] == "down")
            openai = view["routes"][1]
            assert (openai["state"], openai["cause"]) == ("forced_open", "by ana")
            assert view["orders"][0]["obeyed"] == "2 of 2 workers obey"
            for client in (one, other):
                assert client.snapshot()["routes"][1]["breaker"]["state"] == "forced_open"

    run(main())


async def until(port: int, condition: Any) -> dict[str, Any]:
    """Return the first view that meets a condition; Redis may not answer in time at first."""
    async with watching(port, "/") as views:
        async for view in views:
            if "error" not in view and condition(view):
                return view
    raise AssertionError("the stream ended")


def test_the_last_hour_is_the_sum_of_all_processes(server: RedisServer) -> None:
    """Each process adds its counters every ten seconds, and at its end."""

    async def main() -> None:
        fleet = FleetOrders(Address.parse(server.url), None)
        source = FleetSource(fleet, [step.accounts for step in Settings().routes])
        assert (await source.read())["minutes"] is None
        async with worker(server.url) as one, worker(server.url) as other:
            await asyncio.gather(*(one.generate("a lighthouse") for _ in range(5)))
            await other.generate("a lighthouse")
        view = await source.read()
        assert view["minutes"] is not None
        assert len(view["minutes"]) == 60
        totals = {
            name: sum(minute[name] for minute in view["minutes"])
            for name in ("calls", "images", "fallback_images", "failed")
        }
        assert totals == {"calls": 6, "images": 6, "fallback_images": 6, "failed": 0}
        assert sum(minute["calls"] for minute in view["minutes"][-2:]) == 6
        assert "6 of 6 images of the last 5 minutes came from a fallback route." in view["notices"]

    run(main())


def test_an_order_about_a_route_as_the_page_names_it(server: RedisServer) -> None:
    """A button sends the route with the account's identifier, which orders do not have."""

    async def main() -> None:
        async with worker(server.url, account="3f2a9c1d") as client:
            await client.warm_up()
            fleet = FleetOrders(Address.parse(server.url), None)
            steps = Settings(routes="google:pro,openai:flare").routes
            source = FleetSource(fleet, [step.accounts for step in steps])
            route = (await source.read())["routes"][0]
            assert (route["route"], route["state"]) == ("google:pro@3f2a9c1d", "closed")
            order = new_order("open", route["route"], by="ana")
            assert await source.give(order) == "1 of 1 worker obeys"
            assert (await source.read())["routes"][0]["state"] == "forced_open"
            await source.give(new_order("open", "google", by="ana"))
            await source.give(new_order("open", "google", by="ana"))
            await source.give(new_order("reset", "google:pro", by="ana"))
            view = await source.read()
            assert view["routes"][0]["state"] == "closed"
            assert view["changes"] is not None
            assert [(each["sentence"], each["count"]) for each in view["changes"]] == [
                ("ana ordered breaker reset google:pro", 1),
                ("ana ordered breaker open google for 1800 s", 2),
                ("ana ordered breaker open google:pro for 1800 s", 1),
            ]
            ages = [(each["age_s"], each["first_age_s"]) for each in view["changes"]]
            assert ages[1][0] < ages[1][1]
            assert ages == sorted(ages)

    run(main())


@pytest.mark.parametrize(
    ("options", "target", "cause"),
    [
        ({"control": "off"}, "google", "IMAGE_GEN_CONTROL is off"),
        (
            {"control_secret": SECRET},
            "google",
            "it is not signed with their IMAGE_GEN_CONTROL_SECRET",
        ),
        ({}, "elsewhere", "no such route; routes are google:pro, openai:flare"),
    ],
)
def test_a_past_order_has_the_cause_for_which_workers_ignored_it(
    server: RedisServer, options: dict[str, Any], target: str, cause: str
) -> None:
    """The page shows the cause that the workers report."""

    async def main() -> None:
        async with worker(server.url, **options) as client:
            await client.warm_up()
            source = FleetSource(FleetOrders(Address.parse(server.url), None), [[]])
            with pytest.raises(ConfigurationError):
                await source.give(new_order("open", target, by="ana"))
            sentence = f"ana ordered breaker open {target} for 1800 s"
            assert await past_orders(source) == [f"{sentence} (ignored by 1 of 1 worker: {cause})"]

    run(main())


def test_a_past_order_of_another_secret_is_not_called_ignored(server: RedisServer) -> None:
    """Workers without a secret obeyed the order, although the page does not trust it."""

    async def main() -> None:
        address = Address.parse(server.url)
        async with worker(server.url) as client:
            await client.warm_up()
            await FleetOrders(address, None).give(new_order("reset", "google", by="ana"))
            source = FleetSource(FleetOrders(address, SECRET), [[]])
            assert await past_orders(source) == [
                (
                    "ana ordered breaker reset google "
                    "(not signed with the IMAGE_GEN_CONTROL_SECRET of this page)"
                )
            ]

    run(main())


async def past_orders(source: FleetSource) -> list[str]:
    """Return the sentences about past orders, the latest first."""
    changes = (await source.read())["changes"]
    assert changes is not None
    return [each["sentence"] for each in changes]


def test_an_order_that_not_all_obey_is_an_error(server: RedisServer) -> None:
    """The response names the cause, as the command ``breaker`` does."""

    async def main() -> None:
        async with worker(server.url) as client:
            await client.warm_up()
            source = FleetSource(FleetOrders(Address.parse(server.url), None), [[]])
            with pytest.raises(ConfigurationError, match="no such route"):
                await source.give(new_order("open", "elsewhere", by="ana"))

    run(main())


def test_an_unreachable_redis_is_shown_with_its_cause() -> None:
    """The page shows the cause instead of a state, and retries."""

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            url = f"redis://127.0.0.1:{taken.getsockname()[1]}/0"
        async with serving(page_of(url)) as port:
            view = await snapshot(port, "/")
            assert "Redis at " in view["error"]

    run(main())


def test_an_empty_redis_is_not_an_outage(server: RedisServer) -> None:
    """The page states that nothing is shared."""

    async def main() -> None:
        async with serving(page_of(server.url)) as port:
            view = await until(port, lambda _: True)
            assert view["status"] == "unknown"
            assert view["headline"] == "No process has shared anything within the last hour."

    run(main())


def test_the_command(server: RedisServer, tmp_path: Path) -> None:
    """The command prints its address and a token, accepts only its own host names, and exits by
    Ctrl-C with 0.
    """

    async def main(port: int) -> None:
        assert "event: " not in str(await snapshot(port, "/"))
        assert (await request(port, "/")).status == 200
        assert (await request(port, "/", headers={"Host": "evil.example"})).status == 421
        assert json.loads((await request(port, "/configuration")).body)["controls"] is True

    arguments = ("dashboard", "--port", "0", "--redis-url", server.url, "--controls")
    with started(*arguments, cwd=tmp_path) as process:
        assert process.stdout is not None
        address = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\n", process.stdout.readline())
        assert address is not None
        assert process.stderr is not None
        assert re.fullmatch(r"token for orders: [\w-]{32}\n", process.stderr.readline())
        assert process.stderr.readline() == "serving; Ctrl-C ends it\n"
        run(main(int(address[1])))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (0, "", "stopped\n")


def test_an_unreachable_redis_is_reported_at_the_start(tmp_path: Path) -> None:
    """The line is that of ``status``, without the password; the page is served nevertheless."""
    url = "redis://:hunter2@127.0.0.1:1/0"
    with started("dashboard", "--port", "0", "--redis-url", url, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line == "resilient-imagen: Redis at redis://127.0.0.1:1/0: refused\n"
        assert process.stderr.readline() == "serving; Ctrl-C ends it\n"


@pytest.mark.parametrize(
    ("arguments", "env", "says"),
    [
        ((), {}, "nothing is shared: set IMAGE_GEN_REDIS_URL"),
        (("--controls",), {"DASHBOARD_TOKEN": "short"}, "at least 16"),
        (("--jaeger-url", "localhost"), {}, "jaeger_url must be"),
    ],
)
def test_errors_of_the_command(
    arguments: tuple[str, ...],
    env: dict[str, str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each error is one line that states what to change."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    redis = () if says.startswith("nothing") else ("--redis-url", "redis://127.0.0.1:1/0")
    ended = cli(capsys, "dashboard", "--port", "0", *redis, *arguments)
    assert ended.code == 2
    assert says in ended.err
    assert ended.err.count("\n") == 1


def test_a_used_port_is_reported(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The line has the port and the system's description."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = cli(capsys, "dashboard", "--port", port, "--redis-url", "redis://127.0.0.1:1/0")
    assert ended.code == 2
    assert f"127.0.0.1:{port} cannot be used: Address already in use" in ended.err
