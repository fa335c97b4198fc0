"""Against a real Redis: what an application meets at its start when something about it is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import socket
import threading
from typing import Any

import pytest
from loop_kit import PATIENCE, LoopScenario, run_loop_scenario, until
from ports import free_port
from redis import exceptions as theirs
from redis_kit import RedisServer, redis_server

from resilient_imagen import ConfigurationError
from resilient_imagen.distributed.connection import RedisConnectionFactory
from resilient_imagen.distributed.redis_address import Address
from resilient_imagen.distributed.redis_errors import translate_redis_errors
from resilient_imagen.distributed.store import MisconfiguredError, StoreUnavailableError

pytestmark = pytest.mark.redis


@pytest.mark.parametrize(
    "url",
    ["http://localhost", "localhost:6379", "redis://", "redis://host/zero", "redis://h:port/0",
     "unix://", "redis://:hunter2@host:99999/0", "redis://:hunter2@host:0/0",
     "redis://:hunter2@host/0?namespace=", "redis://:hunter2@host/0?namespace=two*words"],
)  # fmt: skip
def test_a_url_that_cannot_be_right_is_an_error_at_once(url: str) -> None:
    """The client is not even made; the text names the variable and repeats nothing."""
    with pytest.raises(ConfigurationError, match="IMAGE_GEN_REDIS_URL") as caught:
        LoopScenario(url)
    assert "hunter2" not in str(caught.value)


def test_a_wrong_password_is_an_error_at_start_and_never_shown() -> None:
    """Warm-up and each call say so; a right one works."""

    async def scene(server: RedisServer) -> None:
        for credentials in ("", ":hunter2@", "me:hunter2@"):
            url = f"redis://{credentials}127.0.0.1:{server.port}/0"
            await LoopScenario(url).refuses("password")
        world = LoopScenario(f"redis://:secret@127.0.0.1:{server.port}/0")
        async with world.client:
            await world.ask()
            assert world.joined
            assert "secret" not in json.dumps(world.client.snapshot())

    with redis_server("--requirepass", "secret") as server:
        run_loop_scenario(scene(server))


def test_a_database_that_is_not_there_is_an_error_at_start(server: RedisServer) -> None:
    """The URL's number is wrong, and waiting would not help."""
    world = LoopScenario(f"redis://127.0.0.1:{server.port}/4711")
    run_loop_scenario(world.refuses("no database of that number"))


def test_a_user_who_may_not_write_is_an_error_at_start() -> None:
    """Redis is there and the password is right, but the rights are missing."""
    with redis_server() as server:
        server.ask("ACL", "SETUSER", "reader", "on", ">pw", "~*", "&*", "+@read", "+@connection")
        world = LoopScenario(f"redis://reader:pw@127.0.0.1:{server.port}/0")
        run_loop_scenario(world.refuses("does not permit"))


@pytest.mark.parametrize(
    "options", ["no_such_option=hunter2", "protocol=4", "db=hunter2", "max_connections=hunter2"]
)
def test_options_that_cannot_be_read_are_an_error_at_start(options: str) -> None:
    """Warm-up and each call say where to look, and repeat no value; no request is sent."""
    world = LoopScenario(f"redis://127.0.0.1:1/0?{options}")
    run_loop_scenario(world.refuses(r"IMAGE_GEN_REDIS_URL.*'\?'"))


def test_options_about_redis_pys_own_client_change_nothing(server: RedisServer) -> None:
    """A URL that other libraries use too: two clients join, and share an outage."""
    options = (
        "decode_responses=true&protocol=3&socket_timeout=0.000001&client_name=theirs&encoding=utf-16"
        "&max_connections=1&retry_on_timeout=yes&health_check_interval=1"
    )

    async def scene() -> None:
        one, two = (LoopScenario(f"{server.url}?{options}") for _ in range(2))
        async with one.client, two.client:
            await asyncio.gather(one.client.warm_up(), two.client.warm_up())
            await one.outage()
            await until(lambda: two.state == "open")

    run_loop_scenario(scene())


