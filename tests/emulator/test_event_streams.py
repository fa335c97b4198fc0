"""Event streams of the emulated OpenAI and their faults, as received by the real SDK."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import httpx2
import openai
import pytest
from emulator_kit import Wired, picture, run_with_emulator, run_with_emulator_virtually
from images_samples import opened

from resilient_imagen.emulator import Emulator, Fault, faults

BOTH_WAYS = pytest.mark.parametrize("way", ["socket", "memory"])


async def received(both: Wired, **options: Any) -> list[Any]:
    """Return the events of a stream."""
    options = {"partial_images": 2, **options}
    stream = await both.gpt(stream=True, **options)
    return [event async for event in stream]


async def until_error(both: Wired) -> tuple[list[str], Exception | None]:
    """Return the types of a stream's events, and the error that ends it."""
    seen: list[str] = []
    stream = await both.gpt(stream=True, partial_images=2)
    try:
        async for event in stream:
            seen.append(event.type)  # noqa: PERF401 - those before an error count, too
    except openai.APIError as error:
        return seen, error
    return seen, None


@BOTH_WAYS
def test_a_stream_sends_previews_and_then_the_image(way: str) -> None:
    """The SDK parses every event; previews and image are different complete images."""

    async def scenario(both: Wired) -> None:
        events = await received(both, output_format="webp")
        assert [event.type for event in events] == [
            "image_generation.partial_image",
            "image_generation.partial_image",
            "image_generation.completed",
        ]
        assert [event.partial_image_index for event in events[:2]] == [0, 1]
        images = [base64.b64decode(event.b64_json) for event in events]
        assert len(set(images)) == 3
        assert {opened(image).format for image in images} == {"WEBP"}
        assert events[-1].usage.total_tokens > 200
        assert both.app.openai.requests[0].delivered

    run_with_emulator(scenario, way=way)


def test_an_edit_is_streamed() -> None:
    """The events of an edit have different names, and its form fields are strings."""

    async def scenario(both: Wired) -> None:
        stream = await both.gpt_edit(
            ("x.png", picture(), "image/png"), stream=True, partial_images=1
        )
        kinds = [event.type async for event in stream]
        assert kinds == ["image_edit.partial_image", "image_edit.completed"]

    run_with_emulator(scenario)


def test_several_images_have_one_event_each() -> None:
    """Each image has its own completed event."""

    async def scenario(both: Wired) -> None:
        events = await received(both, partial_images=0, n=3)
        assert [event.type for event in events] == ["image_generation.completed"] * 3
        assert len({event.b64_json for event in events}) == 3

    run_with_emulator(scenario)


@pytest.mark.parametrize(
    "options", [{"partial_images": 4}, {"stream": "maybe"}, {"partial_images": -1}]
)
def test_wrong_stream_parameters_are_refused(options: dict[str, Any]) -> None:
    """The response is a 400 instead of a stream."""

    async def scenario(both: Wired) -> None:
        with pytest.raises(openai.BadRequestError, match="Invalid value"):
            await both.gpt(**{"stream": True, **options})

    run_with_emulator(scenario)


def test_headers_come_at_once_and_events_spread_over_the_latency() -> None:
    """The headers are sent at once, and the image when the latency is over."""

    async def scenario(both: Wired) -> None:
        loop = asyncio.get_running_loop()
        stream = await both.gpt(stream=True, partial_images=2)
        begun = loop.time()
        times = [loop.time() async for _ in stream]
        assert begun == 0.0
        assert times == [pytest.approx(10.0), pytest.approx(20.0), pytest.approx(30.0)]

    run_with_emulator_virtually(scenario, Emulator(picture="tiny", latency=30.0))


def test_a_silent_stream_sends_nothing_until_its_latency_is_over() -> None:
    """Headers and all events are sent when the latency is over."""

    async def scenario(both: Wired) -> None:
        loop = asyncio.get_running_loop()
        both.app.openai.fail(faults.silent(25.0))
        stream = await both.gpt(stream=True, partial_images=2)
        assert loop.time() == pytest.approx(25.0)
        assert len([event async for event in stream]) == 3

    run_with_emulator_virtually(scenario, Emulator(picture="tiny"))


