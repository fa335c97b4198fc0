"""The emulator's server: connections, disconnects, large bodies, and loopback only."""

from __future__ import annotations

import asyncio
import contextlib
import json

import httpx2
import openai
import pytest
from emulator_kit import GEMINI, GPT, PATIENCE, Wired, picture, run_with_emulator
from google.genai import errors

from resilient_imagen.emulator import Emulator, EmulatorServer, faults, serve

BOTH_WAYS = pytest.mark.parametrize("way", ["socket", "memory"])
BODY = json.dumps({"model": GPT, "prompt": "a lighthouse"}).encode()
REQUEST = (
    b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY)
)


@BOTH_WAYS
def test_sixteen_hanging_calls_cancelled_leave_nothing_open(way: str) -> None:
    """Cancelled calls are detected at once: no request is in flight, and no connection is open."""

    async def scenario(both: Wired) -> None:
        google = both.app.google
        google.set(faults.hang())
        calls = [asyncio.create_task(both.gemini()) for _ in range(16)]
        await google.until(lambda google: google.in_flight == google.open_connections == 16)
        for call in calls:
            call.cancel()
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(end) for end in ends} == {asyncio.CancelledError}
        await google.until(lambda google: google.in_flight == google.open_connections == 0)
        assert google.max_in_flight == 16
        assert len(google.requests) == 16
        google.heal()
        await both.gemini()
        google.forget()
        assert (google.requests, google.max_in_flight) == ((), 0)

    run_with_emulator(scenario, way=way)


def test_connections_are_kept_alive_and_counted_by_vendor() -> None:
    """Sequential requests share a connection, which is counted for the vendor of the last
    request.
    """

    async def scenario(both: Wired) -> None:
        assert both.server is not None
        for _ in range(3):
            await both.gemini()
            await both.gpt()
        assert (both.app.google.open_connections, both.app.openai.open_connections) == (1, 1)
        assert both.server.open_connections == 2
        url = f"{both.server.openai_url}/images/generations"
        answer = await both.http[0].post(url, content=BODY, headers={"authorization": "Bearer k"})
        assert answer.status_code == 200
        assert (both.app.google.open_connections, both.app.openai.open_connections) == (0, 2)
        await both.http[1].aclose()
        await both.app.openai.until(lambda openai: openai.open_connections == 1)

    run_with_emulator(scenario)


