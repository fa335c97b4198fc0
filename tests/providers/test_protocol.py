"""A custom provider that breaks the protocol gets an error that describes the mistake."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from images_samples import encoded
from PIL import Image
from pipeline_kit import FAST, PipelineScenario, run_scenario
from providers_kit import GOOD as GOOD_ANSWERS
from providers_kit import ask, run

from resilient_imagen import (
    ConfigurationError,
    Endpoint,
    ImageClient,
    ImageGenerationError,
    ImageRequest,
    InvalidRequestError,
    ProviderError,
    ProviderImage,
    ProviderResult,
    Reason,
    Settings,
)
from resilient_imagen.providers.google import GoogleProvider
from resilient_imagen.request import Reference
from resilient_imagen.testing import TINY_PNG, FakeProvider, run_virtual

GOOD = ProviderResult((ProviderImage(TINY_PNG, "image/png"),), "gemini-3-pro-image")


async def later() -> ProviderResult:
    return GOOD


ANSWERS: dict[str, Callable[[], Any]] = {
    "NoneType": lambda: None,
    "bytes": lambda: TINY_PNG,
    "str": lambda: "data:image/png;base64,AAAA",
    "dict": lambda: {"data": TINY_PNG, "mime_type": "image/png"},
    "tuple": lambda: (TINY_PNG, "image/png"),
    "SimpleNamespace": lambda: SimpleNamespace(data=TINY_PNG, mime_type="image/png", model="x"),
    "type": lambda: ProviderResult,
}


def answering(scenario: PipelineScenario, answer: Callable[[], Any]) -> None:
    """Let the primary respond with this value after a second."""

    async def generate(*_: object) -> Any:
        await asyncio.sleep(1)
        return answer()

    scenario.google.generate = generate  # type: ignore[method-assign,assignment]


async def bug_of(scenario: PipelineScenario) -> TypeError:
    """Return the TypeError that a call raises, a local bug without a vote."""
    with pytest.raises(TypeError) as caught:
        await scenario.ask()
    numbers = scenario.client.snapshot()["routes"][0]["breaker"]
    assert numbers["state"] == "closed"
    assert numbers["consecutive"] == 0
    assert scenario.openai.sent == []
    assert scenario.idle()
    return caught.value


@pytest.mark.parametrize("kind", ANSWERS)
def test_another_type_than_a_provider_image_is_named(kind: str) -> None:
    """The error names the provider, the returned type and the required type."""

    async def scene(scenario: PipelineScenario) -> None:
        answering(scenario, ANSWERS[kind])
        error = await bug_of(scenario)
        assert str(error) == (f"provider google: generate must return a ProviderResult, not {kind}")

    run_scenario(scene, **FAST)


def test_a_result_that_was_not_awaited_is_named() -> None:
    """The error names the missing await; the coroutine is closed without a warning."""

    async def scene(scenario: PipelineScenario) -> None:
        answering(scenario, later)
        assert "not coroutine; is an await missing?" in str(await bug_of(scenario))

    run_scenario(scene, **FAST)


def test_a_generate_that_is_not_async_is_named() -> None:
    """An ordinary function whose result is not awaitable is named in the error."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.generate = lambda *_: GOOD  # type: ignore[method-assign,assignment]
        error = await bug_of(scenario)
        assert str(error) == (
            "provider google: generate must be an async function; it returned ProviderResult"
        )

    run_scenario(scene, **FAST)


WRONG_FIELDS: dict[str, list[Any]] = {
    "ProviderImage.data": [None, "iVBORw0KGgo=", bytearray(TINY_PNG), memoryview(TINY_PNG), 3],
    "ProviderImage.mime_type": [None, b"image/png"],
    "ProviderResult.images": [None, TINY_PNG, [GOOD.images[0]]],
    "ProviderResult.model": [None, 3],
    "ProviderResult.usage": [None, {"input_tokens": 10}],
    "ProviderResult.adjustments": [None, "no mask", ["no mask"]],
    "ProviderResult.response_id": [7],
    "ProviderResult.finish_reason": [Reason],
    "TokenUsage.input_tokens": ["10", 1.5, True],
    "TokenUsage.output_tokens": ["10", {}],
    "TokenUsage.total_tokens": [b"1"],
    "TokenUsage.input_image_tokens": [[]],
    "TokenUsage.billed_images": [None, "1"],
}
HOLDERS: dict[str, Any] = {
    "ProviderImage": GOOD.images[0],
    "ProviderResult": GOOD,
    "TokenUsage": GOOD.usage,
}


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, values in WRONG_FIELDS.items() for value in values],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_field_of_a_wrong_type_is_named_where_it_is_set(field: str, value: Any) -> None:
    """The traceback ends in the provider's code that sets the field."""
    kind, name = field.split(".")

    async def scene(scenario: PipelineScenario) -> None:
        answering(scenario, lambda: replace(HOLDERS[kind], **{name: value}))
        error = await bug_of(scenario)
        assert f"{field} must be " in str(error)
        assert f"not {type(value).__name__}" in str(error)

    run_scenario(scene, **FAST)