@BOTH_WAYS
@pytest.mark.parametrize("abrupt", [False, True])
@pytest.mark.parametrize("events", [0, 1, 2, 3])
def test_a_stream_is_cut_after_any_event(way: str, events: int, abrupt: bool) -> None:
    """The events before the cut arrive; then the connection breaks, even after the image."""

    async def scenario(both: Wired) -> None:
        both.app.openai.fail(faults.cut_stream(events, abrupt=abrupt))
        seen, error = await until_error(both)
        assert isinstance(error, openai.APIConnectionError)
        assert isinstance(error.__cause__, httpx2.RemoteProtocolError | httpx2.ReadError)
        # A reset discards data that the client has not read yet.
        assert len(seen) <= events if abrupt else len(seen) == events
        assert not both.app.openai.requests[0].delivered
        await both.gpt()

    run_with_emulator(scenario, way=way)


def test_a_stream_is_cut_within_an_event() -> None:
    """A cut by share of the body may leave half an event."""

    async def scenario(both: Wired) -> None:
        both.app.openai.fail(faults.cut(0.9))
        with pytest.raises(openai.APIConnectionError):
            await received(both)

    run_with_emulator(scenario)


@BOTH_WAYS
@pytest.mark.parametrize("events", [0, 1, 2, 9])
def test_an_error_comes_after_previews_and_in_place_of_the_image(way: str, events: int) -> None:
    """The SDK raises the error with the vendor's code, after the previews before it."""

    async def scenario(both: Wired) -> None:
        both.app.openai.fail(faults.error_event("rate_limited", events, retry_after=7))
        seen, error = await until_error(both)
        assert isinstance(error, openai.APIError)
        assert "try again in 7s" in str(error)
        assert error.code == "rate_limit_exceeded"
        assert seen == ["image_generation.partial_image"] * min(events, 2)

    run_with_emulator(scenario, way=way)


def test_a_stream_may_end_without_its_image() -> None:
    """The response ends correctly, without the completed event."""

    async def scenario(both: Wired) -> None:
        both.app.openai.fail(faults.no_completed())
        assert len(await received(both)) == 2
        both.app.openai.fail(faults.no_completed(0))
        assert await received(both) == []

    run_with_emulator(scenario)


def test_a_stream_may_stall() -> None:
    """No more events are sent, and the connection stays open."""

    async def scenario(both: Wired) -> None:
        both.app.openai.fail(faults.stall(1))
        stream = await both.gpt(stream=True, partial_images=2)
        await anext(stream)
        with pytest.raises(openai.APITimeoutError):  # the SDK's own time limit
            await anext(stream)

    run_with_emulator_virtually(scenario, Emulator(picture="tiny"))


@pytest.mark.parametrize(
    "fault",
    [
        faults.cut_stream(0), faults.stall(0), faults.error_event("rate_limited"),
        faults.no_completed(0),
    ],
    ids=lambda fault: fault.name,
)  # fmt: skip
def test_faults_of_streams_leave_other_responses_alone(fault: Fault) -> None:
    """A request without a stream gets its image, from either vendor."""

    async def scenario(both: Wired) -> None:
        both.app.openai.fail(fault)
        assert (await both.gpt()).data[0].b64_json
        if fault.event is None:
            both.app.google.fail(fault)
            assert (await both.gemini()).candidates

    run_with_emulator(scenario)


def test_stream_faults_are_checked_when_they_are_made() -> None:
    """The number of events must not be negative, and the error must be one of the vendor's."""
    for make in (faults.cut_stream, faults.stall, faults.no_completed):
        with pytest.raises(ValueError, match="at least 0"):
            make(-1)
    with pytest.raises(ValueError, match="has no error 'flood'"):
        Emulator().openai.fail(faults.error_event("flood"))


def test_a_variant_of_the_response_is_streamed_too() -> None:
    """A variant without an image gives a completed event without one, and an HTML page is sent
    unchanged.
    """

    async def scenario(both: Wired) -> None:
        both.app.openai.fail(faults.no_image())
        events = await received(both, partial_images=1)
        assert events[-1].type == "image_generation.completed"
        assert not hasattr(events[-1], "b64_json") or events[-1].b64_json is None
        both.app.openai.fail(faults.html())
        assert (
            (
                await both.http[1].post(
                    f"{both.openai.base_url}images/generations",
                    headers={"authorization": "Bearer k"},
                    json={"model": "gpt-image-2.5-flare", "prompt": "x", "stream": True},
                )
            )
            .headers["content-type"]
            .startswith("text/html")
        )

    run_with_emulator(scenario)
