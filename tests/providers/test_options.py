"""Options of a request are sent to each vendor that supports them, and are reported otherwise."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx2
import pytest
from images_samples import encoded, noise, opened
from PIL import Image
from providers_kit import PNG, google_body
from wire_kit import GOOGLE_ROUTE, OPENAI_ROUTE, Sent, Wire, on_wire

from resilient_imagen import (
    ImageClient,
    ImageOptions,
    ImageResult,
    InvalidRequestError,
    Settings,
)
from resilient_imagen.emulator import Emulator, faults
from resilient_imagen.images.inspect import sniff_mime
from resilient_imagen.providers.vertex import VertexProvider
from resilient_imagen.request import OUTPUT_FORMATS, OutputFormat
from resilient_imagen.telemetry.events import AttemptEnded
from resilient_imagen.testing import run_virtual

ROUTES = {"google": GOOGLE_ROUTE, "openai": OPENAI_ROUTE}

PNG64 = base64.b64encode(PNG)
GOOGLE = (
    b'{"contents": [{"parts": [{"text": "%s"}%s], "role": "user"}], "generationConfig": '
    b'{"responseModalities": ["TEXT", "IMAGE"], "imageConfig": '
    b'{"aspectRatio": "%s", "imageSize": "%s"}}}'
)
BLOB = b', {"inlineData": {"mimeType": "image/png", "data": "%s"}}' % PNG64
PORTRAIT = b" The image should be in portrait orientation (taller than wide)."
FIELD = b'--BOUNDARY\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
FILE = (
    b'--BOUNDARY\r\nContent-Disposition: form-data; name="image[]"; filename="reference-0.png"'
    b"\r\nContent-Type: image/png\r\n\r\n%s\r\n--BOUNDARY--\r\n" % PNG
)


def _form(prompt: bytes, size: bytes) -> bytes:
    fields = {
        b"prompt": prompt,
        b"model": b"gpt-image-2.5-flare",
        b"n": b"1",
        b"quality": b"high",
        b"size": size,
    }
    return b"".join(FIELD % field for field in fields.items()) + FILE


BODIES = {
    "google": [
        GOOGLE % (b"Generate a high quality image: a fox." + PORTRAIT, b"", b"9:16", b"2K"),
        GOOGLE % (b"a fox." + PORTRAIT, BLOB, b"9:16", b"1K"),
        GOOGLE % (b"more red", BLOB, b"1:1", b"4K"),
    ],
    "openai": [
        (
            b'{"model":"gpt-image-2.5-flare","prompt":"a fox","n":1,"quality":"high",'
            b'"size":"1584x2816"}'
        ),
        _form(b"a fox", b"720x1280"),
        _form(b"more red", b"2880x2880"),
    ],
}


@pytest.mark.parametrize("options", [{}, dict.fromkeys(ImageOptions.__annotations__)])
@pytest.mark.parametrize("vendor", BODIES)
def test_without_options_requests_are_unchanged_byte_for_byte(
    vendor: str, options: dict[str, Any]
) -> None:
    """An option that is None is equivalent to an omitted one."""

    async def scenario(wire: Wire) -> list[bytes]:
        client = wire.client
        await client.generate("a fox", aspect_ratio="9:16", **options)
        await client.generate("a fox", references=[PNG], resolution="1K", **options)
        await client.edit(PNG, "more red", aspect_ratio="1:1", resolution="4K", **options)
        return [each.comparable_body for each in wire.sent]

    assert on_wire(scenario, routes=(ROUTES[vendor],)) == BODIES[vendor]


@pytest.mark.parametrize(
    ("options", "google", "openai"),
    [
        ({"seed": 0}, {"seed": 0}, {}),
        ({"quality": "low"}, {}, {"quality": "low"}),
        ({"background": "transparent"}, {}, {"background": "transparent"}),
        ({"background": "opaque"}, {}, {"background": "opaque"}),
        ({"output_format": "webp"}, {}, {"output_format": "webp"}),
        (
            {"output_format": "jpeg", "output_compression": 0},
            {},
            {"output_format": "jpeg", "output_compression": 0},
        ),
        (
            {
                "vendor_options": {
                    "openai": {"user": "u1"},
                    "google": {"generationConfig": {"topP": 0.5}},
                }
            },
            {"topP": 0.5},
            {"user": "u1"},
        ),
    ],
)
@pytest.mark.parametrize("way", ["google", "openai", "fallback"])
def test_an_option_is_sent_to_each_vendor_that_has_it(
    options: dict[str, Any], google: dict[str, Any], openai: dict[str, Any], way: str
) -> None:
    """Directly or after a fallback, the request of a vendor that lacks the option is unchanged."""

    async def scenario(wire: Wire) -> tuple[dict[str, Any], ...]:
        for chosen in ({}, options):
            wire.app.google.heal()
            if way == "fallback":
                wire.app.google.fail(faults.overload())
            await wire.client.generate("a fox", **chosen)
        return tuple(each.fields for each in wire.sent)

    sent = on_wire(scenario, routes=(ROUTES[way],) if way in ROUTES else tuple(ROUTES.values()))
    half = len(sent) // 2
    for without, with_options in zip(sent[:half], sent[half:], strict=True):
        if "contents" in without:
            expected = {**without, "generationConfig": {**without["generationConfig"], **google}}
        else:
            expected = {**without, **openai}
        assert with_options == expected
    assert half == (2 if way == "fallback" else 1)


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({"seed": 3}, ["openai does not support seed"]),
        (
            {"quality": "low", "background": "opaque"},
            ["google does not support background", "google does not support quality"],
        ),
    ],
)
def test_an_option_that_the_serving_vendor_lacks_is_reported(
    options: dict[str, Any], missing: list[str]
) -> None:
    """The adjustments depend on the vendor that served, not on the one that failed."""
    vendor = missing[0].split()[0]

    async def scenario(wire: Wire) -> ImageResult:
        if vendor == "openai":
            wire.app.google.set(faults.overload())
        return await wire.client.generate("a fox", **options)

    result = on_wire(scenario)
    assert [each for each in result.adjustments if "does not support" in each] == missing


@pytest.mark.parametrize("wanted", OUTPUT_FORMATS)
@pytest.mark.parametrize("way", ["google", "openai", "fallback"])
def test_the_output_format_is_delivered_by_every_vendor(way: str, wanted: OutputFormat) -> None:
    """Google's JPEG is converted, and a note states this."""

    async def scenario(wire: Wire) -> ImageResult:
        if way == "fallback":
            wire.app.google.set(faults.overload())
        return await wire.client.generate("a fox", output_format=wanted)

    result = on_wire(scenario, routes=(ROUTES[way],) if way in ROUTES else tuple(ROUTES.values()))
    assert result.mime_type == sniff_mime(result.image_bytes) == f"image/{wanted}"
    converted = way == "google" and wanted != "jpeg"
    note = f"image converted from image/jpeg to image/{wanted}"
    assert (note in result.adjustments) == converted
    assert not any("does not support" in each for each in result.adjustments)