async def answer_as_a_web_server(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    await reader.read(100)
    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    writer.close()


def test_something_else_that_answers_there_is_an_error_at_start() -> None:
    """The port is a web server's."""

    async def scene() -> None:
        port = free_port()
        world = LoopScenario(f"redis://127.0.0.1:{port}/0")
        web = await asyncio.start_server(answer_as_a_web_server, "127.0.0.1", port)
        async with web:
            await world.refuses("what answers there is not Redis")

    run_loop_scenario(scene())


@pytest.mark.parametrize("wrong", ["wants a password", "is a web server"])
def test_a_redis_that_comes_back_wrong_costs_no_call(wrong: str) -> None:
    """If Redis was away at the start, a later fault of it is reported once and fails no call."""
    expected = {"wants a password": "password", "is a web server": "not Redis"}[wrong]

    async def scene(server: RedisServer) -> None:
        server.kill()
        world = LoopScenario(server.url)
        async with world.client:
            await world.ask()
            async with contextlib.AsyncExitStack() as wrongly:
                if wrong == "wants a password":
                    server.options = ("--requirepass", "secret")
                    server.start()
                    wrongly.callback(server.kill)
                else:
                    web = await asyncio.start_server(
                        answer_as_a_web_server, "127.0.0.1", server.port
                    )
                    await wrongly.enter_async_context(web)
                await until(lambda: len(world.losses) == 2)
                for _ in range(3):
                    await world.ask()
            server.options = ()
            server.start()
            await until(lambda: world.joined)
        refused, misfit = await world.warnings()
        assert "(refused)" in refused
        assert expected in misfit

    with redis_server() as server:
        run_loop_scenario(scene(server))


@pytest.mark.parametrize(
    ("url", "word"),
    [("redis://127.0.0.1:{port}/0", "refused"),
     ("redis://redis.invalid/0", "its name does not resolve"),
     ("unix:///no/such/place", "no such socket")],
)  # fmt: skip
def test_a_redis_that_is_not_there_is_named_in_words(
    url: str, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls are served, and the one event says why."""
    truly = socket.getaddrinfo

    def getaddrinfo(host: Any, *more: Any, **options: Any) -> Any:
        if host == "redis.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return truly(host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    async def scene() -> None:
        world = LoopScenario(url.format(port=free_port()))
        async with world.client:
            await world.ask()
        (expected,) = await world.warnings()
        assert f"is away ({word})" in expected

    run_loop_scenario(scene())


def test_a_name_server_that_hangs_costs_one_thread_of_our_own(
    monkeypatch: pytest.MonkeyPatch, server: RedisServer
) -> None:
    """However often it is tried: one lookup at a time, none in the loop's own threads.

    Once it answers, so does the door.
    """
    answers = threading.Event()
    lookups: list[str] = []
    truly = socket.getaddrinfo

    def getaddrinfo(host: Any, *more: Any, **options: Any) -> Any:
        if host != "redis.invalid":
            return truly(host, *more, **options)
        lookups.append(threading.current_thread().name)
        answers.wait(PATIENCE)
        return truly("127.0.0.1", *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    async def scene() -> None:
        door = RedisConnectionFactory(Address.parse(f"redis://redis.invalid:{server.port}/0"))
        await door.prepare()
        for _ in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await door.open()
        await until(lambda: lookups != [])
        assert lookups == ["resilient-imagen-dns"]
        assert asyncio.get_running_loop()._default_executor is None  # type: ignore[attr-defined]
        answers.set()
        link = await door.open()
        await link.aclose()

    run_loop_scenario(scene())


@pytest.mark.parametrize(
    ("error", "text", "final"),
    [(theirs.MovedError("1 10.0.0.1:6379"), "it is one node of a cluster", True),
     (theirs.ResponseError("SELECT is not allowed in cluster mode"), "no database", True),
     (theirs.ClusterDownError("The cluster is down"), "ClusterDownError", False),
     (theirs.BusyLoadingError("Redis is loading the dataset"), "still loading", False),
     (theirs.ReadOnlyError("You can't write"), "read-only", False),
     (theirs.ResponseError("MISCONF secret stuff"), "MISCONF", False),
     (theirs.ConnectionError("Connection closed by server."), "connection lost", False),
     (PermissionError(13, "secret"), "not permitted", False),
     (OSError(errno.ENETUNREACH, "secret"), "not reachable", False),
     (ValueError("secret"), "ValueError", False)],
)  # fmt: skip
def test_whatever_redis_py_raises_has_a_few_words(error: Exception, text: str, final: bool) -> None:
    """And none of its own, which may hold what was sent; some of it no waiting can cure."""
    with pytest.raises(StoreUnavailableError, match=text) as caught, translate_redis_errors():
        raise error
    assert isinstance(caught.value, MisconfiguredError) is final
    assert "secret" not in str(caught.value)
