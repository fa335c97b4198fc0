"""Built-in providers on a real socket: requests, responses, failures and secrets."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import socket
import threading
from typing import Any

import httpx2
import pytest
from providers_kit import (
    GOOD,
    KEY,
    MODELS,
    PNG,
    PROMPT,
    ask,
    google_body,
    http,
    openai_body,
    provider_for,
    raw_server,
    reference,
    run,
)

from resilient_imagen.errors import ConfigurationError, ImageGenerationError
from resilient_imagen.providers.base import Provider, ProviderImage, ProviderResult
from resilient_imagen.providers.google import GoogleProvider
from resilient_imagen.providers.http import BodyPart, CapturingClient, JsonWriter, capture_exchange
from resilient_imagen.providers.openai import OpenAIProvider
from resilient_imagen.providers.streaming_body import StreamingJsonBody
from resilient_imagen.reasons import Reason
from resilient_imagen.request import ImageRequest

VENDORS = pytest.mark.parametrize("vendor", MODELS)


def failing(vendor: str, answer: Any, request: ImageRequest | None = None) -> ImageGenerationError:
    with pytest.raises(ImageGenerationError) as caught:
        run(ask(vendor, answer, request))
    return caught.value


@VENDORS
def test_an_image_is_returned(vendor: str) -> None:
    """A successful request returns its image, and a built-in provider is a Provider."""
    image = run(ask(vendor, GOOD[vendor]))
    assert isinstance(image, ProviderResult)
    assert (image.images, image.model) == ((ProviderImage(PNG, "image/png"),), MODELS[vendor])
    assert isinstance(provider_for(vendor, "http://127.0.0.1:1"), Provider)


@VENDORS
@pytest.mark.parametrize("status", [429, 500, 503])
def test_one_call_is_one_request(vendor: str, status: int) -> None:
    """The SDK does not retry, whatever the response and its headers contain."""

    async def main() -> int:
        answer = http(status, {"error": {}}, {"retry-after": "0", "x-should-retry": "true"})
        async with raw_server(answer) as server:
            provider = provider_for(vendor, server.url)
            with pytest.raises(ImageGenerationError):
                await provider.generate(ImageRequest(PROMPT), MODELS[vendor])
            await provider.aclose()
            return len(server.requests)

    assert run(main()) == 1


@VENDORS
def test_a_refused_connection(vendor: str) -> None:
    """A refused connection gives the reason connection."""

    async def main() -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            provider = provider_for(vendor, f"http://127.0.0.1:{unused.getsockname()[1]}")
            try:
                await provider.generate(ImageRequest(PROMPT), MODELS[vendor])
            finally:
                await provider.aclose()

    with pytest.raises(ConnectionError) as caught:
        run(main())
    assert isinstance(caught.value, ImageGenerationError)
    assert caught.value.reason is Reason.CONNECTION
    assert caught.value.status is None


@VENDORS
@pytest.mark.parametrize("secure", [False, True], ids=["http", "tls"])
def test_garbage_instead_of_an_answer(vendor: str, secure: bool) -> None:
    """A response that is neither HTTP nor TLS gives the reason connection."""

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x16\x03garbage\r\n\r\n" * 20)
        await writer.drain()
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        provider = provider_for(vendor, f"http{'s' if secure else ''}://127.0.0.1:{port}")
        try:
            await provider.generate(ImageRequest(PROMPT), MODELS[vendor])
        finally:
            await provider.aclose()
            server.close()
            await server.wait_closed()

    with pytest.raises(ImageGenerationError) as caught:
        run(main())
    assert caught.value.reason is Reason.CONNECTION


@VENDORS
def test_a_cut_body_is_a_connection_failure(vendor: str) -> None:
    """A body shorter than its Content-Length is a connection failure, even if it is valid."""
    body = google_body() if vendor == "google" else openai_body()
    error = failing(vendor, http(200, body, cut=10))
    assert error.reason is Reason.CONNECTION


@VENDORS
def test_badly_compressed_answers_are_invalid(vendor: str) -> None:
    """A response that cannot be decompressed is invalid."""
    error = failing(vendor, http(200, b"not gzip at all", {"content-encoding": "gzip"}))
    assert error.reason is Reason.INVALID_RESPONSE


@VENDORS
@pytest.mark.parametrize(
    "body", [b"\xff\xfe\x00\x81", b"[" * 200_000, b'"\xed\xa0\x80"'], ids=["bytes", "deep", "utf8"]
)
def test_bodies_that_the_sdks_cannot_parse(vendor: str, body: bytes) -> None:
    """A 503 is an overload even if the SDK fails to parse its body."""
    error = failing(vendor, http(503, body))
    assert (error.reason, error.status) == (Reason.OVERLOADED, 503)


@VENDORS
def test_redirects_are_not_followed(vendor: str) -> None:
    """The key is sent to the configured address only."""

    async def main() -> int:
        async with raw_server(GOOD[vendor]) as other:
            headers = {"location": f"{other.url}/elsewhere"}
            async with raw_server(http(307, "", headers)) as server:
                provider = provider_for(vendor, server.url)
                with pytest.raises(ImageGenerationError) as caught:
                    await provider.generate(ImageRequest(PROMPT), MODELS[vendor])
                await provider.aclose()
            assert caught.value.reason is Reason.INVALID_RESPONSE
            return len(other.requests)

    assert run(main()) == 0


@VENDORS
def test_errors_carry_facts_and_no_secrets(vendor: str) -> None:
    """An error has status, word, hint and SDK type, but neither key, prompt nor SDK error."""
    echo = f"Key {KEY} refused {PROMPT!r}: {PROMPT}"
    error = failing(vendor, http(429, {"error": {"message": echo}}, {"retry-after": "4"}))
    assert error.reason is Reason.RATE_LIMITED
    assert (error.provider, error.model, error.status) == (vendor, MODELS[vendor], 429)
    assert (error.status_word, error.retry_after) == ("RESOURCE_EXHAUSTED", 4)
    assert error.vendor_error == ("ClientError" if vendor == "google" else "RateLimitError")
    assert error.vendor_message is not None
    for secret in (KEY, PROMPT):
        assert secret not in f"{error} {error.vendor_message} {error.__dict__}"
    assert error.__cause__ is None
    assert error.__context__ is None


@VENDORS
def test_nothing_secret_is_logged(vendor: str, caplog: pytest.LogCaptureFixture) -> None:
    """No logger has a secret, even at level DEBUG."""
    caplog.set_level(logging.DEBUG)
    run(ask(vendor, GOOD[vendor], ImageRequest(PROMPT, references=(reference(),))))
    failing(vendor, http(400, {"error": {"message": PROMPT}}))
    for record in caplog.records:
        shown = record.getMessage()
        assert KEY not in shown, record.name
        assert PROMPT not in shown, record.name


@VENDORS
def test_a_cancelled_request_closes_its_connection(vendor: str) -> None:
    """A caller that runs out of time closes the connection and gets its own TimeoutError."""

    async def main() -> None:
        async with raw_server(None) as server:
            provider = provider_for(vendor, server.url)
            await provider.warm_up()
            limit = asyncio.timeout(None)
            server.answer = lambda _: limit.reschedule(0)  # time is up on arrival
            with pytest.raises(TimeoutError) as caught:
                async with limit:
                    await provider.generate(ImageRequest(PROMPT), MODELS[vendor])
            assert not isinstance(caught.value, ImageGenerationError)
            async with asyncio.timeout(20):
                await server.gone.wait()
            await provider.aclose()

    run(main())


@VENDORS
def test_connections_are_kept_and_closed(vendor: str) -> None:
    """Sequential requests share a connection; aclose closes it."""

    async def main() -> int:
        async with raw_server(GOOD[vendor]) as server:
            provider = provider_for(vendor, server.url)
            for _ in range(3):
                await provider.generate(ImageRequest(PROMPT), MODELS[vendor])
            await provider.aclose()
            async with asyncio.timeout(20):
                await server.gone.wait()
            return server.connections

    assert run(main()) == 1


@VENDORS
def test_a_long_response_is_parsed_in_a_thread(
    vendor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A response that could not be decoded incrementally does not block the event loop."""
    big = PNG + bytes(1_000_000)
    threads: list[str] = []
    kind = GoogleProvider if vendor == "google" else OpenAIProvider
    original = kind._parse

    def read(
        self: Any, body: StreamingJsonBody, request: ImageRequest, model: str
    ) -> ProviderResult:
        threads.append(threading.current_thread().name)
        return original(self, body, request, model)

    monkeypatch.setattr(kind, "_parse", read)
    for encode in (base64.encodebytes, base64.b64encode):
        monkeypatch.setattr("providers_kit.PNG64", encode(big).decode())
        body = google_body() if vendor == "google" else openai_body()
        assert run(ask(vendor, http(200, body))).images[0].data == big
    assert "MainThread" not in threads[0]
    assert threads[1] == "MainThread"


