"""``on_start`` is called once, just before the first request, and does not affect the call."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from pipeline_kit import FAST, PipelineScenario, now, run_scenario

from resilient_imagen import DeadlineExceededError, InvalidRequestError, ProviderResult, Reason
from resilient_imagen.request import ImageRequest


def others() -> set[asyncio.Task[Any]]:
    """Return the tasks that run beside the test's task."""
    return asyncio.all_tasks() - {asyncio.current_task()}


def test_it_fires_when_the_first_request_leaves_not_when_the_caller_queues() -> None:
    """``on_start`` of a queued caller is called when its first request is sent."""
    started: list[float] = []

    async def scene(scenario: PipelineScenario) -> None:
        await asyncio.gather(
            *(scenario.ask(on_start=lambda: started.append(now())) for _ in range(2))
        )
        assert started == [pytest.approx(sent.at) for sent in scenario.google.sent]
        assert started[1] == pytest.approx(6.0, abs=0.01)

    run_scenario(scene)


def test_it_fires_once_for_several_requests() -> None:
    """Retries and the fallback do not call ``on_start`` again."""
    started: list[float] = []

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503)
        await scenario.ask(on_start=lambda: started.append(now()))
        assert len(started) == 1

    run_scenario(scene, **FAST)


def test_it_is_called_with_slot_and_permit_held() -> None:
    """``on_start`` sees its call in flight before any request is sent."""
    seen: list[tuple[int, int]] = []

    async def scene(scenario: PipelineScenario) -> None:
        def on_start() -> None:
            queue = scenario.client.snapshot()["routes"][0]["queue"]
            seen.append((queue["in_flight"], len(scenario.google.sent)))

        await scenario.ask(on_start=on_start)
        assert seen == [(1, 0)]

    run_scenario(scene)


@pytest.mark.parametrize("takes", [0.0, 0.5, 30.0])
def test_the_request_does_not_wait_for_an_async_callback(takes: float) -> None:
    """The request starts at the same moment as an async callback and is not delayed by it."""
    started: list[float] = []

    async def scene(scenario: PipelineScenario) -> None:
        async def on_start() -> None:
            started.append(now())
            await asyncio.sleep(takes)

        await scenario.ask(on_start=on_start)
        assert [sent.at for sent in scenario.google.sent] == [0.0]
        assert started == [0.0]
        assert now() == pytest.approx(1.0)
        assert others() == set()

    run_scenario(scene)


def test_it_is_not_called_for_a_request_that_the_breaker_refuses_meanwhile() -> None:
    """If the breaker opens during queueing, ``on_start`` is called for the fallback's request."""
    started: list[float] = []

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.UNAUTHENTICATED, status=401, latency=2.0)

        async def on_start() -> None:
            started.append(now())
            await asyncio.sleep(1)

        await asyncio.gather(scenario.ask(), scenario.ask(on_start=on_start))
        assert started == [pytest.approx(scenario.openai.sent[-1].at, abs=0.001)]

    run_scenario(scene)


def in_group() -> None:
    raise BaseExceptionGroup("several", [asyncio.CancelledError(), ValueError("mine")])


def raises() -> None:
    raise RuntimeError("mine")


class OtherBaseException(BaseException):
    """A BaseException that neither is an Exception nor ends the program."""


def raises_odd() -> None:
    raise OtherBaseException


def raises_cancelled() -> None:
    raise asyncio.CancelledError


def closes() -> None:
    raise GeneratorExit


async def async_raises() -> None:
    raise RuntimeError("mine")


async def async_odd() -> None:
    raise OtherBaseException


async def async_group() -> None:
    in_group()


async def hangs() -> None:
    await asyncio.Event().wait()


async def cancels_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def nested() -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(asyncio.wait_for(hangs(), 100))


def foreign_future() -> asyncio.Future[None]:
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        return loop.create_future()


CALLBACKS = [
    raises, raises_odd, raises_cancelled, closes, in_group, async_raises, async_odd, async_group,
    hangs, cancels_itself, nested, foreign_future,
]  # fmt: skip


@pytest.mark.parametrize("callback", CALLBACKS, ids=lambda callback: callback.__name__)
def test_a_failing_callback_does_not_affect_the_call(
    callback: Callable[[], object], caplog: pytest.LogCaptureFixture
) -> None:
    """A failing or slow ``on_start`` costs no time, leaves no task and is logged."""

    async def scene(scenario: PipelineScenario) -> None:
        result = await scenario.ask(on_start=callback)
        assert result.provider == "google"
        assert now() == pytest.approx(1.0)
        assert others() == set()

    with caplog.at_level(logging.WARNING, "resilient_imagen"):
        run_scenario(scene)
    lines = [line.getMessage() for line in caplog.records if line.name == "resilient_imagen"]
    assert all(line.startswith("on_start") for line in lines)
    assert len(lines) == (callback is not cancels_itself)


async def fails_later() -> None:
    raise LookupError("a secret")


