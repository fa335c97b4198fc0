"""Pytest plugin: a fixture that replaces both vendors by the emulator.

Enable it in the application's top conftest.py::

    pytest_plugins = ["resilient_imagen.emulator.pytest_plugin"]

and use it in sync and async tests alike::

    async def test_falls_back(imagen_emulator):
        imagen_emulator.google.set(faults.status(503))
        ...

During the test the environment refers only to the emulator:

- GOOGLE_GENAI_API_KEY, OPENAI_API_KEY (made-up keys), GOOGLE_GEMINI_BASE_URL and OPENAI_BASE_URL
  are set, so that the library (and either SDK) finds the emulator. So are VERTEX_API_KEY,
  VERTEX_BASE_URL, AZURE_OPENAI_API_KEY and AZURE_OPENAI_ENDPOINT, for routes to the clouds.
- NO_PROXY and no_proxy contain loopback, so that no proxy is used.
- Every other variable of the library, of both SDKs and of trace exporters is unset: IMAGE_GEN_*
  (a Redis, a forced-open route), GOOGLE_GENAI_*, GOOGLE_API_KEY, GOOGLE_VERTEX_BASE_URL,
  GOOGLE_CLOUD_*, GOOGLE_APPLICATION_CREDENTIALS, GEMINI_*, OPENAI_*, AZURE_*, OTEL_EXPORTER_*. A
  test that needs one sets it after requesting the fixture; an application's fixture that sets
  variables must request `imagen_emulator` itself.

The environment is restored afterwards. The default clients, including that of
`resilient_imagen.sync`, are closed before and after, so that they read the environment again. The
application must close clients that it keeps, because the next test's emulator listens on another
port.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

import pytest

from resilient_imagen import sync
from resilient_imagen.api import reset_default_client
from resilient_imagen.emulator.background_server import BackgroundEmulator
from resilient_imagen.emulator.proxies import bypassing

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["imagen_emulator"]

_UNSET: Final = (
    "IMAGE_GEN_",
    "GOOGLE_GENAI_",
    "GOOGLE_API_KEY",
    "GOOGLE_GEMINI_BASE_URL",
    "GOOGLE_VERTEX_BASE_URL",
    "GOOGLE_CLOUD_",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "VERTEX_",
    "GEMINI_",
    "OPENAI_",
    "AZURE_",
    "OTEL_EXPORTER_",
)
"""Prefixes of variables that may refer to real services."""


@pytest.fixture
def imagen_emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[BackgroundEmulator]:
    """Serve both vendors on a loopback port for one test, and set the environment to it."""
    with BackgroundEmulator() as emulator:
        for name in [name for name in os.environ if name.upper().startswith(_UNSET)]:
            monkeypatch.delenv(name)
        reached = {
            "GOOGLE_GENAI_API_KEY": "emulated-google-key",
            "OPENAI_API_KEY": "emulated-openai-key",
            "GOOGLE_GEMINI_BASE_URL": emulator.google_url,
            "OPENAI_BASE_URL": emulator.openai_url,
            "VERTEX_API_KEY": "emulated-vertex-key",
            "VERTEX_BASE_URL": emulator.vertex_url,
            "AZURE_OPENAI_API_KEY": "emulated-azure-key",
            "AZURE_OPENAI_ENDPOINT": emulator.azure_url,
            **bypassing(os.environ),
        }
        for name, value in reached.items():
            monkeypatch.setenv(name, value)
        _reset()
        yield emulator
        _reset()


def _reset() -> None:
    asyncio.run(reset_default_client())
    sync.reset_default_client()
