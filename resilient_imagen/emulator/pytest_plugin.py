"""A pytest fixture that puts the emulator in the place of both vendors.

Enable it in the application's top conftest.py::

    pytest_plugins = ["resilient_imagen.emulator.pytest_plugin"]

and use it in sync and async tests alike::

    async def test_falls_back(imagen_emulator):
        imagen_emulator.google.set(faults.status(503))
        ...

For the length of the test these variables are set, so that the library (and either SDK) finds the
emulator: GOOGLE_GENAI_API_KEY, OPENAI_API_KEY (made-up keys), GOOGLE_GEMINI_BASE_URL and
OPENAI_BASE_URL. The default client is closed before and after, so that it reads them anew. A client
that the application keeps must be closed by the application: the next test's emulator listens on
another port.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from resilient_imagen.api import reset_default_client
from resilient_imagen.emulator.background import BackgroundEmulator

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["imagen_emulator"]


@pytest.fixture
def imagen_emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[BackgroundEmulator]:
    """Both vendors on a loopback port, for one test; the environment points to them."""
    with BackgroundEmulator() as emulator:
        monkeypatch.setenv("GOOGLE_GENAI_API_KEY", "emulated-google-key")
        monkeypatch.setenv("OPENAI_API_KEY", "emulated-openai-key")
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", emulator.google_url)
        monkeypatch.setenv("OPENAI_BASE_URL", emulator.openai_url)
        asyncio.run(reset_default_client())
        yield emulator
        asyncio.run(reset_default_client())