def fails_at_once() -> None:
    raise LookupError("a secret")


@pytest.mark.parametrize(
    ("callback", "line"),
    [
        (fails_at_once, "on_start failed: LookupError"),
        (fails_later, "on_start failed: LookupError"),
        (hangs, "on_start was not done when the call was, and is cancelled"),
    ],
)
def test_the_log_names_the_type_of_its_failure_and_not_its_text(
    callback: Callable[[], object], line: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A failure is logged once per call, as a warning with the exception's type only."""

    async def scene(scenario: PipelineScenario) -> None:
        await scenario.ask(on_start=callback)

    with caplog.at_level(logging.WARNING, "resilient_imagen"):
        run_scenario(scene)
    assert [
        (record.levelname, record.getMessage())
        for record in caplog.records
        if record.name == "resilient_imagen"
    ] == [("WARNING", line)]


@pytest.mark.parametrize(
    "ending",
    [KeyboardInterrupt(), SystemExit(3), BaseExceptionGroup("both", [KeyboardInterrupt()])],
    ids=repr,
)
def test_the_end_of_the_program_passes(ending: BaseException) -> None:
    """KeyboardInterrupt and SystemExit propagate from ``on_start``, and nothing stays held."""

    def ends() -> None:
        raise ending

    async def scene(scenario: PipelineScenario) -> None:
        with pytest.raises(type(ending)):
            await scenario.ask(on_start=ends)
        assert scenario.google.sent == []
        assert scenario.idle()

    run_scenario(scene, **FAST)


async def ignore_cancellation() -> None:
    """Ignore the first cancellation for an hour."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.sleep(3600)


@pytest.mark.parametrize("how", ["deadline", "cancelled", "served", "failed"])
def test_a_callback_that_ignores_cancellation_does_not_delay_the_call(how: str) -> None:
    """A callback that ignores cancellation delays neither results, errors nor cancellation."""

    complaints: list[object] = []

    async def scene(scenario: PipelineScenario) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, found: complaints.append(found))
        if how in {"deadline", "cancelled"}:
            scenario.google.hang()
        if how == "failed":
            scenario.google.fail(Reason.INVALID_REQUEST, status=400, latency=1.0)
        call = asyncio.create_task(
            scenario.ask(on_start=ignore_cancellation, deadline=1.0 if how == "deadline" else None)
        )
        if how == "cancelled":
            await asyncio.sleep(1)
            call.cancel()
        await asyncio.wait({call})
        assert now() == pytest.approx(1.0, abs=0.01)
        assert call.cancelled() == (how == "cancelled")
        error = None if call.cancelled() else call.exception()
        if how == "deadline":
            assert isinstance(error, DeadlineExceededError)
        gc.collect()
        assert len(others()) == 1, "it is not lost either"
        await asyncio.sleep(3601)
        assert others() == set()

    run_scenario(scene, **FAST)
    assert complaints == []


def test_it_begins_even_if_the_request_fails_in_the_same_moment() -> None:
    """An async callback without awaits completes even if the request fails at once."""
    started: list[str] = []

    async def on_start() -> None:
        started.append("generating")

    async def scene(scenario: PipelineScenario) -> None:
        async def generate(request: ImageRequest, model: str) -> ProviderResult:
            raise InvalidRequestError("not that")

        scenario.google.generate = generate  # type: ignore[method-assign]
        with pytest.raises(InvalidRequestError):
            await scenario.ask(on_start=on_start)
        assert started == ["generating"]
        assert others() == set()

    run_scenario(scene)


def test_a_callback_that_ends_in_time_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A callback that ends before its call is not logged."""

    async def on_start() -> None:
        await asyncio.sleep(0.5)

    async def scene(scenario: PipelineScenario) -> None:
        await scenario.ask(on_start=on_start)

    with caplog.at_level(logging.WARNING, "resilient_imagen"):
        run_scenario(scene)
    assert [line for line in caplog.records if line.name == "resilient_imagen"] == []


def test_a_call_whose_coroutine_is_closed_leaves_no_task() -> None:
    """Closing a call's coroutine during on_start leaves no task and holds nothing."""
    calls: list[Coroutine[Any, Any, Any]] = []

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.hang()
        call: Awaitable[Any] = scenario.client.generate("a lighthouse", on_start=hangs)
        assert asyncio.iscoroutine(call)
        calls.append(call)
        call.send(None)
        call.close()
        assert scenario.idle()
        await asyncio.sleep(0.1)
        assert others() == set()

    run_scenario(scene, **FAST)


def test_it_does_not_fire_when_nothing_is_sent() -> None:
    """``on_start`` is not called if all routes are skipped."""
    started: list[float] = []

    async def scene(scenario: PipelineScenario) -> None:
        with pytest.raises(Exception, match="skipped by the operator"):
            await scenario.ask(on_start=lambda: started.append(now()))
        assert started == []

    run_scenario(scene, force_open="google,openai")
