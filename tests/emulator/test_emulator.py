"""The emulator's successful responses equal those of the vendors, over sockets and in memory."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest
from emulator_kit import GEMINI, GPT, Wired, picture, run_with_emulator
from images_samples import encoded, opened
from PIL import Image, ImageChops

from resilient_imagen.emulator import Emulator, drawing
from resilient_imagen.emulator.gemini import SIZES_1K
from resilient_imagen.emulator.http_messages import RawJson, json_reply
from resilient_imagen.emulator.renderer import ImageRenderer
from resilient_imagen.emulator.vendor_api import ImageSize, ParsedRequest

BOTH_WAYS = pytest.mark.parametrize("way", ["socket", "memory"])


@BOTH_WAYS
def test_gemini_returns_a_jpeg_of_the_requested_size(way: str) -> None:
    """The SDK gets one JPEG part, STOP, the model, an id and token counts by modality."""

    async def scenario(both: Wired) -> None:
        response = await both.gemini(aspect_ratio="16:9", image_size="2K")
        assert response.parts is not None
        blob = response.parts[0].inline_data
        assert blob is not None
        assert blob.data is not None
        image = opened(blob.data)
        assert (blob.mime_type, image.format, image.size) == ("image/jpeg", "JPEG", (2752, 1536))
        assert response.candidates is not None
        assert response.candidates[0].finish_reason == "STOP"
        assert response.model_version == GEMINI
        assert response.response_id
        usage = response.usage_metadata
        assert usage is not None
        assert usage.candidates_token_count == 1120
        assert usage.total_token_count == 1120 + 173 + (usage.prompt_token_count or 0)

    run_with_emulator(scenario, Emulator(), way)


@BOTH_WAYS
def test_openai_returns_a_png_of_the_requested_size(way: str) -> None:
    """The SDK gets base64 PNG data, with size, quality, format and usage."""

    async def scenario(both: Wired) -> None:
        response = await both.gpt(size="1152x2048")
        image = opened(base64.b64decode(response.data[0].b64_json))
        assert (image.format, image.size) == ("PNG", (1152, 2048))
        echo = (response.size, response.quality, response.output_format, response.background)
        assert echo == ("1152x2048", "high", "png", "opaque")
        usage = response.usage
        assert usage.input_tokens_details.text_tokens == usage.input_tokens > 0
        assert usage.total_tokens == usage.input_tokens + usage.output_tokens

    run_with_emulator(scenario, Emulator(), way)


@BOTH_WAYS
def test_references_arrive(way: str) -> None:
    """Eight references reach both vendors, and are counted in tokens and recorded by type and
    size.
    """
    png, jpeg = picture(), picture("JPEG")
    sent = [(png, "image/png"), (jpeg, "image/jpeg")] * 4

    async def scenario(both: Wired) -> None:
        response = await both.gemini(references=tuple(sent))
        assert response.usage_metadata is not None
        details = response.usage_metadata.prompt_tokens_details or []
        assert [(d.modality, d.token_count) for d in details][1] == ("IMAGE", 8 * 560)
        edited = await both.gpt_edit([(f"{i}.bin", *image) for i, image in enumerate(sent)])
        assert edited.usage.input_tokens_details.image_tokens == 8 * 323
        for vendor in both.app.vendors:
            (seen,) = vendor.requests
            noted = [(r.mime_type, r.size) for r in seen.references]
            assert noted == [(mime, len(data)) for data, mime in sent]
            assert (seen.operation, seen.status, seen.delivered) == ("edit", 200, True)

    run_with_emulator(scenario, way=way)


def test_a_single_image_is_an_edit_too() -> None:
    """A single upload in the field `image` is equivalent to one in `image[]`."""

    async def scenario(both: Wired) -> None:
        await both.gpt_edit(("a.png", picture(), "image/png"))
        assert len(both.app.openai.requests[0].references) == 1

    run_with_emulator(scenario)


@pytest.mark.parametrize("aspect", sorted(SIZES_1K))
def test_gemini_sizes_keep_their_ratio(aspect: str) -> None:
    """Every aspect ratio is delivered within 5 % and in multiples of 16."""
    width, height = SIZES_1K[aspect]
    wide, high = map(int, aspect.split(":"))
    assert width % 16 == height % 16 == 0
    assert abs(width / height / (wide / high) - 1) < 0.05
    assert 0.9 < width * height / 1024**2 < 1.2


def test_openai_returns_the_requested_number_of_images() -> None:
    """n=3 returns three different images in the requested format."""

    async def scenario(both: Wired) -> None:
        response = await both.gpt(n=3, output_format="webp")
        pictures = [base64.b64decode(item.b64_json) for item in response.data]
        assert len(set(pictures)) == 3
        assert {opened(data).format for data in pictures} == {"WEBP"}

    run_with_emulator(scenario)


def test_equal_requests_give_equal_images() -> None:
    """The image depends on the request alone, so two emulators return the same bytes."""
    made = []

    async def scenario(both: Wired) -> None:
        response = await both.gpt("a cat", size="1024x1024", output_format="jpeg")
        made.append(response.data[0].b64_json)

    run_with_emulator(scenario, Emulator(seed=1), "memory")
    run_with_emulator(scenario, Emulator(seed=2), "memory")
    assert made[0] == made[1]


@pytest.mark.no_cover
@pytest.mark.parametrize("prompt", ["x" * 3000, "word " * 600, "\u5922 \U0001f3a8", "\n\t"])
@pytest.mark.parametrize("size", ["1024x1024", "3840x1280", "1280x3840"])
def test_any_prompt_can_be_drawn(prompt: str, size: str) -> None:
    """Long words, long prompts and characters without a glyph are drawn in any format."""

    async def scenario(both: Wired) -> None:
        response = await both.gpt(prompt, size=size, output_format="jpeg")
        image = opened(base64.b64decode(response.data[0].b64_json))
        assert image.size == tuple(map(int, size.split("x")))

    run_with_emulator(scenario, Emulator(), "memory")


def test_references_are_shown() -> None:
    """A red reference makes the drawn image red, and a broken one does not."""
    reference = encoded(Image.new("RGB", (64, 64), (255, 0, 0)), "PNG")
    broken = picture()[:40]

    def redness(data: bytes) -> int:
        red, green, _ = opened(data).convert("RGB").split()
        return sum(ImageChops.subtract(red, green).histogram()[150:])

    async def scenario(both: Wired) -> None:
        shown = []
        for image in (reference, broken):
            edited = await both.gemini(references=((image, "image/png"),) * 3, aspect_ratio="1:1")
            assert edited.parts is not None
            assert edited.parts[0].inline_data is not None
            shown.append(redness(edited.parts[0].inline_data.data or b""))
        assert shown[0] > 50_000
        assert shown[1] == 0

    run_with_emulator(scenario, Emulator(), "memory")


def test_images_may_be_supplied() -> None:
    """Supplied bytes are returned unchanged, also 20 MB of them.

    Their first bytes determine the type.
    """
    given = picture() + b"\0" * 20_000_000

    async def scenario(both: Wired) -> None:
        response = await both.gemini()
        assert response.parts is not None
        assert response.parts[0].inline_data is not None
        assert response.parts[0].inline_data.data == given
        assert response.parts[0].inline_data.mime_type == "image/png"

    run_with_emulator(scenario, Emulator(picture=given))


def test_tiny_images_keep_the_ratio() -> None:
    """Tiny images have a sixteenth of the size, so that fitting does not change them."""

    async def scenario(both: Wired) -> None:
        response = await both.gpt(size="1152x2048")
        assert opened(base64.b64decode(response.data[0].b64_json)).size == (72, 128)

    run_with_emulator(scenario)


def test_the_number_of_cached_images_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are drawn once and cached up to the limit."""
    made: list[str] = []

    def draw(_vendor: str, call: ParsedRequest, _canvas: ImageSize, _variant: int) -> bytes:
        made.append(call.prompt)
        return bytes(10_000_000)

    monkeypatch.setattr(drawing, "draw", draw)

    async def main() -> None:
        renderer = ImageRenderer("drawn")
        for prompt in "aabbaccdabd":
            canvas = ImageSize(1024, 1024, "image/png")
            await renderer.render("google", ParsedRequest("generate", GEMINI, prompt), canvas, 0)

    asyncio.run(main())
    assert "".join(made) == "abcdb"


