"""The library's guide: its samples call the library, and its statements about data are true."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from cli_kit import python
from images_samples import encoded, picture
from readme_kit import LIBRARY, executed
from trace_backends import collector

import resilient_imagen
from resilient_imagen import generate_image_with_references, reset_default_client
from resilient_imagen.emulator import BackgroundEmulator, faults

pytest_plugins = ["resilient_imagen.emulator.pytest_plugin"]


def test_every_error_is_listed() -> None:
    """The table of errors has each public exception, and no other."""
    errors = {name for name in resilient_imagen.__all__ if name.endswith("Error")}
    listed = set(re.findall(r"`(\w+Error)`", LIBRARY.section("Errors")))
    assert listed - {"ValueError", "TimeoutError", "ConnectionError"} == errors


def test_a_client_with_settings(imagen_emulator: BackgroundEmulator) -> None:
    """The sample's client makes its covers one after the other."""
    (code,) = LIBRARY.samples(heading="Functions or client")
    covers = asyncio.run(executed(code)["covers"](["one", "two"]))
    assert [provider for provider, _, _ in covers] == ["google", "google"]
    assert [seen.aspect_ratio for seen in imagen_emulator.google.requests] == ["2:3", "2:3"]


def test_call_options_sample(
    imagen_emulator: BackgroundEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sample generates its scenes, and the callback runs when each one begins."""
    monkeypatch.setenv("IMAGE_GEN_IPM", "6000")
    (code,) = LIBRARY.samples(heading="In your application")
    begun: list[int] = []

    async def main() -> list[dict[str, Any]]:
        try:
            images: list[dict[str, Any]] = await executed(code)["job"](
                ["one", "two"], lambda: begun.append(len(imagen_emulator.google.requests))
            )
            return images
        finally:
            await reset_default_client()

    images = asyncio.run(main())
    assert [image["provider"] for image in images] == ["google", "google"]
    assert begun == [0, 1]


@pytest.mark.usefixtures("imagen_emulator")
def test_the_sample_about_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample returns the price of each image, and their sum."""
    monkeypatch.setenv("IMAGE_GEN_IPM", "6000")
    (code,) = LIBRARY.samples(heading="What a call costs")
    costs, total, maybe = asyncio.run(executed(code)["priced"](["one", "two"]))
    assert costs == [0.134, 0.134]
    assert total == pytest.approx(0.268)
    assert maybe == 0.0


def test_the_recipients_of_prompt_and_references(
    imagen_emulator: BackgroundEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Google receives the prompt with a hint, OpenAI unchanged, and both the references."""
    monkeypatch.setenv("IMAGE_GEN_MAX_RETRIES", "0")
    imagen_emulator.google.set(faults.overload())
    reference = encoded(picture(), "PNG")

    async def main() -> None:
        try:
            await generate_image_with_references("a lighthouse", [reference])
        finally:
            await reset_default_client()

    asyncio.run(main())
    (google,) = imagen_emulator.google.requests
    (openai,) = imagen_emulator.openai.requests
    assert google.prompt.startswith("a lighthouse. The image should be")
    assert openai.prompt == "a lighthouse"
    assert len(google.references) == len(openai.references) == 1


FASTAPI_USER = """
import asyncio, json, sys, httpx2, app as application

async def left():
    leaving = asyncio.create_task(application.make_scene("three", application.Scene(prompt="x")))
    while application.jobs.get("three") != "generating":
        await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])

async def main():
    async with application.app.router.lifespan_context(application.app):
        transport = httpx2.ASGITransport(app=application.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://app") as client:
            made = await client.post("/scenes/one", json={"prompt": "a lighthouse"})
            empty = await client.post("/scenes/two", json={"prompt": ""})
            other = await client.post("/scenes/four", json={"promt": "a lighthouse"})
            health = await client.get("/health/images")
            await left()
    image = made.json()
    print(json.dumps({
        "made": [made.status_code, image["by"], image["usd"], len(image["image"]) > 1000],
        "empty": [empty.status_code, empty.json()["detail"]],
        "other": other.status_code,
        "health": [health.status_code, health.json()["status"], health.json()["reasons"]],
        "routes": [row["breaker"]["state"] for row in health.json()["details"]["routes"]],
        "jobs": application.jobs,
    }))

asyncio.run(main())
"""


@pytest.mark.ci
@pytest.mark.usefixtures("imagen_emulator")
def test_the_fastapi_sample(tmp_path: Path) -> None:
    """It serves a scene, rejects invalid ones, detects disconnects, shows its health and
    exports spans.
    """
    pytest.importorskip("fastapi")
    (code,) = LIBRARY.samples(heading="With FastAPI")
    (tmp_path / "app.py").write_text(code)
    with collector() as traces:
        there = {"OTEL_EXPORTER_OTLP_ENDPOINT": traces.otlp}
        done = python("-c", FASTAPI_USER, cwd=tmp_path, env=there)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["made"] == [200, "google", 0.134, True]
    assert seen["empty"] == [422, "prompt must be a str that is not empty"]
    assert seen["other"] == 422
    assert seen["health"] == [200, "ok", []]
    assert seen["routes"] == ["closed", "closed"]
    assert seen["jobs"] == {"one": "done", "two": "refused", "three": "failed"}
    outcomes = [
        span.tags["imagegen.attempt.outcome"]
        for service, span in traces.received
        if service == "storyboards" and span.name == "generate_content gemini-3-pro-image"
    ]
    assert outcomes == ["success", "cancelled"]
    assert "async def health" in code  # a plain one runs in a thread, with a client of its own


def test_the_fastapi_sample_shows_warnings(tmp_path: Path) -> None:
    """A missing fallback key and an opened circuit are written to standard error."""
    pytest.importorskip("fastapi")
    (code,) = LIBRARY.samples(heading="With FastAPI")
    (tmp_path / "app.py").write_text(code)
    with BackgroundEmulator() as emulator, collector() as traces:
        emulator.google.set(faults.status(401))
        there = {
            "GOOGLE_GENAI_API_KEY": "emulated",
            "GOOGLE_GEMINI_BASE_URL": emulator.google_url,
            "OTEL_EXPORTER_OTLP_ENDPOINT": traces.otlp,
        }
        done = python("-c", FASTAPI_VISITOR, cwd=tmp_path, env=there)
    assert done.stdout == "503\n", done.stderr
    for warning in (
        "OPENAI_API_KEY is not set: routes to openai are off",
        "google unauthenticated (401): circuit open for ",
    ):
        assert f'summary="{warning}' in done.stderr
    assert "a lighthouse" not in done.stderr


FASTAPI_VISITOR = """
import asyncio, httpx2, app as application

async def main():
    async with application.app.router.lifespan_context(application.app):
        transport = httpx2.ASGITransport(app=application.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://app") as client:
            print((await client.post("/scenes/one", json={"prompt": "a lighthouse"})).status_code)

asyncio.run(main())
"""
