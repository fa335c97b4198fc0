"""Background server: the emulator in a separate thread, for sync and async tests and scripts."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Self

from resilient_imagen.emulator.emulator import Emulator
from resilient_imagen.emulator.server import EmulatorServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from resilient_imagen.emulator.vendor import Vendor

__all__ = ["BackgroundEmulator"]


class BackgroundEmulator:
    """Serves an emulator on a free loopback port while its ``with`` block runs.

    All members may be used from any thread, from sync and async code.

    Args:
        app: The emulator to serve; by default a new Emulator.
    """

    def __init__(self, app: Emulator | None = None) -> None:
        self.app: Emulator = app or Emulator()
        self._server = EmulatorServer(self.app)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="imagen-emulator")

    @property
    def google(self) -> Vendor:
        """Gemini: its faults and the requests that it received."""
        return self.app.google

    @property
    def openai(self) -> Vendor:
        """OpenAI: its faults and the requests that it received."""
        return self.app.openai

    @property
    def vertex(self) -> Vendor:
        """Vertex AI: its faults and the requests that it received."""
        return self.app.vertex

    @property
    def azure(self) -> Vendor:
        """Azure OpenAI: its faults and the requests that it received."""
        return self.app.azure

    @property
    def compatible(self) -> Vendor:
        """A strict vendor with OpenAI's API: its faults and the requests that it received."""
        return self.app.compatible

    @property
    def tokens(self) -> Vendor:
        """The token server: its faults and the requests that it received."""
        return self.app.tokens

    @property
    def google_url(self) -> str:
        """The value for GOOGLE_GEMINI_BASE_URL."""
        return self._server.google_url

    @property
    def openai_url(self) -> str:
        """The value for OPENAI_BASE_URL."""
        return self._server.openai_url

    @property
    def vertex_url(self) -> str:
        """The value for VERTEX_BASE_URL."""
        return self._server.vertex_url

    @property
    def azure_url(self) -> str:
        """The value for AZURE_OPENAI_ENDPOINT."""
        return self._server.azure_url

    @property
    def compatible_url(self) -> str:
        """The address of a strict vendor with OpenAI's API, for <NAME>_BASE_URL."""
        return self._server.compatible_url

    @property
    def token_url(self) -> str:
        """The ``token_uri`` for the file of a service account."""
        return self._server.token_url

    @property
    def identity_url(self) -> str:
        """The value for IDENTITY_ENDPOINT, which azure-identity asks for tokens."""
        return self._server.identity_url

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._server.port

    @property
    def open_connections(self) -> int:
        """Number of open connections, including those without a request."""
        return self._server.open_connections

    def heal(self) -> None:
        """Clear all faults of all services."""
        self.app.heal()

    def wait_until(self, condition: Callable[[], bool], timeout: float = 10.0) -> None:
        """Block until ``condition()`` is true; it is checked after every change of a vendor.

        Raises:
            TimeoutError: The condition was not true within ``timeout`` seconds.
        """

        async def either() -> None:
            watching = [
                asyncio.ensure_future(v.until(lambda _: condition())) for v in self.app.services
            ]
            async with asyncio.timeout(timeout):
                try:
                    await asyncio.wait(watching, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for waiting in watching:
                        waiting.cancel()

        asyncio.run_coroutine_threadsafe(either(), self._loop).result()

    def __enter__(self) -> Self:
        """Start the server."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._server.__aenter__(), self._loop).result()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Drop every connection, stop the loop and end the thread."""
        stop = self._server.__aexit__(kind, error, traceback)
        asyncio.run_coroutine_threadsafe(stop, self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()
