"""Queueing: callers that wait, callers that fall back, and requests that are too late to send."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pipeline_kit import FAST, GuardedLoop, PipelineScenario, now, run_guarded, run_scenario

from resilient_imagen import (
    ImageClient,
    ImageGenerationError,
    ImageResult,
    Reason,
    SaturatedError,
    Settings,
)
from resilient_imagen.telemetry.events import AttemptStarted
from resilient_imagen.testing import FakeProvider

IMAGE_LATENCY = 20.0
"""Seconds of a successful request."""


def alone(scene: Callable[[ImageClient, FakeProvider], Awaitable[None]], **chosen: Any) -> None:
    """Run ``scene`` with one provider and one route, whose latency is measured."""

    async def main() -> None:
        local = FakeProvider("local", latency=IMAGE_LATENCY)
        made = Settings(**{"routes": "local:m", **chosen})
        async with ImageClient(made, providers=[local]) as client:
            await asyncio.gather(*(client.generate("x") for _ in range(5)))
            await asyncio.sleep(1000)
            local.sent.clear()
            await scene(client, local)

    run_guarded(main())


async def ask(client: ImageClient, deadline: float | None) -> tuple[Reason | None, float]:
    """Return the reason of one call's error, if any, and the seconds that it took."""
    began = now()
    try:
        await client.generate("x", deadline=deadline)
    except ImageGenerationError as error:
        return error.reason, now() - began
    return None, now() - began


@pytest.mark.no_cover
@pytest.mark.parametrize("deadline", [30, 45, 61, 75, 90, 120])
@pytest.mark.parametrize(
    ("slots", "per_minute"), [(4, 10), (16, 10), (2, 10), (1, 6000), (4, 6000)]
)
def test_callers_of_a_burst_that_cannot_be_served_in_time_fail_at_once(
    slots: int, per_minute: int, deadline: float
) -> None:
    """A caller that would get its slot too late to finish is rejected at once."""
    interval, sent = 60 / per_minute, [0.0] * 40
    for caller in range(40):
        paced = sent[caller - 1] + interval if caller else 0.0
        slot = sent[caller - slots] + IMAGE_LATENCY if caller >= slots else 0.0
        sent[caller] = max(paced, slot)
    possible = sum(at + IMAGE_LATENCY < deadline - 0.1 for at in sent)

    async def scene(client: ImageClient, local: FakeProvider) -> None:
        ends = await asyncio.gather(*(ask(client, deadline) for _ in range(40)))
        assert len(local.sent) == possible
        assert [reason for reason, _ in ends].count(None) == possible
        failed = [(reason, seconds) for reason, seconds in ends if reason is not None]
        assert failed == [(Reason.SATURATED, 0.0)] * (40 - possible)

    alone(scene, max_concurrent=slots, ipm=per_minute)


def test_a_caller_that_need_not_wait_is_always_sent() -> None:
    """A caller that need not queue is sent even with little time left."""

    async def scene(client: ImageClient, local: FakeProvider) -> None:
        local.latency = 5.0
        assert await ask(client, 6.0) == (None, 5.0)

    alone(scene)


def test_a_caller_without_useful_time_takes_no_free_slot() -> None:
    """Less than a millisecond is left: nothing is sent, although a slot and a place are free."""

    async def scene(client: ImageClient, local: FakeProvider) -> None:
        assert await ask(client, 0.0005) == (Reason.DEADLINE, 0.0)
        assert local.sent == []

    alone(scene)


def test_a_retry_that_need_not_wait_reports_no_wait() -> None:
    """Only the first request of the call waited: the slot was in use."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.latency = 5.0
        first = asyncio.create_task(scenario.ask())
        await asyncio.sleep(1)
        scenario.google.fail(Reason.OVERLOADED, status=503, latency=1.0, times=1)
        await asyncio.gather(first, scenario.ask())
        waits = [event.queue_s for event in scenario.events.of(AttemptStarted)]
        assert waits == pytest.approx([0.0, 4.0, 0.0], abs=0.01)

    run_scenario(scene, max_concurrent=1, **FAST)


def test_a_rejected_caller_gets_retry_after() -> None:
    """A rejected caller's retry_after is the usual latency, when the only slot is free again."""

    async def scene(client: ImageClient, local: FakeProvider) -> None:
        first = asyncio.create_task(client.generate("x"))
        await asyncio.sleep(5)
        with pytest.raises(SaturatedError) as caught:
            await client.generate("x", deadline=30)
        assert caught.value.retry_after == pytest.approx(15)
        assert (await ask(client, 40))[0] is None
        await first

    alone(scene, max_concurrent=1, **FAST)


