"""Images in a call: references, edits, and the order of adjustments."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Any

import pytest
from images_samples import encoded, exif, noise, opened, picture
from pipeline_kit import FAST, PipelineScenario, now, run_scenario

from resilient_imagen import ImageClient, Settings, models
from resilient_imagen.errors import InvalidRequestError
from resilient_imagen.telemetry import attributes, names
from resilient_imagen.telemetry.events import RequestEnded

if TYPE_CHECKING:
    from pathlib import Path

PNG = encoded(picture(), "PNG")
TURNED = encoded(picture(), "JPEG", exif=exif(6))
URL = "https://pictures.test/a.png"


class SlowProvider:
    """A fetcher whose server never answers."""

    async def fetch(self, _url: str) -> bytes:
        await asyncio.sleep(3600)
        return PNG

    async def aclose(self) -> None:
        pass


def slow(client: ImageClient) -> None:
    client._inputs._fetcher = SlowProvider()  # type: ignore[assignment]


@pytest.mark.parametrize(("deadline", "waited"), [(40.0, 10.0), (400.0, 20.0), (None, 20.0)])
def test_a_slow_reference_is_dropped(deadline: float | None, waited: float) -> None:
    """A slow reference is dropped and listed after a quarter of the deadline."""

    async def scene(scenario: PipelineScenario) -> None:
        slow(scenario.client)
        began = now()
        result = await scenario.ask(references=[URL, PNG, URL], deadline=deadline)

        assert [each["index"] for each in result.dropped_references] == [0, 2]
        assert {each["why"] for each in result.dropped_references} == {"took too long to load"}
        (sent,) = scenario.google.sent
        assert [each.index for each in sent.request.references] == [1]
        assert now() - began == pytest.approx(waited, abs=2)

    run_scenario(scene, **FAST)


NO_IMAGE_TEXT = "is neither an image in base64 nor an https address; pass pathlib.Path for a file"


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (URL, "image took too long to load"),
        ("photos/fox.png", f"image {NO_IMAGE_TEXT}"),
        ("file:///fox", f"image {NO_IMAGE_TEXT}"),
        (7, "image is of type int, not an image"),
    ],
)
def test_an_edit_with_an_invalid_image_is_rejected(image: Any, words: str) -> None:
    """An invalid image is rejected by the argument's name before anything is sent."""

    async def scene(scenario: PipelineScenario) -> None:
        slow(scenario.client)
        with pytest.raises(InvalidRequestError) as caught:
            await scenario.client.edit(image, "make it blue", deadline=20)
        assert str(caught.value) == words
        assert scenario.google.sent == []

    run_scenario(scene, **FAST)


def test_strict_references_name_the_unusable_one() -> None:
    """With strict references, one that is late raises an error with its index."""

    async def scene(scenario: PipelineScenario) -> None:
        slow(scenario.client)
        with pytest.raises(InvalidRequestError, match=r"^reference_images\[1\] took too long"):
            await scenario.ask(references=[PNG, URL], deadline=20)

    run_scenario(scene, **FAST, strict_references=True)


def test_as_many_references_are_read_as_any_route_takes() -> None:
    """References up to the largest limit of all routes are read; each route sends its own limit."""

    async def scene(scenario: PipelineScenario) -> None:
        result = await scenario.ask(references=[PNG] * 40)
        (sent,) = scenario.google.sent
        assert len(sent.request.references) == 14
        reasons = [each["why"] for each in result.dropped_references]
        assert reasons.count("was not read: no more than 16 can be sent") == 24
        assert len(reasons) == 26

    run_scenario(scene, **FAST)


def test_a_reference_is_as_large_as_the_route_that_gets_it_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A reference that is too large for OpenAI is shrunk for OpenAI only."""
    photo = encoded(noise(600, 600), "PNG")
    limits = {"google": len(photo), "openai": len(photo) // 2}
    monkeypatch.setattr(models, "max_reference_bytes", lambda vendor, _name: limits[vendor])

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.crash(ConnectionError())  # not ours: it surfaces, and nothing falls back
        with pytest.raises(ConnectionError):
            await scenario.ask(references=[photo])
        assert scenario.google.sent[0].request.references[0].data is photo

    run_scenario(scene, **FAST)

    async def fallback(scenario: PipelineScenario) -> None:
        result = await scenario.ask(references=[photo])
        (reference,) = scenario.openai.sent[0].request.references
        assert len(reference.data) <= limits["openai"]
        assert result.adjustments[-1].startswith("reference 0 made smaller for its size")

    run_scenario(fallback, **FAST, force_open="google")


def test_the_adjustment_by_fitting_is_listed_first() -> None:
    """The note about fitting precedes those about references, on the span too."""
    google = Settings(**FAST, routes="google:gemini-3-pro-image")

    async def main() -> None:
        from resilient_imagen.testing import FakeProvider, RecordingSink

        sink = RecordingSink()
        provider = FakeProvider("google", image=encoded(picture(100, 100), "PNG"), latency=0.0)
        async with ImageClient(google, providers=[provider], sinks=[sink]) as client:
            result = await client.generate("a lighthouse", references=[TURNED] * 14)
        assert result.adjustments[0].startswith("image cropped from 100x100")
        assert len(result.adjustments) == 15
        (ended,) = [event for event in sink.events if isinstance(event, RequestEnded)]
        shown = attributes.of_request_end(ended)[names.ADJUSTMENTS]
        assert "image cropped from 100x100 to 56x100" in str(shown)

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["path", "base64", "data URL", "bytes", "result", "dict"])
def test_edit_accepts_every_form_of_an_image(kind: str, tmp_path: Path) -> None:
    """`edit` accepts each documented form of an image."""
    path = tmp_path / "fox.png"
    path.write_bytes(PNG)
    text = base64.b64encode(PNG).decode()

    async def scene(scenario: PipelineScenario) -> None:
        made = await scenario.ask()
        image: dict[str, Any] = {
            "path": path,
            "base64": text,
            "data URL": f"data:image/png;base64,{text}",
            "bytes": PNG,
            "result": made,
            "dict": made.to_dict(),
        }
        await scenario.client.edit(image[kind], "make it blue")
        (reference,) = scenario.google.sent[-1].request.references
        assert (
            opened(reference.data).size
            == opened(made.image_bytes if kind in {"result", "dict"} else PNG).size
        )

    run_scenario(scene, **FAST)
