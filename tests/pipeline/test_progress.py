"""Progress: a caller receives every step of its call in order, and a callback affects nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from overlap_kit import OverlapScenario, run_overlap
from pipeline_kit import FAST, CancelAtStep, PipelineScenario, now, run_scenario

from resilient_imagen import (
    ImageGenerationError,
    InvalidRequestError,
    PartialImage,
    Progress,
    ProviderResult,
    Reason,
)
from resilient_imagen.pipeline.progress import ProgressBuffer
from resilient_imagen.request import ImageRequest
from resilient_imagen.testing import TINY_PNG, FakeProvider

Step = tuple[str, str | None]
"""Kind and provider."""


def steps(events: list[Progress]) -> list[Step]:
    return [(event.kind, event.provider) for event in events]


def kinds(events: list[Progress]) -> list[str]:
    return [event.kind for event in events]


class Previewing(FakeProvider):
    """A provider that streams: headers after ``headers`` seconds, then previews, then its end."""

    supported_options = frozenset({"partial_images"})
    headers = 0.5
    previews_at: tuple[float, ...] = (0.6, 0.8)

    async def generate(self, request: ImageRequest, model: str) -> ProviderResult:
        loop, handles = asyncio.get_running_loop(), []
        if request.partial_images:
            assert request.on_response is not None
            handles = [loop.call_later(self.headers, request.on_response)]
            for number, after in enumerate(self.previews_at):
                preview = PartialImage(
                    b"%d of %b" % (number, self.name.encode()), "image/png", number
                )
                assert request.on_partial_image is not None
                handles.append(loop.call_later(after, request.on_partial_image, preview))
        try:
            return await super().generate(request, model)
        finally:
            for handle in handles:
                handle.cancel()


# -- kinds in order -------------------------------------------------------------------------------


def test_a_call_that_succeeds_at_once_has_three_steps() -> None:
    """The last event has the image."""
    seen: list[Progress] = []

    async def scene(scenario: PipelineScenario) -> None:
        result = await scenario.ask(on_progress=seen.append)
        assert steps(seen) == [("sending", "google"), ("finishing", "google"), ("done", "google")]
        assert seen[-1].image_bytes is result.image_bytes
        assert {event.model for event in seen} == {"gemini-3-pro-image"}

    run_scenario(scene, **FAST)


def test_a_queued_call_reports_its_position_and_wait() -> None:
    """Positions are counted from 1, and the wait is the limiter's estimate."""
    seen: list[list[Progress]] = [[], [], []]

    async def scene(scenario: PipelineScenario) -> None:
        await asyncio.gather(*(scenario.ask(on_progress=each.append) for each in seen))
        assert kinds(seen[0]) == ["sending", "finishing", "done"]
        for place, events in enumerate(seen[1:], 1):
            assert kinds(events) == ["queued", "sending", "finishing", "done"]
            assert events[0].position == place
            assert events[0].wait_s == pytest.approx(6.0 * place, abs=0.01)

    run_scenario(scene)


def test_retries_and_the_fallback_have_their_reasons() -> None:
    """Each retry has its back-off and reason, and the fallback the next route and the reason."""
    seen: list[Progress] = []

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503)
        await scenario.ask(on_progress=seen.append)
        assert steps(seen) == [
            ("sending", "google"), ("retrying", "google"),
            ("sending", "google"), ("retrying", "google"),
            ("sending", "google"), ("falling_back", "openai"),
            ("sending", "openai"), ("finishing", "openai"), ("done", "openai"),
        ]  # fmt: skip
        waits = [event.wait_s for event in seen if event.kind == "retrying"]
        assert all(wait is not None and wait > 0 for wait in waits)
        assert {event.reason for event in seen if event.kind != "falling_back"} == {
            None, Reason.OVERLOADED,
        }  # fmt: skip
        assert next(each.reason for each in seen if each.kind == "falling_back") == "overloaded"

    run_scenario(scene, **FAST, max_retries=2)