def test_a_slot_that_comes_later_than_expected_is_not_taken() -> None:
    """If the previous request takes long, a caller without enough time left is not sent."""

    async def scene(client: ImageClient, local: FakeProvider) -> None:
        local.latency = 30.0
        first = asyncio.create_task(client.generate("x"))
        await asyncio.sleep(0)
        reason, seconds = await ask(client, 45)
        assert reason is Reason.SATURATED
        assert seconds == pytest.approx(25, abs=0.01)
        await first
        assert len(local.sent) == 1

    alone(scene, max_concurrent=1, **FAST)


def test_a_latency_from_the_model_table_rejects_no_caller() -> None:
    """The model table's latency alone does not reject a caller: images may be faster."""

    async def scene(scenario: PipelineScenario) -> None:
        results = await asyncio.gather(*(scenario.ask(deadline=40) for _ in range(3)))
        assert [result.provider for result in results] == ["google"] * 3

    run_scenario(scene, ipm=10)


def test_a_call_leaves_a_queue_that_takes_too_much_of_its_share() -> None:
    """Callers that Google cannot serve within half of 60 s go to the next route."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.latency = IMAGE_LATENCY
        for _ in range(4):
            await scenario.ask()
        await asyncio.sleep(100)
        asked = now()
        results = await asyncio.gather(*(scenario.ask(deadline=60) for _ in range(5)))
        assert [result.fallback_reason for result in results] == [None, None] + ["saturated"] * 3
        assert [sent.at for sent in scenario.openai.sent] == pytest.approx([asked] * 3, abs=0.1)
        assert scenario.idle()

    run_scenario(scene, ipm=10, openai_ipm=6000)


def test_a_call_does_not_back_off_for_a_retry_that_the_queue_would_reject() -> None:
    """If the queue has grown, a call goes to the next route instead of backing off."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.latency = 10.0
        for _ in range(4):
            await scenario.ask()
        await asyncio.sleep(100)
        scenario.google.fail(Reason.OVERLOADED, status=503, times=1)
        asked = now()
        first = asyncio.create_task(scenario.ask(deadline=60))
        await asyncio.sleep(0)
        others = [asyncio.create_task(scenario.ask()) for _ in range(3)]
        assert (await first).provider == "openai"
        assert scenario.openai.sent[0].at == pytest.approx(asked + 0.1, abs=0.01)
        await asyncio.gather(*others)

    run_scenario(scene, ipm=10, openai_ipm=6000)


class Built(FakeProvider):
    """A provider whose first request builds an SDK slowly."""

    def __init__(self, name: str, seconds: float) -> None:
        super().__init__(name)
        self.building: float | None = seconds

    async def warm_up(self) -> None:
        seconds, self.building = self.building, None
        if seconds is not None:
            await asyncio.sleep(seconds)


@pytest.mark.parametrize("deadline", [30.0, 100.0])
def test_an_sdk_that_is_built_slowly_takes_its_time_from_all_routes(deadline: float) -> None:
    """The first route gets its share of the remaining time, and is not reported as saturated."""

    async def main() -> ImageResult:
        google = Built("google", 0.8 * deadline)
        async with ImageClient(Settings(), providers=[google, FakeProvider("openai")]) as client:
            result = await client.generate("x", deadline=deadline)
            google.hang()
            google.building = 0.8 * deadline
            await asyncio.sleep(100)
            late = await client.generate("x", deadline=deadline)
            assert (late.provider, late.fallback_reason) == ("openai", "timeout")
            assert late.latency_s == pytest.approx(0.9 * deadline + 1, abs=0.01)
        return result

    result = run_guarded(main())
    assert (result.provider, result.fallback_reason) == ("google", None)


@pytest.mark.no_cover
def test_the_loop_of_these_tests_stops_busy_loops() -> None:
    """A busy loop, with or without an await, fails the test instead of hanging it."""

    async def without_await() -> None:
        while asyncio.get_running_loop().time() < math.inf:
            pass

    async def with_await() -> None:
        while now() < math.inf:
            await asyncio.shield(asyncio.sleep(0))

    for spin in (without_await, with_await):
        with pytest.raises(AssertionError, match="something spins"):
            run_guarded(spin())
    assert GuardedLoop.READS_AT_ONE_MOMENT < GuardedLoop.READS


def test_a_failed_request_does_not_count_its_own_slot_against_its_retry() -> None:
    """With one slot, a request that fails early is retried if another one fits in the deadline."""

    async def scene(client: ImageClient, local: FakeProvider) -> None:
        local.fail(Reason.OVERLOADED, times=1, latency=1.0)
        result = await client.generate("x", deadline=1.5 * IMAGE_LATENCY)
        assert result.attempts == 2

    alone(scene, max_concurrent=1, retry_base_delay=0.1, **FAST)
