"""A custom provider that breaks the protocol gets an error that describes the mistake."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from images_samples import encoded
from PIL import Image
from pipeline_kit import FAST, PipelineScenario, run_scenario

from resilient_imagen import (
    ConfigurationError,
    ImageClient,
    ImageGenerationError,
    ProviderError,
    ProviderImage,
    Reason,
    Settings,
)
from resilient_imagen.testing import TINY_PNG, FakeProvider, run_virtual

GOOD = ProviderImage(TINY_PNG, "image/png", "gemini-3-pro-image")


async def later() -> ProviderImage:
    return GOOD


ANSWERS: dict[str, Callable[[], Any]] = {
    "NoneType": lambda: None,
    "bytes": lambda: TINY_PNG,
    "str": lambda: "data:image/png;base64,AAAA",
    "dict": lambda: {"data": TINY_PNG, "mime_type": "image/png"},
    "tuple": lambda: (TINY_PNG, "image/png"),
    "SimpleNamespace": lambda: SimpleNamespace(data=TINY_PNG, mime_type="image/png", model="x"),
    "type": lambda: ProviderImage,
}


def answering(world: PipelineScenario, answer: Callable[[], Any]) -> None:
    """Let the primary answer so, in one moment."""

    async def generate(*_: object) -> Any:
        await asyncio.sleep(1)
        return answer()

    world.google.generate = generate  # type: ignore[method-assign,assignment]


async def bug_of(world: PipelineScenario) -> TypeError:
    """The TypeError that a call ends with: a local bug, which casts no vote."""
    with pytest.raises(TypeError) as caught:
        await world.ask()
    numbers = world.client.snapshot()["routes"][0]["breaker"]
    assert numbers["state"] == "closed"
    assert numbers["consecutive"] == 0
    assert world.openai.sent == []
    assert world.idle()
    return caught.value


@pytest.mark.parametrize("kind", ANSWERS)
def test_another_type_than_a_provider_image_is_named(kind: str) -> None:
    """The error names the provider, what it returned and what it should have."""

    async def scene(world: PipelineScenario) -> None:
        answering(world, ANSWERS[kind])
        error = await bug_of(world)
        assert str(error) == (f"provider google: generate must return a ProviderImage, not {kind}")

    run_scenario(scene, **FAST)


def test_an_answer_that_nobody_awaited_is_named() -> None:
    """A forgotten await is the most likely mistake; the coroutine is closed without a warning."""

    async def scene(world: PipelineScenario) -> None:
        answering(world, later)
        assert "not coroutine; is an await missing?" in str(await bug_of(world))

    run_scenario(scene, **FAST)


def test_a_generate_that_is_not_async_is_named() -> None:
    """An ordinary function returns its answer, where an awaitable is wanted."""

    async def scene(world: PipelineScenario) -> None:
        world.google.generate = lambda *_: GOOD  # type: ignore[method-assign,assignment]
        error = await bug_of(world)
        assert str(error) == (
            "provider google: generate must be an async function; it returned ProviderImage"
        )

    run_scenario(scene, **FAST)


WRONG_FIELDS: dict[str, list[Any]] = {
    "data": [None, "iVBORw0KGgo=", bytearray(TINY_PNG), memoryview(TINY_PNG), 3],
    "mime_type": [None, b"image/png"],
    "model": [None, 3],
    "input_tokens": ["10", 1.5, True],
    "output_tokens": ["10", {}],
    "total_tokens": [b"1"],
    "image_tokens_in": [[]],
    "pictures": [None, "1"],
    "response_id": [7],
    "finish_reason": [Reason],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in WRONG_FIELDS.items() for value in values],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_field_of_a_wrong_type_is_named_where_it_is_set(name: str, value: Any) -> None:
    """The traceback ends in the provider's own code."""

    async def scene(world: PipelineScenario) -> None:
        answering(world, lambda: replace(GOOD, **{name: value}))
        error = await bug_of(world)
        assert f"ProviderImage.{name} must be " in str(error)
        assert f"not {type(value).__name__}" in str(error)

    run_scenario(scene, **FAST)


@pytest.mark.parametrize(
    "data", [b"", b"not a picture", TINY_PNG[:40], b"<html>busy</html>", b"\0" * 100]
)
def test_bytes_that_are_no_picture_are_the_services_fault(data: bytes) -> None:
    """An unusable answer is retried once and left for the next route."""

    async def scene(world: PipelineScenario) -> None:
        answering(world, lambda: replace(GOOD, data=data))
        result = await world.ask()
        assert (result.provider, result.fallback_reason) == ("openai", "invalid_response")

    run_scenario(scene, **FAST)