def test_a_skipped_route_is_a_fallback() -> None:
    """A first route with an open circuit gets no request, and is reported as a fallback."""
    seen: list[Progress] = []

    async def scene(scenario: PipelineScenario) -> None:
        next(iter(scenario.client.breakers.values())).force_trip(cause="overloaded")
        await scenario.ask(on_progress=seen.append)
        assert steps(seen)[:2] == [("falling_back", "openai"), ("sending", "openai")]
        assert seen[0].reason is Reason.CIRCUIT_OPEN

    run_scenario(scene, **FAST)


def test_waiting_for_an_open_circuit_is_queueing() -> None:
    """The event has no position; its wait is the time until the probe."""
    seen: list[Progress] = []

    async def scene(scenario: PipelineScenario) -> None:
        for breaker in scenario.client.breakers.values():
            breaker.force_trip(cause="overloaded")
        await scenario.ask(on_progress=seen.append)
        waiting = [event for event in seen if event.kind == "queued"]
        assert len(waiting) == 1
        assert (waiting[0].reason, waiting[0].position) == (Reason.CIRCUIT_OPEN, None)
        assert waiting[0].wait_s == pytest.approx(600, rel=0.1)
        assert kinds(seen)[-1] == "done"

    run_scenario(scene, **FAST, when_all_open="wait")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"hedge_after": 3.0, "hedge_probe_after": None}, Reason.TIMEOUT),
        ({"hedge_probe_after": 3.0}, Reason.CIRCUIT_OPEN),
        ({"per_call_timeout": 3.0, "hedge_probe_after": None}, Reason.TIMEOUT),
    ],
    ids=["hedge", "probe", "kept"],
)
def test_an_overlap_is_reported_as_a_fallback(settings: dict[str, Any], reason: Reason) -> None:
    """Previews name their provider, including those of the request that is cancelled in the end."""
    seen: list[Progress] = []
    google = Previewing("google", latency=100.0)
    google.previews_at = (1.0, 4.0)

    async def scene(scenario: OverlapScenario) -> None:
        if settings.get("hedge_probe_after"):
            await scenario.make_probe_due()
        await scenario.ask(on_progress=seen.append, partial_images=2)
        assert steps(seen) == [
            ("sending", "google"), ("partial_image", "google"), ("falling_back", "openai"),
            ("sending", "openai"), ("partial_image", "google"), ("finishing", "openai"),
            ("done", "openai"),
        ]  # fmt: skip
        assert seen[2].reason is reason
        await scenario.client._pipeline.background.aclose()

    run_overlap(scene, google, **settings)


def test_each_of_several_images_has_its_steps() -> None:
    """The first image is requested alone, and the call ends with one event."""
    seen: list[Progress] = []

    async def scene(scenario: PipelineScenario) -> None:
        result = await scenario.ask(n=3, on_progress=seen.append)
        assert len(result.images) == 3
        others = [kind for kind in kinds(seen)[2:-1] if kind != "queued"]
        assert sorted(others) == ["finishing", "finishing", "sending", "sending"]
        assert kinds(seen)[:2] == ["sending", "finishing"]
        assert kinds(seen).count("done") == 1
        assert kinds(seen)[-1] == "done"

    run_scenario(scene, **FAST)


def test_a_failed_call_has_no_final_event() -> None:
    """The error ends the call instead."""
    seen: list[Progress] = []

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.CONTENT_BLOCKED, status=400)
        with pytest.raises(ImageGenerationError):
            await scenario.ask(on_progress=seen.append)
        assert kinds(seen) == ["sending"]

    run_scenario(scene, **FAST)


# -- partial images -------------------------------------------------------------------------------


def run_with_previews(scene: Callable[[OverlapScenario, Previewing], Any], **settings: Any) -> None:
    google = Previewing("google")

    async def main(scenario: OverlapScenario) -> None:
        await scene(scenario, google)

    run_overlap(main, google, **{"hedge_probe_after": None, "on_timeout": "abandon", **settings})