def test_the_image_can_be_changed_at_any_time() -> None:
    """A test may begin with tiny images and continue with its own bytes."""
    given = picture()

    async def scenario(both: Wired) -> None:
        assert both.app.picture == "tiny"
        both.app.picture = given
        response = await both.gpt()
        assert base64.b64decode(response.data[0].b64_json) == given

    run_with_emulator(scenario, way="memory")


def test_images_are_inserted_into_json() -> None:
    """Several images are inserted into one JSON body in order, beside any text."""
    odd = 'quote " and \u2028'
    reply = json_reply({"b": [RawJson(b"AAA"), odd, {"c": RawJson(b"BB")}], "d": RawJson(b"")})
    assert json.loads(reply.body) == {"b": ["AAA", odd, {"c": "BB"}], "d": ""}
    with pytest.raises(TypeError, match="set is not a JSON value"):
        json_reply({"a": {1}})


def test_an_unknown_image_mode_is_refused() -> None:
    """The error is raised at once, and lists the modes."""
    mode: Any = "big"
    with pytest.raises(ValueError, match="'drawn', 'tiny' or the bytes"):
        Emulator(picture=mode)


def test_records_contain_no_key() -> None:
    """Recorded requests contain no key, and their repr no prompt."""

    async def scenario(both: Wired) -> None:
        both.openai.api_key = "sk-a-very-secret-key"
        await both.gpt("a secret lighthouse")
        (seen,) = both.app.openai.requests
        assert seen.prompt == "a secret lighthouse"
        assert "secret" not in repr(seen)
        assert not any("secret-key" in str(getattr(seen, name)) for name in seen.__slots__)
        assert (seen.model, seen.resolution, seen.fault) == (GPT, "1024x1536", None)

    run_with_emulator(scenario)
