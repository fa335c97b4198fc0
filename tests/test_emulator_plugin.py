"""The emulator for other people's tests: in a thread, and as a pytest fixture."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import httpx2
import pytest
from cli_kit import python

from resilient_imagen.emulator import BackgroundEmulator, Emulator, faults

GPT_BODY = {"model": "gpt-image-2", "prompt": "a lighthouse"}
KEY = {"authorization": "Bearer k"}


def test_a_thread_serves_sync_and_async_code() -> None:
    """Control and observation work from outside the serving loop, with and without a loop."""

    async def ask(url: str) -> int:
        async with httpx2.AsyncClient() as client:
            return (await client.post(url, json=GPT_BODY, headers=KEY)).status_code

    with BackgroundEmulator(Emulator(picture="tiny")) as emulator:
        url = f"{emulator.openai_url}/images/generations"
        assert str(emulator.port) in emulator.google_url
        assert httpx2.post(url, json=GPT_BODY, headers=KEY).status_code == 200
        emulator.openai.fail(faults.status(503), times=2)
        assert asyncio.run(ask(url)) == 503
        assert httpx2.post(url, json=GPT_BODY, headers=KEY).status_code == 503
        assert asyncio.run(ask(url)) == 200
        emulator.wait_until(lambda: emulator.open_connections == emulator.openai.in_flight == 0)
        assert [seen.status for seen in emulator.openai.requests] == [200, 503, 503, 200]
    assert not [thread for thread in threading.enumerate() if thread.name == "imagen-emulator"]


def test_waiting_ends() -> None:
    """A condition that never holds raises instead of hanging the test."""
    with BackgroundEmulator(Emulator(picture="tiny")) as emulator, pytest.raises(TimeoutError):
        emulator.wait_until(lambda: False, timeout=0.01)


def test_changes_made_in_the_middle_of_a_hang() -> None:
    """A hanging call stays until its client leaves; healing is for the calls after it."""
    with BackgroundEmulator(Emulator(picture="tiny")) as emulator:
        url = f"{emulator.openai_url}/images/generations"
        emulator.openai.set(faults.hang())
        with httpx2.Client(timeout=0.5) as client, pytest.raises(httpx2.ReadTimeout):
            client.post(url, json=GPT_BODY, headers=KEY)
        emulator.heal()
        emulator.wait_until(lambda: emulator.openai.in_flight == 0)
        assert httpx2.post(url, json=GPT_BODY, headers=KEY).status_code == 200


APPLICATION_TEST = """
import asyncio, os
import httpx2
from resilient_imagen.emulator import faults

def ask():
    key = {"authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
    url = os.environ["OPENAI_BASE_URL"] + "/images/generations"
    body = {"model": "gpt-image-2", "prompt": "a lighthouse"}
    return httpx2.post(url, json=body, headers=key).status_code

def test_sync(imagen_emulator):
    imagen_emulator.openai.fail(faults.status(503))
    assert [ask(), ask()] == [503, 200]
    assert os.environ["GOOGLE_GEMINI_BASE_URL"] == imagen_emulator.google_url
    assert os.environ["GOOGLE_GENAI_API_KEY"]

def test_async(imagen_emulator):
    async def main():
        return await asyncio.to_thread(ask)
    assert asyncio.run(main()) == 200
    assert len(imagen_emulator.openai.requests) == 1

def test_environment_is_restored():
    assert "OPENAI_BASE_URL" not in os.environ
"""


def test_the_fixture_in_an_application(tmp_path: Path) -> None:
    """Enabled as documented, the fixture serves an application's tests and cleans up."""
    (tmp_path / "conftest.py").write_text(
        'pytest_plugins = ["resilient_imagen.emulator.pytest_plugin"]\n'
    )
    (tmp_path / "test_application.py").write_text(APPLICATION_TEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    run = python("-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path), cwd=tmp_path)
    assert "3 passed" in run.stdout, run.stdout
