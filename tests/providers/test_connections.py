"""Network: name resolution, addresses, proxies, TLS, and the messages of failures."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from providers_kit import (
    GOOD,
    MODELS,
    PROMPT,
    RawServer,
    google_body,
    http,
    openai_body,
    provider_for,
    raw_server,
    run,
)
from telemetry_kit import Telemetry

from resilient_imagen import (
    ConfigurationError,
    ImageClient,
    ImageGenerationError,
    Reason,
    Settings,
)
from resilient_imagen.providers.google import GoogleProvider
from resilient_imagen.providers.openai import OpenAIProvider
from resilient_imagen.request import ImageRequest

VENDORS = pytest.mark.parametrize("vendor", MODELS)
ONCE = {vendor: http(200, body, {"connection": "close"}) for vendor, body in
        (("google", google_body()), ("openai", openai_body()))}  # fmt: skip


class Names:
    """A resolver whose names have addresses, hang until the end, or are unknown."""

    def __init__(self) -> None:
        self.known: dict[str, list[str]] = {}
        self.hanging: set[str] = set()
        self.over = threading.Event()

    def getaddrinfo(self, host: str, port: int, *_args: Any, **_options: Any) -> list[Any]:
        if host in self.hanging:
            self.over.wait()
        if host not in self.known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET6 if ":" in each else socket.AF_INET, socket.SOCK_STREAM, 6, "",
             (each, port))
            for each in self.known[host]
        ]  # fmt: skip


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    names = Names()
    monkeypatch.setattr(socket, "getaddrinfo", names.getaddrinfo)
    yield names
    names.over.set()


async def one(vendor: str, url: str, **options: Any) -> Any:
    """Send one request and close the provider."""
    provider = provider_for(vendor, url, **options)
    try:
        return await provider.generate(ImageRequest(PROMPT), MODELS[vendor])
    finally:
        await provider.aclose()


def failure(vendor: str, url: str, **options: Any) -> ImageGenerationError:
    with pytest.raises(ImageGenerationError) as caught:
        run(one(vendor, url, **options))
    return caught.value


def unused_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


def test_a_hanging_name_server_delays_no_other_caller(names: Names) -> None:
    """Google's name hangs: OpenAI serves all callers, and the application's threads are free."""
    names.known = {"openai.test": ["127.0.0.1"]}
    names.hanging = {"google.test"}

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        async with raw_server(GOOD["openai"]) as server:
            settings = Settings(
                routes=",".join(f"{vendor}:{model}" for vendor, model in MODELS.items()),
                max_concurrent=8, ipm=600_000, max_retries=0, breaker_mode="off",
            )  # fmt: skip
            providers = [
                GoogleProvider(
                    api_key="made-up-1", base_url="http://google.test", connect_timeout=0.05
                ),
                OpenAIProvider(
                    api_key="made-up-2", base_url=f"http://openai.test:{server.port}/v1",
                    connect_timeout=30,
                ),
            ]  # fmt: skip
            async with ImageClient(settings, providers=providers) as client:
                results = await asyncio.gather(*(client.generate("a fox") for _ in range(8)))
                assert {result.provider for result in results} == {"openai"}
                assert {result.fallback_reason for result in results} == {"connection"}
            assert await asyncio.to_thread(lambda: "free") == "free"

    run(main())


@VENDORS
def test_the_last_good_address_serves_on(
    vendor: str, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vendor's last good address is used while the name server hangs."""
    monkeypatch.setattr("resilient_imagen.dns._STALE_AFTER", 0.01)
    names.known = {"vendor.test": ["127.0.0.1"]}

    async def main() -> int:
        async with raw_server(ONCE[vendor]) as server:
            provider = provider_for(vendor, f"http://vendor.test:{server.port}")
            for _ in range(3):
                await provider.generate(ImageRequest(PROMPT), MODELS[vendor])
                names.hanging = {"vendor.test"}
            await provider.aclose()
            return server.connections

    assert run(main()) == 3


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.2", "127.0.0.1"],
        ["::1", "127.0.0.1"],
        ["192.0.2.1", "127.0.0.1"],
        ["2001:db8::1", "192.0.2.1", "192.0.2.2", "127.0.0.1"],
        ["127.0.0.1", "127.0.0.1"],
    ],
    ids=["refused", "refused over IPv6", "silent", "several silent", "twice"],
)
def test_every_address_of_a_name_is_tried(names: Names, addresses: list[str]) -> None:
    """Addresses that refuse, are unroutable or never answer do not hide a working one."""
    names.known = {"vendor.test": addresses}

    async def main() -> None:
        async with raw_server(GOOD["google"]) as server:
            image = await one("google", f"http://vendor.test:{server.port}", connect_timeout=30)
            assert image.images[0].mime_type == "image/png"

    run(main())