def test_adjustments_are_sentences() -> None:
    """Adjustments are validated when they are set."""

    async def scene(scenario: PipelineScenario) -> None:
        wrong: Any = ("no mask", None)
        answering(scenario, lambda: replace(GOOD, adjustments=wrong))
        assert str(await bug_of(scenario)) == "ProviderResult.adjustments must hold only str"

    run_scenario(scene, **FAST)


@pytest.mark.parametrize("images", [(), (TINY_PNG,), (GOOD.images[0], None)])
def test_a_result_has_at_least_one_image(images: Any) -> None:
    """A result without images, or with other objects among them, is a bug."""

    async def scene(scenario: PipelineScenario) -> None:
        answering(scenario, lambda: replace(GOOD, images=images))
        error = await bug_of(scenario)
        assert str(error) == "ProviderResult.images must hold at least one ProviderImage"

    run_scenario(scene, **FAST)


@pytest.mark.parametrize(
    "data", [b"", b"not an image", TINY_PNG[:40], b"<html>busy</html>", b"\0" * 100]
)
def test_bytes_that_are_not_an_image_are_an_invalid_response(data: bytes) -> None:
    """An unusable response is retried once and then falls back."""

    async def scene(scenario: PipelineScenario) -> None:
        answering(scenario, lambda: replace(GOOD, images=(ProviderImage(data, "image/png"),)))
        result = await scenario.ask()
        assert (result.provider, result.fallback_reason) == ("openai", "invalid_response")

    run_scenario(scene, **FAST)


@pytest.mark.parametrize("claimed", ["image/png", "image/webp", "", "text/plain; charset=x"])
def test_the_type_of_an_image_is_detected(claimed: str) -> None:
    """The result has the type of the bytes, not the claimed type."""
    jpeg = encoded(Image.new("RGB", (90, 160)), "JPEG")

    async def scene(scenario: PipelineScenario) -> None:
        answering(scenario, lambda: replace(GOOD, images=(ProviderImage(jpeg, claimed),)))
        result = await scenario.ask()
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
def test_an_error_with_invalid_arguments_is_named(wrong: dict[str, Any], text: str) -> None:
    """The message is about the arguments, not about the library's internals."""

    async def scene(scenario: PipelineScenario) -> None:
        def raising() -> None:
            raise ProviderError(**wrong)

        answering(scenario, raising)
        with pytest.raises((TypeError, ValueError)) as caught:
            await scenario.ask()
        assert not isinstance(caught.value, ImageGenerationError)
        assert text in str(caught.value)

    run_scenario(scene, **FAST)


def test_a_reason_may_be_given_as_a_str() -> None:
    """The str ``overloaded`` is accepted as Reason.OVERLOADED."""
    error = ProviderError(reason="overloaded")  # type: ignore[arg-type]
    assert error.reason is Reason.OVERLOADED


class Nameless:
    async def generate(self, *_: object) -> ProviderResult:
        return GOOD

    async def aclose(self) -> None:
        """Nothing to close."""


class Numbered(Nameless):
    name = 7


class Unclosed:
    name = "google"

    async def generate(self, *_: object) -> ProviderResult:
        return GOOD


class WithoutGenerate:
    name = "google"

    async def aclose(self) -> None:
        """Nothing to close."""