def test_previews_are_delivered_during_the_request() -> None:
    """Previews are numbered from 1 and delivered in the order in which the provider sent them."""
    seen: list[tuple[float, Progress]] = []

    async def scene(scenario: OverlapScenario, google: Previewing) -> None:
        await scenario.ask(partial_images=2, on_progress=lambda each: seen.append((now(), each)))
        assert [at for at, _ in seen[1:3]] == [pytest.approx(0.6), pytest.approx(0.8)]
        assert [each.position for _, each in seen[1:3]] == [1, 2]
        assert [each.image_bytes for _, each in seen[1:3]] == [b"0 of google", b"1 of google"]
        assert "of google" not in repr(seen[1][1])

    run_with_previews(scene)


@pytest.mark.parametrize("number", [0, None])
def test_without_previews_the_provider_gets_no_listener(number: int | None) -> None:
    """The provider receives the same request object as from a call without progress."""

    async def scene(scenario: OverlapScenario, google: Previewing) -> None:
        await scenario.ask(partial_images=number, on_progress=lambda _: None)
        request = google.sent[0].request
        assert request.partial_images is None
        assert request.on_partial_image is None
        assert request.on_response is None

    run_with_previews(scene)


def test_previews_without_a_receiver_are_refused() -> None:
    """Requesting previews without a callback is an error: they would be paid for and dropped."""

    async def scene(scenario: OverlapScenario, google: Previewing) -> None:
        with pytest.raises(InvalidRequestError, match="partial_images 2 has no receiver"):
            await scenario.ask(partial_images=2)
        with pytest.raises(InvalidRequestError, match="on_progress must be callable"):
            await scenario.ask(on_progress=3)
        assert google.sent == []

    run_with_previews(scene)


def test_previews_of_each_request_are_numbered_from_1() -> None:
    """The numbers of a retry start at 1.

    A request that failed after a preview may have been billed.
    """
    seen: list[Progress] = []

    async def scene(scenario: OverlapScenario, google: Previewing) -> None:
        google.fail(Reason.OVERLOADED, latency=0.7, status=503)
        await scenario.ask(partial_images=2, on_progress=seen.append)
        assert [(e.provider, e.position) for e in seen if e.kind == "partial_image"] == [
            ("google", 1), ("google", 1)
        ]  # fmt: skip
        assert [each.may_have_been_billed for each in scenario.requests("google")] == [True, True]

    run_with_previews(scene, max_retries=1)


@pytest.mark.parametrize(
    ("headers", "latency", "silent"),
    [
        (0.5, 30.0, False), (9.0, 30.0, False), (12.0, 30.0, True), (999.0, 30.0, True),
        (999.0, 9.0, False),
    ],
)  # fmt: skip
def test_a_request_without_a_response_for_ten_seconds_is_silent(
    headers: float, latency: float, silent: bool
) -> None:
    """The flag is set for requests that fail and for those that deliver later."""

    async def scene(scenario: OverlapScenario, google: Previewing) -> None:
        google.headers, google.previews_at, google.latency = headers, (), latency
        await scenario.ask(partial_images=1, on_progress=lambda _: None)
        google.fail(Reason.TIMEOUT, latency=latency, times=1)
        await scenario.ask(partial_images=1, on_progress=lambda _: None)
        delivered, failed = scenario.requests("google")[:2]
        assert [delivered.silent, failed.silent] == [silent, silent]
        google.latency = 30.0
        await scenario.ask()  # not a stream, so nothing can be said
        assert not scenario.requests("google")[-1].silent

    run_with_previews(scene, per_call_timeout=60)


