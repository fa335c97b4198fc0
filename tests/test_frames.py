"""The right frame, whoever made it: every ratio, resolution and model, through the real SDKs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from resilient_imagen import ImageClient, Settings, models
from resilient_imagen.emulator import Emulator, faults
from resilient_imagen.images.sniff import pixel_size
from resilient_imagen.providers.google import GoogleProvider
from resilient_imagen.providers.openai import OpenAIProvider
from resilient_imagen.request import ASPECT_RATIOS, RESOLUTIONS

LIVING = [
    pytest.param(row, id=row.name)
    for row in models.MODELS.values()
    if row.retired_on is None or row.successor is None
]


async def delivered(
    app: Emulator, row: models.ModelInfo, mode: str, asked: Sequence[tuple[str, str]]
) -> list[tuple[int, int]]:
    """Ask for each ratio and resolution in turn; the sizes that came back."""
    settings = Settings(routes=f"{row.vendor}:{row.name}", ipm=1_000_000, fit=mode)
    kind = GoogleProvider if row.vendor == "google" else OpenAIProvider
    sizes = []
    provider = kind(api_key="made-up-key", transport=app.transport())
    async with ImageClient(settings, providers=[provider]) as client:
        for ratio, resolution in asked:
            result = await client.generate("a fox", aspect_ratio=ratio, resolution=resolution)
            size = pixel_size(result.image_bytes)
            assert size is not None
            sizes.append(size)
    return sizes


EVERYTHING = [(ratio, resolution) for ratio in ASPECT_RATIOS for resolution in RESOLUTIONS]


@pytest.mark.parametrize("row", LIVING)
def test_every_ratio_and_resolution_arrives_within_two_percent(row: models.ModelInfo) -> None:
    """With the default fit, the picture has the ratio that was asked for."""
    sizes = asyncio.run(delivered(Emulator(picture="tiny"), row, "crop", EVERYTHING))

    for (ratio, resolution), (width, height) in zip(EVERYTHING, sizes, strict=True):
        wide, high = map(int, ratio.split(":"))
        # A picture of a sixteenth of the size cannot be nearer than half a pixel.
        slack = 0.02 + 0.5 / min(width, height)
        assert width / height == pytest.approx(wide / high, rel=slack), (ratio, resolution)


@pytest.mark.parametrize("row", LIVING)
def test_exact_is_exact_to_the_pixel(row: models.ModelInfo) -> None:
    """Video frames: width and height are whole multiples of the ratio."""
    sizes = asyncio.run(delivered(Emulator(picture="tiny"), row, "exact", EVERYTHING))

    for (ratio, _), (width, height) in zip(EVERYTHING, sizes, strict=True):
        wide, high = map(int, ratio.split(":"))
        assert width * high == height * wide, ratio


@pytest.mark.parametrize("mode", ["crop", "pad", "none", "exact"])
def test_a_vendor_that_ignores_the_ratio(mode: str) -> None:
    """crop, pad and exact mend it, none hands it on."""
    app = Emulator()
    app.google.set(faults.answer("wrong_aspect"))
    row = models.MODELS["gemini-3-pro-image"]

    ((width, height),) = asyncio.run(delivered(app, row, mode, [("9:16", "1K")]))

    assert (width / height == pytest.approx(9 / 16, rel=0.02)) == (mode != "none")