@pytest.mark.parametrize(
    ("provider", "text"),
    [
        (Nameless(), "provider Nameless needs a name"),
        (Numbered(), "provider Numbered needs a name, which is a str"),
        (Unclosed(), r"provider Unclosed \(google\) needs a method aclose"),
        (WithoutGenerate(), r"provider WithoutGenerate \(google\) needs a method generate"),
        (Unclosed, "provider Unclosed is a class; pass an instance of it"),
        (None, "provider NoneType needs a name"),
    ],
)
def test_an_object_that_is_not_a_provider_is_rejected(provider: Any, text: str) -> None:
    """An object that is not a provider is rejected when the client is created."""
    with pytest.raises(TypeError, match=text):
        ImageClient(Settings(routes="google:gemini-3-pro-image"), providers=[provider])


def test_two_providers_of_one_name_are_refused() -> None:
    """Two providers with the same name are rejected, as one would not be used or closed."""
    settings = Settings(routes="google:gemini-3-pro-image")
    with pytest.raises(ConfigurationError, match="two providers are named google"):
        ImageClient(settings, providers=[FakeProvider("google"), FakeProvider("google")])


def test_warm_up_and_close_may_be_ordinary_functions() -> None:
    """`warm_up` and `aclose` need not be coroutine functions."""
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


@pytest.mark.parametrize(
    ("vendor", "options", "ignored"),
    [
        ("google", {"quality": "low", "seed": 3}, ["quality"]),
        (
            "google",
            {"background": "transparent", "output_format": "webp"},
            ["background", "output_format"],
        ),
        ("openai", {"quality": "low", "seed": 0, "partial_images": 2}, ["seed"]),
    ],
)
def test_options_that_a_vendor_lacks_are_listed(
    vendor: str, options: dict[str, Any], ignored: list[str]
) -> None:
    """A built-in provider serves the request without those options, and lists each."""
    result = run(ask(vendor, GOOD_ANSWERS[vendor], ImageRequest("a fox", **options)))
    assert list(result.ignored_options) == ignored
    assert result.adjustments == ()


def test_adjustments_of_a_provider_reach_the_caller() -> None:
    """The client's result lists them after the changes to the image."""

    async def scene(scenario: PipelineScenario) -> None:
        answering(scenario, lambda: replace(GOOD, adjustments=("google does not support mask",)))
        result = await scenario.ask()
        assert "google does not support mask" in result.adjustments

    run_scenario(scene, **FAST)


@pytest.mark.parametrize(
    ("vendor", "name"), [("google", "contents"), ("openai", "prompt"), ("openai", "model")]
)
def test_vendor_options_cannot_replace_fields_of_the_request(vendor: str, name: str) -> None:
    """The error names the field, and nothing is sent."""
    request = ImageRequest("a fox", vendor_options={vendor: {name: "secret"}})
    with pytest.raises(InvalidRequestError) as caught:
        run(ask(vendor, None, request))
    assert str(caught.value) == f"vendor_options for {vendor} must not contain {name}"


def nested(depth: int) -> dict[str, Any]:
    """Return objects nested to this depth."""
    inner: dict[str, Any] = {}
    for _ in range(depth):
        inner = {"a": inner}
    return inner


WRONG_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"n": 0}, "n 0 is not allowed; use a number from 1 to 10"),
    ({"n": True}, "n must be an int or None, not bool"),
    ({"seed": 2**31}, "seed 2147483648 is not allowed; use a number from 0 to 2147483647"),
    ({"seed": "7"}, "seed must be an int or None, not str"),
    ({"output_compression": 101}, "output_compression 101 is not allowed"),
    ({"partial_images": 4}, "partial_images 4 is not allowed; use a number from 0 to 3"),
    ({"background": "clear"}, "background 'clear' is not allowed; use one of transparent, opaque"),
    ({"output_format": "gif"}, "output_format 'gif' is not allowed; use one of png, jpeg, webp"),
    ({"quality": "best"}, "quality 'best' is not allowed; use one of low, medium, high"),
    ({"vendor_options": {"openai": 3}}, "vendor_options must hold a JSON object for each vendor"),
    ({"vendor_options": {"openai": {"a": b""}}}, "vendor_options must hold a JSON object"),
    ({"vendor_options": "x"}, "vendor_options must hold a JSON object"),
    ({"vendor_options": {"google": {"a": "\ud800"}}}, "vendor_options must hold a JSON object"),
    ({"vendor_options": {"google": {"a": math.nan}}}, "vendor_options must hold a JSON object"),
    ({"vendor_options": {"google": {1: "a"}}}, "vendor_options must hold a JSON object"),
    ({"vendor_options": {"google": nested(100_000)}}, "vendor_options must hold a JSON object"),
    ({"mask": Reference(b"", "image/png", 0)}, "mask is allowed for an edit only"),
    ({"mask": b"", "operation": "edit"}, "mask must be a Reference or None"),
    ({"operation": "draw"}, "operation 'draw' is not allowed; use one of generate, edit"),
    ({"references": [Reference(b"", "image/png", 0)]}, "references must be a tuple of Reference"),
    ({"references": (b"",)}, "references must be a tuple of Reference"),
    ({"references": None}, "references must be a tuple of Reference"),
]


