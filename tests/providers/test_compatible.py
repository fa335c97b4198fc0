"""Services with OpenAI's API that are not OpenAI: xAI, Together, a proxy, or a private server."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from providers_kit import PNG, RawServer, Received, http, openai_body, png, raw_server

from resilient_imagen import (
    ImageClient,
    ImageGenerationError,
    InvalidRequestError,
    Settings,
)
from resilient_imagen.emulator import Emulator, EmulatorServer
from resilient_imagen.telemetry.events import OperatorWarning
from resilient_imagen.testing import RecordingSink

T = TypeVar("T")

ROUTE = "xai:grok-2-image"
PICTURE = base64.b64encode(png(40, 30)).decode()


def with_vendor(
    monkeypatch: pytest.MonkeyPatch,
    scene: Callable[[ImageClient, Emulator], Awaitable[T]],
    routes: str = ROUTE,
    **settings: Any,
) -> T:
    """Run a scene with a client of the emulator's strict vendor, set up by variables."""

    async def main() -> T:
        app = Emulator(picture="drawn")
        async with EmulatorServer(app) as server:
            monkeypatch.setenv("IMAGE_GEN_PROVIDER_XAI", "openai")
            monkeypatch.setenv("XAI_API_KEY", "xai-key")
            monkeypatch.setenv("XAI_BASE_URL", server.compatible_url)
            monkeypatch.setenv("OPENAI_API_KEY", "openai-key")
            monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url)
            made = Settings(routes=routes, ipm=6000, max_retries=0, **settings)
            async with ImageClient(made) as client:
                return await scene(client, app)

    return asyncio.run(main())


def test_a_strict_vendor_serves_an_unknown_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request has model and prompt only.

    The image is fitted by its real size, and its cost is unknown.
    """

    async def scene(client: ImageClient, app: Emulator) -> None:
        result = await client.generate("a lighthouse", aspect_ratio="9:16", resolution="2K")
        (seen,) = app.compatible.requests
        assert set(seen.parameters) == {"model"}  # and the prompt
        assert (result.provider, result.model) == ("xai", "grok-2-image")
        assert result.usage["cost_usd"] is None
        assert any("cropped" in note for note in result.adjustments), result.adjustments
        assert f"{ROUTE} makes 1K, not 2K" in result.adjustments
        assert client.snapshot()["unpriced_images"] == 1

    with_vendor(monkeypatch, scene)


def test_no_option_makes_a_strict_vendor_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library applies the options that it can, reports the others, and sends a request for
    each image.
    """

    async def scene(client: ImageClient, app: Emulator) -> None:
        result = await client.generate(
            "a lighthouse", aspect_ratio="1:1", n=2, quality="low", background="transparent",
            output_format="webp", output_compression=50,
        )  # fmt: skip
        assert [set(seen.parameters) for seen in app.compatible.requests] == [{"model"}] * 2
        assert len(result.images) == 2
        assert result.mime_type == "image/webp"
        for option in ("quality", "background"):
            assert f"xai does not support {option}" in result.adjustments

    with_vendor(monkeypatch, scene)