class RaisingTransport(httpx2.AsyncBaseTransport):
    """A transport that raises the given exception."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        raise self.error


@VENDORS
@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (RuntimeError("Event loop is closed"), "Event loop is closed"),
        (httpx2.LocalProtocolError(f"Illegal header value b'{KEY}'"), None),
        (httpx2.PoolTimeout(PROMPT), None),
        (UnicodeEncodeError("ascii", KEY, 0, 1, "ordinal not in range"), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_local_failure_is_raised_without_secrets(
    vendor: str, error: Exception, shown: str | None
) -> None:
    """A local failure is not an ImageGenerationError, and its text has no secrets."""
    transport = RaisingTransport(error)
    with pytest.raises(RuntimeError) as caught:
        run(ask(vendor, None, transport=transport))
    assert not isinstance(caught.value, ImageGenerationError)
    text = str(caught.value)
    assert KEY not in text
    assert PROMPT not in text
    assert shown is None or shown == text
    assert caught.value.__cause__ is None


@VENDORS
@pytest.mark.parametrize("key", ["", "  \n", "AIza\u2028ключ", "AIza key", "AIza\nkey", "AIza\x00"])
def test_keys_that_cannot_be_sent_are_refused_at_once(vendor: str, key: str) -> None:
    """An invalid key is a configuration error, which does not contain the key."""
    kind = GoogleProvider if vendor == "google" else OpenAIProvider
    with pytest.raises(ConfigurationError) as caught:
        kind(api_key=key)
    assert "AIza" not in str(caught.value)


@VENDORS
def test_white_space_around_a_key_is_not_part_of_it(vendor: str) -> None:
    """A line break around a key is removed."""

    async def main() -> str:
        async with raw_server(GOOD[vendor]) as server:
            kind = GoogleProvider if vendor == "google" else OpenAIProvider
            provider = kind(api_key=f" {KEY}\r\n", base_url=server.url)
            await provider.generate(ImageRequest(PROMPT), MODELS[vendor])
            await provider.aclose()
            headers = server.requests[0].headers
            return headers.get("x-goog-api-key") or headers["authorization"]

    assert run(main()) in {KEY, f"Bearer {KEY}"}


@VENDORS
@pytest.mark.parametrize("url", ["api.example.com", "ftp://example.com", "https://", "nonsense"])
def test_invalid_addresses_are_refused_at_once(vendor: str, url: str) -> None:
    """A base URL without a valid scheme is rejected."""
    kind = GoogleProvider if vendor == "google" else OpenAIProvider
    with pytest.raises(ConfigurationError, match="https://"):
        kind(api_key=KEY, base_url=url)


def _echo(request: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(200, content=request.content or b"nothing")


def _client() -> CapturingClient:
    return CapturingClient(
        "http://x", max_connections=1, connect_timeout=7, transport=httpx2.MockTransport(_echo)
    )


def test_the_sdk_does_not_get_the_image() -> None:
    """The SDK does not get an image's bytes; without an exchange the client behaves normally."""

    async def main() -> None:
        async with _client() as client:
            with capture_exchange() as sent:
                shown = await client.post("http://x/", content=b"picture")
            assert sent.response is not None
            assert (sent.body.text, shown.json()) == (b"picture", {})
            assert (await client.post("http://x/", content=b"picture")).content == b"picture"

    run(main())