def test_only_providers_that_stream_can_be_silent() -> None:
    """A provider without streams has no early response, so its requests are never silent."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.latency = 30.0
        await scenario.ask(partial_images=1, on_progress=lambda _: None)
        assert [each.silent for each in scenario.events.attempts] == [False]

    run_scenario(scene, **FAST)


# -- callbacks ------------------------------------------------------------------------------------


def raises(_: Progress) -> None:
    raise ValueError("a secret")


async def raises_later(_: Progress) -> None:
    await asyncio.sleep(0)
    raise ValueError("a secret")


def cancels(_: Progress) -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize("callback", [raises, raises_later, cancels])
def test_a_callback_that_raises_affects_nothing(
    callback: Callable[[Progress], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Each failure is logged by its type; the result is unchanged, and all events are delivered."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503, times=1)
        with caplog.at_level(logging.WARNING, "resilient_imagen"):
            result = await scenario.ask(on_progress=callback)
        assert result.provider == "google"
        assert "on_progress failed" in caplog.text
        assert "secret" not in caplog.text
        assert scenario.idle()

    run_scenario(scene, **FAST)


def test_an_exit_of_the_program_is_not_caught() -> None:
    """KeyboardInterrupt in a callback propagates."""

    def interrupt(_: Progress) -> None:
        raise KeyboardInterrupt

    async def scene(scenario: PipelineScenario) -> None:
        with pytest.raises(KeyboardInterrupt):
            await scenario.ask(on_progress=interrupt)
        assert scenario.idle()

    run_scenario(scene, **FAST)


def test_a_slow_async_callback_does_not_delay_the_call() -> None:
    """The status events of a slow callback are queued in order, and it continues after the call."""
    seen: list[tuple[float, str]] = []

    async def slow(event: Progress) -> None:
        seen.append((now(), event.kind))
        await asyncio.sleep(3)

    async def scene(scenario: PipelineScenario) -> None:
        await scenario.ask(on_progress=slow)
        assert now() == pytest.approx(1.0)
        await asyncio.sleep(20)
        assert seen == [(0.0, "sending"), (3.0, "finishing"), (6.0, "done")]

    run_scenario(scene, **FAST)


def test_a_slow_callback_that_raises_a_cancellation_gets_its_other_events() -> None:
    """A CancelledError raised by the callback itself is handled like any other failure."""
    seen: list[str] = []

    async def slow(event: Progress) -> None:
        seen.append(event.kind)
        await asyncio.sleep(3)
        raise asyncio.CancelledError

    async def scene(scenario: PipelineScenario) -> None:
        await scenario.ask(on_progress=slow)
        await asyncio.sleep(20)
        assert seen == ["sending", "finishing", "done"]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_scenario(scene, **FAST)


def test_a_callback_that_hangs_is_cancelled_after_its_call() -> None:
    """The callback is cancelled ten seconds after the call, and no task is left."""

    async def hang(_: Progress) -> None:
        await asyncio.Event().wait()

    async def scene(scenario: PipelineScenario) -> None:
        await scenario.ask(on_progress=hang)
        assert now() == pytest.approx(1.0)
        await asyncio.sleep(9.9)
        assert len(asyncio.all_tasks()) == 2
        await asyncio.sleep(0.2)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_scenario(scene, **FAST)


def test_a_quick_async_callback_has_all_events_when_its_call_returns() -> None:
    """All events are delivered before the call returns, because the program may end then."""
    seen: list[Progress] = []

    async def quick(event: Progress) -> None:
        await asyncio.sleep(0)
        seen.append(event)

    async def scene(scenario: PipelineScenario) -> None:
        await scenario.ask(on_progress=quick)
        assert kinds(seen) == ["sending", "finishing", "done"]

    run_scenario(scene, **FAST)


def test_a_slow_consumer_gets_the_newest_preview_of_each_route() -> None:
    """Older previews are dropped to limit memory; all other events are kept."""
    buffer = ProgressBuffer()
    buffer.put(Progress("sending", "a", "m"))
    for number in range(100):
        for provider in ("a", "b"):
            buffer.put(Progress("partial_image", provider, "m", number))
    buffer.put(Progress("done", "a", "m"))
    left = list(iter(buffer.take, None))
    assert [(each.kind, each.provider, each.position) for each in left] == [
        ("sending", "a", None), ("partial_image", "a", 99), ("partial_image", "b", 99),
        ("done", "a", None),
    ]  # fmt: skip


def test_the_number_of_waiting_events_is_limited() -> None:
    """The oldest events are dropped, but never the final one."""
    buffer = ProgressBuffer()
    for number in range(1000):
        buffer.put(Progress("retrying", wait_s=number))
    left = list(iter(buffer.take, None))
    assert [each.wait_s for each in left] == list(range(1000 - 64, 1000))


@pytest.mark.parametrize("streams", [False, True])
def test_cancelled_at_every_await_nothing_leaks(streams: bool) -> None:
    """Each call with a callback or a stream is cancelled one suspension later than the previous
    one.
    """

    async def scene(scenario: PipelineScenario) -> None:
        async def on_progress(_: Progress) -> None:
            await asyncio.sleep(0.01)

        async def stream() -> None:
            async with scenario.client.stream("a fox") as events:
                async for _ in events:
                    pass
                await events.result()

        step = 1
        while step < 100:
            scenario.google.fail(Reason.OVERLOADED, status=503, times=1)
            canceller = CancelAtStep(step)
            call = stream() if streams else scenario.ask(on_progress=on_progress)
            task = await canceller.run(call)
            assert task.cancelled() or task.exception() is None
            assert scenario.idle(), step
            reached = task.cancelled() or canceller.steps >= step
            scenario.google.heal()
            await asyncio.sleep(1300)
            assert asyncio.all_tasks() == {asyncio.current_task()}
            if not reached:
                break
            step += 1
        assert 4 < step < 100

    run_scenario(scene, **FAST)


# -- the stream -----------------------------------------------------------------------------------


def test_a_stream_yields_the_steps_and_has_the_result() -> None:
    """A stream yields all events and has the result, with and without its `async with` block."""

    async def scene(scenario: PipelineScenario) -> None:
        async with scenario.client.stream("a fox") as events:
            seen = [event async for event in events]
            result = await events.result()
        assert kinds(seen) == ["sending", "finishing", "done"]
        assert seen[-1].image_bytes is result.image_bytes == TINY_PNG
        assert [each.kind async for each in scenario.client.stream("a fox")] == kinds(seen)
        edited = scenario.client.stream_edit(TINY_PNG, "more red")
        assert (await edited.result()).image_bytes == TINY_PNG
        assert [each.kind async for each in edited] == kinds(seen)

    run_scenario(scene, **FAST)


def test_a_stream_raises_the_error_of_its_call() -> None:
    """The iteration raises the error once, and each request for the result raises it."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.CONTENT_BLOCKED, status=400)
        async with scenario.client.stream("a fox") as events:
            assert (await anext(events)).kind == "sending"
            with pytest.raises(ImageGenerationError):
                await anext(events)
            assert await anext(events, None) is None
            with pytest.raises(ImageGenerationError):
                await events.result()
        with pytest.raises(InvalidRequestError):
            await anext(scenario.client.stream(""))

    run_scenario(scene, **FAST)


