"""The emulator in a thread, and as a pytest fixture of an application."""

from __future__ import annotations

import asyncio
import threading

import httpx2
import pytest
from paths import ROOT

from resilient_imagen.emulator import BackgroundEmulator, Emulator, faults
from resilient_imagen.emulator.proxies import bypassing

pytest_plugins = ["pytester"]

GPT_BODY = {"model": "gpt-image-2", "prompt": "a lighthouse"}
KEY = {"authorization": "Bearer k"}


def test_a_thread_serves_sync_and_async_code() -> None:
    """Control and observation work outside of the serving loop."""

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


def test_waiting_for_a_condition_is_bounded() -> None:
    """A condition that never becomes true raises an error instead of hanging the test."""
    with BackgroundEmulator(Emulator(picture="tiny")) as emulator, pytest.raises(TimeoutError):
        emulator.wait_until(lambda: False, timeout=0.01)


def test_healing_does_not_end_a_hanging_request() -> None:
    """A hanging request continues until its client disconnects; later requests are served."""
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


CONFTEST = 'pytest_plugins = ["resilient_imagen.emulator.pytest_plugin"]\n'


@pytest.fixture
def application(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Return an application whose top conftest.py enables the plugin."""
    pytester.makeconftest(CONFTEST)
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return pytester


def run_in_a_process(application: pytest.Pytester, tests: str) -> pytest.RunResult:
    application.makepyfile(test_application=tests)
    return application.runpytest_subprocess("-q", "-p", "no:cacheprovider", timeout=100)


def test_the_fixture_in_an_application(application: pytest.Pytester) -> None:
    """The fixture serves an application's tests as documented, and cleans up."""
    run_in_a_process(application, APPLICATION_TEST).assert_outcomes(passed=3)


MISLEADING = {
    "IMAGE_GEN_REDIS_URL": "redis://127.0.0.1:9/0",
    "IMAGE_GEN_FORCE_OPEN": "google,openai",
    "IMAGE_GEN_ROUTES": "elsewhere:model",
    "IMAGE_GEN_IPM": "no number",
    "GOOGLE_GENAI_USE_VERTEXAI": "true",
    "GOOGLE_GENAI_USE_ENTERPRISE": "true",
    "GOOGLE_VERTEX_BASE_URL": "http://127.0.0.1:9",
    "GOOGLE_GEMINI_BASE_URL": "http://127.0.0.1:9",
    "GOOGLE_API_KEY": "a real key",
    "GEMINI_API_KEY": "a real key",
    "GOOGLE_GENAI_API_KEY": "a real key",
    "OPENAI_API_KEY": "a real key",
    "OPENAI_BASE_URL": "http://127.0.0.1:9",
    "OPENAI_ORG_ID": "a real organisation",
    "AZURE_OPENAI_ENDPOINT": "http://127.0.0.1:9",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "http_proxy": "http://127.0.0.1:9",
    "ALL_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "internal.example",
}
"""Each would direct a call to another server, or make it fail; no server listens on that port."""

MISLED_TEST = """
import asyncio, os
import pytest
from resilient_imagen import generate_image, reset_default_client

PASSING = {"PYTEST_CURRENT_TEST"}
AT_FIRST = {name: value for name, value in os.environ.items() if name not in PASSING}

async def ask():
    try:
        return await generate_image("a lighthouse", "1:1")
    finally:
        await reset_default_client()

def test_a_call_reaches_the_emulator(imagen_emulator):
    imagen_emulator.app.picture = "tiny"
    assert asyncio.run(ask())["provider"] == "google"
    assert len(imagen_emulator.google.requests) == 1
    left = [name for name, value in os.environ.items() if ":9" in value or "real" in value]
    assert sorted(left) == ["ALL_PROXY", "HTTP_PROXY", "http_proxy"]
    for name in ("NO_PROXY", "no_proxy"):
        hosts = os.environ[name].split(",")
        assert {"internal.example", "127.0.0.1", "localhost", "::1"} == set(hosts)

def test_what_it_sets_afterwards_counts(imagen_emulator, monkeypatch):
    monkeypatch.setenv("IMAGE_GEN_FORCE_OPEN", "google")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-the-test")
    imagen_emulator.app.picture = "tiny"
    assert asyncio.run(ask())["provider"] == "openai"

@pytest.mark.xfail(strict=True)
def test_that_fails(imagen_emulator):
    raise ZeroDivisionError

def test_the_environment_is_restored():
    now = {name: value for name, value in os.environ.items() if name not in PASSING}
    assert now == AT_FIRST
"""


@pytest.mark.ci
def test_the_fixture_isolates_the_environment(
    application: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No Redis, other address, other key or proxy applies during a test."""
    for name, value in MISLEADING.items():
        monkeypatch.setenv(name, value)
    run_in_a_process(application, MISLED_TEST).assert_outcomes(passed=3, xfailed=1)


@pytest.mark.parametrize(
    ("given", "listed"),
    [
        ({}, "127.0.0.1,localhost,::1"),
        ({"NO_PROXY": "a.example, b.example"}, "a.example,b.example,127.0.0.1,localhost,::1"),
        ({"no_proxy": "a.example", "NO_PROXY": "b"}, "a.example,b,127.0.0.1,localhost,::1"),
        ({"NO_PROXY": "localhost,a"}, "localhost,a,127.0.0.1,::1"),
        ({"no_proxy": "*"}, "*"),
        ({"NO_PROXY": ","}, "127.0.0.1,localhost,::1"),
    ],
)
def test_no_proxy_is_extended(given: dict[str, str], listed: str) -> None:
    """Hosts that the environment lists are kept, in the variable of either spelling."""
    assert bypassing(given) == {"NO_PROXY": listed, "no_proxy": listed}