def test_only_connecting_has_a_separate_time_limit() -> None:
    """The client replaces the time-outs of an SDK; only connecting has one."""

    async def main() -> None:
        async with _client() as client:
            with capture_exchange() as sent:
                await client.post("http://x/", content=b"-", timeout=3)
        assert sent.response is not None
        assert sent.response.request.extensions["timeout"] == {
            "connect": 7,
            "read": None,
            "write": None,
            "pool": None,
        }

    run(main())


def test_a_rewritten_body_is_sent_with_its_length() -> None:
    """The body that an SDK built is replaced, and base64 is encoded while it is sent."""
    uploads = [bytes(range(256)) * 2000, b"", b"a"]

    def rewrite(body: bytes) -> list[BodyPart]:
        document = json.loads(body)
        writer = JsonWriter()
        document["images"] = [writer.upload(each) for each in uploads]
        return writer.parts(document)

    def handle(request: httpx2.Request) -> httpx2.Response:
        assert int(request.headers["content-length"]) == len(request.content)
        document = json.loads(request.content)
        assert document["prompt"] == "a \N{FOX FACE}"
        assert [base64.b64decode(each) for each in document["images"]] == uploads
        return httpx2.Response(200, text="received")

    async def main() -> None:
        transport = httpx2.MockTransport(handle)
        async with CapturingClient(
            "http://x", max_connections=1, connect_timeout=7, transport=transport
        ) as client:
            with capture_exchange() as sent:
                sent.rewrite = rewrite
                await client.post("http://x/", json={"prompt": "a \N{FOX FACE}"})
        assert sent.body.text == b"received"

    run(main())
