"""Permissions in Redis: errors and warnings name a missing one."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from loop_kit import LoopScenario, run_loop_scenario, until
from redis_kit import RedisServer, redis_server

pytestmark = pytest.mark.redis

ALL = ("on", ">hunter2", "~*", "&*", "+@all")
LOSSES = [
    (("resetchannels",), r"use the channel <namespace>:news"),
    (("-subscribe",), r"run SUBSCRIBE"),
    (("-evalsha",), r"run EVALSHA"),
    (("resetkeys", "~other:*"), r"use the keys <namespace>:\*"),
    (("-hset",), r"run (HSET|a command that our scripts need)"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


def url(server: RedisServer) -> str:
    return f"redis://worker:hunter2@127.0.0.1:{server.port}/0"


def permit(server: RedisServer, *rules: str) -> None:
    assert server.ask("ACL", "SETUSER", "worker", "reset", *ALL, *rules) == b"+OK\r\n"


@pytest.mark.parametrize(("rules", "named"), LOSSES)
def test_a_missing_permission_is_an_error_at_the_start(
    server: RedisServer, rules: tuple[str, ...], named: str
) -> None:
    """The error names the command, the keys or the channel, and never the password."""
    permit(server, *rules)
    scenario = LoopScenario(url(server))

    run_loop_scenario(scenario.refuses(f"it does not permit this user to {named}"))


@pytest.mark.parametrize(("rules", "named"), LOSSES)
def test_a_permission_revoked_later_is_named_in_a_warning(
    server: RedisServer, rules: tuple[str, ...], named: str
) -> None:
    """Calls do not fail, and the client reconnects when the permission is granted again."""

    async def scene() -> None:
        permit(server)
        scenario = LoopScenario(url(server))
        async with scenario.client:
            await scenario.ask()
            permit(server, *rules)
            server.ask("CLIENT", "KILL", "USER", "worker")  # it is subscribed already
            pattern = re.compile(f"it does not permit this user to {named}")
            await until(lambda: any(map(pattern.search, scenario.losses)))
            await scenario.ask()
            permit(server)
            await until(lambda: scenario.joined)
        assert "hunter2" not in "".join(await scenario.warnings())

    run_loop_scenario(scene())
