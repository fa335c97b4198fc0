"""Calls for type checkers, which are not run: right ones pass, wrong ones are rejected.

Each wrong line carries the errors that mypy and pyright must report for it. Both report an ignore
comment that suppresses nothing, so a line that a checker begins to accept is found.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack, assert_type

from pydantic import SecretStr

from resilient_imagen import (
    AspectRatio,
    Attempt,
    DroppedReference,
    ImageClient,
    ImageDict,
    ImageInput,
    ImageOptions,
    ImageRequest,
    ImageResult,
    Progress,
    ProgressStream,
    ProviderImage,
    ProviderResult,
    Reason,
    Reference,
    Resolution,
    Settings,
    SettingsArguments,
    Snapshot,
    Usage,
    call_options,
    default_client,
    edit_image,
    generate_image,
    generate_image_with_references,
    sync,
)
from resilient_imagen.circuitbreaker import BreakerConfig, BreakerMetrics

# -- settings -------------------------------------------------------------------------------------


def settings_take_their_fields() -> None:
    assert_type(Settings(), Settings)
    Settings(ipm=20)
    Settings(ipm=0.5, deadline=90, max_queue=None, breaker_slow_call=45.0)
    Settings(google_api_key="k", openai_api_key=SecretStr("k"), redis_url=None)
    Settings(routes="google:gemini-3-pro-image,openai:gpt-image-2.5-flare")
    Settings(routes=["google:gemini-3-pro-image"], force_open=("openai",))
    Settings(fallback_on={Reason.OVERLOADED, Reason.TIMEOUT}, fit="pad", breaker_mode="shadow")
    Settings(fallback_on="overloaded,timeout", shadow={"reset_timeout": 30, "fail_max": 5})
    Settings(routes=Settings().routes, fallback_on=Settings().fallback_on)


def settings_take_nothing_else() -> None:
    Settings(ipm="x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Settings(ipm="x", imp=3)  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportCallIssue]
    Settings(imp=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Settings(fit="zoom")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Settings(breaker_mode=True)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Settings(max_retries=1.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Settings(max_retries=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Settings(routes=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Settings(google_api_key=b"k")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def settings_are_passed_on(**chosen: Unpack[SettingsArguments]) -> ImageClient:
    quick: SettingsArguments = {"ipm": 600, "max_retries": 0}
    slow: SettingsArguments = {"imp": 1}  # type: ignore[typeddict-unknown-key]  # pyright: ignore[reportAssignmentType]
    del quick, slow
    return ImageClient(Settings(**chosen))


def settings_are_typed(settings: Settings) -> None:
    assert_type(settings.ipm, float)
    assert_type(settings.deadline, float | None)
    assert_type(settings.google_api_key, SecretStr | None)
    assert_type(settings.routes[0].provider, str)
    assert_type(settings.warnings, tuple[str, ...])
    settings.imp  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


# -- a client of one's own ------------------------------------------------------------------------


async def a_client_makes_images(client: ImageClient, ratio: AspectRatio, size: Resolution) -> None:
    result = await client.generate("a fox", aspect_ratio=ratio, resolution=size, deadline=90)
    assert_type(result, ImageResult)
    await client.generate("a fox", aspect_ratio="21:9", resolution="4K", on_start=lambda: None)
    await client.generate("a fox", references=[b"png", Path("fox.png"), "https://host/fox.png"])
    await client.generate("a fox", references=[{"image_base64": "…", "mime_type": "image/png"}])
    await client.generate("a fox", references=[result, result.to_dict()])
    await client.edit(result, "more red", resolution="1K")
    await client.edit(bytearray(), "more red", model="gemini-3-pro-image")


async def a_client_takes_nothing_else(client: ImageClient) -> None:
    await client.generate("x", aspect_ratio="5:7")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await client.generate("x", resolution="2k")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await client.generate("x", references=[1])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    await client.generate("x", references=b"png")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await client.generate("x", deadline="90")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await client.generate("x", "9:16")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await client.generate("x", on_start=90)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await client.edit(None, "more red")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await client.edit(b"png", "more red", aspect_ratio="")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ImageClient(ipm=20)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def results_are_typed(result: ImageResult) -> None:
    assert_type(result.fallback_reason, Reason | None)
    assert_type(result.dropped_references, tuple[DroppedReference, ...])
    assert_type(result.usage, Usage)
    assert_type(result.usage["cost_usd"], float | None)
    assert_type(result.to_dict(), ImageDict)
    assert_type(result.save("fox.png"), Path)
    assert_type(result.to_pil().size, tuple[int, int])
    result.usage["cost"]  # type: ignore[typeddict-item]  # pyright: ignore[reportGeneralTypeIssues]
    result.provider = "me"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def a_snapshot_is_typed(client: ImageClient) -> None:
    snapshot = client.snapshot()
    assert_type(snapshot, Snapshot)
    assert_type(snapshot["cost_usd"], float)
    assert_type(snapshot["maybe_billed"]["requests"], int)
    assert_type(snapshot["hedging"]["in_background"], int)
    for route in snapshot["routes"]:
        assert_type(route["off"], str | None)
        assert_type(route["breaker"]["state"], str)
        assert_type(route["breaker"]["retry_after"], float | None)
        assert_type(route["queue"]["waiting"], int)
    snapshot["route"]  # type: ignore[typeddict-item]  # pyright: ignore[reportGeneralTypeIssues]
    snapshot["fleet"]["joined"]  # type: ignore[index]  # pyright: ignore[reportOptionalSubscript]


class Painter:
    """A provider of the application's."""

    name = "painter"

    async def generate(self, request: ImageRequest, model: str) -> ProviderResult:
        assert_type(request.aspect_ratio, AspectRatio)
        assert_type(request.resolution, Resolution)
        assert_type(request.references, tuple[Reference, ...])
        assert_type(request.references[0].data, bytes)
        return ProviderResult((ProviderImage(b"", "image/png"),), model)

    async def aclose(self) -> None: ...


