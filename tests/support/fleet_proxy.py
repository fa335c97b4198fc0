"""Redis proxy: drops or delays data and adds TLS, on an event loop in a separate thread."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


class Proxy:
    """A proxy that runs during a `with` block.

    Args:
        port: The port of Redis.
        tls: TLS settings for clients; None means plain TCP.
    """

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.swallows = False
        """Whether it drops all data."""
        self.unanswered = b""
        """If data to Redis contain these bytes, it drops this and all later answers."""
        self.delay = 0.0
        """Delay in seconds of data to Redis."""
        self.target = port
        """The port of Redis; new connections use a changed one."""
        self._refuses = self._is_mute = False
        self._connections: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = self._on_loop(asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls))
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.url = f"redis{'s' if tls else ''}://127.0.0.1:{self.port}/0"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._on_loop(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def disconnect(self, seconds: float) -> None:
        """Close all connections, and refuse new ones for some seconds."""

        async def close() -> None:
            self._refuses = True
            for writer in self._connections:
                writer.close()
            await asyncio.sleep(seconds)
            self._refuses = False

        self._on_loop(close())

    def _on_loop(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            writer.close()
            return
        self._connections.add(writer)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
            ways = (
                asyncio.ensure_future(self._pass(reader, far_writer, up=True)),
                asyncio.ensure_future(self._pass(far_reader, writer, up=False)),
            )
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                far_writer.close()
        self._connections.discard(writer)
        writer.close()

    async def _pass(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, up: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                if self.swallows or (self._is_mute and not up):
                    continue
                if up and self.unanswered and self.unanswered in data:
                    self._is_mute = True
                if up and self.delay:
                    self._loop.call_later(self.delay, target.write, data)
                else:
                    target.write(data)

    async def _end(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.05)  # transports close a moment later
