"""Dashboard test kit: a client's page on a real server, and misbehaving browsers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, NamedTuple

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from resilient_imagen import ImageClient, Settings, dashboard
from resilient_imagen.testing import FakeProvider

PATH = "/ops/images/"
TOKEN = "a-token-for-tests"


class Served(NamedTuple):
    """A client and its served page."""

    client: ImageClient
    google: FakeProvider
    openai: FakeProvider
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{PATH}"


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: str


@contextlib.asynccontextmanager
async def serving(app: Any) -> AsyncIterator[int]:
    """Serve an ASGI application on a free port of this machine."""
    config = uvicorn.Config(
        app, port=0, ws="none", log_level="critical", lifespan="off", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    # Signals are the test's.
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    task = asyncio.create_task(server.serve())
    try:
        while not server.started:  # uvicorn has no event
            await asyncio.wait({task}, timeout=0.01)
            if task.done():
                task.result()
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task


@contextlib.asynccontextmanager
async def served(
    *, settings: Mapping[str, Any] | None = None, **options: Any
) -> AsyncIterator[Served]:
    """Serve the page of a client with two scripted providers, below a path of an application."""
    google, openai = FakeProvider("google", latency=0), FakeProvider("openai", latency=0)
    chosen = Settings(
        **{
            "routes": "google:gemini-3-pro-image-preview,openai:gpt-image-1.5",
            "ipm": 60_000, "max_retries": 0, **(settings or {}),
        }
    )  # fmt: skip
    async with ImageClient(chosen, providers=[google, openai]) as client:
        app = Starlette(routes=[Mount(PATH.rstrip("/"), dashboard.app(client, **options))])
        async with serving(app) as port:
            yield Served(client, google, openai, port)


async def request(
    port: int,
    path: str = PATH,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
) -> Answer:
    """Send one request unchanged, and return the response."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = {"Host": f"127.0.0.1:{port}", "Connection": "close", **(headers or {})}
    if body:
        lines["Content-Length"] = str(len(body))
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
    found = await asyncio.wait_for(reader.read(), 60)
    writer.close()
    top, _, content = found.decode().partition("\r\n\r\n")
    first, *others = top.split("\r\n")
    named = {name.lower(): value for name, _, value in (line.partition(": ") for line in others)}
    return Answer(int(first.split()[1]), named, content)


@contextlib.asynccontextmanager
async def watching(port: int, path: str = PATH) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """Open the stream of snapshots."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path}events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        yield _events(reader)
    finally:
        writer.close()


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    while line := await reader.readline():
        if line.startswith(b"data: "):
            yield json.loads(line[6:])


async def snapshot(port: int, path: str = PATH) -> dict[str, Any]:
    """Return the first snapshot that a new browser gets."""
    async with watching(port, path) as views, asyncio.timeout(60):
        async for view in views:
            return view
    raise AssertionError("the stream ended")
