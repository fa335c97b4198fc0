"""The guide to progress: its samples send Server-Sent Events, and its table is complete."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from typing import Any, get_args

import httpx2
import pytest
from readme_kit import LIBRARY, executed

from resilient_imagen import reset_default_client, sync
from resilient_imagen.emulator import BackgroundEmulator, faults
from resilient_imagen.images.inspect import sniff_mime
from resilient_imagen.pipeline.progress import ProgressKind

pytest_plugins = ["resilient_imagen.emulator.pytest_plugin"]

FASTAPI, DJANGO = range(2)


@pytest.fixture
def vendors(
    imagen_emulator: BackgroundEmulator, monkeypatch: pytest.MonkeyPatch
) -> BackgroundEmulator:
    monkeypatch.setenv("IMAGE_GEN_IPM", "60000")
    monkeypatch.setenv("IMAGE_GEN_ROUTES", "openai:gpt-image-2.5-flare")
    monkeypatch.setenv("IMAGE_GEN_MAX_RETRIES", "0")
    return imagen_emulator


def with_fastapi() -> str:
    """Return the events that FastAPI's sample sends."""
    app = executed(LIBRARY.samples(heading="Progress")[FASTAPI])["app"]

    async def main() -> str:
        transport = httpx2.ASGITransport(app)
        try:
            async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
                answer = await client.get("/scene/events", params={"prompt": "a fox"})
        finally:
            await reset_default_client()
        assert answer.headers["content-type"].startswith("text/event-stream")
        return str(answer.text)

    return asyncio.run(main())


def with_django() -> str:
    """Return the events that Django's sample sends."""
    conf = pytest.importorskip("django.conf")
    if not conf.settings.configured:
        conf.settings.configure()
    requests = pytest.importorskip("django.test").RequestFactory()
    view = executed(LIBRARY.samples(heading="Progress")[DJANGO])["scene_events"]
    try:
        answer = view(requests.get("/", {"prompt": "a fox"}))
        assert answer["content-type"] == "text/event-stream"
        return b"".join(answer.streaming_content).decode()
    finally:
        sync.reset_default_client()


def steps(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in re.findall(r"^data: (.*)$", text, re.MULTILINE)]


@pytest.mark.parametrize("served", [with_fastapi, with_django])
def test_a_sample_sends_steps_previews_and_the_image(
    vendors: BackgroundEmulator, served: Any
) -> None:
    """The last event has the image; at least the newest preview comes before it."""
    found = steps(served())
    kinds = [step["kind"] for step in found if step["kind"] != "queued"]
    assert [kind for kind in kinds if kind != "partial_image"] == ["sending", "finishing", "done"]
    assert "partial_image" in kinds
    for step in found:
        if "image" in step:
            assert sniff_mime(base64.b64decode(step["image"])) == "image/png"
    assert "image" in found[-1]


@pytest.mark.parametrize("served", [with_fastapi, with_django])
def test_a_sample_sends_the_reason_of_a_failure(vendors: BackgroundEmulator, served: Any) -> None:
    """The response has begun, so the reason is sent as an event."""
    vendors.openai.set(faults.error_event("blocked_output", 1))
    text = served()
    assert "event: failed\n" in text
    assert steps(text)[-1] == {"reason": "content_blocked"}


def test_every_kind_is_in_the_table() -> None:
    """The table has each kind once."""
    table = re.findall(r"^\| `(\w+)` \|", LIBRARY.section("Progress"), re.MULTILINE)
    assert table == list(get_args(ProgressKind))
