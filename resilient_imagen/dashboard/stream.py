"""Stream: one snapshot per second for all browsers, as Server-Sent Events.

Work per second does not depend on the number of events. A browser is sent the latest snapshot when
it has taken the one before, so that a slow browser skips snapshots, and none are queued for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import TYPE_CHECKING, Final

from starlette.responses import PlainTextResponse

from resilient_imagen.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from starlette.types import Receive, Scope, Send

__all__ = ["MAX_BROWSERS", "Broadcaster", "EventStream"]

_log = logging.getLogger("resilient_imagen")

PERIOD: Final = 1.0
"""Seconds between two snapshots."""
MAX_BROWSERS: Final = 100
"""Maximum number of streams; further ones are rejected with 503."""
STALLED: Final = 10.0
"""Seconds after which a browser that takes no data is dropped."""
LONGEST: Final = 20.0
"""Seconds of a stream. The browser connects again, because servers such as uvicorn wait for open
responses when they stop."""


class Broadcaster:
    """Makes the snapshots for all browsers, while at least one is connected.

    Args:
        read: Returns the page's content.
    """

    def __init__(self, read: Callable[[], Awaitable[Mapping[str, object]]]) -> None:
        self._read = read
        self._latest = b""
        """The latest snapshot, as one event; empty before the first one."""
        self._made_at = float("-inf")
        self._changed = asyncio.Event()
        """Set when the next snapshot is there; replaced for each."""
        self._task: asyncio.Task[None] | None = None
        self.browsers = 0
        """Browsers that are connected."""

    @contextlib.contextmanager
    def browser(self) -> Iterator[None]:
        """Make snapshots as long as the block lasts."""
        self._start()
        self.browsers += 1
        try:
            yield
        finally:
            self.browsers -= 1
            if not self.browsers and self._task is not None:
                self._task.cancel()
                self._task = None

    async def after(self, seen: bytes) -> bytes:
        """Return the latest snapshot as soon as it differs from ``seen``."""
        while self._latest is seen or not self._latest:
            await self._changed.wait()
        return self._latest

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        if self._task is not None and self._task.get_loop() is loop and not self._task.done():
            return
        self._changed = asyncio.Event()
        if loop.time() - self._made_at >= PERIOD:
            self._latest = b""  # too old to be shown
        self._task = loop.create_task(self._produce())

    async def _produce(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            # At most one per second, also if a browser reconnects within a second.
            await asyncio.sleep(max(0.0, self._made_at + PERIOD - loop.time()))
            self._made_at = loop.time()
            self._latest = _event(await self._content())
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    async def _content(self) -> Mapping[str, object]:
        try:
            return await self._read()
        except ConfigurationError as error:
            return {"error": str(error)}
        except Exception as error:  # noqa: BLE001 - sent to the browsers and logged
            _log.exception("dashboard: no snapshot")
            return {"error": f"no snapshot ({type(error).__name__}); the log has the traceback"}


class EventStream:
    """An ASGI response that sends a broadcaster's snapshots to one browser.

    Args:
        broadcaster: Makes the snapshots.
    """

    def __init__(self, broadcaster: Broadcaster) -> None:
        self._broadcaster = broadcaster

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send snapshots until the browser leaves or stalls, or the stream's time is over.

        Raises:
            TimeoutError: The browser takes no data. The server then closes the connection.
        """
        if self._broadcaster.browsers >= MAX_BROWSERS:
            refused = PlainTextResponse("Too many browsers watch this page.\n", 503)
            await refused(scope, receive, send)
            return
        with self._broadcaster.browser():
            gone = asyncio.create_task(_disconnected(receive))
            try:
                await self._send_all(send, gone)
            finally:
                gone.cancel()

    async def _send_all(self, send: Send, gone: asyncio.Task[None]) -> None:
        loop = asyncio.get_running_loop()
        ends = loop.time() + LONGEST
        await send(_START)
        event = b""
        while loop.time() < ends:
            event = await self._broadcaster.after(event)
            if gone.done():
                return
            await _send_body(send, event)
        await _send_body(send, b"", last=True)


async def _send_body(send: Send, body: bytes, *, last: bool = False) -> None:
    async with asyncio.timeout(STALLED):  # the server waits until the browser has taken enough
        await send({"type": "http.response.body", "body": body, "more_body": not last})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _event(content: Mapping[str, object]) -> bytes:
    """Return one Server-Sent Event; JSON has no line breaks."""
    return b"retry: 500\ndata: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"


_START: Final = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"x-accel-buffering", b"no"),  # nginx passes each event on at once
    ],
}