def test_compression_is_applied_locally_if_the_vendor_does_not_support_it() -> None:
    """Google's JPEG is encoded again, and OpenAI compresses its own."""

    async def scenario(wire: Wire) -> list[ImageResult]:
        return [
            await wire.client.generate(
                "a fox", output_format="jpeg", output_compression=quality, aspect_ratio="1:1"
            )
            for quality in (90, 5)
        ]

    app = Emulator(picture="drawn")
    google = on_wire(scenario, routes=(GOOGLE_ROUTE,), app=app)
    assert len(google[1].image_bytes) < len(google[0].image_bytes)
    assert google[1].adjustments[0] == "image compressed to quality 5"
    openai = on_wire(scenario, routes=(OPENAI_ROUTE,), app=app)
    assert openai[1].adjustments == ()


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({}, None),
        ({"output_format": "png"}, {"mimeType": "image/png"}),
        (
            {"output_format": "jpeg", "output_compression": 60},
            {"mimeType": "image/jpeg", "compressionQuality": 60},
        ),
        ({"output_format": "webp", "output_compression": 60}, None),
    ],
)
def test_vertex_ai_encodes_png_and_jpeg(
    options: dict[str, Any], sent: dict[str, Any] | None
) -> None:
    """A WebP is converted locally, in the requested quality."""
    bodies: list[Any] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        bodies.append(json.loads(request.content))
        return httpx2.Response(200, json=google_body())

    async def main() -> ImageResult:
        vertex = VertexProvider(api_key="made-up", transport=httpx2.MockTransport(answer))
        settings = Settings(routes="vertex:gemini-3-pro-image", fit="none")
        async with ImageClient(settings, providers=[vertex]) as client:
            return await client.generate("a fox", **options)

    result = run_virtual(main())
    assert bodies[0]["generationConfig"]["imageConfig"].get("imageOutputOptions") == sent
    assert result.mime_type == f"image/{options.get('output_format', 'png')}"
    assert not any("does not support" in each for each in result.adjustments)


