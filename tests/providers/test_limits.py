"""Responses of any size are read in bounded memory without blocking the event loop."""

from __future__ import annotations

import asyncio
import base64
import gzip
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from providers_kit import (
    MODELS,
    PNG,
    PROMPT,
    ask,
    google_body,
    http,
    openai_body,
    provider_for,
    raw_server,
    run,
)

from resilient_imagen import ImageGenerationError, Reason
from resilient_imagen.providers import http as http_client
from resilient_imagen.request import ImageRequest

VENDORS = pytest.mark.parametrize("vendor", MODELS)
PACKED = {"content-encoding": "gzip"}
BOMB = gzip.compress(bytes(64_000_000))
"""Some 62 kB."""


def failing(vendor: str, answer: Any, **options: Any) -> ImageGenerationError:
    with pytest.raises(ImageGenerationError) as caught:
        run(ask(vendor, answer, **options))
    return caught.value


@VENDORS
@pytest.mark.parametrize("packed", [True, False])
def test_an_answer_that_is_too_large_is_invalid(
    vendor: str, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decompressed bytes are counted, and reading stops at the limit."""
    monkeypatch.setattr(http_client, "_MAX_ANSWER", 4_000_000)
    answer = http(200, BOMB, PACKED) if packed else http(200, bytes(8_000_000))
    error = failing(vendor, answer)
    assert error.reason is Reason.INVALID_RESPONSE
    assert error.vendor_message == "the answer has more than 4000000 bytes"


@VENDORS
def test_json_that_is_too_large_is_never_parsed(
    vendor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large JSON is rejected unparsed, because nested lists take sixty times its size."""
    monkeypatch.setattr(http_client, "_MAX_JSON", 4_000_000)
    error = failing(vendor, http(200, b"[" + b"[]," * 2_000_000))
    assert error.reason is Reason.INVALID_RESPONSE
    assert error.vendor_message == "the answer has more than 4000000 bytes of JSON"


@VENDORS
def test_a_large_image_is_not_counted_as_json(vendor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images decoded on arrival count for the limit of a response, but not for that of JSON."""
    monkeypatch.setattr(http_client, "_MAX_JSON", 200_000)
    big = PNG + bytes(3_000_000)
    monkeypatch.setattr("providers_kit.PNG64", base64.b64encode(big).decode())
    body = google_body() if vendor == "google" else openai_body()
    assert run(ask(vendor, http(200, body))).images[0].data == big


@VENDORS
@pytest.mark.parametrize("status", [200, 503])
def test_a_bomb_is_unpacked_within_bounded_memory(
    vendor: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixty kilobytes that expand to 64 million bytes use a few megabytes at a time."""
    monkeypatch.setattr(http_client, "_MAX_ANSWER", 4_000_000)
    failing(vendor, http(503, ""))  # the SDK's own imports and schemas
    tracemalloc.start()
    try:
        error = failing(vendor, http(status, BOMB, PACKED))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert error.reason is (Reason.OVERLOADED if status == 503 else Reason.INVALID_RESPONSE)
    assert peak < 24_000_000


class Chunks(httpx2.AsyncByteStream):
    """A body in these parts, all available at once."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece


def transport(status: int, headers: dict[str, str], *pieces: bytes) -> httpx2.MockTransport:
    return httpx2.MockTransport(
        lambda _request: httpx2.Response(status, headers=headers, stream=Chunks(*pieces))
    )


@VENDORS
def test_unpacking_leaves_the_event_loop_free(vendor: str) -> None:
    """Other tasks run after each megabyte of decompressed data."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def main() -> int:
        provider = provider_for(vendor, "http://x", transport=transport(200, PACKED, BOMB))
        await provider.warm_up()
        ticking = asyncio.create_task(others())
        before = turns
        with pytest.raises(ImageGenerationError):
            await provider.generate(ImageRequest(PROMPT), MODELS[vendor])
        ticking.cancel()
        await provider.aclose()
        return turns - before

    assert run(main()) >= 60


@VENDORS
@pytest.mark.parametrize("status", [200, 429])
def test_a_body_compressed_twice_is_rejected(vendor: str, status: int) -> None:
    """Double compression is rejected, because its cost cannot be bounded by its output."""
    empty = zlib.compressobj(wbits=31)
    silent = empty.compress(b"") + b"\0\0\0\xff\xff" * 100
    headers = {"content-encoding": "gzip, gzip", "retry-after": "7"}
    error = failing(vendor, None, transport=transport(status, headers, gzip.compress(silent * 10)))
    if status == 429:
        assert (error.reason, error.retry_after) == (Reason.RATE_LIMITED, 7)
    else:
        assert error.reason is Reason.INVALID_RESPONSE
        assert error.vendor_message == "the answer was compressed more than once"


async def _serve_without_end(head: bytes, piece: bytes) -> tuple[asyncio.Server, asyncio.Event]:
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        try:
            writer.write(head + b"\r\ntransfer-encoding: chunked\r\n\r\n")
            for _ in range(2000):  # times the piece: more than any limit here
                writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                await writer.drain()
            await reader.read()
        except ConnectionError:
            pass
        finally:
            gone.set()
            writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", 0), gone


def endless(vendor: str, head: bytes, piece: bytes) -> ImageGenerationError:
    """Return the error for an endless response after its connection is closed."""

    async def main() -> ImageGenerationError:
        server, gone = await _serve_without_end(head, piece)
        provider = provider_for(vendor, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(ImageGenerationError) as caught:
            await provider.generate(ImageRequest(PROMPT), MODELS[vendor])
        async with asyncio.timeout(60):
            await gone.wait()
        await provider.aclose()
        server.close()
        return caught.value

    error: ImageGenerationError = run(main())
    return error


@VENDORS
def test_an_endless_response_is_aborted(vendor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is closed when the limit is exceeded."""
    monkeypatch.setattr(http_client, "_MAX_ANSWER", 1_000_000)
    error = endless(vendor, b"HTTP/1.1 200 OK", b" " * 65536)
    assert error.reason is Reason.INVALID_RESPONSE


@VENDORS
def test_an_endless_error_body_is_classified_by_its_status(vendor: str) -> None:
    """Of an endless error body a megabyte is read; status and headers classify the error."""
    error = endless(vendor, b"HTTP/1.1 429 Slow down\r\nretry-after: 9", b"please wait " * 6000)
    assert (error.reason, error.status, error.retry_after) == (Reason.RATE_LIMITED, 429, 9)
    assert (error.vendor_message or "").startswith("please wait")


@VENDORS
def test_a_slow_error_body_is_classified_by_its_status(
    vendor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow error body is read up to the time limit, and classified by its status."""
    monkeypatch.setattr(http_client, "_ERROR_SECONDS", 0.1)
    message = b'{"error": {"message": "busy"}}'
    answer = http(503, message + b" " * 10, cut=10)

    async def main() -> ImageGenerationError:
        over = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await over.wait()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        provider = provider_for(vendor, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(ImageGenerationError) as caught:
            await provider.generate(ImageRequest(PROMPT), MODELS[vendor])
        over.set()
        await provider.aclose()
        server.close()
        return caught.value

    error = run(main())
    assert (error.reason, error.vendor_message) == (Reason.OVERLOADED, "busy")


@VENDORS
def test_an_error_compressed_twice_releases_its_connection(vendor: str) -> None:
    """Errors that are compressed twice do not use up the provider's connections."""
    twice = http(500, b"x" * 100, {"content-encoding": "gzip, gzip"})

    async def main() -> int:
        async with raw_server(twice) as server:
            provider = provider_for(vendor, server.url, max_connections=1)
            failed = 0
            async with asyncio.timeout(60):
                for _ in range(15):
                    with pytest.raises(ImageGenerationError):
                        await provider.generate(ImageRequest(PROMPT), MODELS[vendor])
                    failed += 1
            await provider.aclose()
            return failed

    assert run(main()) == 15
