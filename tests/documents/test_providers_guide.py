"""The guide about providers: its samples are providers that serve calls."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import httpx2
import pytest
from images_samples import encoded
from PIL import Image
from readme_kit import executed, guide_of

from resilient_imagen import (
    ImageClient,
    ImageDict,
    ImageGenerationError,
    Settings,
    reset_default_client,
)
from resilient_imagen.emulator import BackgroundEmulator
from resilient_imagen.images.inspect import sniff_mime
from resilient_imagen.testing import TINY_PNG

pytest_plugins = ["resilient_imagen.emulator.pytest_plugin"]

GUIDE = guide_of("providers")


def test_a_second_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample's client has a third route, by the second account of OpenAI."""
    monkeypatch.setenv("GOOGLE_GENAI_API_KEY", "made-up")
    monkeypatch.setenv("OPENAI_API_KEY", "made-up")
    (code,) = GUIDE.samples(heading="A second account or a compatible service")

    async def routes() -> list[str]:
        async with executed(code)["two_accounts"]("another-key") as client:
            return [route["route"] for route in client.snapshot()["routes"]]

    assert asyncio.run(routes())[1:] == [
        "openai:gpt-image-2.5-flare",
        "reserve:gpt-image-2.5-flare",
    ]


def test_the_custom_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """It requests the ratio of the call, and its failures have reasons that cause a fallback."""
    (code,) = GUIDE.samples(heading="A provider of your own")
    provider = code[: code.index("def make_client")]
    assert len(provider.splitlines()) <= 40
    defined = executed(code)
    asked: list[dict[str, Any]] = []
    statuses = iter([200, 200, 503, 500])

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(json.loads(request.content))
        picture = base64.b64encode(TINY_PNG).decode()
        return httpx2.Response(next(statuses), json={"images": [picture]})

    async def main() -> list[str]:
        local = defined["StableDiffusion"](transport=httpx2.MockTransport(answer))
        settings = Settings(routes="local:sdxl", ipm=6000, max_retries=0)
        async with ImageClient(settings, providers=[local]) as client:
            outcomes = [(await client.generate("a")).provider]
            outcomes.append((await client.generate("a", aspect_ratio="16:9")).provider)
            for _ in range(2):
                with pytest.raises(ImageGenerationError) as caught:
                    await client.generate("a")
                outcomes.append(caught.value.reason)
            return outcomes

    assert asyncio.run(main()) == ["local", "local", "overloaded", "server_error"]
    sizes = [(body["width"], body["height"]) for body in asked]
    assert sizes[:2] == [(576, 1024), (1024, 576)]

    monkeypatch.setenv("GOOGLE_GENAI_API_KEY", "made-up")
    monkeypatch.setenv("OPENAI_API_KEY", "made-up")

    async def chain() -> list[str]:
        async with defined["make_client"]() as client:
            return [route["provider"] for route in client.snapshot()["routes"]]

    assert asyncio.run(chain()) == ["google", "openai", "local"]


def test_options(imagen_emulator: BackgroundEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The samples return three WebP images, and an edit with the mask, as the guide states."""
    monkeypatch.setenv("IMAGE_GEN_IPM", "6000")
    (code,) = GUIDE.samples(heading="Options by vendor")
    sample = executed(code)
    photo = encoded(Image.new("RGB", (32, 32)), "PNG")
    mask = encoded(Image.new("RGBA", (32, 32)), "PNG")

    async def main() -> tuple[list[str], ImageDict]:
        try:
            return await sample["stickers"]("a fox"), await sample["repaint_sky"](photo, mask)
        finally:
            await reset_default_client()

    images, edited = asyncio.run(main())
    types = [sniff_mime(base64.b64decode(image)) for image in images]
    assert types == ["image/webp"] * 3
    assert edited["provider"] == "openai"
    assert imagen_emulator.openai.requests[-1].parameters["moderation"] == "low"
