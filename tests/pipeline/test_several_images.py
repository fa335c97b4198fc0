"""Several images in one call: requests, delivery, cost and reports, with and without failures."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline_kit import FAST, CancelAtStep, PipelineScenario, now, run_scenario

from resilient_imagen import (
    ImageGenerationError,
    ImageRequest,
    ImageResult,
    InvalidRequestError,
    ProviderResult,
    Reason,
)
from resilient_imagen.telemetry.events import AttemptEnded, AttemptStarted, RequestEnded
from resilient_imagen.testing import TINY_PNG, _Step

COST = 0.134
_OK = _Step(1.0, None)


async def start_past_the_first(
    scenario: PipelineScenario, **options: Any
) -> asyncio.Task[ImageResult]:
    """Start a call and return when its first request is in flight."""
    task = asyncio.create_task(scenario.ask(**options))
    await asyncio.sleep(0.5)
    return task


def assert_paid(scenario: PipelineScenario, images: int) -> None:
    snapshot = scenario.client.snapshot()
    assert snapshot["images"] == images
    assert snapshot["cost_usd"] == pytest.approx(images * COST)


def end_slowly(scenario: PipelineScenario) -> None:
    """Let requests to Google end half a second after they were cancelled."""
    usual = scenario.google.generate

    async def slow_to_end(request: ImageRequest, model: str) -> ProviderResult:
        try:
            return await usual(request, model)
        except asyncio.CancelledError:
            await asyncio.sleep(0.5)
            raise

    scenario.google.generate = slow_to_end  # type: ignore[method-assign]


def test_the_other_images_are_requested_concurrently_after_the_first() -> None:
    """All images are delivered, and the result has the sums of requests, tokens and cost."""

    async def scene(scenario: PipelineScenario) -> None:
        result = await scenario.ask(n=4)

        assert [sent.at for sent in scenario.google.sent] == pytest.approx([0, 1, 1, 1], abs=0.1)
        assert [sent.request.n for sent in scenario.google.sent] == [4, None, None, None]
        assert result.images == (TINY_PNG,) * 4
        assert (result.image_bytes, result.n, result.attempts) == (TINY_PNG, 4, 4)
        assert result.usage["output_tokens"] == 400
        assert result.usage["cost_usd"] == pytest.approx(4 * COST)
        assert result.adjustments == ()
        assert_paid(scenario, 4)
        assert scenario.events.last(RequestEnded).attempts == 4
        assert len({sent.call_id for sent in scenario.events.of(AttemptStarted)}) == 1
        assert len(scenario.events.of(AttemptEnded)) == 4

    run_scenario(scene, **FAST)


def test_the_dict_has_all_images_if_more_than_one_was_requested() -> None:
    """The dict of a call for one image is unchanged.

    With several images the first one has the usual keys.
    """

    async def scene(scenario: PipelineScenario) -> None:
        one, several = (await scenario.ask(n=1)).to_dict(), (await scenario.ask(n=2)).to_dict()
        assert "images" not in one
        assert (
            several["images"]
            == [{"image_base64": one["image_base64"], "mime_type": "image/png"}] * 2
        )
        assert several["image_base64"] == one["image_base64"]
        assert several.keys() - one.keys() == {"images"}

    run_scenario(scene, **FAST)


def test_each_image_takes_a_slot_and_is_paced() -> None:
    """Requests for further images queue like those of other calls."""

    async def scene(scenario: PipelineScenario) -> None:
        assert len((await scenario.ask(n=3)).images) == 3
        assert [sent.at for sent in scenario.google.sent] == pytest.approx([0, 10, 20], abs=0.1)
        assert scenario.events.last(RequestEnded).queue_s == pytest.approx(19, abs=0.1)

        await asyncio.sleep(60)
        scenario.google.latency = 15.0
        scenario.google.max_in_flight = 0
        assert len((await scenario.ask(n=4)).images) == 4
        assert scenario.google.max_in_flight == 2

    run_scenario(scene, ipm=6, max_concurrent=2)


def test_missing_images_are_listed_in_the_adjustments() -> None:
    """If two of four images fail, two are delivered and paid, and the reasons are in the
    adjustments.
    """

    async def scene(scenario: PipelineScenario) -> None:
        task = await start_past_the_first(scenario, n=4)
        scenario.google.fail(Reason.OVERLOADED, status=503, times=1)
        scenario.google.fail(Reason.CONTENT_BLOCKED, times=1)
        result = await task

        assert len(result.images) == 2
        assert result.attempts == 4
        assert result.adjustments == ("2 of 4 images were delivered: content_blocked, overloaded",)
        assert result.usage["cost_usd"] == pytest.approx(2 * COST)
        assert_paid(scenario, 2)
        assert result.fallback_reason is None
        assert not scenario.openai.sent
        assert result.to_dict()["images"][1]["mime_type"] == "image/png"

    run_scenario(scene, **FAST, max_retries=0)


def test_further_images_are_retried_on_their_route() -> None:
    """Further images are retried by the same rules, and do not fall back."""

    async def scene(scenario: PipelineScenario) -> None:
        task = await start_past_the_first(scenario, n=3)
        scenario.google.fail(Reason.OVERLOADED, status=503, times=2)
        result = await task
        assert len(result.images) == 3
        assert result.attempts == 5
        assert scenario.events.last(RequestEnded).retries == 2
        assert scenario.events.last(RequestEnded).backoff_s < 5
        assert not scenario.openai.sent

    run_scenario(scene, **FAST)


def test_further_images_come_from_the_route_of_the_first() -> None:
    """After a fallback the first route gets no further requests."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503)
        result = await scenario.ask(n=3)
        assert (result.provider, len(result.images)) == ("openai", 3)
        assert result.fallback_reason is Reason.OVERLOADED
        assert (len(scenario.google.sent), len(scenario.openai.sent)) == (1, 3)

    run_scenario(scene, **FAST, max_retries=0)