async def _raw(server: EmulatorServer, sent: bytes, *, end: bool = True) -> bytes:
    """Return everything that the server sends in response to these bytes."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    writer.write(sent)
    if end:
        writer.write_eof()
    received = await reader.read()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return received


def test_pipelined_requests_are_answered_in_order() -> None:
    """Two requests in one packet get two responses on the same connection."""

    async def scenario(both: Wired) -> None:
        assert both.server is not None
        closing = REQUEST.replace(b"host: x", b"host: x\r\nconnection: close")
        received = await _raw(both.server, REQUEST + closing, end=False)
        assert received.count(b"HTTP/1.1 200") == 2

    run_with_emulator(scenario)


@pytest.mark.parametrize(
    "sent", [b"", b"\x16\x03\x01", b"GET / HTTP/9\r\n\r\n", b"POST /", REQUEST[:-5]]
)
def test_no_bytes_break_the_server(sent: bytes) -> None:
    """Garbage, TLS and incomplete requests end their own connection only."""

    async def scenario(both: Wired) -> None:
        assert both.server is not None
        assert await _raw(both.server, sent) == b""
        await both.gpt()
        assert both.server.open_connections == 1

    run_with_emulator(scenario)


def test_a_truncated_body_has_the_full_content_length() -> None:
    """The server sends the full Content-Length, half of the body, and closes the connection."""

    async def scenario(both: Wired) -> None:
        assert both.server is not None
        both.app.openai.set(faults.cut(0.5))
        received = await _raw(both.server, REQUEST, end=False)
        head, _, body = received.partition(b"\r\n\r\n")
        promised = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        assert len(body) == promised // 2

    run_with_emulator(scenario)


def test_a_disconnect_during_the_body_is_detected() -> None:
    """The exchange of twenty megabytes ends as undelivered."""
    big = picture() + b"\0" * 20_000_000

    async def scenario(both: Wired) -> None:
        assert both.server is not None
        _, writer = await asyncio.open_connection(both.server.host, both.server.port)
        writer.write(REQUEST)
        await both.app.openai.until(lambda openai: any(seen.status for seen in openai.requests))
        writer.close()
        await both.app.openai.until(lambda openai: openai.in_flight == openai.open_connections == 0)
        assert both.app.openai.requests[0].delivered is False

    run_with_emulator(scenario, Emulator(picture=big))


def test_a_large_upload_is_accepted() -> None:
    """Forty megabytes of references arrive completely."""
    image = picture() + b"\0" * 10_000_000

    async def scenario(both: Wired) -> None:
        await both.gpt_edit([(f"{i}.png", image, "image/png") for i in range(4)])
        assert [r.size for r in both.app.openai.requests[0].references] == [len(image)] * 4

    run_with_emulator(scenario)


def test_stopping_the_server_ends_hanging_calls() -> None:
    """Leaving the block ends hanging calls, independent of their clients."""

    async def main() -> None:
        app = Emulator(picture="tiny")
        app.google.set(faults.hang())
        async with asyncio.timeout(PATIENCE), httpx2.AsyncClient() as client:
            async with EmulatorServer(app) as server:
                url = f"{server.google_url}/v1/models/{GEMINI}:generateContent"
                call = asyncio.create_task(client.post(url, content=b"{}"))
                await app.google.until(lambda google: google.in_flight == 1)
            with pytest.raises(httpx2.TransportError):
                await call
            assert app.google.in_flight == app.google.open_connections == 0

    asyncio.run(main())


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "192.168.1.5", "example.com"])
def test_only_loopback_is_served(host: str) -> None:
    """An address that other machines could reach is refused, and the error names it."""
    with pytest.raises(ValueError, match="serves on loopback only"):
        EmulatorServer(Emulator(), host=host)


def test_addresses_are_written_as_urls() -> None:
    """An IPv6 address is written in brackets, and localhost as the IPv4 address."""
    assert EmulatorServer(Emulator(), host="::1", port=8080).url == "http://[::1]:8080"
    assert EmulatorServer(Emulator(), host="localhost", port=1).google_url == "http://127.0.0.1:1"


def test_serve_runs_until_cancelled() -> None:
    """The fixed port of the command line is refused when it is in use, and is free again
    afterwards.
    """

    async def main() -> None:
        app = Emulator(picture="tiny")
        async with EmulatorServer(app, host="localhost") as server:
            port = server.port
            assert server.openai_url == f"http://127.0.0.1:{port}/v1"
            with pytest.raises(OSError, match=str(port)):
                await serve("127.0.0.1", port, app)
        running = asyncio.create_task(serve("127.0.0.1", port, app))
        async with asyncio.timeout(PATIENCE), httpx2.AsyncClient() as client:
            url = f"http://127.0.0.1:{port}/v1/images/generations"
            while True:
                with contextlib.suppress(httpx2.ConnectError):
                    answer = await client.post(url, content=BODY)
                    break
                await asyncio.sleep(0)
            assert answer.status_code == 401
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())


# -- large requests and slow clients -----------------------------------------------------------

PATHS = pytest.mark.parametrize(
    ("path", "words"),
    [
        (f"/v1beta/models/{GEMINI}:generateContent", b"Maximum request body size exceeded"),
        ("/v1/images/generations", b"Maximum content size limit exceeded"),
        ("/v1/images/edits", b"Maximum content size limit exceeded"),
        ("/elsewhere", b"Request entity too large"),
    ],
)


def _small() -> Emulator:
    return Emulator(picture="tiny", max_body=1000)


@PATHS
def test_a_body_that_is_declared_too_large_is_not_read(path: str, words: bytes) -> None:
    """The response is 413 in the vendor's format before the body arrives, and the connection is
    closed.
    """

    async def scenario(both: Wired) -> None:
        assert both.server is not None
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n"
        received = await _raw(both.server, head.encode() + b"{" * 5000)
        assert received.startswith(b"HTTP/1.1 413")
        assert b"connection: close" in received.lower()
        assert words in received
        assert both.app.openai.requests == both.app.google.requests == ()
        assert (await both.gpt()).data
        assert both.server.open_connections == 1

    run_with_emulator(scenario, _small())


@PATHS
def test_a_chunked_body_that_exceeds_the_limit_is_refused(path: str, words: bytes) -> None:
    """An endless chunked body is refused as soon as it exceeds the limit."""

    async def scenario(both: Wired) -> None:
        assert both.server is not None
        reader, writer = await asyncio.open_connection(both.server.host, both.server.port)
        writer.write(f"POST {path} HTTP/1.1\r\nhost: x\r\n".encode())
        writer.write(b"transfer-encoding: chunked\r\n\r\n")
        for _ in range(3):
            writer.write(b"190\r\n" + b"x" * 400 + b"\r\n")
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")  # no end of the body was sent
        assert head.startswith(b"HTTP/1.1 413")
        assert words in await reader.read(1000)
        writer.close()

    run_with_emulator(scenario, _small())


@BOTH_WAYS
def test_the_sdks_raise_their_error_for_a_large_body(way: str) -> None:
    """Each SDK raises its own error with the status 413; a body at the limit is served."""

    async def scenario(both: Wired) -> None:
        with pytest.raises(openai.APIStatusError) as refused:
            await both.gpt("a" * 5000)
        assert refused.value.status_code == 413
        with pytest.raises(errors.ClientError) as too_large:
            await both.gemini("a" * 5000)
        assert too_large.value.code == 413
        await both.gpt()
        await both.gemini()

    run_with_emulator(scenario, _small(), way=way)


def test_a_body_of_the_maximum_size_is_accepted() -> None:
    """A body with one more byte is refused."""

    async def scenario(both: Wired) -> None:
        assert both.server is not None
        both.app.max_body = len(BODY)
        closing = REQUEST.replace(b"host: x", b"host: x\r\nconnection: close")
        assert (await _raw(both.server, closing)).startswith(b"HTTP/1.1 200")
        both.app.max_body = len(BODY) - 1
        assert (await _raw(both.server, closing)).startswith(b"HTTP/1.1 413")

    run_with_emulator(scenario)


@pytest.mark.parametrize(
    "headers",
    [b"x-long: " + b"x" * 70_000, b"\r\n".join(b"x-%d: y" % number for number in range(20_000))],
    ids=["one", "many"],
)
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "endless"])
def test_headers_are_bounded(headers: bytes, whole: bool) -> None:
    """Large headers are refused with 431, also while they are still arriving."""

    async def scenario(both: Wired) -> None:
        assert both.server is not None
        start = b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\n"
        end = b"\r\ncontent-length: 0\r\n\r\n" if whole else b""
        received = await _raw(both.server, start + headers + end)
        assert received.startswith(b"HTTP/1.1 431")
        await both.gpt()

    run_with_emulator(scenario)


def test_slow_clients_do_not_delay_others() -> None:
    """Incomplete requests and unread responses do not affect other clients."""
    big = picture() + b"\0" * 5_000_000

    async def scenario(both: Wired) -> None:
        assert both.server is not None
        place = (both.server.host, both.server.port)
        slow = [(await asyncio.open_connection(*place, limit=1000))[1] for _ in range(60)]
        for number, writer in enumerate(slow):
            # A third stops in the headers, a third in the body, a third never reads.
            writer.write((REQUEST[:40], REQUEST[:-5], REQUEST)[number % 3])
        await both.app.openai.until(lambda openai: len(openai.requests) == 20)
        assert (await both.gpt()).data
        for writer in slow:
            writer.transport.abort()
        await both.app.openai.until(lambda openai: openai.in_flight == 0)

    run_with_emulator(scenario, Emulator(picture=big))
