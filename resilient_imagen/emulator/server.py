"""Emulator server: HTTP/1.1 over real sockets on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Self

import h11

from resilient_imagen.emulator.compatible import Compatible
from resilient_imagen.emulator.http_messages import (
    ConnectionLost,
    HttpRequest,
    Reply,
    json_reply,
    pieces,
)
from resilient_imagen.emulator.token_server import GOOGLE_PATH, IDENTITY_PATH
from resilient_imagen.emulator.vendor_api import ApiError

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from types import TracebackType

    from resilient_imagen.emulator.emulator import Emulator
    from resilient_imagen.emulator.exchange import Exchange
    from resilient_imagen.emulator.vendor import Vendor

__all__ = ["EmulatorServer", "serve"]

_READ: Final = 1 << 18
"""Bytes read at a time."""
_MAX_HEADERS: Final = 1 << 16
"""Maximum bytes of a request's first line and headers."""
_HEADERS_TOO_LARGE: Final = 431
_LINGER: Final = 2.0
"""Seconds for which a rejected client may continue sending before the connection is closed."""
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""SO_LINGER of zero seconds: closing sends RST."""


class EmulatorServer:
    """Serves an emulator on loopback while its ``async with`` block runs.

    Args:
        app: The emulator to serve.
        host: A loopback address, or localhost.
        port: The port; 0 means a free one.

    Raises:
        ValueError: ``host`` is not a loopback address.
        OSError: On entering, if the port is in use.
    """

    def __init__(self, app: Emulator, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.app = app
        self.host: str = _loopback(host)
        self.port: int = port
        self._server: asyncio.Server | None = None
        self._connections: dict[_ClientConnection, asyncio.Task[None]] = {}

    @property
    def url(self) -> str:
        """The server's address, without a path."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def google_url(self) -> str:
        """The value for GOOGLE_GEMINI_BASE_URL."""
        return self.url

    @property
    def openai_url(self) -> str:
        """The value for OPENAI_BASE_URL."""
        return f"{self.url}/v1"

    @property
    def vertex_url(self) -> str:
        """The value for VERTEX_BASE_URL."""
        return self.url

    @property
    def azure_url(self) -> str:
        """The value for AZURE_OPENAI_ENDPOINT."""
        return self.url

    @property
    def compatible_url(self) -> str:
        """The address of a strict vendor with OpenAI's API, for <NAME>_BASE_URL."""
        return f"{self.url}{Compatible.prefix}"

    @property
    def token_url(self) -> str:
        """The ``token_uri`` for the file of a service account."""
        return self.url + GOOGLE_PATH

    @property
    def identity_url(self) -> str:
        """The value for IDENTITY_ENDPOINT, which azure-identity asks for tokens."""
        return self.url + IDENTITY_PATH

    @property
    def open_connections(self) -> int:
        """Number of open connections, including those without a request."""
        return len(self._connections)

    async def __aenter__(self) -> Self:
        """Start the server."""
        self._server = await asyncio.start_server(
            self._connected, self.host, self.port, limit=_READ
        )
        self.port = self._server.sockets[0].getsockname()[1]
        self.app.serve_from(asyncio.get_running_loop())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop listening and drop every connection."""
        if self._server is not None:
            self._server.close()
            tasks = list(self._connections.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._server.wait_closed()
            self._server = None

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio runs this as a task
        connection = _ClientConnection(self.app, reader, writer)
        self._connections[connection] = task
        try:
            await connection.run()
        except asyncio.CancelledError:
            # The server is stopping: a client that does not read must not delay it.
            writer.transport.abort()
        finally:
            del self._connections[connection]
            connection.close()


async def serve(host: str, port: int, app: Emulator) -> None:
    """Serve on a loopback address until cancelled.

    Raises:
        ValueError: ``host`` is not a loopback address.
        OSError: The port is in use.
    """
    async with EmulatorServer(app, host=host, port=port):
        await asyncio.get_running_loop().create_future()


def _loopback(host: str) -> str:
    address = "127.0.0.1" if host == "localhost" else host
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(address).is_loopback:
            return address
    raise ValueError(f"the emulator serves on loopback only (127.0.0.1, ::1), not on {host!r}")


class _ClientConnection:
    """One client's connection, request after request."""

    def __init__(
        self, app: Emulator, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._app = app
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEADERS)
        self._vendor: Vendor | None = None

    async def run(self) -> None:
        """Serve until either side closes."""
        with contextlib.suppress(ConnectionError, h11.RemoteProtocolError):
            while (request := await self._next_request_or_refuse()) is not None:
                try:
                    await self._serve(request)
                except ConnectionLost as lost:
                    if lost.abrupt:
                        self._abort()
                    return
                if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                    return
                self._http.start_next_cycle()

    def close(self) -> None:
        """Close the connection; data already written is still sent."""
        self._belongs_to(None)
        self._writer.close()

    async def _next_request_or_refuse(self) -> HttpRequest | None:
        """Return the next request; None at the end, or after rejecting a request as too large."""
        try:
            return await self._next_request()
        except ApiError as refusal:
            reply = refusal.reply
        except h11.RemoteProtocolError as error:
            if error.error_status_hint != _HEADERS_TOO_LARGE:
                raise
            reply = _headers_too_large()
        await self._send(replace(reply, headers=(*reply.headers, ("connection", "close"))))
        await self._discard_rest()
        return None

    async def _discard_rest(self) -> None:
        """Read and discard data for a short time.

        Closing a connection while the client is sending resets it, and the response is lost.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER):
                while await self._reader.read(_READ):
                    pass

    async def _next_request(self) -> HttpRequest | None:
        """Return the next complete request; None at the end of the connection.

        Raises:
            ApiError: The request is too large. Its rest is not read.
            h11.RemoteProtocolError: The data are not an HTTP request.
        """
        head: h11.Request | None = None
        body = bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._reader.read(_READ))
            elif isinstance(event, h11.Request):
                head = event
                self._check_size(head, _declared_length(head))
            elif isinstance(event, h11.Data) and head is not None:
                self._check_size(head, len(body) + len(event.data))
                body += event.data
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                return _request(head, bytes(body))
            else:
                return None

    def _check_size(self, head: h11.Request, body: int) -> None:
        if sum(len(name) + len(value) for name, value in head.headers) > _MAX_HEADERS:
            raise ApiError(_headers_too_large())
        if body > self._app.max_body:
            raise self._app.too_large(_path(head))

    async def _serve(self, request: HttpRequest) -> None:
        self._belongs_to(self._app.vendor_of(request.path))
        try:
            exchange = await self._app.receive(request)
        except ApiError as refusal:
            await self._send(refusal.reply)
            return
        try:
            await self._unless_client_leaves(self._respond(exchange))
        finally:
            exchange.close(delivered=False)

    async def _respond(self, exchange: Exchange) -> None:
        await self._send(await exchange.reply())
        exchange.close(delivered=True)

    async def _unless_client_leaves(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work``, but cancel it if the client closes the connection.

        Raises:
            ConnectionError: The client closed the connection.
        """
        working = asyncio.create_task(work)
        watching = asyncio.create_task(self._reader.read(_READ))
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                early = watching.result()
                if not early and not working.done():
                    raise ConnectionResetError
                # A pipelined request, which arrived before this response, is kept for later.
                self._http.receive_data(early)
            await working
        finally:
            for task in (working, watching):
                task.cancel()
            await asyncio.gather(working, watching, return_exceptions=True)

    async def _send(self, reply: Reply) -> None:
        headers = [(name.encode(), value.encode()) for name, value in reply.all_headers()]
        head = h11.Response(status_code=reply.status, headers=headers)
        self._write(self._http.send(head))
        async for piece in pieces(reply):
            self._write(self._http.send(h11.Data(data=piece)))
            await self._writer.drain()
        self._write(self._http.send(h11.EndOfMessage()))
        await self._writer.drain()

    def _write(self, data: bytes | None) -> None:
        if data:
            self._writer.write(data)

    def _abort(self) -> None:
        raw = self._writer.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._writer.transport.abort()

    def _belongs_to(self, vendor: Vendor | None) -> None:
        if vendor is not self._vendor:
            if self._vendor is not None:
                self._vendor.connections(-1)
            if vendor is not None:
                vendor.connections(1)
            self._vendor = vendor


def _declared_length(head: h11.Request) -> int:
    """Return the Content-Length of the body; 0 without one."""
    return next((int(value) for name, value in head.headers if name == b"content-length"), 0)


def _headers_too_large() -> Reply:
    return json_reply({"error": {"message": "Request headers too large"}}, _HEADERS_TOO_LARGE)


def _path(head: h11.Request) -> str:
    return head.target.decode("ascii", "replace").partition("?")[0]


def _request(head: h11.Request, body: bytes) -> HttpRequest:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
    return HttpRequest(head.method.decode("ascii"), _path(head), headers, body)
