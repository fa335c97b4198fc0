"""Wire kit: a client with both real SDKs on an emulator in memory, and every request as sent."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx2

from resilient_imagen import ImageClient, Provider, Settings
from resilient_imagen.emulator import Emulator
from resilient_imagen.emulator.multipart import Part, read_form
from resilient_imagen.providers.google import GoogleProvider
from resilient_imagen.providers.openai import OpenAIProvider
from resilient_imagen.testing import RecordingSink, run_virtual

T = TypeVar("T")

GOOGLE_ROUTE = "google:gemini-3-pro-image"
OPENAI_ROUTE = "openai:gpt-image-2.5-flare"
BOTH = (GOOGLE_ROUTE, OPENAI_ROUTE)


@dataclass
class Sent:
    """One request as it was sent."""

    path: str
    content_type: str
    body: bytes = field(repr=False)

    @property
    def json(self) -> dict[str, Any]:
        """Return the body of a JSON request."""
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def form(self) -> list[Part]:
        """Return the parts of a multipart request."""
        return read_form(self.content_type, self.body) or []

    @property
    def comparable_body(self) -> bytes:
        """Return the body with BOUNDARY in place of a form's random boundary."""
        boundary = self.content_type.partition("boundary=")[2].encode()
        return self.body.replace(boundary, b"BOUNDARY") if boundary else self.body

    @property
    def fields(self) -> dict[str, Any]:
        """Return the parameters of a request by the vendor's names, without images."""
        if self.content_type.startswith("multipart/"):
            return {part.name: part.text() for part in self.form if part.filename is None}
        return self.json


class _RecordingTransport(httpx2.AsyncBaseTransport):
    def __init__(self, inner: httpx2.AsyncBaseTransport, sent: list[Sent]) -> None:
        self._inner = inner
        self._sent = sent

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        body = await request.aread()
        self._sent.append(Sent(request.url.path, request.headers.get("content-type", ""), body))
        return await self._inner.handle_async_request(request)


@dataclass
class Wire:
    """A client, the emulator behind it, its requests and its events."""

    client: ImageClient
    app: Emulator
    sent: list[Sent]
    sink: RecordingSink


def on_wire(
    scenario: Callable[[Wire], Awaitable[T]],
    *,
    routes: tuple[str, ...] = BOTH,
    app: Emulator | None = None,
    **settings: Any,
) -> T:
    """Run a scenario in virtual time; by default without retries, and hardly paced."""

    async def main() -> T:
        emulator = app or Emulator(picture="tiny")
        sent: list[Sent] = []
        sink = RecordingSink()
        transport = _RecordingTransport(emulator.transport(), sent)
        providers: list[Provider] = []
        if GOOGLE_ROUTE in routes:
            providers.append(GoogleProvider(api_key="made-up", transport=transport))
        if OPENAI_ROUTE in routes:
            providers.append(OpenAIProvider(api_key="made-up", transport=transport))
        chosen = {
            "routes": routes,
            "max_retries": 0,
            "ipm": 60_000,
            "max_concurrent": 8,
            **settings,
        }
        async with ImageClient(Settings(**chosen), providers=providers, sinks=[sink]) as client:
            return await scenario(Wire(client, emulator, sent, sink))

    return run_virtual(main())
