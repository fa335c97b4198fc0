"""The HTTP client that both SDKs send through: our timeouts, big uploads, and the raw answer.

The SDKs build requests and own the vendors' conventions. What comes back is read from the raw
answer kept here, so that one reader serves both, and a body that an SDK cannot digest still counts
for what it is.
"""

from __future__ import annotations

import binascii
import os
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import anyio.lowlevel
import httpx2

from resilient_imagen.dns import HostResolver
from resilient_imagen.providers.network import ResolvingTransport
from resilient_imagen.providers.streaming_body import StreamingJsonBody

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator

__all__ = ["CapturedExchange", "CapturingClient", "capture_exchange"]

_KEEP_SECONDS: Final = 30.0
"""An idle connection is closed after so long: before servers and address translators do it."""
_SPARE: Final = 8
"""Connections beyond the limiter's number, for those being closed after a cancelled request."""
_CHUNK: Final = 3 * 2**16
"""Bytes encoded at a time, in base64's groups of three: a fraction of a millisecond."""
_TOKEN_BYTES: Final = 24
_MAX_ANSWER: Final = 300_000_000
"""Bytes of an answer, decompressed. The largest pictures have some 40 million in base64."""
_MAX_JSON: Final = 64_000_000
"""Bytes of an answer that were not decoded as base64 while they arrived, and are parsed as JSON."""
_MAX_ERROR: Final = 1_000_000
"""Bytes of an error's body, decompressed; the rest is not read."""
_ERROR_SECONDS: Final = 5.0
"""Seconds that an error's body may take; then its status says enough."""


@dataclass(slots=True)
class CapturedExchange:
    """One request and what came of it."""

    response: httpx2.Response | None = None
    """The answer, whatever its status; None when none came, or not all of it."""
    body: StreamingJsonBody = field(default_factory=StreamingJsonBody, repr=False)
    """What a success holds, taken out of ``response``; a failure keeps its content."""
    uploads: dict[bytes, bytes] = field(default_factory=dict, repr=False)

    def placeholder(self, data: bytes) -> bytes:
        """A few random bytes to give to the SDK instead of ``data``.

        The SDK would encode a hundred megabytes in one go, with the event loop standing still
        (1.7 s measured). Their base64 is put where that of the few bytes stands, piece by piece,
        while the request is being sent.
        """
        token = os.urandom(_TOKEN_BYTES)
        self.uploads[binascii.b2a_base64(token, newline=False)] = data
        return token

    def take(self) -> tuple[httpx2.Response | None, StreamingJsonBody]:
        """Return the answer and keep it no longer.

        Timers and connections keep the context that they were made in, and this object with it.
        """
        response, body = self.response, self.body
        self.response, self.body = None, StreamingJsonBody()
        return response, body


_current: ContextVar[CapturedExchange | None] = ContextVar(
    "resilient_imagen_exchange", default=None
)


@contextmanager
def capture_exchange() -> Iterator[CapturedExchange]:
    """Watch over the one request that is sent within."""
    started = CapturedExchange()
    token = _current.set(started)
    try:
        yield started
    finally:
        _current.reset(token)
        started.uploads.clear()  # as in `take`