@pytest.mark.parametrize("way", ["google", "openai", "fallback"])
def test_a_transparent_background_is_delivered(way: str) -> None:
    """It is kept by fallback, padding and conversion; Google delivers an opaque image."""

    async def scenario(wire: Wire) -> ImageResult:
        if way == "fallback":
            wire.app.google.set(faults.overload())
        return await wire.client.generate(
            "a fox", background="transparent", output_format="webp", aspect_ratio="1:8"
        )

    routes = (ROUTES[way],) if way in ROUTES else tuple(ROUTES.values())
    result = on_wire(scenario, routes=routes, fit="pad")
    picture = opened(result.image_bytes)
    transparent = picture.convert("RGBA").getchannel("A").getextrema()[0] == 0
    assert transparent == (way != "google")
    assert ("google does not support background" in result.adjustments) == (way == "google")


def test_a_quality_that_a_model_lacks_is_reported() -> None:
    """The next lower quality is requested."""

    async def scenario(wire: Wire) -> ImageResult:
        return await wire.client.generate("a fox", quality="max", model="gpt-image-2")

    result = on_wire(scenario, routes=(OPENAI_ROUTE,))
    assert result.adjustments == ("gpt-image-2 does not support quality max; high was used",)


@pytest.mark.parametrize(
    ("way", "requests"),
    [("google", [None] * 4), ("openai", [4]), ("fallback", [None, 4])],
)
def test_several_images_are_one_request_at_openai_and_one_each_at_google(
    way: str, requests: list[int | None]
) -> None:
    """All images are delivered in the requested format, and their cost is added."""

    async def scenario(wire: Wire) -> ImageResult:
        if way == "fallback":
            wire.app.google.set(faults.overload())
        result = await wire.client.generate("a fox", n=4, output_format="webp")
        usages = [ended.attempt.usage for ended in wire.sink.of(AttemptEnded)]
        for name in ("input_tokens", "output_tokens", "total_tokens"):
            assert result.usage[name] == sum(usage[name] or 0 for usage in usages if usage)
        assert [each.fields.get("n") for each in wire.sent] == requests
        assert wire.client.snapshot()["images"] == 4
        return result

    result = on_wire(scenario, routes=(ROUTES[way],) if way in ROUTES else tuple(ROUTES.values()))
    assert [sniff_mime(data) for data in result.images] == ["image/webp"] * 4
    assert result.attempts == len(requests)
    assert not any("images were delivered" in each for each in result.adjustments)


def test_each_image_of_one_call_has_another_seed() -> None:
    """Equal seeds would give equal images; seeds wrap around at the maximum."""

    async def scenario(wire: Wire) -> list[int]:
        await wire.client.generate("a fox", n=3, seed=7)
        await wire.client.generate("a fox", n=2, seed=2**31 - 1)
        return [sent.json["generationConfig"]["seed"] for sent in wire.sent]

    assert on_wire(scenario, routes=(GOOGLE_ROUTE,)) == [7, 8, 9, 2**31 - 1, 0]


def test_fewer_images_from_openai_are_listed() -> None:
    """The vendor decides how many images it returns, and no further request is sent."""

    async def scenario(wire: Wire) -> ImageResult:
        wire.app.openai.fail(faults.answer("several_images"))
        result = await wire.client.generate("a fox", n=4)
        assert len(wire.sent) == 1
        return result

    result = on_wire(scenario, routes=(OPENAI_ROUTE,))
    assert len(result.images) == 3
    assert (
        result.adjustments[0]
        == "3 of 4 images were delivered: openai returned no more usable images"
    )


