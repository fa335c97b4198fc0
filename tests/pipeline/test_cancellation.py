"""Cancellation at any moment leaks nothing and does not affect other callers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_kit import FAST, CancelAtStep, PipelineScenario, now, run_scenario

from resilient_imagen import ImageGenerationError, Reason
from resilient_imagen.circuitbreaker import CircuitBreaker

Script = Callable[[PipelineScenario], None]


def healthy(scenario: PipelineScenario) -> None:
    del scenario


def overloaded(scenario: PipelineScenario) -> None:
    scenario.google.fail(Reason.OVERLOADED, status=503)


def hanging(scenario: PipelineScenario) -> None:
    scenario.google.hang()


def throttled(scenario: PipelineScenario) -> None:
    scenario.google.fail(Reason.RATE_LIMITED, status=429, retry_after=3.0, times=2)


def all_down(scenario: PipelineScenario) -> None:
    scenario.google.fail(Reason.CONNECTION)
    scenario.openai.hang()


SCRIPTS = (healthy, overloaded, hanging, throttled, all_down)


def breaker_of(scenario: PipelineScenario) -> CircuitBreaker:
    return scenario.client._routing.routes[0].breaker


async def settled(scenario: PipelineScenario, probes: int = 1) -> None:
    """Check that nothing is held after every caller is gone, and that a healthy call works."""
    assert scenario.idle()
    assert not [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
    scenario.google.heal()
    scenario.openai.heal()
    await asyncio.sleep(1300)
    for _ in range(probes):
        result = await scenario.ask()
        assert result.provider == "google"
    assert scenario.state() == "closed"


async def cancelled_at_step(scenario: PipelineScenario, step: int, options: dict[str, Any]) -> bool:
    """Cancel one call when it suspends for the ``step``-th time; return whether it did."""
    canceller = CancelAtStep(step)
    task = await canceller.run(scenario.ask(**options))
    if task.cancelled():
        return True
    error = task.exception()
    assert error is None or isinstance(error, ImageGenerationError), error
    return canceller.steps >= step


@pytest.mark.no_cover
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
@pytest.mark.parametrize("deadline", [None, 25.0], ids=["no-deadline", "deadline"])
@pytest.mark.parametrize("probing", [False, True], ids=["closed", "probing"])
def test_cancelled_at_every_await_nothing_leaks(
    script: Script, deadline: float | None, probing: bool
) -> None:
    """Each call is cancelled one suspension later than the previous one; nothing leaks."""

    async def scene(scenario: PipelineScenario) -> None:
        async def on_start() -> None:
            await asyncio.sleep(0.01)

        step = 1
        while step < 100:
            if probing:
                breaker_of(scenario).force_trip(cause="overloaded")
                await asyncio.sleep(1300)
            script(scenario)
            reached = await cancelled_at_step(
                scenario, step, {"deadline": deadline, "on_start": on_start}
            )
            assert scenario.idle(), step
            scenario.google.heal()
            scenario.openai.heal()
            await asyncio.sleep(1300)  # any breaker is due again
            if not reached:
                break
            step += 1
        assert 4 < step < 100
        await settled(scenario)

    run_scenario(scene, **FAST)


Caller = tuple[float, float | None, float | None]
"""Arrival in seconds, seconds until cancellation or None, and a deadline or None."""


def test_a_probe_whose_holder_leaves_the_queue_is_free_for_the_next() -> None:
    """A caller that gives up in the queue returns its permit; the next caller probes."""

    async def scene(scenario: PipelineScenario) -> None:
        breaker, limiter = breaker_of(scenario), scenario.client._routing.routes[0].limiter
        breaker.force_trip(cause="overloaded")
        await asyncio.sleep(1300)
        with limiter.join() as blocker:
            await blocker.granted
            task = asyncio.create_task(scenario.ask())
            await asyncio.sleep(1)
            assert not breaker.allows_calls()
            task.cancel()
            await asyncio.wait({task})
            assert breaker.allows_calls()

    run_scenario(scene, max_concurrent=1)


def test_a_slot_granted_as_the_circuit_opens_is_not_used() -> None:
    """A slot that the failure that opens the circuit frees is not used for a request."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.UNAUTHENTICATED, status=401)
        results = await asyncio.gather(*(scenario.ask() for _ in range(3)))
        assert [result.provider for result in results] == ["openai"] * 3
        assert len(scenario.google.sent) == 1

    run_scenario(scene, max_concurrent=1, **FAST)


def test_a_route_that_opens_while_its_sdk_is_built_gets_nothing() -> None:
    """A call checks the breaker again after every wait and sends nothing if it is open."""

    async def scene(scenario: PipelineScenario) -> None:
        async def warm_up() -> None:
            await asyncio.sleep(1)

        scenario.google.warm_up = warm_up  # type: ignore[attr-defined]
        task = asyncio.create_task(scenario.ask())
        await asyncio.sleep(0.5)
        breaker_of(scenario).force_trip(cause="overloaded")
        assert (await task).fallback_reason == "circuit_open"
        assert scenario.google.sent == []

    run_scenario(scene)


@settings(max_examples=40, deadline=None)
@given(
    callers=st.lists(
        st.tuples(st.floats(0, 90), st.none() | st.floats(0, 200), st.none() | st.floats(1, 120)),
        min_size=1,
        max_size=14,
    ),
    script=st.sampled_from(SCRIPTS),
    max_concurrent=st.integers(1, 4),
    half_open=st.integers(1, 2),
)
def test_random_cancellations_and_deadlines_leak_nothing(
    callers: list[Caller],
    script: Script,
    max_concurrent: int,
    half_open: int,
) -> None:
    """With random arrivals, cancellations and deadlines, calls end in time and nothing leaks."""

    async def caller(scenario: PipelineScenario, one: Caller) -> None:
        start, leave, deadline = one
        await asyncio.sleep(start)
        began = now()
        task = asyncio.create_task(scenario.ask(deadline=deadline))
        if leave is not None:
            asyncio.get_running_loop().call_later(leave, task.cancel)
        await asyncio.wait({task})
        if deadline is not None:
            assert now() - began <= deadline + 0.01
        if not task.cancelled():
            error = task.exception()
            assert error is None or isinstance(error, ImageGenerationError), error

    async def scene(scenario: PipelineScenario) -> None:
        script(scenario)
        await asyncio.gather(*(caller(scenario, one) for one in callers))
        await settled(scenario, probes=half_open)

    run_scenario(scene, ipm=60, max_concurrent=max_concurrent, breaker_half_open_calls=half_open)
