"""References are loaded from public addresses only, within limits."""

from __future__ import annotations

import asyncio
import ipaddress
import shutil
import socket
import ssl
import subprocess
import threading
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpcore2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from images_samples import encoded, picture

from resilient_imagen import ImageClient, ImageInput, ImageResult, Settings
from resilient_imagen.images.image_errors import UnusableImageError
from resilient_imagen.images.limits import ImageLimits
from resilient_imagen.references.fetch import Fetcher, FetchError
from resilient_imagen.references.loading import LoadedReferences, load_references
from resilient_imagen.references.public_addresses import is_public
from resilient_imagen.testing import FakeProvider, run_virtual

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
    from pathlib import Path

PNG = encoded(picture(), "PNG")
NO_TRUST = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
SECRET = "signature=do-not-tell"
LOCAL = ImageLimits(
    allow_private=True, allow_http=True, max_reference_bytes=2_000_000,
    fetch_seconds=60, connect_seconds=60,  # only end a test that hangs
)  # fmt: skip


def answer(status: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Server:
    """A loopback server that answers each path with the configured bytes."""

    def __init__(self, pages: dict[str, bytes]) -> None:
        self.pages = pages
        self.requests: list[bytes] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        self.requests.append(request)
        page = self.pages.get(request.split()[1].decode(), answer("404 Not Found"))
        try:
            writer.write(page.replace(b"PORT", str(self.port).encode()))
            if page.endswith(b"...for ever"):
                await reader.read()  # until the client closes the connection
            await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(
    pages: dict[str, bytes], context: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    server = Server(pages)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context)
    server.port = listener.sockets[0].getsockname()[1]
    async with listener:
        yield server


def load(path: str, pages: dict[str, bytes], limits: ImageLimits = LOCAL) -> bytes:
    async def run() -> bytes:
        async with serving(pages) as server:
            return await Fetcher(limits).fetch(f"http://127.0.0.1:{server.port}{path}")

    return asyncio.run(run())


def names(**table: str) -> Callable[[str, int], Coroutine[Any, Any, Sequence[str]]]:
    """Return a resolver with these names; underscores are dots."""
    known = {name.replace("_", "."): address.split() for name, address in table.items()}

    async def resolve(host: str, _port: int) -> Sequence[str]:
        return known.get(host, [])

    return resolve


class RecordingBackend(httpcore2.AsyncNetworkBackend):
    """A network backend that records connections and answers them from a script."""

    def __init__(
        self, answers: Sequence[bytes], *, lands_at: str | None = None, refuses: int = 0
    ) -> None:
        self.answers = list(answers)
        self.refuses = refuses
        self.lands_at = lands_at
        self.connected: list[str] = []

    async def connect_tcp(self, host: str, *_: Any, **__: Any) -> httpcore2.AsyncNetworkStream:
        self.connected.append(host)
        if len(self.connected) <= self.refuses:
            raise httpcore2.ConnectError("connection refused")
        reply = self.answers.pop(0) if self.answers else answer("200 OK", PNG)
        return RecordedStream(reply, self.lands_at or host)


class RecordedStream(httpcore2.AsyncMockStream):
    def __init__(self, reply: bytes, peer: str) -> None:
        super().__init__([reply])
        self.peer = peer

    async def start_tls(self, *_: Any, **__: Any) -> httpcore2.AsyncNetworkStream:
        return self

    def get_extra_info(self, info: str) -> Any:
        return (self.peer, 443) if info == "server_addr" else None


def recorded(fetcher: Fetcher, network: RecordingBackend) -> Fetcher:
    fetcher._network._network = network  # type: ignore[assignment]
    fetcher._ssl_context = NO_TRUST
    return fetcher


def test_an_image_is_loaded_from_a_real_server() -> None:
    """With private addresses and http allowed, loopback and redirects work."""
    pages = {
        "/start": answer("302 Found", b"", "Location: /next?a=1#part"),
        "/next?a=1": answer("307 Temporary Redirect", b"", "Location: http://127.0.0.1:PORT/end"),
        "/end": answer("200 OK", PNG, "Content-Type: text/lies"),
    }

    assert load("/start", pages) == PNG


def test_requests_carry_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests have no cookies and no credentials, and ignore the environment's proxies."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")

    async def run() -> bytes:
        pages = {
            "/a": answer("302 Found", b"", "Location: /b", "Set-Cookie: id=1"),
            "/b": answer("200 OK", PNG),
        }
        async with serving(pages) as server:
            await Fetcher(LOCAL).fetch(f"http://127.0.0.1:{server.port}/a")
            return server.requests[1].lower()

    request = asyncio.run(run())

    sent = {line.split(b":")[0] for line in request.split(b"\r\n")[1:] if line}
    assert sent == {b"host", b"user-agent", b"accept", b"accept-encoding"}


def test_one_fetcher_serves_several_event_loops() -> None:
    """A fetcher is not bound to the loop of its first use."""
    fetcher = Fetcher(LOCAL)

    async def run() -> bytes:
        async with serving({"/": answer("200 OK", PNG)}) as server:
            return await fetcher.fetch(f"http://127.0.0.1:{server.port}/")

    assert [asyncio.run(run()) for _ in range(2)] == [PNG, PNG]


@pytest.fixture
def tls(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return TLS contexts of a server and of a client that trusts it."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=pictures.test",
         "-addext", "subjectAltName=DNS:pictures.test"],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(certificate, key)
    return server, ssl.create_default_context(cafile=certificate)


@pytest.mark.parametrize("name", ["pictures.test", "other.test"])
def test_tls_verifies_the_name_though_a_number_is_connected_to(
    name: str, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    """TLS accepts the certificate's name only, although the connection is to an address."""
    resolve = names(pictures_test="127.0.0.1", other_test="127.0.0.1")
    fetcher = Fetcher(LOCAL, resolve=resolve, ssl_context=tls[1])

    async def run() -> bytes:
        async with serving({"/p.png": answer("200 OK", PNG)}, tls[0]) as server:
            return await fetcher.fetch(f"https://{name}:{server.port}/p.png")

    if name == "pictures.test":
        assert asyncio.run(run()) == PNG
    else:
        with pytest.raises(FetchError, match="could not be reached"):
            asyncio.run(run())


PAGES = {
    "/missing": (answer("404 Not Found", b"no"), "not found"),
    "/denied": (answer("403 Forbidden"), "denied"),
    "/failing": (answer("503 Service Unavailable"), "did not deliver"),
    "/partial": (answer("206 Partial Content", PNG), "did not deliver"),
    "/loop": (answer("302 Found", b"", "Location: /loop"), "redirected too often"),
    "/nowhere": (answer("302 Found"), "redirected too often"),
    "/senseless": (answer("302 Found", b"", "Location: http://[::1"), "not valid"),
    "/mail": (answer("302 Found", b"", "Location: mailto:me@example.org"), "http or https address"),
    "/file": (answer("302 Found", b"", "Location: file:///etc/passwd"), "http or https address"),
    "/port": (answer("302 Found", b"", "Location: http://127.0.0.1:99999/"), "port that does not"),
    "/zero": (answer("302 Found", b"", "Location: //127.0.0.1:0/"), "port that does not"),
    "/name": (answer("302 Found", b"", f"Location: https://{'a' * 300}/"), "not (a )?valid"),
    "/pieces": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"1\r\nx\r\n" * 20_000
        + b"0\r\n\r\n",
        "too many small pieces",
    ),
    "/header": (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 500_000 + b"\r\n\r\n", "closed the connection"),
    "/user": (answer("302 Found", b"", "Location: http://me:pw@127.0.0.1/"), "password"),
    "/large": (answer("200 OK", bytes(2_000_001)), "larger than 2 MB"),
    "/endless": (
        b"HTTP/1.1 200 OK\r\n\r\n" + bytes(2_000_001) + b"...for ever",
        "larger than 2 MB",
    ),
    "/slow": (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nthis lasts...for ever", "too long"),
    "/torn": (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nonly this", "closed the connection"),
    "/rubbish": (b"this is no HTTP\r\n\r\n", "closed the connection"),
    "/silent": (b"", "closed the connection"),
}


@pytest.mark.parametrize("path", PAGES)
def test_a_failed_load_has_a_reason(path: str) -> None:
    """Every failure has a plain reason that does not contain the address."""
    page, words = PAGES[path]
    limits = replace(LOCAL, fetch_seconds=0.3) if path == "/slow" else LOCAL

    with pytest.raises(UnusableImageError, match=words) as caught:
        load(f"{path}?{SECRET}", {f"{path}?{SECRET}": page, "/loop": page}, limits)

    assert "127.0.0.1" not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_redirects_are_counted() -> None:
    """Redirects up to the limit are followed."""
    pages = {f"/{at}": answer("301 Moved", b"", f"Location: /{at + 1}") for at in range(3)}
    pages["/3"] = answer("200 OK", PNG)

    assert load("/0", pages) == PNG
    with pytest.raises(FetchError, match="too often"):
        load("/0", pages, replace(LOCAL, max_redirects=2))


BAD_URLS = {
    "http": "http://example.org/a.png",
    "file": "file:///etc/passwd",
    "ftp": "ftp://example.org/a.png",
    "no scheme": "example.org/a.png",
    "user": "https://me@example.org/a.png",
    "password": "https://me:pw@example.org/a.png",
    "no host": "https:///a.png",
    "broken host": "https://[::1/a.png",
    "broken port": "https://example.org:port/",
    "port that is none": "https://8.8.8.8:99999/x",
    "port zero": "https://example.org:0/",
    "negative port": "https://example.org:-1/",
    "endless port": "https://example.org:" + "9" * 400 + "/",
    "endless name": "https://" + ".".join(["example"] * 40) + "/",
    "surrogate": "https://\ud800.example.org/",
    "endless": "https://example.org/" + "a" * 100_000,
    "empty": "",
    "null": "https://exam\0ple.org/",
}


@pytest.mark.parametrize("case", BAD_URLS)
def test_bad_urls_are_refused_without_a_lookup(case: str) -> None:
    """A URL that is not plain https is rejected without a lookup."""
    asked = []

    async def resolve(host: str, _port: int) -> Sequence[str]:
        asked.append(host)
        return []

    with pytest.raises(FetchError):
        asyncio.run(Fetcher(resolve=resolve).fetch(BAD_URLS[case]))

    assert asked == []


PRIVATE = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1",
    "127.255.255.254", "168.63.129.16", "169.254.169.254", "172.16.0.1", "172.31.255.255",
    "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.1",
    "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "::", "::1",
    "::7f00:1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:10.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1",
    "2002:7f00:1::", "2002:808:808::", "3fff::1", "4000::1", "5f00::1", "fc00::1",
    "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "ff0e::1",
]  # fmt: skip
PUBLIC = [
    "1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.1", "172.15.255.255", "172.32.0.1",
    "192.0.1.1", "198.20.0.1", "223.255.255.255", "2606:4700:4700::1111", "2001:4860:4860::8888",
    "2a00:1450::1", "::ffff:8.8.8.8", "64:ff9b::808:808",
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_accepted(address: str) -> None:
    """Neighbors of private ranges, and common IPv6 forms of public IPv4, are accepted."""
    assert is_public(address)


@given(st.one_of(st.ip_addresses(), st.text(max_size=30)))
def test_no_private_address_is_considered_public(address: object) -> None:
    """The check agrees with the standard library for all addresses and any str."""
    if not is_public(str(address)):
        return
    parsed = ipaddress.ip_address(str(address))
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped
    assert not any((parsed.is_private, parsed.is_loopback, parsed.is_link_local))
    assert not any((parsed.is_multicast, parsed.is_unspecified))


@pytest.mark.parametrize("address", PRIVATE)
@pytest.mark.parametrize("by_name", [True, False])
def test_no_inner_address_is_connected_to(address: str, by_name: bool) -> None:
    """A private address is not connected to, literal or resolved, alone or among public ones."""
    host = "trap.test" if by_name else (f"[{address}]" if ":" in address else address)
    network = RecordingBackend([])
    fetcher = recorded(Fetcher(resolve=names(trap_test=f"8.8.8.8 {address}")), network)

    with pytest.raises(FetchError, match=r"not public|not a valid"):
        asyncio.run(fetcher.fetch(f"https://{host}/"))

    assert network.connected == []


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "127.1", "017700000001", "localhost"])
def test_unusual_notations_of_loopback_are_refused(host: str) -> None:
    """Unusual notations of loopback are resolved by the system and then checked."""
    network = RecordingBackend([])

    with pytest.raises(FetchError, match=r"not public|not a valid|unknown"):
        asyncio.run(recorded(Fetcher(), network).fetch(f"https://{host}/"))

    assert network.connected == []


@pytest.mark.parametrize(
    "target", ["https://169.254.169.254/latest/meta-data/", "https://[::ffff:10.0.0.1]/",
               "https://inner.test/", "//127.0.0.1/"],
)  # fmt: skip
def test_a_redirect_inside_is_not_followed(target: str) -> None:
    """Each redirect's target is checked: relative scheme, address or name."""
    network = RecordingBackend([answer("302 Found", b"", f"Location: {target}")])
    resolve = names(outer_test="8.8.8.8", inner_test="192.168.0.7")

    with pytest.raises(FetchError, match="not public"):
        asyncio.run(recorded(Fetcher(resolve=resolve), network).fetch("https://outer.test/"))

    assert network.connected == ["8.8.8.8"]


def test_a_redirect_to_plain_http_is_not_followed() -> None:
    """A redirect from https to http is rejected."""
    network = RecordingBackend([answer("302 Found", b"", "Location: http://outer.test/")])

    with pytest.raises(FetchError, match="not an https address"):
        asyncio.run(
            recorded(Fetcher(resolve=names(outer_test="8.8.8.8")), network).fetch(
                "https://outer.test/"
            )
        )


def test_dns_rebinding_has_no_effect() -> None:
    """Each connection has one lookup and goes to exactly the checked address."""
    asked = []

    async def rebinding(host: str, _port: int) -> Sequence[str]:
        asked.append(host)
        return ["8.8.8.8"] if len(asked) == 1 else ["127.0.0.1"]

    network = RecordingBackend([answer("200 OK", PNG), answer("200 OK", PNG)])
    fetcher = recorded(Fetcher(resolve=rebinding), network)

    async def run() -> bytes:
        return await fetcher.fetch("https://rebinding.test/")

    assert asyncio.run(run()) == PNG
    with pytest.raises(FetchError, match="not public"):
        asyncio.run(run())
    assert network.connected == ["8.8.8.8"]
    assert asked == ["rebinding.test"] * 2


def test_a_connection_that_lands_elsewhere_is_dropped() -> None:
    """The socket's peer address is checked before a byte is sent."""
    network = RecordingBackend([], lands_at="127.0.0.1")

    with pytest.raises(FetchError, match="not public"):
        asyncio.run(
            recorded(Fetcher(resolve=names(a_test="8.8.8.8")), network).fetch("https://a.test/")
        )


def test_the_next_address_is_tried_when_one_is_dead() -> None:
    """A name whose first address is unreachable is loaded from the next one."""

    async def run() -> bytes:
        async with serving({"/": answer("200 OK", PNG)}) as server:
            resolve = names(two_test="127.0.0.2 127.0.0.1")
            return await Fetcher(LOCAL, resolve=resolve).fetch(f"http://two.test:{server.port}/")

    assert asyncio.run(run()) == PNG


def test_only_unreachable_addresses_give_a_reason() -> None:
    """If no address accepts a connection, the reference has a plain reason."""
    resolve = names(dead_test="127.0.0.1 127.0.0.2")

    with pytest.raises(FetchError, match="could not be reached"):
        asyncio.run(Fetcher(LOCAL, resolve=resolve).fetch("http://dead.test:1/"))


def test_names_are_looked_up_in_separate_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hanging name server does not fill the application's default executor."""
    threads = []

    def lookup(*_: object, **__: object) -> list[object]:
        threads.append(threading.current_thread().name)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", lookup)

    with pytest.raises(FetchError, match="name is unknown"):
        asyncio.run(Fetcher().fetch("https://unknown.test/"))

    assert [name.startswith("resilient-imagen-dns") for name in threads] == [True]


@pytest.mark.parametrize("host", ["a" * 70 + ".test", "a..test", "xn--a." + "b" * 70])
def test_a_name_that_the_system_cannot_ask_for_is_a_reason(host: str) -> None:
    """A name that Python cannot encode gives a reason."""
    with pytest.raises(FetchError, match="name is unknown"):
        asyncio.run(Fetcher().fetch(f"https://{host}/"))


@pytest.mark.parametrize(
    "error", [RuntimeError(), OverflowError(), ExceptionGroup("many", [RuntimeError()])], ids=repr
)
def test_any_network_error_drops_the_reference(error: Exception) -> None:
    """Any exception of the network drops the reference, not the call."""

    class Network(RecordingBackend):
        async def connect_tcp(self, *_: Any, **__: Any) -> httpcore2.AsyncNetworkStream:
            raise error

    fetcher = recorded(Fetcher(), Network([]))

    with pytest.raises(FetchError, match="could not be reached"):
        asyncio.run(fetcher.fetch("https://8.8.8.8/"))


def test_a_call_with_an_impossible_port_is_served_without_that_reference() -> None:
    """A reference with an invalid port is dropped with a reason."""

    async def run() -> ImageResult:
        provider = FakeProvider("google", latency=0)
        async with ImageClient(Settings(), providers=[provider]) as client:
            odd: list[ImageInput] = [
                "https://8.8.8.8:99999/x",
                {"image_url": "https://a:b@8.8.8.8/"},
                PNG,
            ]
            return await client.generate("x", references=odd)

    result = asyncio.run(run())

    assert [each["index"] for each in result.dropped_references] == [0, 1]
    assert result.dropped_references[0]["why"] == "is an address with a port that does not exist"


def test_names_that_hang_leave_threads_for_other_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three calls with 28 hanging names each do not block the lookup of a fourth call."""
    release, hanging, hung = threading.Event(), [], threading.Semaphore(0)

    def lookup(host: str, port: int, **_: object) -> list[Any]:
        if host.startswith("hanging"):
            hanging.append(host)
            hung.release()
            release.wait(60)
            return []
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    async def run() -> None:
        fetcher = Fetcher(LOCAL)

        def loading(*urls: str) -> Coroutine[Any, Any, LoadedReferences]:
            return load_references(urls, limits=LOCAL, fetch=fetcher, strict=False)

        async with serving({"/p.png": answer("200 OK", PNG)}) as server:
            stuck = [
                asyncio.create_task(loading(*(f"http://hanging{n}.{call}/" for n in range(28))))
                for call in ("a", "b", "c")
            ]
            for _ in range(12):
                assert await asyncio.to_thread(hung.acquire, timeout=30)
            loaded = await loading(f"http://good.test:{server.port}/p.png")
            assert [each.data for each in loaded.references] == [PNG]
            assert len(hanging) == 12
            for task in stuck:
                task.cancel()
            await asyncio.gather(*stuck, return_exceptions=True)
        release.set()

    with monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", lookup)
        try:
            asyncio.run(run())
        finally:
            release.set()


def test_a_lookup_that_hangs_ends_in_time() -> None:
    """The time limit includes the name lookup."""

    async def hanging(_host: str, _port: int) -> Sequence[str]:
        await asyncio.sleep(3600)
        return []

    with pytest.raises(FetchError, match="too long"):
        run_virtual(Fetcher(resolve=hanging).fetch("https://hanging.test/"))


@pytest.mark.parametrize("error", [OSError("no such name"), UnicodeError("label too long")])
def test_a_failed_lookup_gives_a_reason(error: Exception) -> None:
    """An unknown name gives a plain reason."""

    async def failing(_host: str, _port: int) -> Sequence[str]:
        raise error

    with pytest.raises(FetchError, match="name is unknown"):
        asyncio.run(Fetcher(resolve=failing).fetch("https://unknown.test/"))


def test_the_callers_cancellation_stays_a_cancellation() -> None:
    """A cancellation during loading propagates as CancelledError."""

    async def hanging(_host: str, _port: int) -> Sequence[str]:
        await asyncio.sleep(3600)
        return []

    async def run() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await Fetcher(resolve=hanging).fetch("https://hanging.test/")

    run_virtual(run())


def test_a_closed_fetcher_refuses() -> None:
    """A closed fetcher raises the documented error."""

    async def run() -> bytes:
        fetcher = Fetcher()
        await fetcher.aclose()
        return await fetcher.fetch("https://example.org/")

    with pytest.raises(FetchError, match="closed"):
        asyncio.run(run())


HOSTS = st.one_of(
    st.ip_addresses().map(lambda ip: f"[{ip}]" if ip.version == 6 else str(ip)),
    st.sampled_from(["a.test", "b.test", "localhost", "127.1", "0", "xn--", "..", "a" * 300]),
    st.text(max_size=12),
)
URLS = st.builds(
    "{}{}{}{}{}".format,
    st.sampled_from(["https://", "http://", "HTTPS:/\\", "//", "ftp://", "https:", " https://"]),
    st.sampled_from(["", "", "me@", "me:pw@", "@", "%00@", "8.8.8.8@"]),
    HOSTS,
    st.sampled_from(["", ":443", ":0", ":99999", ":x", "#@8.8.8.8", "\\@8.8.8.8"]),
    st.text(max_size=10).map(lambda path: "/" + path),
)
MOST = 1000
"""Bytes that may be loaded."""
REPLIES = st.one_of(
    URLS.filter(lambda url: url.isascii() and url.isprintable()).map(
        lambda url: answer("302 Found", b"", f"Location: {url}")),
    st.binary(max_size=100),
    st.just(answer("200 OK", PNG)),
    st.integers(MOST - 2, 10 * MOST).map(lambda size: answer("200 OK", bytes(size))),
    st.integers(MOST - 2, 10 * MOST).map(  # without a length, to the connection's end
        lambda size: b"HTTP/1.1 200 OK\r\n\r\n" + bytes(size)),
)  # fmt: skip
ADDRESSES = st.one_of(
    st.sampled_from(["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "127.0.0.1", "10.0.0.1"]),
    st.ip_addresses().map(str),
)
INNER_FIRST = [["127.0.0.1", "8.8.8.8"], ["8.8.8.8", "10.0.0.1"]]
NEGATIVE = b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"
LONG = [answer("200 OK", bytes(MOST + 1)), answer("200 OK", bytes(MOST))]


@given(URLS, st.lists(st.lists(ADDRESSES, max_size=3), max_size=4),
       st.lists(REPLIES, max_size=4), st.booleans(), st.integers(0, 2))  # fmt: skip
@example("https://a.test/", [["8.8.8.8"]], [NEGATIVE], True, 0)
@example("https://a.test/", [INNER_FIRST[0]], LONG, False, 0)
@example("https://a.test/", [INNER_FIRST[1]], LONG, False, 1)
@example("https://a.test/", [["8.8.8.8", "1.1.1.1"]], LONG[:1], False, 1)
@example("https://a.test/", [["8.8.8.8"]], LONG[1:], False, 0)
def test_no_input_causes_a_private_connection_or_another_error(
    url: str, lookups: list[list[str]], replies: list[bytes], allow_http: bool, refuses: int
) -> None:
    """No address, name server or server causes a private connection or other errors."""
    answers = iter(lookups)

    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return next(answers, ["8.8.8.8"])

    network = RecordingBackend(replies, refuses=refuses)
    limits = ImageLimits(allow_http=allow_http, max_reference_bytes=MOST)
    fetcher = recorded(Fetcher(limits, resolve=resolve), network)

    with suppress(UnusableImageError):
        assert len(asyncio.run(fetcher.fetch(url))) <= MOST
    assert all(is_public(address) for address in network.connected)


def test_ipv4_is_tried_beside_many_ipv6_addresses() -> None:
    """Four unreachable IPv6 addresses do not prevent a connection by IPv4."""
    found = [f"2606:4700::{number}" for number in range(1, 5)] + ["93.184.216.34"]

    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return found

    fetcher = Fetcher(resolve=resolve)
    network = RecordingBackend([], refuses=1)
    fetcher._network._network = network  # type: ignore[assignment]
    assert asyncio.run(fetcher.fetch("https://a.test/x")) == PNG
    assert network.connected == ["2606:4700::1", "93.184.216.34"]