def test_a_refused_connection_has_the_systems_message(names: Names) -> None:
    """The operating system's message is the vendor message; equal messages appear once."""
    names.known = {"vendor.test": ["127.0.0.1", "127.0.0.2"]}
    refused = f"[Errno {errno.ECONNREFUSED}] {os.strerror(errno.ECONNREFUSED)}"
    port = unused_port()
    for host in ("127.0.0.1", "vendor.test"):
        error = failure("google", f"http://{host}:{port}")
        assert error.reason is Reason.CONNECTION
        assert error.vendor_message == refused
        assert error.not_sent
        assert str(error) == f"google {MODELS['google']}: network failure"
        assert error.__cause__ is None
        assert error.__context__ is None


def test_an_unknown_name_has_the_resolvers_message(names: Names) -> None:
    """The vendor message is that of the resolver."""
    error = failure("openai", "http://nowhere.test")
    assert (error.reason, error.not_sent) == (Reason.CONNECTION, True)
    expected = str(socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    assert error.vendor_message == expected


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Provide a port whose backlog is full, so that a new connection gets no answer."""
    with socket.socket() as listener, ExitStack() as waiting:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(8):
            client = waiting.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def test_a_connect_timeout_names_its_cause(names: Names, silent_port: int) -> None:
    """The error names the name server or the vendor, whichever took too long. Nothing was sent."""
    names.hanging = {"slow.test"}
    names.known = {"vendor.test": ["127.0.0.1"]}
    for host, step in (("slow.test", "resolve"), ("vendor.test", "connect to")):
        error = failure("google", f"http://{host}:{silent_port}", connect_timeout=0.3)
        assert (error.reason, error.not_sent) == (Reason.CONNECTION, True)
        assert error.vendor_message == f"could not {step} {host} in time"


def test_a_reset_connection_has_the_systems_message() -> None:
    """A connection that is reset is described by the system's message."""

    async def main() -> None:
        async with raw_server(GOOD["google"], reset=True) as server:
            await one("google", server.url)

    with pytest.raises(ImageGenerationError) as caught:
        run(main())
    assert caught.value.vendor_message is not None
    assert os.strerror(errno.ECONNRESET) in caught.value.vendor_message


def test_logs_and_spans_have_the_cause_of_a_connection_failure() -> None:
    """The description reaches the event's log line and the span of the request."""
    telemetry = Telemetry()
    settings = Settings(routes=f"google:{MODELS['google']}", max_retries=0, ipm=600_000)
    provider = GoogleProvider(api_key="made-up-1", base_url=f"http://127.0.0.1:{unused_port()}")

    async def main() -> None:
        client = ImageClient(
            settings, providers=[provider],
            tracer_provider=telemetry.tracers, meter_provider=telemetry.meters,
        )  # fmt: skip
        async with client:
            await client.generate("a fox")

    with structlog.testing.capture_logs() as lines, pytest.raises(ImageGenerationError):
        run(main())
    words = os.strerror(errno.ECONNREFUSED)
    (line,) = (line for line in lines if line["event"] == "imagegen.attempt.failed")
    assert any(words in str(value) for value in line.values())
    (span,) = telemetry.attempts()
    assert any(words in str(event.attributes) for event in span.events)


# --- TLS -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a self-signed certificate for vendor.test with its key in one file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-keyout", "key.pem", "-out", "certificate.pem", "-days", "2",
         "-subj", "/CN=vendor.test", "-addext", "subjectAltName=DNS:vendor.test"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder / "certificate.pem"


@asynccontextmanager
async def tls_server(certificate: Path, vendor: str) -> Any:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    server = RawServer(lambda _request: GOOD[vendor])
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        await server.stop()


@VENDORS
def test_tls_verifies_the_name_and_not_the_address(
    vendor: str, certificate: Path, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The certificate's name is accepted, another name at the same address is not."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    names.known = {"vendor.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]}

    async def main() -> None:
        async with tls_server(certificate, vendor) as port:
            image = await one(vendor, f"https://vendor.test:{port}")
            assert image.images[0].mime_type == "image/png"
            await one(vendor, f"https://other.test:{port}")

    with pytest.raises(ImageGenerationError) as caught:
        run(main())
    assert caught.value.reason is Reason.CONNECTION
    assert "certificate verify failed: Hostname mismatch" in (caught.value.vendor_message or "")


@VENDORS
def test_an_unknown_authority_has_the_tls_message(
    vendor: str, certificate: Path, names: Names, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The error contains the TLS library's message that the authority is unknown."""
    (tmp_path / "none").mkdir()
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    names.known = {"vendor.test": ["127.0.0.1"]}

    async def main() -> None:
        async with tls_server(certificate, vendor) as port:
            await one(vendor, f"https://vendor.test:{port}")

    with pytest.raises(ImageGenerationError) as caught:
        run(main())
    assert "certificate verify failed: self-signed certificate" in (
        caught.value.vendor_message or ""
    )
    assert caught.value.not_sent


# --- proxies ---------------------------------------------------------------------------------


@VENDORS
def test_a_proxy_is_used_and_its_name_is_resolved(
    vendor: str, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTP_PROXY's name is looked up, the vendor's is not; NO_PROXY bypasses the proxy."""
    names.known = {"proxy.test": ["127.0.0.1"], "near.test": ["127.0.0.1"]}

    async def main() -> None:
        async with raw_server(GOOD[vendor]) as proxy, raw_server(GOOD[vendor]) as direct:
            monkeypatch.setenv("HTTP_PROXY", f"http://joe:hunter2-hunter2@proxy.test:{proxy.port}")
            monkeypatch.setenv("NO_PROXY", "near.test")
            await one(vendor, "http://far.test")
            await one(vendor, f"http://near.test:{direct.port}")
            assert proxy.requests[0].path.startswith("http://far.test/")
            assert proxy.requests[0].headers["proxy-authorization"].startswith("Basic ")
            assert (len(proxy.requests), len(direct.requests)) == (1, 1)

    run(main())


@pytest.mark.parametrize(
    ("host", "bypassing"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "far.test, 127.0.0.1:{port}"),
        ("localhost", "LOCALHOST"),
        ("[::1]", "::1"),
        ("[::1]", "[::1]"),
        ("[::1]", "[::1]:{port}"),
        ("localhost", "*"),
    ],
)
@pytest.mark.parametrize("variable", ["NO_PROXY", "no_proxy"])
def test_no_proxy_names_a_host_in_any_notation(
    host: str, bypassing: str, variable: str, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NO_PROXY accepts a port, any case, and IPv6 with or without brackets."""
    port = unused_port()
    names.hanging = {"proxy.test"}
    monkeypatch.setenv("http_proxy", "http://proxy.test:3128")
    monkeypatch.setenv(variable, bypassing.format(port=port))
    error = failure("google", f"http://{host}:{port}", connect_timeout=0.05)
    assert "proxy.test" not in (error.vendor_message or "")


def test_no_proxy_may_name_the_port_that_the_address_leaves_out(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``host:443`` matches ``https://host``; another port does not."""
    names.hanging = {"proxy.test"}
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.test:3128")

    def message() -> str | None:
        return failure("google", "https://far.test", connect_timeout=0.05).vendor_message

    monkeypatch.setenv("NO_PROXY", "far.test:443")
    assert "proxy.test" not in (message() or "")
    monkeypatch.setenv("NO_PROXY", "far.test:80")
    assert message() == "could not resolve proxy.test in time"


@pytest.mark.parametrize(
    ("variable", "address", "said"),
    [
        ("HTTPS_PROXY", "ftp://joe:hunter2@proxy.test:1", "is not the address of a proxy"),
        ("HTTPS_PROXY", "http://joe:hunter2@proxy.test:99999", "is not the address of a proxy"),
        ("https_proxy", "http://joe:hunter2@proxy.test:port", "is not the address of a proxy"),
        ("HTTPS_PROXY", "joe:hunter2@[::1", "is not the address of a proxy"),
        ("HTTPS_PROXY", "http://", "is not the address of a proxy"),
        ("ALL_PROXY", "socks5://joe:hunter2@proxy.test:1", "the package socksio is missing"),
    ],
)
@VENDORS
def test_a_proxy_that_cannot_be_used_is_a_wrong_setting(
    vendor: str, variable: str, address: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the variable and what is allowed, not the address with its password."""
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv(variable, address)
    with pytest.raises(ConfigurationError, match=f"^{variable.upper()} .*{said}") as caught:
        run(one(vendor, "https://far.test"))
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_blanks_around_a_proxys_address_are_ignored(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    """White space around a proxy is ignored; a blank variable names no proxy."""
    names.known = {"proxy.test": ["127.0.0.1"]}

    async def main() -> None:
        async with raw_server(GOOD["google"]) as proxy:
            monkeypatch.setenv("HTTP_PROXY", f" http://proxy.test:{proxy.port}\n")
            await one("google", "http://far.test")
            monkeypatch.setenv("HTTP_PROXY", "  ")
            await one("google", proxy.url)
            assert [each.path[:5] for each in proxy.requests] == ["http:", "/v1/m"]

    names.known["127.0.0.1"] = ["127.0.0.1"]
    run(main())


@pytest.mark.parametrize(
    ("variable", "content"),
    [("SSL_CERT_FILE", None), ("SSL_CERT_FILE", "no certificate"), ("SSLKEYLOGFILE", None)],
)
def test_a_file_for_tls_that_cannot_be_used_is_a_wrong_setting(
    variable: str, content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names file and variable, which Python's error does not."""
    file = tmp_path / "missing" / "file"
    if content is not None:
        file.parent.mkdir()
        file.write_text(content)
    monkeypatch.setenv(variable, str(file))
    with pytest.raises(ConfigurationError, match=f"^TLS cannot be set up .*{variable} "):
        run(one("google", "https://far.test"))


@VENDORS
def test_the_error_of_a_proxy_does_not_contain_its_password(
    vendor: str, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has the proxy's status, but not its echo of the credentials."""
    names.known = {"proxy.test": ["127.0.0.1"]}
    said = b"HTTP/1.1 407 wrong for joe-the-user hunter2-hunter2\r\ncontent-length: 0\r\n\r\n"

    async def main() -> None:
        async with raw_server(said) as proxy:
            url = f"http://joe-the-user:hunter2%2Dhunter2@proxy.test:{proxy.port}"
            monkeypatch.setenv("HTTPS_PROXY", url)
            await one(vendor, "https://far.test")

    with pytest.raises(ImageGenerationError) as caught:
        run(main())
    message = caught.value.vendor_message
    assert message == "407 wrong for […] […]"


def test_a_proxy_whose_name_hangs_is_bounded(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connect timeout includes the lookup of the proxy's name."""
    names.hanging = {"proxy.test"}
    monkeypatch.setenv("ALL_PROXY", "http://proxy.test:3128")
    error = failure("google", "https://far.test", connect_timeout=0.05)
    assert error.vendor_message == "could not resolve proxy.test in time"


@VENDORS
def test_the_password_in_a_relays_address_is_redacted(vendor: str) -> None:
    """Credentials in a base URL are redacted like the key."""
    answer = http(400, {"error": {"message": "no such user: relay-user / relay-password"}})

    async def main() -> None:
        async with raw_server(answer) as server:
            url = server.url.replace("http://", "http://relay-user:relay-password@")
            await one(vendor, url)

    with pytest.raises(ImageGenerationError) as caught:
        run(main())
    assert caught.value.vendor_message == "no such user: […] / […]"


@VENDORS
def test_one_vendors_message_never_shows_the_others_key(vendor: str) -> None:
    """A message contains no key of any provider of the process."""
    other = "openai" if vendor == "google" else "google"
    kind = OpenAIProvider if other == "openai" else GoogleProvider
    provider = kind(api_key="gw_planted.9f8e7d6c5b4a32")
    answer = http(500, {"error": {"message": "upstream said gw_planted.9f8e7d6c\u00ad5b4a32"}})

    async def main() -> None:
        async with raw_server(answer) as server:
            await one(vendor, server.url)

    with pytest.raises(ImageGenerationError) as caught:
        run(main())
    assert caught.value.vendor_message == "upstream said […]"
    run(provider.aclose())
