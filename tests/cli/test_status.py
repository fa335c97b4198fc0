"""``status``: the state that processes share, as table and JSON."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from cli_kit import run
from redis_kit import RedisServer

from resilient_imagen import ImageClient, Settings
from resilient_imagen.providers.base import Endpoint
from resilient_imagen.reasons import Reason
from resilient_imagen.testing import FakeProvider

pytestmark = pytest.mark.redis


def share_an_outage(url: str, account: str = "", routes: str = "google:pro,openai:flare") -> None:
    """Let Google serve once and then fail until its circuit opens; OpenAI serves."""

    async def main() -> None:
        google, openai = FakeProvider("google", latency=0), FakeProvider("openai", latency=0)
        google.endpoint = Endpoint("google", account=account)
        settings = Settings(redis_url=url, routes=routes, max_retries=0, ipm=60_000)
        async with ImageClient(settings, providers=[google, openai]) as client:
            await client.generate("a lighthouse")
            google.fail(Reason.OVERLOADED, status=503, latency=0)
            for _ in range(4):
                await client.generate("a lighthouse")
            await asyncio.sleep(0.1)

    asyncio.run(main())


def test_every_route_is_shown_as_the_fleet_sees_it(server: RedisServer, tmp_path: Path) -> None:
    """Table and JSON have each route's state, its cause and the time left."""
    share_an_outage(server.url)
    shown = run("status", cwd=tmp_path, env={"IMAGE_GEN_REDIS_URL": server.url, "COLUMNS": "150"})
    assert shown.returncode == 0, shown.stderr
    for word in ("google:pro", "open, ", "503", "openai:flare", "closed", "next place in"):
        assert word in shown.stdout
    assert f"Redis at {server.url}, keys resilient_imagen:*" in shown.stdout
    printed = json.loads(run("status", "--json", "--redis-url", server.url, cwd=tmp_path).stdout)
    google, openai = printed["routes"]
    assert (google["route"], google["state"], google["why"]) == ("google:pro", "open", "overloaded")
    assert 0 < google["left_s"] <= 66
    assert google["openings_in_a_row"] == 1
    assert (openai["state"], openai["left_s"]) == ("closed", 0)
    assert {pace["provider"] for pace in printed["paces"]} == {"google", "openai"}


@pytest.mark.parametrize("command", [("status",), ("settings", "show")])
def test_tables_show_all_of_their_text(
    command: tuple[str, ...], server: RedisServer, tmp_path: Path
) -> None:
    """Eighty columns fold long names. In a pipe, where no width is known, rows are not folded."""
    routes = "google:gemini-3-pro-image,openai:gpt-image-2.5-flare"
    share_an_outage(server.url, "3f2a9c1d", routes)
    env = {"IMAGE_GEN_REDIS_URL": server.url, "IMAGE_GEN_ROUTES": routes}
    narrow = run(*command, cwd=tmp_path, env={**env, "COLUMNS": "80"})
    wide = run(*command, cwd=tmp_path, env={**env, "COLUMNS": ""})
    assert (narrow.returncode, wide.returncode) == (0, 0)
    assert "…" not in narrow.stdout + wide.stdout
    assert all(len(line) <= 80 for line in narrow.stdout.splitlines() if "│" in line)
    names = routes.split(",") if command[0] == "status" else [routes, "IMAGE_GEN_REDIS_URL"]
    for name in names:
        assert name in wide.stdout
        assert name in folded(narrow.stdout)


def folded(table: str) -> str:
    """Return the text of a table's columns, each cell without its line breaks."""
    rows = [line.strip("│").split("│") for line in table.splitlines() if line.startswith("│")]
    return "\n".join("".join(map(str.strip, column)) for column in zip(*rows, strict=True))


def test_steps_with_several_accounts_are_named(server: RedisServer, tmp_path: Path) -> None:
    """Table and JSON name the step of a route, by this machine's IMAGE_GEN_ROUTES."""
    share_an_outage(server.url, account="1f")
    env = {
        "IMAGE_GEN_REDIS_URL": server.url,
        "IMAGE_GEN_ROUTES": "google+vertex:pro,openai:flare",
        "COLUMNS": "170",
    }
    shown = run("status", cwd=tmp_path, env=env)
    assert shown.returncode == 0, shown.stderr
    assert "google+vertex:pro" in shown.stdout
    routes = json.loads(run("status", "--json", cwd=tmp_path, env=env).stdout)["routes"]
    assert {each["route"]: each.get("step") for each in routes} == {
        "google:pro@1f": "google+vertex:pro",
        "openai:flare": None,
    }


def test_fleets_and_accounts_are_distinguished(server: RedisServer, tmp_path: Path) -> None:
    """Each namespace is shown alone, and routes of two accounts have two rows."""
    url = f"{server.url}?namespace=storyboards"
    accounts = {"one", "another"}
    for account in accounts:
        share_an_outage(url, account)
    printed = json.loads(run("status", "--json", "--redis-url", url, cwd=tmp_path).stdout)
    assert printed["namespace"] == "resilient_imagen:storyboards"
    google = {each["route"] for each in printed["routes"] if each["route"].startswith("google")}
    assert google == {f"google:pro@{account}" for account in accounts}
    assert {pace["provider"] for pace in printed["paces"]} == {
        "openai",
        *(f"google@{account}" for account in accounts),
    }
    other = json.loads(run("status", "--json", "--redis-url", server.url, cwd=tmp_path).stdout)
    assert (other["namespace"], other["routes"]) == ("resilient_imagen", [])


def test_a_redis_without_a_fleet_is_reported(server: RedisServer, tmp_path: Path) -> None:
    """If nothing was shared yet, the command prints this and succeeds."""
    shown = run("status", "--redis-url", server.url, cwd=tmp_path)
    assert shown.returncode == 0
    assert "No process has shared anything" in shown.stdout


def test_a_missing_url_or_server_is_named(tmp_path: Path) -> None:
    """The message has the variable or the address, without the password; the exit code is 2."""
    missing = run("status", cwd=tmp_path)
    assert missing.returncode == 2
    assert "IMAGE_GEN_REDIS_URL" in missing.stderr
    gone = run("status", "--redis-url", "redis://:hunter2@127.0.0.1:1/0", cwd=tmp_path)
    assert gone.returncode == 2
    assert "127.0.0.1:1" in gone.stderr
    assert "hunter2" not in gone.stderr