@pytest.mark.parametrize("probes", [1, 2])
def test_with_a_half_open_breaker_the_first_image_is_the_probe(probes: int) -> None:
    """The other images are requested when the breaker admits them, and all are delivered."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.client.breakers["google:gemini-3-pro-image"].open_for(60, cause=None, summary=None)
        await asyncio.sleep(70)
        result = await scenario.ask(n=4)
        assert (result.provider, len(result.images)) == ("google", 4)
        assert [sent.at for sent in scenario.google.sent] == sorted(
            sent.at for sent in scenario.google.sent
        )
        assert scenario.google.sent[1].at >= scenario.google.sent[0].at + 1
        assert scenario.state() == "closed"
        assert [sent.probe for sent in scenario.events.of(AttemptStarted)].count(True) >= 1
        assert scenario.idle()

    run_scenario(scene, **FAST, breaker_half_open_calls=probes)


def test_further_images_wait_for_a_probe_among_them() -> None:
    """A breaker that is half-open after the first image delays the others, and none is dropped."""

    async def scene(scenario: PipelineScenario) -> None:
        task = await start_past_the_first(scenario, n=3)
        breaker = scenario.client.breakers["google:gemini-3-pro-image"]
        breaker.open_for(0.1, cause=None, summary=None)
        result = await task
        assert len(result.images) == 3
        assert scenario.idle()

    run_scenario(scene, **FAST)


def test_an_opening_stops_waiting_requests_for_further_images() -> None:
    """Requests in the queue when the breaker opens are not sent; the result names both reasons."""

    async def scene(scenario: PipelineScenario) -> None:
        task = await start_past_the_first(scenario, n=10)
        scenario.google.fail(Reason.OVERLOADED, status=503)
        result = await task
        assert len(result.images) == 1
        assert result.adjustments == ("1 of 10 images were delivered: circuit_open, overloaded",)
        assert 4 <= len(scenario.google.sent) < 10
        short_circuits = scenario.events.last(RequestEnded).short_circuits
        assert short_circuits == 10 - len(scenario.google.sent)
        assert scenario.state() == "open"
        assert scenario.idle()

    run_scenario(scene, **FAST, max_retries=0, max_concurrent=3, breaker_fail_max=3)


def test_images_that_arrive_before_the_deadline_are_delivered() -> None:
    """Of four images, two arrive.

    The third is cancelled and may have been billed, the fourth leaves the queue.
    """

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.latency = 10.0
        async with asyncio.timeout(25):  # the caller's own, which must not be missed
            result = await scenario.ask(n=4, deadline=25)
        assert len(result.images) == 2
        assert (result.attempts, len(scenario.google.sent)) == (3, 3)
        assert result.adjustments == ("2 of 4 images were delivered: deadline, saturated",)
        assert result.latency_s < 25
        ended = scenario.events.of(AttemptEnded)
        assert [each.reason for each in ended] == [None, None, Reason.DEADLINE]
        assert_paid(scenario, 2)
        assert scenario.client.snapshot()["maybe_billed"]["requests"] == 1
        assert scenario.events.last(RequestEnded).outcome == "success"
        assert scenario.idle()

    run_scenario(scene, **FAST, max_concurrent=1)


def test_a_request_that_is_slow_to_end_does_not_delay_the_images_beyond_the_deadline() -> None:
    """The end of a slow request is recorded and its cost added later, and no task is left then."""

    async def scene(scenario: PipelineScenario) -> None:
        end_slowly(scenario)
        task = await start_past_the_first(scenario, n=3, deadline=25)
        scenario.google.hang()
        result = await task
        assert now() == pytest.approx(25, abs=0.01)
        assert (len(result.images), result.attempts) == (1, 1)
        assert result.adjustments == ("1 of 3 images were delivered: deadline",)
        assert scenario.client.snapshot()["maybe_billed"]["requests"] == 0
        await asyncio.sleep(2)
        assert scenario.client.snapshot()["maybe_billed"]["requests"] == 2
        assert len(scenario.events.of(AttemptEnded)) == 3
        assert scenario.idle()
        assert not [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]

    run_scenario(scene, **FAST)


@pytest.mark.parametrize("leaves_at", [24.95, 25.0])
def test_a_caller_cancelled_at_the_deadline_gets_its_cancellation(leaves_at: float) -> None:
    """The cancellation takes precedence over the images that have arrived."""

    async def scene(scenario: PipelineScenario) -> None:
        end_slowly(scenario)
        task = await start_past_the_first(scenario, n=3, deadline=25)
        scenario.google.hang()
        asyncio.get_running_loop().call_at(leaves_at, task.cancel)
        await asyncio.wait({task})
        assert task.cancelled()
        await asyncio.sleep(2)
        assert scenario.idle()

    run_scenario(scene, **FAST)


def test_no_further_image_is_requested_when_no_time_is_left() -> None:
    """An image that arrives just before the deadline is delivered alone."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, latency=0.0, status=503)
        result = await scenario.ask(n=4, deadline=2.03)
        assert (len(result.images), len(scenario.openai.sent)) == (1, 1)
        assert result.adjustments == ("1 of 4 images were delivered: deadline",)

    run_scenario(scene, **FAST, max_retries=0)


