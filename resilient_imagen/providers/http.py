"""HTTP client of both SDKs: sets the timeouts, streams uploads and captures the raw response.

The SDKs build the requests. The response is read here, as it arrives, and parsed by this package:
the SDKs would copy an image several times on the event loop, and raise errors without the body.
"""

from __future__ import annotations

import binascii
import json
import secrets
from contextlib import aclosing, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import anyio.lowlevel
import httpx2

from resilient_imagen.dns import HostResolver
from resilient_imagen.providers.connections import ResolvingTransport, proxy_for
from resilient_imagen.providers.event_stream import EventStream
from resilient_imagen.providers.streaming_body import StreamingJsonBody

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence

    from resilient_imagen.providers.event_stream import EventReader

__all__ = ["BodyPart", "CapturedExchange", "CapturingClient", "JsonWriter", "capture_exchange"]

_KEEP_SECONDS: Final = 30.0
"""Seconds until an idle connection is closed, before a server or a NAT device closes it."""
_SPARE: Final = 8
"""Connections beyond the limiter's slots, because a cancelled request's takes time to close."""
_CHUNK: Final = 3 * 2**16
"""Bytes encoded at a time, a multiple of three as base64 requires; takes under a millisecond."""
_MAX_ANSWER: Final = 300_000_000
"""Bytes of a response, decompressed. The largest images have some 40 million in base64."""
_MAX_JSON: Final = 64_000_000
"""Bytes of a response that are parsed as JSON, without the base64 that was decoded on arrival."""
_MAX_ERROR: Final = 1_000_000
"""Bytes of an error's body, decompressed; the rest is not read."""
_ERROR_SECONDS: Final = 5.0
"""Seconds that an error's body may take; after that the error is classified by its status."""
_REST_SECONDS: Final = 0.2
"""Seconds for the end of an event stream whose last event has arrived. A connection can be used
again only if its response has been read to the end."""


@dataclass(frozen=True, slots=True)
class _Base64:
    """Binary data to be sent as base64."""

    data: bytes = field(repr=False)


BodyPart: TypeAlias = bytes | _Base64


class JsonWriter:
    """Serializes JSON with large binary values, which are encoded as base64 while they are sent.

    An SDK encodes a hundred megabytes at once and blocks the event loop meanwhile (1.7 s measured).
    ``upload`` returns a short placeholder to put into the document instead of the data; ``parts``
    returns the serialized document with the data in place of the placeholders.
    """

    def __init__(self) -> None:
        self._uploads: dict[str, bytes] = {}

    def upload(self, data: bytes) -> str:
        """Return a placeholder for ``data``, to be used exactly once in the document."""
        token = secrets.token_urlsafe(24)
        self._uploads[token] = data
        return token

    def parts(self, document: object) -> list[BodyPart]:
        """Serialize the document. Placeholders must occur in the order in which they were made."""
        rest = json.dumps(document, ensure_ascii=False).encode()
        parts: list[BodyPart] = []
        for token, data in self._uploads.items():
            before, _, rest = rest.partition(token.encode())
            parts += [before, _Base64(data)]
        return [*parts, rest]


@dataclass(slots=True)
class CapturedExchange:
    """One request and its response."""

    rewrite: Callable[[bytes], Sequence[BodyPart]] | None = field(default=None, repr=False)
    """Converts the SDK's body to the parts to send; None sends the SDK's body unchanged."""
    events: EventReader | None = field(default=None, repr=False)
    """Receives the events of an event stream; None if no stream was requested."""
    authorize: Callable[[httpx2.Request], None] | None = field(default=None, repr=False)
    """Adds the account's credentials to the request that is about to be sent."""
    response: httpx2.Response | None = None
    """The response, whatever its status; None if no complete response arrived."""
    body: StreamingJsonBody = field(default_factory=StreamingJsonBody, repr=False)
    """The body of a success. The body of an error is in ``response``."""

    def take(
        self,
    ) -> tuple[httpx2.Response | None, StreamingJsonBody, EventReader | None]:
        """Return the response, its body, and the reader of its events if it is an event stream.

        All of them are dropped here: timers and connections keep their context, and so this
        object, alive.
        """
        response, body, events = self.response, self.body, self.events
        self.response, self.body, self.events = None, StreamingJsonBody(), None
        if response is not None and not _is_event_stream(response):
            events = None
        return response, body, events


_current: ContextVar[CapturedExchange | None] = ContextVar(
    "resilient_imagen_exchange", default=None
)


@contextmanager
def capture_exchange() -> Iterator[CapturedExchange]:
    """Capture the request that is sent within the block, and its response."""
    exchange = CapturedExchange()
    token = _current.set(exchange)
    try:
        yield exchange
    except BaseException:
        exchange.events = None  # as in `take`
        raise
    finally:
        _current.reset(token)
        exchange.rewrite = exchange.authorize = None  # as in `take`


