"""The providers with the in-memory emulator: every response variant and status."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from resilient_imagen.emulator import Emulator, faults
from resilient_imagen.emulator.gemini_variants import SHAPES as GEMINI_SHAPES
from resilient_imagen.emulator.gpt_image_variants import SHAPES as GPT_SHAPES
from resilient_imagen.errors import ImageGenerationError
from resilient_imagen.images.inspect import pixel_size, sniff_mime
from resilient_imagen.models import openai_size
from resilient_imagen.providers.base import ProviderResult
from resilient_imagen.providers.google import GoogleProvider
from resilient_imagen.providers.openai import OpenAIProvider
from resilient_imagen.reasons import Reason
from resilient_imagen.request import ASPECT_RATIOS, ImageRequest

if TYPE_CHECKING:
    from resilient_imagen.providers.sdk import SdkProvider

PROMPT = "a lighthouse at dusk, painted in oil"
MODELS = {"google": "gemini-3-pro-image", "openai": "gpt-image-2.5-flare"}
SHAPES = [("google", name) for name in GEMINI_SHAPES] + [("openai", name) for name in GPT_SHAPES]

BAD = {
    **dict.fromkeys(
        ("bad_base64", "bad_json", "body_empty", "body_list", "body_null", "html", "url_only"),
        Reason.INVALID_RESPONSE,
    ),
    **dict.fromkeys(("blocked", "finish", "prompt_feedback_only"), Reason.CONTENT_BLOCKED),
    **dict.fromkeys(
        (
            "b64_absent", "b64_null", "candidates_absent", "candidates_empty", "candidates_null",
            "content_absent", "content_empty", "content_null", "content_role_only", "data_absent",
            "data_empty", "data_null", "no_image", "parts_empty", "parts_null", "text_only",
        ),
        Reason.NO_IMAGE,
    ),
}  # fmt: skip
"""Variants without an image; ``body_object`` has one for Gemini and none for OpenAI."""


Outcome = ProviderResult | ImageGenerationError


def _provider(vendor: str, app: Emulator) -> SdkProvider:
    kind = GoogleProvider if vendor == "google" else OpenAIProvider
    return kind(api_key="made-up", transport=app.transport())


async def _outcomes() -> dict[tuple[str, str], Outcome]:
    app = Emulator()
    found: dict[tuple[str, str], Outcome] = {}
    for vendor, model in MODELS.items():
        provider = _provider(vendor, app)
        for _, shape in (pair for pair in SHAPES if pair[0] == vendor):
            getattr(app, vendor).fail(faults.answer(shape), times=1)
            try:
                image = await provider.generate(ImageRequest(PROMPT, resolution="1K"), model)
                found[vendor, shape] = image
            except ImageGenerationError as error:
                found[vendor, shape] = error
        await provider.aclose()
    return found


@pytest.fixture(scope="module")
def outcomes() -> dict[tuple[str, str], Outcome]:
    return asyncio.run(_outcomes())


@pytest.mark.parametrize(("vendor", "shape"), SHAPES)
def test_every_shape_is_an_image_or_its_reason(
    vendor: str, shape: str, outcomes: dict[tuple[str, str], Outcome]
) -> None:
    """Each form of a 200 is delivered or rejected with the right reason."""
    expected = BAD.get(shape)
    if shape == "body_object":
        expected = Reason.NO_IMAGE if vendor == "google" else Reason.INVALID_RESPONSE
    outcome = outcomes[vendor, shape]
    if isinstance(outcome, ProviderResult):
        assert expected is None
        assert sniff_mime(outcome.images[0].data) == outcome.images[0].mime_type
    else:
        assert outcome.reason is expected


@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("vendor", "model"),
    [
        ("google", "gemini-3-pro-image"),
        ("google", "gemini-2.5-flash-image"),
        ("google", "gemini-3.1-flash-lite-image"),
        ("openai", "gpt-image-2.6-flare"),
        ("openai", "gpt-image-1.5"),
    ],
)
def test_every_ratio_is_accepted_by_every_model(vendor: str, model: str) -> None:
    """No size, ratio or quality is sent that a model rejects."""

    async def main() -> None:
        provider = _provider(vendor, Emulator())
        for ratio in ASPECT_RATIOS:
            request = ImageRequest(PROMPT, aspect_ratio=ratio, resolution="1K")
            image = await provider.generate(request, model)
            if vendor == "openai":
                assert pixel_size(image.images[0].data) == openai_size(model, ratio, "1K")
        await provider.aclose()

    asyncio.run(main())
