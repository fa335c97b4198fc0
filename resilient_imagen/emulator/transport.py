"""Emulator transport: in memory, without sockets, for any event loop and for virtual time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

import httpx2

from resilient_imagen.emulator.http_messages import ConnectionLost, HttpRequest, pieces
from resilient_imagen.emulator.vendor_api import ApiError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from resilient_imagen.emulator.exchange import Exchange
    from resilient_imagen.emulator.http_messages import Reply

__all__ = ["EmulatorTransport", "RequestReceiver"]


class RequestReceiver(Protocol):
    """An object that receives requests: an Emulator."""

    def serve_from(self, loop: asyncio.AbstractEventLoop) -> None:
        """Use this loop's clock from now on."""
        ...

    async def receive(self, request: HttpRequest) -> Exchange:
        """Begin an exchange for a complete request. The caller must close it in any case."""
        ...


class EmulatorTransport(httpx2.AsyncBaseTransport):
    """A transport that passes requests to an emulator, and raises the errors of a real connection.

    The read timeout of a request is observed; the other timeouts do not apply.
    """

    def __init__(self, app: RequestReceiver) -> None:
        self._app = app

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Serve one request.

        Raises:
            httpx2.ReadTimeout: No response within the request's read timeout.
            httpx2.ReadError: The fault resets the connection.
            httpx2.RemoteProtocolError: The fault closes the connection early.
        """
        self._app.serve_from(asyncio.get_running_loop())
        headers = {name.lower(): value for name, value in request.headers.items()}
        body = await request.aread()
        received = HttpRequest(request.method, request.url.path, headers, body)
        try:
            exchange = await self._app.receive(received)
        except ApiError as refusal:
            reply = refusal.reply
            return httpx2.Response(reply.status, headers=reply.all_headers(), content=reply.body)
        exchange.vendor.connections(1)
        stream = _Stream(exchange, request)
        try:
            reply = await stream.start()
        except BaseException:
            await stream.aclose()
            raise
        return httpx2.Response(
            reply.status,
            headers=reply.all_headers(),
            stream=stream,
            extensions={"http_version": b"HTTP/1.1"},
        )


class _Stream(httpx2.AsyncByteStream):
    """The body of a response, which keeps its exchange open."""

    def __init__(self, exchange: Exchange, request: httpx2.Request) -> None:
        self._exchange = exchange
        self._request = request
        self._read_timeout: float | None = request.extensions.get("timeout", {}).get("read")
        self._reply: Reply | None = None
        self._open = True
        self._complete = False

    async def start(self) -> Reply:
        """Wait for the response's headers."""
        try:
            async with asyncio.timeout(self._read_timeout) as clock:
                self._reply = await self._exchange.reply()
        except ConnectionLost as lost:
            message = "Server disconnected without sending a response."
            raise self._lost(lost, message) from None
        except TimeoutError:
            if not clock.expired():
                raise
            raise httpx2.ReadTimeout("", request=self._request) from None
        return self._reply

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the pieces of the body, or raise the error that ends it."""
        assert self._reply is not None  # noqa: S101 - a response is created after start()
        body = pieces(self._reply)
        received = 0
        while True:
            try:
                async with asyncio.timeout(self._read_timeout) as clock:
                    piece = await anext(body, None)
            except ConnectionLost as lost:
                expected = len(self._reply.body)
                message = (
                    "peer closed connection without sending complete message body "
                    f"(received {received} bytes, expected {expected})"
                )
                raise self._lost(lost, message) from None
            except TimeoutError:
                if not clock.expired():
                    raise
                raise httpx2.ReadTimeout("", request=self._request) from None
            if piece is None:
                break
            received += len(piece)
            yield piece
        self._complete = True

    async def aclose(self) -> None:
        """End the exchange: the client has closed the response."""
        if self._open:
            self._open = False
            self._exchange.close(delivered=self._complete)
            self._exchange.vendor.connections(-1)

    def _lost(self, lost: ConnectionLost, message: str) -> httpx2.TransportError:
        if lost.abrupt:
            return httpx2.ReadError("", request=self._request)
        return httpx2.RemoteProtocolError(message, request=self._request)
