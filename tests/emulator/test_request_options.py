"""The emulated vendors apply the options of a request as the real ones do, and refuse bad
values.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import openai
import pytest
from emulator_kit import Wired, run_with_emulator
from google.genai import errors, types
from images_samples import encoded, opened, picture
from PIL import Image

from resilient_imagen.emulator import Emulator


def mask(width: int = 64, height: int = 64, mode: str = "RGBA", kind: str = "PNG") -> bytes:
    return encoded(Image.new(mode, (width, height)), kind)


def made(response: Any) -> list[bytes]:
    return [base64.b64decode(item.b64_json) for item in response.data]


def in_memory(scenario: Any, *, drawn: bool = False) -> None:
    run_with_emulator(scenario, Emulator(picture="drawn" if drawn else "tiny"), "memory")


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("kind", ["png", "webp"])
def test_openai_draws_on_a_transparent_background(kind: str, drawn: bool) -> None:
    """The corners are transparent, the middle is not, and the response states the background."""

    async def scenario(both: Wired) -> None:
        response = await both.gpt(background="transparent", output_format=kind)
        alpha = opened(made(response)[0]).convert("RGBA").getchannel("A")
        assert alpha.getpixel((0, 0)) == 0
        assert alpha.getpixel((alpha.width // 2, alpha.height // 2)) == 255
        assert response.background == "transparent"
        assert both.app.openai.requests[0].parameters["background"] == "transparent"
        assert "prompt" not in both.app.openai.requests[0].parameters

    in_memory(scenario, drawn=drawn)


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_openai_compresses(kind: str) -> None:
    """A lower value gives fewer bytes."""

    async def scenario(both: Wired) -> None:
        sizes = [
            len(made(await both.gpt(output_format=kind, output_compression=value))[0])
            for value in (100, 50, 0)
        ]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] > sizes[2]

    in_memory(scenario, drawn=True)


@pytest.mark.parametrize(
    ("options", "param", "text"),
    [
        ({"background": "transparent", "output_format": "jpeg"}, "background", "not compatible"),
        ({"output_format": "png", "output_compression": 50}, "output_compression", "compatible"),
        ({"output_format": "webp", "output_compression": 101}, "output_compression", "'101'"),
        ({"background": "blue"}, "background", "'blue'"),
    ],
)
def test_openai_refuses_contradictory_values(
    options: dict[str, Any], param: str, text: str
) -> None:
    """The 400 names the parameter."""

    async def scenario(both: Wired) -> None:
        with pytest.raises(openai.BadRequestError, match=text) as caught:
            await both.gpt(**options)
        assert caught.value.param == param

    in_memory(scenario)


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (mask(), None),
        (mask(32, 64), "dimensions"),
        (mask(mode="RGB"), "alpha"),
        (mask(kind="WEBP"), "alpha"),
        (b"rubbish", "alpha"),
        (mask() + bytes(4 * 1024 * 1024), "4MB"),
    ],
    ids=["good", "size", "no-alpha", "webp", "rubbish", "large"],
)
def test_openai_checks_the_mask(sent: bytes, text: str | None) -> None:
    """The mask must be a small PNG with an alpha channel and the size of the first image."""

    async def scenario(both: Wired) -> None:
        images = [("a.png", encoded(picture(64, 64), "PNG"), "image/png")]
        files = ("mask.png", io.BytesIO(sent), "image/png")
        if text is None:
            await both.gpt_edit(images, mask=files)
        else:
            with pytest.raises(openai.BadRequestError, match=text) as caught:
                await both.gpt_edit(images, mask=files)
            assert caught.value.param == "mask"
        seen = both.app.openai.requests[0].mask
        assert seen is not None
        assert seen.size == len(sent)

    in_memory(scenario)


@pytest.mark.parametrize("drawn", [False, True])
def test_gemini_draws_by_the_seed(drawn: bool) -> None:
    """Equal seeds give equal images, and other seeds other images."""

    async def scenario(both: Wired) -> None:
        bodies = [await _with_config(both, seed=seed) for seed in (1, 2, 1, None)]
        images = [_image(body) for body in bodies]
        assert images[0] == images[2]
        assert images[0] != images[1]
        if drawn:  # tiny images have four shades only
            assert images[3] not in images[:3]

    in_memory(scenario, drawn=drawn)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"seed": 2**31}, "generation_config.seed"),
        ({"candidate_count": 2}, "Multiple candidates is not enabled"),
    ],
)
def test_gemini_refuses_values_out_of_range(config: dict[str, Any], text: str) -> None:
    """The response is a 400 INVALID_ARGUMENT."""

    async def scenario(both: Wired) -> None:
        with pytest.raises(errors.ClientError, match=text) as caught:
            await _with_config(both, **config)
        assert caught.value.code == 400

    in_memory(scenario)


async def _with_config(both: Wired, **config: Any) -> types.GenerateContentResponse:
    return await both.google.aio.models.generate_content(
        model="gemini-3-pro-image",
        contents="a lighthouse",
        config=types.GenerateContentConfig(automatic_continuation=False, **config),
    )


def _image(response: types.GenerateContentResponse) -> bytes:
    parts = response.parts or []
    return next(part.inline_data.data or b"" for part in parts if part.inline_data is not None)