def _mask(width: int = 64, height: int = 64, alpha: int = 0, kind: str = "PNG") -> bytes:
    """Return a mask whose left half has this alpha value."""
    picture = Image.new("RGBA", (width, height), (9, 9, 9, 255))
    picture.paste((200, 0, 0, alpha), (0, 0, width // 2, height))
    return encoded(picture, kind)


def _edited(width: int = 64, height: int = 64) -> bytes:
    return encoded(Image.new("RGB", (width, height), "blue"), "PNG")


@pytest.mark.parametrize(("down", "served"), [(None, "openai"), ("openai", "google")])
def test_routes_that_support_a_mask_are_asked_first(down: str | None, served: str) -> None:
    """Other routes follow, and the result states that the mask was not used."""

    async def scenario(wire: Wire) -> tuple[ImageResult, list[Sent]]:
        if down is not None:
            getattr(wire.app, down).set(faults.overload())
        return await wire.client.edit(_edited(), "more red", mask=_mask()), wire.sent

    result, sent = on_wire(scenario)
    assert result.provider == served
    assert ("google does not support mask" in result.adjustments) == (served == "google")
    (mask,) = (part for part in sent[0].form if part.name == "mask")
    assert (mask.filename, mask.mime_type) == ("mask.png", "image/png")
    alpha = opened(mask.data).getchannel("A")
    assert (alpha.getpixel((0, 0)), alpha.getpixel((63, 63))) == (0, 255)


def test_a_mask_needs_a_route_that_supports_it() -> None:
    """Without such a route no request is sent, and the error names the routes."""

    async def scenario(wire: Wire) -> None:
        with pytest.raises(InvalidRequestError, match="none of the routes google:gemini-3-pro"):
            await wire.client.edit(_edited(), "more red", mask=_mask())
        assert wire.sent == []

    on_wire(scenario, routes=(GOOGLE_ROUTE,))


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (_mask(alpha=1), "mask has no fully transparent pixels"),
        (encoded(Image.new("RGB", (64, 64)), "JPEG"), "mask has no fully transparent pixels"),
        (_mask(64, 48), "mask is 64x48 pixels and the image 64x64; make the mask as large"),
        (b"rubbish", "mask is not an image"),
        (3, "mask is of type int, not an image"),
    ],
    ids=["opaque", "jpeg", "other-size", "rubbish", "int"],
)
def test_a_mask_that_cannot_be_used_is_refused_before_anything_is_sent(
    mask: Any, text: str
) -> None:
    """The error states the problem of the mask."""

    async def scenario(wire: Wire) -> None:
        with pytest.raises(InvalidRequestError) as caught:
            await wire.client.edit(_edited(), "more red", mask=mask)
        assert text in str(caught.value)
        assert wire.sent == []

    on_wire(scenario)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_mask_gets_the_size_of_the_image_that_is_sent(kind: str) -> None:
    """The mask of a shrunk image is shrunk, too."""

    async def scenario(wire: Wire) -> Sent:
        photo = encoded(noise(1200, 800), "PNG")
        await wire.client.edit(photo, "more red", mask=_mask(600, 400, kind=kind))
        return wire.sent[0]

    for limit, shrunk in ((None, False), (0.5, True)):
        form = on_wire(scenario, max_reference_mb=limit).form
        sizes = [opened(part.data).size for part in form if part.filename is not None]
        assert sizes[0] == sizes[1]
        assert (sizes[0] != (1200, 800)) == shrunk


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"openai": {"n": 3}}, "openai must not contain n"),
        ({"openai": {"prompt": "x"}}, "openai must not contain prompt"),
        ({"openai": {"api_key": "x"}}, "openai must not contain api_key"),
        ({"google": {"model": "x"}}, "google must not contain model"),
        ({"google": {"contents": []}}, "google must not contain contents"),
        ({"google": {"Con_tents": []}}, "google must not contain Con_tents"),
        (
            {"google": {"GenerationConfig": {"candidateCount": 2}}},
            "google must not contain GenerationConfig.candidateCount",
        ),
        (
            {"google": {"generation_config": {"candidate_count": 2}}},
            "google must not contain generation_config.candidate_count",
        ),
        ({"opneai": {"user": "x"}}, "the vendor 'opneai'; use google, openai"),
    ],
)
def test_vendor_options_are_checked_for_every_vendor_before_anything_is_sent(
    fields: dict[str, Any], named: str
) -> None:
    """A fallback does not fail because of options that the first vendor does not get."""

    async def scenario(wire: Wire) -> None:
        with pytest.raises(InvalidRequestError, match=named):
            await wire.client.generate("a fox", vendor_options=fields)
        assert wire.sent == []

    on_wire(scenario)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"background": "transparent", "output_format": "jpeg"},
            "background 'transparent' is not allowed with output_format 'jpeg'; use png or webp",
        ),
        (
            {"output_compression": 80},
            "output_compression 80 is not allowed with output_format None; use jpeg or webp",
        ),
        (
            {"output_compression": 80, "output_format": "png"},
            "output_compression 80 is not allowed with output_format 'png'",
        ),
        (
            {"output_compression": 101, "output_format": "webp"},
            "output_compression 101 is not allowed; use a number from 0 to 100",
        ),
        ({"seed": -1}, "seed -1 is not allowed"),
        ({"seed": True}, "seed must be an int or None, not bool"),
        ({"quality": "best"}, "quality 'best' is not allowed; use one of low, medium, high"),
    ],
)
def test_an_invalid_value_is_rejected_before_a_request(options: dict[str, Any], text: str) -> None:
    """The error has the option, the value and the allowed values."""

    async def scenario(wire: Wire) -> None:
        with pytest.raises(InvalidRequestError) as caught:
            await wire.client.generate("a fox", **options)
        assert text in str(caught.value)
        assert wire.sent == []

    on_wire(scenario)