class CapturingClient(httpx2.AsyncClient):
    """HTTP client with one provider's connections on one event loop.

    Args:
        base_url: The address that requests are sent to; the environment may name a proxy for it.
        max_connections: The limiter's maximum of requests in flight.
        connect_timeout: Seconds to connect. There is no other time limit: the pipeline cancels a
            request that takes too long.
        transport: Replaces the network, for tests.
        resolver: Resolves host names; a new one when None.
    """

    def __init__(
        self,
        base_url: str,
        *,
        max_connections: int,
        connect_timeout: float,
        transport: httpx2.AsyncBaseTransport | None = None,
        resolver: HostResolver | None = None,
    ) -> None:
        super().__init__(
            # The other encodings that httpx2 offers depend on the packages that are installed.
            headers={"Accept-Encoding": "gzip"},
            # A redirect would send the key to another server.
            follow_redirects=False,
            transport=transport
            or ResolvingTransport(
                resolver or HostResolver(),
                proxy=proxy_for(base_url),
                limits=httpx2.Limits(
                    max_connections=max_connections + _SPARE,
                    max_keepalive_connections=max_connections,
                    keepalive_expiry=_KEEP_SECONDS,
                ),
            ),
        )
        self._phases = httpx2.Timeout(None, connect=connect_timeout).as_dict()

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send as the base class does, with our timeouts, and capture the response."""
        current = _current.get()
        if current is not None and current.rewrite is not None:
            request = _streamed(self, request, current.rewrite(request.content))
        if current is not None and current.authorize is not None:
            current.authorize(request)
        request.extensions = {**request.extensions, "timeout": dict(self._phases)}
        if current is None:
            return await super().send(request, **options)
        response = await super().send(request, **{**options, "stream": True})
        body = StreamingJsonBody()
        try:
            if current.events is not None:
                current.events.begin()
            if not response.is_success:
                current.response = await _read_error(response)
                return current.response
            if current.events is not None and _is_event_stream(response):
                await _read_events(response, current.events)
            else:
                body = await _read_body(response)
        finally:
            await response.aclose()
        current.response, current.body = response, body
        # The SDK gets an empty response: it would copy an image several times on the event loop.
        return httpx2.Response(200, json={}, request=request)


async def _read_body(response: httpx2.Response) -> StreamingJsonBody:
    """Read the body of a successful response.

    Raises:
        DecodingError: The body is larger than any image, or cannot be decompressed.
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


def _is_event_stream(response: httpx2.Response) -> bool:
    kind: str = response.headers.get("Content-Type", "")
    return kind.partition(";")[0].strip().lower() == "text/event-stream"


async def _read_events(response: httpx2.Response, reader: EventReader) -> None:
    """Read the events of a successful response until the reader has all that it needs.

    A stream that breaks off after its first complete image ends normally: the image is delivered.

    Raises:
        DecodingError: The stream is larger than any images, or cannot be decompressed.
        TransportError: The stream broke off before its first complete image.
    """
    stream = EventStream()
    size = 0
    async with aclosing(_decoded(response)) as parts:
        try:
            async for part in parts:
                size += len(part)
                for event in stream.feed(part):
                    if reader.add(event):
                        await _read_rest(parts)
                        return
                if size > _MAX_ANSWER:
                    raise httpx2.DecodingError(f"the answer has more than {_MAX_ANSWER} bytes")
                if stream.size > _MAX_JSON:
                    raise httpx2.DecodingError(f"an event has more than {_MAX_JSON} bytes of JSON")
        except httpx2.TransportError:
            if not reader.has_images:
                raise
            return
    if (last := stream.close()) is not None:
        reader.add(last)


async def _read_rest(parts: AsyncGenerator[bytes]) -> None:
    """Read the end of a response that has delivered everything, if it comes soon."""
    with anyio.move_on_after(_REST_SECONDS), suppress(httpx2.RequestError):
        async for _ in parts:
            pass


async def _read_error(response: httpx2.Response) -> httpx2.Response:
    """Read the beginning of an error's body; the body is empty if it cannot be decompressed."""
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
    """Decompress a body in pieces of at most a megabyte, and yield to the event loop in between.

    Raises:
        DecodingError: The body cannot be decompressed, or was compressed more than once: a few
            kilobytes could keep the second decompressor busy for hours.
    """
    encodings = response.headers.get_list("Content-Encoding", split_commas=True)
    if len(encodings) > 1:
        raise httpx2.DecodingError("the answer was compressed more than once")
    async with aclosing(response.aiter_bytes()) as parts:
        async for part in parts:
            yield part
            if encodings:
                await anyio.lowlevel.checkpoint()


def _streamed(
    client: httpx2.AsyncClient, request: httpx2.Request, parts: Sequence[BodyPart]
) -> httpx2.Request:
    """Return the request with ``parts`` as its body."""
    headers = httpx2.Headers(request.headers)
    headers["Content-Length"] = str(sum(map(_encoded_length, parts)))
    return client.build_request(
        request.method, request.url, headers=headers, content=_encoded(parts)
    )


def _encoded_length(part: BodyPart) -> int:
    return len(part) if isinstance(part, bytes) else -(-len(part.data) // 3) * 4


async def _encoded(parts: Sequence[BodyPart]) -> AsyncIterator[bytes]:
    for part in parts:
        if isinstance(part, bytes):
            yield part
            continue
        for at in range(0, len(part.data), _CHUNK):
            yield binascii.b2a_base64(part.data[at : at + _CHUNK], newline=False)