class Sculptor:
    """No provider: it makes nothing that is an image."""

    name = "sculptor"

    async def generate(self, request: ImageRequest, model: str) -> str:
        return model + request.prompt

    async def aclose(self) -> None: ...


def providers_are_checked() -> None:
    ImageClient(providers=[Painter()])
    ImageClient(providers=[Sculptor()])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]


# -- the drop-in functions ------------------------------------------------------------------------


async def the_functions_return_dicts(references: Sequence[ImageInput]) -> None:
    image = await generate_image("a fox", "16:9")
    assert_type(image, ImageDict)
    assert_type(image["image_base64"], str)
    assert_type(image["fallback_reason"], str | None)
    assert_type(image["usage"]["cost_usd"], float | None)
    assert_type(image["adjustments"], list[str])
    stored: list[dict[str, str]] = []
    await generate_image_with_references("a fox", stored, "9:16", "2K")
    await generate_image_with_references("a fox", references, deadline=90)
    await edit_image(image, "more red", on_start=the_functions_take_nothing_else)
    assert_type(default_client(), ImageClient)
    with call_options(deadline=90):
        await edit_image("https://host/fox.png", "more red", resolution="4K")


async def the_functions_take_nothing_else() -> None:
    image = await generate_image("a fox", "9 to 16")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    image["picture"]  # type: ignore[typeddict-item]  # pyright: ignore[reportGeneralTypeIssues]
    await generate_image("a fox", aspect_ratio="5:7")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await edit_image(b"png", "more red", resolution="8K")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await generate_image_with_references("a fox", [], "9:16", "8K")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await generate_image(b"a fox")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await generate_image("a fox", resolution="8K")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await generate_image_with_references("a fox", None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await edit_image(1, "more red")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with call_options(deadline="soon"):  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        pass


# -- options of a request -------------------------------------------------------------------------


async def options_are_the_same_everywhere(
    client: ImageClient, **chosen: Unpack[ImageOptions]
) -> None:
    await generate_image("a fox", resolution="4K", seed=7, quality="xhigh", output_format="png")
    await generate_image("a fox", background="transparent", output_format=None)
    several = await generate_image("a fox", n=4)
    if "images" in several:
        assert_type(several["images"][0]["mime_type"], str)
    assert_type((await client.generate("a fox", n=4)).images, tuple[bytes, ...])
    await generate_image_with_references("a fox", [], output_format="jpeg", output_compression=80)
    await edit_image(b"png", "more red", vendor_options={"openai": {"input_fidelity": "high"}})
    await client.generate("a fox", seed=7)
    await client.edit(b"png", "more red", mask=Path("mask.png"), n=2)
    await edit_image(b"png", "more red", mask=b"png")
    sync.edit_image(b"png", "more red", mask={"image_base64": "…"})
    await client.edit(b"png", "more red", **chosen)
    sync.generate_image("a fox", seed=7)
    sync.edit_image(b"png", "more red", background="opaque")
    with call_options(deadline=90, **chosen):
        pass


async def options_take_nothing_else(client: ImageClient) -> None:
    await generate_image("a fox", background="blue")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await generate_image("a fox", output_format="gif")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await generate_image("a fox", n="4")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await generate_image("a fox", mask=b"png")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await client.edit(b"png", "more red", mask=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await generate_image("a fox", colour="red")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await edit_image(b"png", "x", quality="best")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await client.generate("a fox", seed="7")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await client.edit(b"png", "x", output_compression=0.8)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    sync.generate_image("a fox", vendor_options={"openai": 3})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    with call_options(size="1K"):  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        pass


# -- progress -------------------------------------------------------------------------------------


async def show(event: Progress) -> None:
    assert_type(event.image_bytes, bytes | None)
    assert_type(event.reason, Reason | None)


async def calls_report_their_progress(client: ImageClient, threads: sync.ImageClient) -> None:
    await generate_image("a fox", on_progress=show, partial_images=2)
    await client.edit(b"png", "more red", on_progress=print, partial_images=None)
    sync.edit_image(b"png", "more red", on_progress=print)
    with call_options(on_progress=show, partial_images=3):
        pass
    async with client.stream("a fox", partial_images=1, n=2, deadline=90) as events:
        async for event in events:
            assert_type(event, Progress)
        assert_type(await events.result(), ImageResult)
    assert_type(client.stream_edit(b"png", "more red", mask=b"png"), ProgressStream)
    with threads.stream("a fox", references=[b"png"]) as steps:
        for step in steps:
            assert_type(step, Progress)
        assert_type(steps.result(), ImageResult)


async def progress_takes_nothing_else(client: ImageClient) -> None:
    await generate_image("a fox", on_progress=lambda: None)  # type: ignore[misc, arg-type]  # pyright: ignore[reportArgumentType]
    await generate_image("a fox", on_progress=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await client.generate("a fox", partial_images="2")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.stream("a fox", on_progress=show)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    client.stream("a fox", mask=b"png")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    sync.generate_image("a fox", partial_images=2.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# -- the synchronous API --------------------------------------------------------------------------


def the_synchronous_functions_return_dicts(references: Sequence[ImageInput]) -> None:
    image = sync.generate_image("a fox", "16:9", on_start=lambda: None, deadline=90)
    assert_type(image, ImageDict)
    assert_type(sync.generate_image_with_references("a fox", references), ImageDict)
    assert_type(
        sync.edit_image(image, "more red", on_start=the_functions_take_nothing_else), ImageDict
    )
    assert_type(sync.default_client(), sync.ImageClient)
    sync.reset_default_client()
    with sync.call_options(deadline=90):
        sync.edit_image(b"png", "more red", resolution="4K")


def the_synchronous_functions_take_nothing_else() -> None:
    sync.generate_image("a fox", "9 to 16")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    sync.generate_image("a fox", resolution="8K")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    sync.edit_image(1, "more red")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def nothing_of_it_is_awaited() -> None:
    await sync.generate_image("a fox")  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]


def a_synchronous_client_makes_images(size: Resolution) -> None:
    with sync.ImageClient(Settings(ipm=20), providers=[Painter()]) as client:
        assert_type(client, sync.ImageClient)
        result = client.generate("a fox", aspect_ratio="21:9", resolution=size, references=[b"png"])
        assert_type(result, ImageResult)
        assert_type(client.edit(result, "more red"), ImageResult)
        assert_type(client.snapshot(), Snapshot)
        assert_type(client.settings, Settings)
        breaker = client.breakers["google:gemini-3-pro-image"]
        breaker.force_open = True
        breaker.reconfigure(BreakerConfig(fail_max=5))
        assert_type(breaker.metrics(), BreakerMetrics)
        client.generate("x", "9:16")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        client.breakers["x"] = breaker  # type: ignore[index]  # pyright: ignore[reportIndexIssue]
        client.acquire()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    sync.ImageClient(ipm=20)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    sync.ImageClient(providers=[Sculptor()])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]


def an_attempt_is_typed(attempt: Attempt) -> None:
    assert_type(attempt.reason, Reason | None)
    assert_type(attempt.latency_s, float)