def test_closing_the_client_delivers_the_images_that_have_arrived() -> None:
    """No request continues afterwards."""

    async def scene(scenario: PipelineScenario) -> None:
        task = await start_past_the_first(scenario, n=3)
        scenario.google.hang()
        await asyncio.sleep(1)
        assert scenario.google.in_flight == 2
        closed_at = now()
        await scenario.client.aclose()
        result = await task
        assert now() == pytest.approx(closed_at, abs=0.1)
        assert len(result.images) == 1
        assert result.adjustments == ("1 of 3 images were delivered: cancelled",)
        assert scenario.idle()

    run_scenario(scene, **FAST)


def test_a_local_bug_is_raised_unchanged() -> None:
    """The bug does not count as a missing image, and the other requests are cancelled."""

    async def scene(scenario: PipelineScenario) -> None:
        task = await start_past_the_first(scenario, n=3)
        scenario.google.crash(ZeroDivisionError("ours"), times=1).hang()
        with pytest.raises(ZeroDivisionError, match="ours"):
            await task
        assert now() == pytest.approx(1, abs=0.1)
        assert scenario.idle()

    run_scenario(scene, **FAST)


def test_an_exception_that_ends_the_program_reaches_the_caller() -> None:
    """KeyboardInterrupt is raised by the call, and not in the event loop by a task."""

    async def scene(scenario: PipelineScenario) -> None:
        task = await start_past_the_first(scenario, n=3)
        scenario.google.crash(SystemExit(3), times=1).hang()
        with pytest.raises(SystemExit):
            await task
        assert scenario.idle()

    with pytest.raises(SystemExit):
        run_scenario(scene, **FAST)


