"""The start of an application with a wrong URL, a wrong password or a wrong server."""

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
from redis import exceptions as redis_exceptions
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
def test_an_invalid_url_is_an_error_when_the_client_is_created(url: str) -> None:
    """The error names the variable and does not repeat the value."""
    with pytest.raises(ConfigurationError, match="IMAGE_GEN_REDIS_URL") as caught:
        LoopScenario(url)
    assert "hunter2" not in str(caught.value)


def test_a_wrong_password_is_an_error_at_the_start() -> None:
    """Warm-up and each call raise an error that does not contain the password."""

    async def scene(server: RedisServer) -> None:
        for credentials in ("", ":hunter2@", "me:hunter2@"):
            url = f"redis://{credentials}127.0.0.1:{server.port}/0"
            await LoopScenario(url).refuses("password")
        scenario = LoopScenario(f"redis://:secret@127.0.0.1:{server.port}/0")
        async with scenario.client:
            await scenario.ask()
            assert scenario.joined
            assert "secret" not in json.dumps(scenario.client.snapshot())

    with redis_server("--requirepass", "secret") as server:
        run_loop_scenario(scene(server))


def test_an_unknown_database_number_is_an_error_at_the_start(server: RedisServer) -> None:
    """Redis has no database with the number in the URL, so waiting would not help."""
    scenario = LoopScenario(f"redis://127.0.0.1:{server.port}/4711")
    run_loop_scenario(scenario.refuses("no database of that number"))


def test_a_user_without_write_permission_is_an_error_at_the_start() -> None:
    """Redis is reachable and the password is right, but the permissions are missing."""
    with redis_server() as server:
        server.ask("ACL", "SETUSER", "reader", "on", ">pw", "~*", "&*", "+@read", "+@connection")
        scenario = LoopScenario(f"redis://reader:pw@127.0.0.1:{server.port}/0")
        run_loop_scenario(scenario.refuses("does not permit"))


@pytest.mark.parametrize(
    "options", ["no_such_option=hunter2", "protocol=4", "db=hunter2", "max_connections=hunter2"]
)
def test_invalid_url_options_are_an_error_at_the_start(options: str) -> None:
    """Warm-up and each call name the place to look at, repeat no value, and send no request."""
    scenario = LoopScenario(f"redis://127.0.0.1:1/0?{options}")
    run_loop_scenario(scenario.refuses(r"IMAGE_GEN_REDIS_URL.*'\?'"))


def test_options_for_redis_py_are_accepted(server: RedisServer) -> None:
    """Two clients share an outage with a URL whose options are meant for other uses of redis-py."""
    options = (
        "decode_responses=true&protocol=3&socket_timeout=0.000001&client_name=theirs&encoding=utf-16"
        "&max_connections=1&retry_on_timeout=yes&health_check_interval=1"
    )

    async def scene() -> None:
        one, two = (LoopScenario(f"{server.url}?{options}") for _ in range(2))
        async with one.client, two.client:
            await asyncio.gather(one.client.warm_up(), two.client.warm_up())
            await one.open_breaker()
            await until(lambda: two.state == "open")

    run_loop_scenario(scene())


async def answer_as_a_web_server(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    await reader.read(100)
    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    writer.close()


def test_a_server_that_is_not_redis_is_an_error_at_the_start() -> None:
    """A web server answers on the port."""

    async def scene() -> None:
        port = free_port()
        scenario = LoopScenario(f"redis://127.0.0.1:{port}/0")
        web = await asyncio.start_server(answer_as_a_web_server, "127.0.0.1", port)
        async with web:
            await scenario.refuses("the server is not Redis")

    run_loop_scenario(scene())


@pytest.mark.parametrize("wrong", ["wants a password", "is a web server"])
def test_a_misconfigured_redis_after_the_start_fails_no_call(wrong: str) -> None:
    """If Redis was down at the start, a later configuration error is reported once and fails no
    call.
    """
    expected = {"wants a password": "password", "is a web server": "not Redis"}[wrong]

    async def scene(server: RedisServer) -> None:
        server.kill()
        scenario = LoopScenario(server.url)
        async with scenario.client:
            await scenario.ask()
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
                await until(lambda: len(scenario.losses) == 2)
                for _ in range(3):
                    await scenario.ask()
            server.options = ()
            server.start()
            await until(lambda: scenario.joined)
        refused, misfit = await scenario.warnings()
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
def test_the_warning_describes_why_redis_is_unreachable(
    url: str, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls are served, and one warning states the cause."""
    original = socket.getaddrinfo

    def getaddrinfo(host: Any, *more: Any, **options: Any) -> Any:
        if host == "redis.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return original(host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    async def scene() -> None:
        scenario = LoopScenario(url.format(port=free_port()))
        async with scenario.client:
            await scenario.ask()
        (expected,) = await scenario.warnings()
        assert f"is unavailable ({word})" in expected

    run_loop_scenario(scene())


def test_a_hanging_name_lookup_uses_one_thread(
    monkeypatch: pytest.MonkeyPatch, server: RedisServer
) -> None:
    """Retries share one lookup at a time, and none runs in the loop's executor.

    Once the lookup answers, the connection opens.
    """
    answers = threading.Event()
    lookups: list[str] = []
    original = socket.getaddrinfo

    def getaddrinfo(host: Any, *more: Any, **options: Any) -> Any:
        if host != "redis.invalid":
            return original(host, *more, **options)
        lookups.append(threading.current_thread().name)
        answers.wait(PATIENCE)
        return original("127.0.0.1", *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    async def scene() -> None:
        factory = RedisConnectionFactory(Address.parse(f"redis://redis.invalid:{server.port}/0"))
        await factory.prepare()
        for _ in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await factory.open()
        await until(lambda: lookups != [])
        assert lookups == ["resilient-imagen-dns"]
        assert asyncio.get_running_loop()._default_executor is None  # type: ignore[attr-defined]
        answers.set()
        link = await factory.open()
        await link.aclose()

    run_loop_scenario(scene())


@pytest.mark.parametrize(
    ("error", "text", "final"),
    [(redis_exceptions.MovedError("1 10.0.0.1:6379"), "it is one node of a cluster", True),
     (redis_exceptions.ResponseError("SELECT is not allowed in cluster mode"), "no database", True),
     (redis_exceptions.ClusterDownError("The cluster is down"), "ClusterDownError", False),
     (redis_exceptions.BusyLoadingError("Redis is loading the dataset"), "still loading", False),
     (redis_exceptions.ReadOnlyError("You can't write"), "read-only", False),
     (redis_exceptions.ResponseError("MISCONF secret stuff"), "MISCONF", False),
     (redis_exceptions.ConnectionError("Connection closed by server."), "connection lost", False),
     (PermissionError(13, "secret"), "not permitted", False),
     (OSError(errno.ENETUNREACH, "secret"), "not reachable", False),
     (ValueError("secret"), "ValueError", False)],
)  # fmt: skip
def test_errors_of_redis_py_are_translated(error: Exception, text: str, final: bool) -> None:
    """The text of redis-py is not repeated, since it may contain sent data.

    Some errors are final.
    """
    with pytest.raises(StoreUnavailableError, match=text) as caught, translate_redis_errors():
        raise error
    assert isinstance(caught.value, MisconfiguredError) is final
    assert "secret" not in str(caught.value)