def test_references_are_dropped_and_edits_use_another_route(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The service has no endpoint for references, and the result lists them."""

    async def scene(client: ImageClient, app: Emulator) -> None:
        reference = {"image_base64": PICTURE, "mime_type": "image/png"}
        result = await client.generate("a lighthouse", aspect_ratio="4:3", references=[reference])
        assert result.provider == "xai"
        assert [each["why"] for each in result.dropped_references] == [
            f"{ROUTE} takes no references"
        ]
        edited = await client.edit(png(40, 30), "a stormy sky", aspect_ratio="4:3")
        assert (edited.provider, edited.fallback_reason) == ("openai", None)
        assert len(app.compatible.requests) == 1
        with pytest.raises(InvalidRequestError, match=f"none of the routes {ROUTE}, which take no"):
            await client.edit(png(40, 30), "a stormy sky", routes=ROUTE)

    with_vendor(monkeypatch, scene, routes=f"{ROUTE},openai:gpt-image-2.5-flare")


def test_vendor_options_are_sent_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vendor options are sent unchanged, because the caller asked for them explicitly."""

    async def scene(client: ImageClient, app: Emulator) -> None:
        options = {"openai": {"response_format": "b64_json"}}
        await client.generate("a lighthouse", aspect_ratio="4:3", vendor_options=options)
        assert app.compatible.requests[0].parameters["response_format"] == "b64_json"
        with pytest.raises(ImageGenerationError) as caught:
            await client.generate("a lighthouse", vendor_options={"openai": {"size": "1024x1024"}})
        assert caught.value.reason == "invalid_request"

    with_vendor(monkeypatch, scene)


MODELS = """
["grok-2-image"]
vendor = "openai"
max_references = 2
sizes = ["1024x768", "768x1024"]
qualities = ["low", "medium"]
options = ["n", "background"]
response_format = "b64_json"
typical_seconds = 9
prices = {per_image = 0.07}
"""


def test_a_row_of_the_model_file_determines_the_request(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The row determines size, quality, options, references, response format and price."""
    (tmp_path / "models.toml").write_text(MODELS)
    received: list[Received] = []

    def answer(request: Received) -> bytes:
        received.append(request)
        return http(200, openai_body(data=[{"b64_json": PICTURE}]))

    async def main() -> None:
        async with raw_server(answer) as server:
            monkeypatch.setenv("IMAGE_GEN_PROVIDER_XAI", "openai")
            monkeypatch.setenv("XAI_API_KEY", "k")
            monkeypatch.setenv("XAI_BASE_URL", f"{server.url}/v1")
            monkeypatch.setenv("IMAGE_GEN_MODELS", str(tmp_path / "models.toml"))
            events = RecordingSink()
            settings = Settings(routes=f"{ROUTE},xai:other", ipm=6000)
            async with ImageClient(settings, sinks=[events]) as client:
                assert [each.message for each in events.of(OperatorWarning)] == [
                    "model other is not in the model table; passed on as is"
                ]
                result = await client.generate(
                    "a lighthouse", aspect_ratio="3:4", quality="max", background="opaque"
                )
                assert result.usage["cost_usd"] == 0.07
                assert "grok-2-image does not support quality max; medium was used" in (
                    result.adjustments
                )
                references = [png(40, 30 + each) for each in range(3)]
                kept = await client.generate(
                    "a lighthouse", aspect_ratio="3:4", references=references
                )
                assert [each["index"] for each in kept.dropped_references] == [2]
                named = await client.generate(
                    "a lighthouse", aspect_ratio="3:4", model="my-other-model"
                )
                assert named.usage["cost_usd"] is None

    asyncio.run(main())
    assert received[0].json == {
        "model": "grok-2-image",
        "prompt": "a lighthouse",
        "n": 1,
        "size": "768x1024",
        "quality": "medium",
        "background": "opaque",
        "response_format": "b64_json",
    }
    assert received[1].path == "/v1/images/edits"
    assert received[2].json == {"model": "my-other-model", "prompt": "a lighthouse"}


def linking(server: list[RawServer], location: str) -> Callable[[Received], bytes]:
    """Return a service that responds with the address of its image, {} in ``location``."""

    def answer(request: Received) -> bytes:
        if request.path.endswith("/generations"):
            link = location.replace("{}", server[0].url)
            return http(200, {"created": 1, "data": [{"url": link}]})
        assert "authorization" not in request.headers
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(PNG)}\r\nContent-Type: image/png\r\n\r\n"
        return head.encode() + PNG

    return answer


@pytest.mark.parametrize(
    ("location", "cause"),
    [
        ("{}/files/1.png", None),
        ("http://example.com/1.png", "is not an https address"),
        ("https://10.0.0.1/1.png", "leads to an address that is not public"),
        ("https://127.0.0.1:1/secret?token=planted", "leads to an address that is not public"),
    ],
)
def test_an_address_in_place_of_the_image_is_loaded(
    monkeypatch: pytest.MonkeyPatch, location: str, cause: str | None
) -> None:
    """The image is loaded without the key, and from a private network only at the service's own
    address.
    """

    async def main() -> None:
        servers: list[RawServer] = []
        async with raw_server(linking(servers, location)) as server:
            servers.append(server)
            monkeypatch.setenv("IMAGE_GEN_PROVIDER_TOGETHER", "openai")
            monkeypatch.setenv("TOGETHER_API_KEY", "k")
            monkeypatch.setenv("TOGETHER_BASE_URL", f"{server.url}/v1")
            made = Settings(routes="together:flux", ipm=6000, max_retries=0)
            async with ImageClient(made) as client:
                if cause is None:
                    assert (
                        await client.generate("a lighthouse", aspect_ratio="1:1")
                    ).mime_type == "image/png"
                    return
                with pytest.raises(ImageGenerationError) as caught:
                    await client.generate("a lighthouse", aspect_ratio="1:1")
                assert caught.value.reason == "connection"
                assert caught.value.vendor_message is not None
                assert cause in caught.value.vendor_message
                assert "planted" not in f"{caught.value} {caught.value.vendor_message}"

    asyncio.run(main())