def test_leaving_the_block_cancels_the_call() -> None:
    """The connection is closed before the block has ended."""

    async def scene(scenario: PipelineScenario) -> None:
        async with scenario.client.stream("a fox") as events:
            await anext(events)
            assert scenario.google.in_flight == 1
        assert scenario.idle()
        with pytest.raises(RuntimeError, match="closed before"):
            await events.result()
        assert [each async for each in events] == []
        async with scenario.client.stream("a fox"):
            pass
        assert scenario.idle()

    run_scenario(scene, **FAST)


def test_dropping_a_stream_cancels_its_call() -> None:
    """A stream that is dropped without a block leaves no task."""

    async def scene(scenario: PipelineScenario) -> None:
        async for _ in scenario.client.stream("a fox"):
            break
        await asyncio.sleep(0.1)
        assert scenario.idle()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_scenario(scene, **FAST)


def test_a_slow_consumer_does_not_delay_the_call() -> None:
    """The image is generated meanwhile, and only the newest preview is kept."""

    async def scene(scenario: OverlapScenario, google: Previewing) -> None:
        async with scenario.client.stream("a fox", partial_images=2) as events:
            await anext(events)
            await asyncio.sleep(100)
            rest = [event async for event in events]
            result = await events.result()
        assert kinds(rest) == ["partial_image", "finishing", "done"]
        assert rest[0].position == 2
        assert result.latency_s == pytest.approx(1.0)

    run_with_previews(scene)
