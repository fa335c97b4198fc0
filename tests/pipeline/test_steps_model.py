"""Steps with several accounts, compared with rules of the specification over random scripts.

Two accounts of one step and a later step follow random scripts. A sink observes the breakers of the
accounts at the moment at which a call leaves the step.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pipeline_kit import now
from steps_kit import CHAIN, STEP, StepScenario, run_steps

from resilient_imagen import ImageGenerationError, Reason
from resilient_imagen.telemetry.events import (
    AttemptStarted,
    Event,
    RequestEnded,
    RequestStarted,
    RetryScheduled,
    RouteFallback,
)

pytestmark = pytest.mark.no_cover

REASONS = [
    Reason.OVERLOADED,
    Reason.RATE_LIMITED,
    Reason.QUOTA_EXHAUSTED,
    Reason.UNAUTHENTICATED,
    Reason.CONNECTION,
    Reason.NO_IMAGE,
    Reason.SERVER_ERROR,
]
ACCOUNTS = ("google", "google_b")
FAST, MANY = 6000, 20
"""Images per minute and requests in flight that no test reaches."""
SHORTEST_SHARE = 0.9
"""Seconds for which every call may stay on the step; later the reserve of the next step counts."""


@dataclass(frozen=True)
class Outcome:
    """The behaviour of a provider for its next requests."""

    reason: Reason | None
    """None hangs."""
    times: int | None
    retry_after: float | None


@dataclass(frozen=True)
class Caller:
    """A call, with seconds."""

    start: float
    leaves_after: float
    deadline: float


outcomes = st.lists(
    st.builds(
        Outcome,
        reason=st.sampled_from([None, *REASONS]),
        times=st.sampled_from([1, 1, 2, 3, None]),
        retry_after=st.sampled_from([None, None, 0.0, 3.0, 40.0]),
    ),
    max_size=3,
)
scripts = st.fixed_dictionaries(dict.fromkeys((*ACCOUNTS, "openai"), outcomes))
callers = st.lists(
    st.builds(
        Caller,
        start=st.sampled_from([0.0, 0.0, 0.5, 5.0, 60.0]),
        leaves_after=st.sampled_from([math.inf, math.inf, 0.0, 1.05, 7.0]),
        deadline=st.sampled_from([2.0, 15.0, 60.0, 300.0]),
    ),
    min_size=1,
    max_size=5,
)
opened = st.dictionaries(st.sampled_from(ACCOUNTS), st.sampled_from([5.0, 100.0]))
sequential = st.fixed_dictionaries(
    {
        "routes": st.sampled_from([CHAIN, STEP]),
        "max_retries": st.integers(0, 3),
        "ipm": st.sampled_from([FAST, 20]),
        "max_concurrent": st.sampled_from([1, MANY]),
        "max_queue": st.sampled_from([None, 1]),
        "max_wait": st.sampled_from([None, 3.0]),
        "per_call_timeout": st.sampled_from([5.0, 60.0]),
        "breaker_fail_max": st.sampled_from([1, 5]),
        "when_all_open": st.sampled_from(["fail", "wait"]),
    }
)
overlapping = st.fixed_dictionaries(
    {
        "on_timeout": st.sampled_from(["keep", "abandon"]),
        "hedge_probe_after": st.sampled_from([None, 0.5, 3.0]),
        "hedge_after": st.sampled_from([None, 0.5]),
        "hedge_budget": st.just(1.0),
    }
)


class _Rules:
    """A sink that checks the requests of each call to the step."""

    inline = True

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._started: dict[str, float] = {}
        self._sent: Counter[tuple[str, str]] = Counter()
        self._round: Counter[tuple[str, str]] = Counter()
        self.scenario: StepScenario | None = None
        self.broken: list[str] = []

    def handle(self, event: Event) -> None:
        """Check the event."""
        call = event.call_id
        if isinstance(event, RequestStarted):
            self._started[call] = event.at
        elif isinstance(event, RetryScheduled):
            for name in ACCOUNTS:
                del self._round[call, name]
        elif isinstance(event, AttemptStarted) and event.provider in ACCOUNTS:
            self._sent[call, event.provider] += 1
            self._round[call, event.provider] += 1
            self._check_number(call)
        elif isinstance(event, RouteFallback):
            self._check_left(event)

    def _check_number(self, call: str) -> None:
        if self._settings["when_all_open"] == "wait":  # then the step may begin again
            return
        if any(self._round[call, name] > 1 for name in ACCOUNTS):
            self.broken.append(f"an account was asked twice without a back-off: {self._round}")
        retries = sum(max(0, self._sent[call, name] - 1) for name in ACCOUNTS)
        if retries > self._settings["max_retries"]:
            self.broken.append(f"too many retries on the step: {self._sent}")

    def _check_left(self, event: RouteFallback) -> None:
        """Check that a call that leaves the step early has asked every usable account."""
        assert self.scenario is not None
        if (self._settings["ipm"], self._settings["max_concurrent"]) != (FAST, MANY):
            return  # a usable account may be busy for longer than the call can wait
        elapsed = event.at - self._started[event.call_id]
        if elapsed >= SHORTEST_SHARE or event.cause in {Reason.SATURATED, Reason.TIMEOUT}:
            return
        for name in ACCOUNTS:
            if not self._sent[event.call_id, name] and self.scenario.account(name).allows_calls():
                self.broken.append(f"{event}: {name} was usable and got no request")


def _run_traffic(
    script: dict[str, list[Outcome]],
    calls: list[Caller],
    opened_for: dict[str, float],
    settings: dict[str, Any],
) -> None:
    rules = _Rules(settings)

    async def one(scenario: StepScenario, caller: Caller) -> None:
        await asyncio.sleep(caller.start)
        started = now()
        task = asyncio.create_task(scenario.ask(deadline=caller.deadline))
        if (await asyncio.wait({task}, timeout=min(caller.leaves_after, 1000)))[1]:
            task.cancel()
            await asyncio.wait({task})
        assert now() - started <= caller.deadline + 0.01, "a call ends by its deadline"
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            assert isinstance(error, ImageGenerationError), repr(error)
            return
        result = task.result()
        assert (result.fallback_reason is None) is (result.provider in ACCOUNTS), result

    async def scene(scenario: StepScenario) -> None:
        rules.scenario = scenario
        for name, outcomes_of in script.items():
            provider = getattr(scenario, name)
            for step in outcomes_of:
                if step.reason is None:
                    provider.hang(times=step.times)
                else:
                    provider.fail(step.reason, times=step.times, retry_after=step.retry_after)
        for name, seconds in opened_for.items():
            scenario.account(name).open_for(seconds, cause="overloaded", summary="503")
        await asyncio.gather(*(one(scenario, caller) for caller in calls))
        await asyncio.sleep(200)
        assert scenario.idle(), "no permit, slot or place is left"
        assert len(scenario.events.of(RequestEnded)) == len(calls)
        assert not rules.broken

    run_steps(scene, sinks=[rules], **settings)


@given(scripts, callers, opened, sequential)
def test_calls_on_a_step_keep_the_rules(
    script: dict[str, list[Outcome]],
    calls: list[Caller],
    opened_for: dict[str, float],
    settings: dict[str, Any],
) -> None:
    """Each usable account is asked, at most once without a back-off, and nothing leaks."""
    _run_traffic(script, calls, opened_for, settings)


@given(scripts, callers, opened, sequential, overlapping)
@example(  # the image of google arrives when the share of its request ends, and frees its only slot
    {"google": [], "google_b": [Outcome(None, 1, None)], "openai": []},
    [Caller(0.0, math.inf, 2.0)] * 2,
    {},
    {
        "routes": STEP, "max_retries": 2, "ipm": FAST, "max_concurrent": 1, "max_queue": 1,
        "max_wait": 3.0, "per_call_timeout": 60.0, "breaker_fail_max": 5, "when_all_open": "fail",
    },
    {"on_timeout": "keep", "hedge_probe_after": None, "hedge_after": None, "hedge_budget": 1.0},
)  # fmt: skip
def test_calls_with_two_requests_in_flight_keep_the_rules(
    script: dict[str, list[Outcome]],
    calls: list[Caller],
    opened_for: dict[str, float],
    settings: dict[str, Any],
    overlap: dict[str, Any],
) -> None:
    """The rules hold while a request is hedged, or kept beyond its limit."""
    _run_traffic(script, calls, opened_for, {**settings, **overlap})
