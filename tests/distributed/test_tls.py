"""A real Redis behind TLS, with a private certificate authority."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet_proxy import Proxy
from loop_kit import LoopScenario, run_loop_scenario, until
from redis_kit import RedisServer

pytestmark = pytest.mark.redis

KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with ca.pem, and with server.pem and its key, for localhost."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("no openssl on PATH to make certificates with: TLS to Redis is not tested")
    folder = tmp_path_factory.mktemp("certificates")
    (folder / "more").write_text("subjectAltName=DNS:localhost\nauthorityKeyIdentifier=keyid\n")
    for command in (
        ("req", "-x509", *KEY, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ours",
         "-days", "2", "-addext", "keyUsage=critical,keyCertSign"),
        ("req", *KEY, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost"),
        ("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
         "-CAcreateserial", "-out", "server.pem", "-days", "2", "-extfile", "more"),
    ):  # fmt: skip
        subprocess.run([program, *command], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def port(certificates: Path, shared_server: RedisServer) -> Iterator[int]:
    """Provide a port on which Redis is reached by TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    with Proxy(shared_server.port, context) as proxy:
        yield proxy.port


@pytest.mark.parametrize("trust", ["ssl_ca_certs={certificates}/ca.pem", "ssl_cert_reqs=none"])
def test_certificates_are_read_once_and_not_on_the_loop(
    port: int, certificates: Path, server: RedisServer, trust: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client reconnects with the same TLS context after its connections broke."""
    made: list[threading.Thread] = []
    original = ssl.create_default_context

    def create(*arguments: Any, **options: Any) -> ssl.SSLContext:
        made.append(threading.current_thread())
        return original(*arguments, **options)

    monkeypatch.setattr(ssl, "create_default_context", create)

    async def scene() -> None:
        scenario = LoopScenario(
            f"rediss://localhost:{port}/0?{trust.format(certificates=certificates)}"
        )
        async with scenario.client:
            await scenario.ask()
            assert scenario.joined
            server.ask("CLIENT", "KILL", "TYPE", "pubsub")
            await until(lambda: not scenario.joined)
            await until(lambda: scenario.joined)
            await scenario.ask()
        assert len(made) == 1
        assert threading.main_thread() not in made

    run_loop_scenario(scene())


@pytest.mark.parametrize(
    ("host", "options", "text"),
    [("localhost", "", "not trusted: unable to get local issuer certificate"),
     ("127.0.0.1", "ssl_ca_certs={certificates}/ca.pem", "not trusted: IP address mismatch"),
     ("localhost", "ssl_ca_certs={certificates}/missing.pem", "cannot be read"),
     ("localhost", "ssl_ca_certs={certificates}/more", "an invalid cert"),
     ("localhost", "ssl_certfile={certificates}/server.pem&ssl_keyfile={certificates}/ca.key",
      "invalid cert"),
     ("localhost", "ssl_cert_reqs=hunter2", "redis-py cannot parse the URL")],
)  # fmt: skip
def test_certificate_errors_are_errors_at_the_start(
    port: int, certificates: Path, host: str, options: str, text: str
) -> None:
    """Waiting would not help: warm-up and calls name the problem, and no request is sent."""
    scenario = LoopScenario(f"rediss://{host}:{port}/0?{options.format(certificates=certificates)}")
    run_loop_scenario(scenario.refuses(text))


def test_rediss_to_a_server_without_tls_is_an_error_at_the_start() -> None:
    """`rediss://` fails at the start if the server's response is not TLS."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"-ERR unknown command\r\n")
        writer.close()

    async def scene() -> None:
        async with await asyncio.start_server(refuse, "127.0.0.1", 0) as plain:
            port = plain.sockets[0].getsockname()[1]
            await LoopScenario(f"rediss://127.0.0.1:{port}/0").refuses("does not use TLS")

    run_loop_scenario(scene())


def test_plain_redis_to_a_server_with_tls_fails_no_call(port: int) -> None:
    """The server closes the connection, as a stopping server does: one warning, no error."""

    async def scene() -> None:
        scenario = LoopScenario(f"redis://localhost:{port}/0")
        async with scenario.client:
            await scenario.ask()
            assert not scenario.joined
        assert len(await scenario.warnings()) == 1

    run_loop_scenario(scene())