class CapturingClient(httpx2.AsyncClient):
    """One provider's connections on one event loop.

    Args:
        max_connections: Requests in flight at most, in the limiter's count.
        connect_timeout: Seconds to connect. There is no other limit: the wall clock is the
            pipeline's, which cancels.
        transport: Sends instead of the network, for tests.
        resolver: Resolves host names; one of its own when None.
    """

    def __init__(
        self,
        *,
        max_connections: int,
        connect_timeout: float,
        transport: httpx2.AsyncBaseTransport | None = None,
        resolver: HostResolver | None = None,
    ) -> None:
        self._resolver = HostResolver() if resolver is None else resolver
        super().__init__(
            # What other encodings httpx2 knows depends on what the application has installed.
            headers={"Accept-Encoding": "gzip"},
            # A redirect would take the key along to wherever it points.
            follow_redirects=False,
            limits=httpx2.Limits(
                max_connections=max_connections + _SPARE,
                max_keepalive_connections=max_connections,
                keepalive_expiry=_KEEP_SECONDS,
            ),
            transport=transport,
        )
        self._phases = httpx2.Timeout(None, connect=connect_timeout).as_dict()

    def _init_transport(self, *args: Any, **options: Any) -> httpx2.AsyncBaseTransport:
        """Make what sends without a proxy; called by the base class."""
        transport: httpx2.AsyncBaseTransport | None = options.pop("transport", None)
        return transport or ResolvingTransport(self._resolver, *args, **options)

    def _init_proxy_transport(self, *args: Any, **options: Any) -> httpx2.AsyncBaseTransport:
        """Make what sends through a proxy; called by the base class."""
        proxy, *rest = args
        return ResolvingTransport(self._resolver, *rest, proxy=proxy, **options)

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send as the base class does, with our timeouts, and keep the answer."""
        current = _current.get()
        if current is not None and current.uploads:
            request = _with_blobs(self, request, current.uploads)
        request.extensions = {**request.extensions, "timeout": dict(self._phases)}
        if current is None:
            return await super().send(request, **options)
        response = await super().send(request, **{**options, "stream": True})
        try:
            if not response.is_success:
                current.response = await _read_error(response)
                return current.response
            body = await _read_body(response)
        finally:
            await response.aclose()
        current.response, current.body = response, body
        # A picture is read by us: the SDK would copy it several times, on the event loop.
        return httpx2.Response(200, json={}, request=request)


async def _read_body(response: httpx2.Response) -> StreamingJsonBody:
    """Read a success.

    Raises:
        DecodingError: It is larger than any picture, or cannot be unpacked.
    """
    body = StreamingJsonBody()
    size = 0
    async with aclosing(_decoded(response)) as parts:
        async for part in parts:
            size += len(part)
            if size > _MAX_ANSWER:
                raise httpx2.DecodingError(f"the answer has more than {_MAX_ANSWER} bytes")
            body.feed(part)
            if body.size > _MAX_JSON:
                raise httpx2.DecodingError(f"the answer has more than {_MAX_JSON} bytes of JSON")
    body.close()
    return body


async def _read_error(response: httpx2.Response) -> httpx2.Response:
    """Read the beginning of an error's body, or none where it cannot be unpacked."""
    content = bytearray()
    try:
        with anyio.move_on_after(_ERROR_SECONDS):
            async with aclosing(_decoded(response)) as parts:
                async for part in parts:
                    content += part[: _MAX_ERROR - len(content)]
                    if len(content) >= _MAX_ERROR:
                        break
    except httpx2.DecodingError:
        content.clear()
    headers = httpx2.Headers(response.headers)
    for name in ("Content-Encoding", "Content-Length", "Transfer-Encoding"):
        headers.pop(name, None)
    return httpx2.Response(
        response.status_code,
        headers=headers,
        content=bytes(content),
        request=response.request,
        extensions=response.extensions,
    )


async def _decoded(response: httpx2.Response) -> AsyncGenerator[bytes]:
    """Decompress a body in pieces of at most a megabyte, with the event loop free in between.

    Raises:
        DecodingError: It cannot be unpacked, or was compressed more than once: a few kilobytes
            could keep the second decompressor busy for hours.
    """
    encodings = response.headers.get_list("Content-Encoding", split_commas=True)
    if len(encodings) > 1:
        raise httpx2.DecodingError("the answer was compressed more than once")
    async with aclosing(response.aiter_bytes()) as parts:
        async for part in parts:
            yield part
            if encodings:
                await anyio.lowlevel.checkpoint()


def _with_blobs(
    client: httpx2.AsyncClient, request: httpx2.Request, blobs: dict[bytes, bytes]
) -> httpx2.Request:
    """The same request, its stand-ins replaced by what they stand for."""
    pieces = _cut(request.content, blobs)
    length = sum(_encoded_length(piece) for piece in pieces)
    headers = httpx2.Headers(request.headers)
    headers["Content-Length"] = str(length)
    return client.build_request(
        request.method, request.url, headers=headers, content=_stream(pieces)
    )


@dataclass(frozen=True, slots=True)
class _Blob:
    data: bytes


def _cut(body: bytes, blobs: dict[bytes, bytes]) -> list[bytes | _Blob]:
    pieces: list[bytes | _Blob] = []
    for token, data in blobs.items():  # in the order in which the SDK was given them
        # The SDK writes the URL-safe alphabet.
        before, found, body = body.partition(token.translate(_URL_SAFE))
        if not found:
            raise RuntimeError("the SDK changed how it writes a reference image")
        pieces += [before, _Blob(data)]
    return [*pieces, body]


_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")


def _encoded_length(piece: bytes | _Blob) -> int:
    return len(piece) if isinstance(piece, bytes) else -(-len(piece.data) // 3) * 4


async def _stream(pieces: list[bytes | _Blob]) -> AsyncIterator[bytes]:
    for piece in pieces:
        if isinstance(piece, bytes):
            yield piece
            continue
        for at in range(0, len(piece.data), _CHUNK):
            yield binascii.b2a_base64(piece.data[at : at + _CHUNK], newline=False)