@pytest.mark.parametrize("script", ["healthy", "failing", "hanging"])
@pytest.mark.parametrize("deadline", [None, 25.0])
def test_cancelled_at_every_await_nothing_leaks(script: str, deadline: float | None) -> None:
    """The caller gets its cancellation, and no request, slot, permit or task is left."""

    async def scene(scenario: PipelineScenario) -> None:
        for step in range(1, 400):
            scenario.google.heal()
            if script == "failing":
                scenario.google._steps.append(_OK)
                scenario.google.fail(Reason.OVERLOADED, times=2)
            elif script == "hanging":
                scenario.google._steps.append(_OK)
                scenario.google.hang(times=1)
            canceller = CancelAtStep(step)
            task = await canceller.run(scenario.ask(n=3, deadline=deadline or 40))
            assert scenario.idle(), step
            assert not [t for t in asyncio.all_tasks() if t is not asyncio.current_task()], step
            await asyncio.sleep(1300)
            if canceller.steps < step:
                assert task.exception() is None
                break
            # A cancellation that comes with the result may be too late.
            assert task.cancelled() or task.exception() is None
        assert 5 < step < 399
        assert len((await scenario.ask(n=3)).images) == 3

    run_scenario(scene, **FAST)


@given(
    st.lists(st.sampled_from(["ok", "slow", "fail", "block", "hang"]), min_size=10, max_size=10),
    st.integers(1, 5),
    st.sampled_from([None, 3.0, 30.0]),
    st.sampled_from([None, 0.5, 1.5, 6.0]),
)
def test_results_and_requests_agree_under_any_outcomes(
    outcomes: list[str], n: int, deadline: float | None, leaves_after: float | None
) -> None:
    """Images and attempts of the result equal those of the provider, and nothing is held."""

    async def scene(scenario: PipelineScenario) -> None:
        google = scenario.google
        for outcome in outcomes:
            if outcome in {"ok", "slow"}:
                google._steps.append(_Step(1.0 if outcome == "ok" else 5.0, None))
            elif outcome == "hang":
                google.hang(times=1)
            else:
                reason = Reason.OVERLOADED if outcome == "fail" else Reason.CONTENT_BLOCKED
                google.fail(reason, times=1)
        task = asyncio.create_task(scenario.ask(n=n, deadline=deadline or 60))
        if leaves_after is not None:
            await asyncio.wait({task}, timeout=leaves_after)
            task.cancel()
        await asyncio.wait({task})
        assert scenario.idle()
        assert not [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        sent = len(google.sent) + len(scenario.openai.sent)
        ended = scenario.events.of(AttemptEnded)
        assert len(ended) == sent
        delivered = [each for each in ended if each.reason is None]
        assert scenario.client.snapshot()["images"] == len(delivered)
        if task.cancelled():
            assert leaves_after is not None
        elif (error := task.exception()) is not None:
            assert isinstance(error, ImageGenerationError)
            assert len(error.attempts) == sent
        else:
            result = task.result()
            assert result.attempts == sent
            assert len(result.images) == len(delivered)
            short = [each for each in result.adjustments if "images were delivered" in each]
            assert bool(short) == (len(result.images) < n)

    run_scenario(scene, **FAST, max_retries=1)


@pytest.mark.parametrize("n", [0, 11, 1.5, True, "4"])
def test_an_invalid_number_of_images_is_rejected(n: Any) -> None:
    """No request is sent."""

    async def scene(scenario: PipelineScenario) -> None:
        with pytest.raises(InvalidRequestError, match=r"^n "):
            await scenario.ask(n=n)
        assert not scenario.google.sent

    run_scenario(scene, **FAST)