@pytest.mark.parametrize(
    ("options", "text"), WRONG_OPTIONS, ids=lambda value: next(iter(value), "")[:40]
)
def test_a_wrong_option_is_rejected_with_the_allowed_values(
    options: dict[str, Any], text: str
) -> None:
    """The error names the option, its value and the allowed ones."""
    with pytest.raises(InvalidRequestError) as caught:
        ImageRequest("a fox", **options)
    assert text in str(caught.value)


def test_a_second_account_of_a_vendor_uses_the_vendors_models() -> None:
    """The account may have any name; limits, prices and sizes are the vendor's."""
    provider = GoogleProvider(api_key="key-of-b", name="google_b")
    assert provider.endpoint.vendor == "google"
    assert provider.endpoint.account != GoogleProvider(api_key="key-of-a").endpoint.account
    with pytest.raises(ConfigurationError, match="google_b:gpt-image-2 is not valid"):
        ImageClient(Settings(routes="google_b:gpt-image-2"), providers=[provider])
    client = ImageClient(Settings(routes="google_b:gemini-3-pro-image"), providers=[provider])
    assert client.snapshot()["routes"][0]["provider"] == "google_b"


def test_the_settings_for_a_vendor_hold_for_its_second_account() -> None:
    """OpenAI's time and rate limits apply to a second account of any name."""

    async def main() -> None:
        provider = FakeProvider("openai_b", latency=100)
        provider.endpoint = Endpoint("openai")
        settings = Settings(
            routes="openai_b:gpt-image-2", ipm=60, openai_ipm=6, max_retries=0,
            on_timeout="abandon", per_call_timeout=60, openai_timeout=180,
        )  # fmt: skip
        async with ImageClient(settings, providers=[provider]) as client:
            assert (await client.generate("a fox")).latency_s == pytest.approx(100)
            assert client.snapshot()["routes"][0]["queue"]["interval_s"] == pytest.approx(10)

    run_virtual(main())


def test_a_model_of_another_vendor_is_an_error_for_a_second_account() -> None:
    """Only a relay may serve models of another vendor under a custom name."""

    async def main() -> None:
        for any_vendor in (False, True):
            provider = FakeProvider("openai_b")
            provider.endpoint = Endpoint("openai", any_vendor=any_vendor)
            settings = Settings(routes="openai_b:gpt-image-2")
            async with ImageClient(settings, providers=[provider]) as client:
                asking = client.generate("a fox", model="gemini-3-pro-image")
                if any_vendor:
                    assert (await asking).model == "gemini-3-pro-image"
                else:
                    with pytest.raises(InvalidRequestError, match="belongs to google"):
                        await asking

    run_virtual(main())


def test_the_model_table_applies_to_a_second_account() -> None:
    """References beyond the vendor's limit are dropped, and the image has its price."""

    async def main() -> None:
        provider = FakeProvider("google_b")
        provider.endpoint = Endpoint("google")
        settings = Settings(routes="google_b:gemini-3-pro-image", ipm=60_000)
        async with ImageClient(settings, providers=[provider]) as client:
            result = await client.generate("a fox", references=[TINY_PNG] * 15)
        assert [each["index"] for each in result.dropped_references] == [14]
        assert result.usage["cost_usd"] == 0.134

    run_virtual(main())


def test_an_endpoint_of_another_type_is_rejected() -> None:
    """The error names the provider and the type."""
    provider = FakeProvider("google")
    provider.endpoint = "https://vendor.example"  # type: ignore[assignment]
    with pytest.raises(TypeError, match=r"\(google\): endpoint must be an Endpoint, not str"):
        ImageClient(Settings(), providers=[provider])