@pytest.mark.parametrize("claimed", ["image/png", "image/webp", "", "text/plain; charset=x"])
def test_a_claimed_type_is_not_believed(claimed: str) -> None:
    """The result says what the bytes are."""
    jpeg = encoded(Image.new("RGB", (90, 160)), "JPEG")

    async def scene(world: PipelineScenario) -> None:
        answering(world, lambda: replace(GOOD, data=jpeg, mime_type=claimed))
        result = await world.ask()
        assert (result.mime_type, result.image_bytes) == ("image/jpeg", jpeg)

    run_scenario(scene, **FAST)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"reason": "tired"}, "reason must be one of overloaded, rate_limited,"),
        ({"reason": 503}, "reason must be one of"),
        ({"status": "503"}, "status must be int or None, not str"),
        ({"vendor_message": b"busy"}, "vendor_message must be str or None, not bytes"),
        ({"status_word": 503}, "status_word must be str or None, not int"),
        ({"vendor_error": ValueError}, "vendor_error must be str or None, not type"),
        ({"usage": {"total_tokens": 3}}, "usage must be None or a dict with the keys provider,"),
        ({"usage": 3}, "usage must be None or a dict"),
    ],
)
def test_an_error_made_wrongly_says_so(wrong: dict[str, Any], text: str) -> None:
    """And not something about the library's inside, three modules further."""

    async def scene(world: PipelineScenario) -> None:
        def raising() -> None:
            raise ProviderError(**wrong)

        answering(world, raising)
        with pytest.raises((TypeError, ValueError)) as caught:
            await world.ask()
        assert not isinstance(caught.value, ImageGenerationError)
        assert text in str(caught.value)

    run_scenario(scene, **FAST)


def test_a_reason_may_be_given_as_its_word() -> None:
    """``overloaded`` is what Reason.OVERLOADED is."""
    error = ProviderError(reason="overloaded")  # type: ignore[arg-type]
    assert error.reason is Reason.OVERLOADED


class Nameless:
    async def generate(self, *_: object) -> ProviderImage:
        return GOOD

    async def aclose(self) -> None:
        """Nothing to close."""


class Numbered(Nameless):
    name = 7


class Unclosed:
    name = "google"

    async def generate(self, *_: object) -> ProviderImage:
        return GOOD


class Mute:
    name = "google"

    async def aclose(self) -> None:
        """Nothing to close."""


@pytest.mark.parametrize(
    ("provider", "text"),
    [
        (Nameless(), "provider Nameless needs a name"),
        (Numbered(), "provider Numbered needs a name, which is a str"),
        (Unclosed(), r"provider Unclosed \(google\) needs a method aclose"),
        (Mute(), r"provider Mute \(google\) needs a method generate"),
        (Unclosed, "provider Unclosed is a class; pass an instance of it"),
        (None, "provider NoneType needs a name"),
    ],
)
def test_what_is_no_provider_is_refused_at_once(provider: Any, text: str) -> None:
    """When the client is made, and not with the first call or at shutdown."""
    with pytest.raises(TypeError, match=text):
        ImageClient(Settings(routes="google:gemini-3-pro-image"), providers=[provider])


def test_two_providers_of_one_name_are_refused() -> None:
    """One of them would never be asked, and never be closed."""
    settings = Settings(routes="google:gemini-3-pro-image")
    with pytest.raises(ConfigurationError, match="two providers are named google"):
        ImageClient(settings, providers=[FakeProvider("google"), FakeProvider("google")])


def test_warm_up_and_close_may_be_ordinary_functions() -> None:
    """There may be nothing in them to wait for."""
    calls: list[str] = []

    async def main() -> None:
        google = FakeProvider("google")
        google.warm_up = lambda: calls.append("warm")  # type: ignore[attr-defined]
        google.aclose = lambda: calls.append("closed")  # type: ignore[method-assign,assignment,return-value]
        settings = Settings(routes="google:gemini-3-pro-image")
        async with ImageClient(settings, providers=[google]) as client:
            await client.generate("x")
        assert calls == ["warm", "closed"]

    run_virtual(main())
