"""Without variables of further endpoints, requests and loaded modules are unchanged."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest
from cli_kit import environment
from golden_requests import GOLDEN, recorded


def test_requests_equal_the_recorded_ones() -> None:
    """Path, headers without versions, and body of both default providers equal the recorded ones.

    They were recorded before Vertex AI, Azure and declared providers existed.
    """
    assert asyncio.run(recorded()) == json.loads(GOLDEN.read_text())


def loaded(code: str) -> set[str]:
    """Return the modules that a new interpreter has loaded after ``code``."""
    shown = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        env=environment({"GOOGLE_GENAI_API_KEY": "AIza-key", "OPENAI_API_KEY": "sk-key"}),
    )
    return set(shown.stdout.split())


CLIENT = """
import asyncio, resilient_imagen
async def main():
    async with resilient_imagen.ImageClient() as client:
        {}
asyncio.run(main())
"""
NEW = ("azure", "google.auth", "google.oauth2", "msal", "requests", "tomllib")
"""Packages that the further endpoints need."""


def of_new_endpoints(modules: set[str]) -> set[str]:
    """Return the modules of the packages in NEW."""
    return {each for each in modules if each.startswith(NEW)}


def test_a_client_loads_no_module_of_other_endpoints() -> None:
    """Neither the import nor a new client loads a package of another endpoint."""
    assert of_new_endpoints(loaded("import resilient_imagen")) == set()
    modules = loaded(CLIENT.format("pass"))
    assert "resilient_imagen.providers.google" in modules
    assert of_new_endpoints(modules) == set()
    ours = {each for each in modules if each.startswith("resilient_imagen.providers.")}
    for name in ("vertex", "azure", "entra_id", "google_credentials"):
        assert f"resilient_imagen.providers.{name}" not in ours


@pytest.mark.ci
def test_a_warm_client_loads_only_the_modules_of_the_sdks() -> None:
    """Of credentials libraries it loads only the modules that Google's own SDK imports."""
    sdks = loaded("import openai\nfrom google import genai\ngenai.Client(api_key='AIza-key')")
    warm = loaded(CLIENT.format("await client.warm_up()"))
    assert "google.genai" in warm
    assert of_new_endpoints(warm) <= of_new_endpoints(sdks)
