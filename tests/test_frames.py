"""Every ratio, resolution and model, through the real SDKs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import date
from functools import partial
from typing import Literal

import pytest
from images_samples import encoded, picture

from resilient_imagen import (
    AspectRatio,
    ImageClient,
    ImageResult,
    Resolution,
    Settings,
    models,
)
from resilient_imagen.emulator import Emulator, faults, renderer
from resilient_imagen.images.inspect import pixel_size
from resilient_imagen.providers.google import GoogleProvider
from resilient_imagen.providers.openai import OpenAIProvider
from resilient_imagen.request import ASPECT_RATIOS, RESOLUTIONS

TODAY = date(2026, 11, 23)
"""Of the table's facts; models that end later are asked here for ever."""
LIVING = [
    pytest.param(row, id=row.name)
    for row in models.MODELS.values()
    if row.retired_on is None or row.retired_on > TODAY
]
KINDS = [
    pytest.param(models.MODELS[name], id=name)
    for name in ("gemini-3-pro-image", "gemini-2.5-flash-image", "gpt-image-2", "gpt-image-1.5")
]
"""One of each way to name a size."""
Fit = Literal["crop", "pad", "none", "exact"]
EVERYTHING = [(ratio, resolution) for ratio in ASPECT_RATIOS for resolution in RESOLUTIONS]
IMAGE = encoded(picture(), "PNG")


@pytest.fixture(autouse=True)
def _for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "successor", lambda _name, _today: None)


async def results(
    app: Emulator,
    row: models.ModelInfo,
    mode: Fit,
    asked: Sequence[tuple[AspectRatio, Resolution]],
    *,
    edit: bool = False,
) -> list[ImageResult]:
    """Request each ratio and resolution in turn."""
    settings = Settings(routes=f"{row.vendor}:{row.name}", ipm=1_000_000, fit=mode)
    kind = GoogleProvider if row.vendor == "google" else OpenAIProvider
    provider = kind(api_key="made-up-key", transport=app.transport())
    async with ImageClient(settings, providers=[provider]) as client:
        ask = partial(client.edit, IMAGE) if edit else client.generate
        return [
            await ask("a fox", aspect_ratio=ratio, resolution=resolution)
            for ratio, resolution in asked
        ]


def sizes(found: Sequence[ImageResult]) -> list[tuple[int, int]]:
    read = [pixel_size(result.image_bytes) for result in found]
    assert None not in read
    return [size for size in read if size is not None]


def off(size: tuple[int, int], ratio: str) -> float:
    """Return the relative difference between a size and a ratio."""
    wide, high = map(int, ratio.split(":"))
    return abs(size[0] * high / (size[1] * wide) - 1)


@pytest.mark.no_cover
@pytest.mark.parametrize("mode", ["crop", pytest.param("pad", marks=pytest.mark.ci)])
@pytest.mark.parametrize("row", LIVING)
def test_every_ratio_and_resolution_arrives_within_two_percent(
    row: models.ModelInfo, mode: Fit
) -> None:
    """The delivered image has the requested ratio, cropped or padded."""
    found = asyncio.run(results(Emulator(picture="tiny"), row, mode, EVERYTHING))

    assert {result.model for result in found} == {row.name}
    for asked, size in zip(EVERYTHING, sizes(found), strict=True):
        # An image of a sixteenth of the size cannot be nearer than half a pixel.
        assert off(size, asked[0]) <= 0.0201 + 0.51 / min(size), asked


@pytest.mark.no_cover
@pytest.mark.parametrize("row", LIVING)
def test_exact_is_exact_to_the_pixel(row: models.ModelInfo) -> None:
    """With `exact`, width and height are integer multiples of the ratio."""
    found = asyncio.run(results(Emulator(picture="tiny"), row, "exact", EVERYTHING))

    for asked, size in zip(EVERYTHING, sizes(found), strict=True):
        assert off(size, asked[0]) == 0, asked


@pytest.mark.parametrize("row", KINDS)
def test_edits_have_the_requested_ratio(row: models.ModelInfo) -> None:
    """Edits have the requested ratio exactly."""
    asked: list[tuple[AspectRatio, Resolution]] = [(ratio, "2K") for ratio in ASPECT_RATIOS]
    found = asyncio.run(results(Emulator(picture="tiny"), row, "exact", asked, edit=True))

    for (ratio, _), size in zip(asked, sizes(found), strict=True):
        assert off(size, ratio) == 0, ratio


@pytest.mark.parametrize("row", KINDS)
def test_images_of_the_vendors_real_sizes(
    row: models.ModelInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image of the size that vendors return for a ratio is unchanged."""
    monkeypatch.setattr(renderer, "_SHRINK", 1)
    asked: list[tuple[AspectRatio, Resolution]] = [
        *((ratio, "1K") for ratio in ASPECT_RATIOS),
        ("9:16", "4K"),
    ]
    found = asyncio.run(results(Emulator(picture="tiny"), row, "crop", asked))

    for (ratio, resolution), size, result in zip(asked, sizes(found), found, strict=True):
        assert off(size, ratio) <= 0.02, ratio
        native = ratio in (row.aspect_ratios or ASPECT_RATIOS[:10]) and not row.sizes
        fitted = any(note.startswith("image ") for note in result.adjustments)
        assert native <= (not fitted), (ratio, result.adjustments)
        assert min(size) * max(size) > (100_000 if fitted else 650_000), (ratio, resolution)


@pytest.mark.parametrize("mode", ["crop", "pad", "none", "exact"])
def test_a_vendor_that_ignores_the_ratio(mode: Fit) -> None:
    """crop, pad and exact correct the ratio; none does not."""
    app = Emulator()
    app.google.set(faults.answer("wrong_aspect"))
    row = models.MODELS["gemini-3-pro-image"]

    (size,) = sizes(asyncio.run(results(app, row, mode, [("9:16", "1K")])))

    assert (off(size, "9:16") <= 0.02) == (mode != "none")
