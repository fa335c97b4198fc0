"""Provider test kit: a server of raw bytes on 127.0.0.1, and requests to send to it."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import struct
import zlib
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from resilient_imagen.providers.google import GoogleProvider
from resilient_imagen.providers.openai import OpenAIProvider
from resilient_imagen.providers.streaming_body import StreamingJsonBody
from resilient_imagen.request import ImageRequest, Reference

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from resilient_imagen.providers.sdk import SdkProvider

KEY = "AIza-test-key-0123456789abcdef"
PROMPT = "a red lighthouse on a cliff at dusk, waves below, painted in oil"


def png(width: int = 1, height: int = 1) -> bytes:
    """Return a small valid PNG."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    rows = (b"\0" + b"\xc0\x20\x20" * width) * height
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


PNG = png()
JPEG = b"\xff\xd8\xff\xe0" + bytes(64) + b"\xff\xd9"
PNG64 = base64.b64encode(PNG).decode()


def google_body(*parts: dict[str, Any], **candidate: Any) -> dict[str, Any]:
    """Return a Gemini response with one candidate of these parts, by default one image."""
    shown = parts or ({"inlineData": {"mimeType": "image/png", "data": PNG64}},)
    content = {"role": "model", "parts": list(shown)}
    return {"candidates": [{"content": content, "finishReason": "STOP", **candidate}]}


def openai_body(**fields: Any) -> dict[str, Any]:
    """Return an OpenAI response with one image."""
    return {"created": 1, "data": [{"b64_json": PNG64}], **fields}


def body_of(*parts: bytes, long: int = 2**16) -> StreamingJsonBody:
    """Return the body of a success that arrived in these parts."""
    body = StreamingJsonBody(long)
    for part in parts:
        body.feed(part)
    body.close()
    return body


def http(
    status: int, body: Any = None, headers: Mapping[str, str] | None = None, *, cut: int = 0
) -> bytes:
    """Return the bytes of an HTTP/1.1 response without the last ``cut`` bytes of its body."""
    if isinstance(body, bytes):
        data, kind = body, "application/json"
    elif isinstance(body, str):
        data, kind = body.encode(), "text/html" if body.lstrip()[:1] == "<" else "text/plain"
    else:
        data, kind = b"" if body is None else json.dumps(body).encode(), "application/json"
    given = {name.lower(): value for name, value in (headers or {}).items()}
    fields = {"content-type": kind, **given, "content-length": str(len(data))}
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {fields[name]}" for name in fields)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (data[:-cut] if cut else data)


@dataclass
class Received:
    """One request as it was received."""

    path: str
    headers: dict[str, str]
    body: bytes = field(repr=False)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class RawServer:
    """Answers each request with the bytes that ``answer`` returns; with None it does not answer."""

    answer: Callable[[Received], bytes | None]
    reset: bool = False
    """Close the connection with RST once a request has been read."""
    requests: list[Received] = field(default_factory=list)
    connections: int = 0
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a client closes its connection."""
    port: int = 0
    _open: dict[asyncio.Task[None] | None, asyncio.StreamWriter] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open[asyncio.current_task()] = writer
        try:
            while (request := await _read_request(reader)) is not None:
                self.requests.append(request)
                if self.reset:
                    linger = struct.pack("ii", 1, 0)
                    writer.get_extra_info("socket").setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, linger
                    )
                    return
                reply = self.answer(request)
                if reply is None:
                    await reader.read()
                    return
                writer.write(reply)
                await writer.drain()
                if _is_short(reply):
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.gone.set()
            writer.close()

    async def stop(self) -> None:
        for writer in self._open.values():
            writer.close()
        await asyncio.gather(*filter(None, self._open))


def _is_short(reply: bytes) -> bool:
    head, _, body = reply.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return not lengths or len(body) < int(lengths[0].split(b":")[1])


async def _read_request(reader: asyncio.StreamReader) -> Received | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(first.split(" ")[1], headers, body)


@asynccontextmanager
async def raw_server(
    answer: Callable[[Received], bytes | None] | bytes | None, *, reset: bool = False
) -> AsyncIterator[RawServer]:
    """Run a RawServer."""
    server = RawServer(answer if callable(answer) else lambda _request: answer, reset=reset)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, limit=2**24)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        await server.stop()
        await listening.wait_closed()


def provider_for(vendor: str, url: str, **options: Any) -> SdkProvider:
    """Return a provider that sends to ``url``."""
    if vendor == "google":
        return GoogleProvider(api_key=KEY, base_url=url, **options)
    return OpenAIProvider(api_key=KEY, base_url=f"{url}/v1", **options)


GOOD = {"google": http(200, google_body()), "openai": http(200, openai_body())}
MODELS = {"google": "gemini-3-pro-image", "openai": "gpt-image-2.5-flare"}


async def ask(
    vendor: str,
    answer: Callable[[Received], bytes | None] | bytes | None,
    request: ImageRequest | None = None,
    **options: Any,
) -> Any:
    """Send one request to a RawServer and return the result; raise as the provider does."""
    async with raw_server(answer) as server:
        provider = provider_for(vendor, server.url, **options)
        try:
            return await provider.generate(request or ImageRequest(PROMPT), MODELS[vendor])
        finally:
            await provider.aclose()


def arrived(
    vendor: str, request: ImageRequest, model: str | None = None, *, path: str = "", **options: Any
) -> Received:
    """Send a request to a server that answers successfully, and return it as received."""

    async def main() -> Received:
        async with raw_server(GOOD[vendor]) as server:
            provider = provider_for(vendor, server.url + path, **options)
            await provider.generate(request, model or MODELS[vendor])
            await provider.aclose()
            return server.requests[0]

    return asyncio.run(main())


def run(main: Awaitable[Any]) -> Any:
    """Run any awaitable, like asyncio.run."""

    async def body() -> Any:
        return await main

    return asyncio.run(body())


def reference(index: int = 0, data: bytes = PNG, mime_type: str = "image/png") -> Reference:
    return Reference(data, mime_type, index)
