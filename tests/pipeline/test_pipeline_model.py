"""Compare the whole pipeline with rules from the specification, over random scenarios.

Providers follow random scripts, and callers arrive, wait, leave and set deadlines at random. The
recorded requests are compared with rules for retry, breaker, timeout, deadline and fallback.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_kit import ONE_AT_A_TIME

from resilient_imagen import (
    ImageClient,
    ImageGenerationError,
    ImageResult,
    Reason,
    Settings,
    models,
)
from resilient_imagen.telemetry.events import (
    AttemptEnded,
    AttemptStarted,
    BreakerChanged,
    Event,
    RequestEnded,
)
from resilient_imagen.testing import FakeProvider, RecordingSink, run_virtual

pytestmark = pytest.mark.no_cover

RESET = 60.0
RETRIES = 2
TIMEOUT = {"google": 60.0, "openai": 180.0}
TINY = 1e-3

OUTCOMES = [
    None,
    None,
    Reason.OVERLOADED,
    Reason.RATE_LIMITED,
    Reason.QUOTA_EXHAUSTED,
    Reason.SERVER_ERROR,
    Reason.CONNECTION,
    Reason.NO_IMAGE,
    Reason.CONTENT_BLOCKED,
    Reason.INVALID_RESPONSE,
    "hang",
]
"""The next behaviour of a provider: serve, fail with a reason, or never answer."""

RETRIES_OF = {
    Reason.OVERLOADED: 2,
    Reason.RATE_LIMITED: 2,
    Reason.SERVER_ERROR: 2,
    Reason.CONNECTION: 2,
    Reason.INVALID_RESPONSE: 1,
    Reason.NO_IMAGE: 1,
    Reason.TIMEOUT: 1,
    Reason.QUOTA_EXHAUSTED: 0,
    Reason.CONTENT_BLOCKED: 0,
}
"""How often the same route may be asked again, from the table of reasons."""

FINAL = {Reason.CONTENT_BLOCKED, Reason.INVALID_REQUEST}
NO_VOTE = {Reason.CANCELLED, Reason.DEADLINE}

scripts = st.lists(
    st.tuples(st.sampled_from(OUTCOMES), st.sampled_from([0.1, 5.0, 30.0]), st.integers(1, 4)),
    max_size=8,
)


@dataclass
class Caller:
    start: float
    leaves_after: float | None
    deadline: float | None
    result: ImageResult | None = None
    error: BaseException | None = None
    began: float = 0.0
    ended: float = 0.0


@dataclass
class ObservedCalls:
    """A sink that records events, and the requests without an end event."""

    callers: list[Caller]
    events: list[Event]
    sent: dict[str, int] = field(default_factory=dict)


callers = st.lists(
    st.builds(
        Caller,
        start=st.floats(0, 400) | st.sampled_from([0.0, 100.0]),
        leaves_after=st.none() | st.none() | st.floats(0, 90),
        deadline=st.none() | st.floats(1, 150),
    ),
    min_size=1,
    max_size=16,
)


def script(provider: FakeProvider, steps: list[tuple[Any, float, int]]) -> None:
    for outcome, latency, times in steps:
        if outcome == "hang":
            provider.hang(times=times)
        elif outcome is not None:
            hint = 7.0 if outcome is Reason.RATE_LIMITED and latency > 1 else None
            provider.fail(outcome, times=times, latency=latency, status=503, retry_after=hint)


def run_callers(
    google: Any, openai: Any, planned_callers: list[Caller], **options: Any
) -> ObservedCalls:
    """Run the callers with the scripted providers, and record events."""
    seen = ObservedCalls(planned_callers, [])

    async def call(client: ImageClient, caller: Caller) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(caller.start)
        caller.began = loop.time()
        task = asyncio.create_task(client.generate("a tree", deadline=caller.deadline))
        if caller.leaves_after is not None:
            loop.call_later(caller.leaves_after, task.cancel)
        await asyncio.wait({task})
        caller.ended = loop.time()
        if task.cancelled():
            caller.error = asyncio.CancelledError()
        elif (error := task.exception()) is not None:
            caller.error = error
        else:
            caller.result = task.result()

    async def main() -> None:
        providers = [FakeProvider("google"), FakeProvider("openai", latency=4.0)]
        script(providers[0], google)
        script(providers[1], openai)
        sink = RecordingSink()
        knobs = Settings(
            breaker_reset_timeout=RESET, max_retries=RETRIES, **ONE_AT_A_TIME, **options
        )
        async with ImageClient(knobs, providers=providers, sinks=[sink]) as client:
            await asyncio.gather(*(call(client, caller) for caller in planned_callers))
            for route in client.snapshot()["routes"]:
                assert (route["queue"]["in_flight"], route["queue"]["waiting"]) == (0, 0)
                assert route["breaker"]["probes_in_flight"] == 0
        seen.events = list(sink.events)
        seen.sent = {provider.name: len(provider.sent) for provider in providers}

    run_virtual(main())
    return seen


def check_each_call(seen: ObservedCalls) -> None:
    """Check duration, result and retries of each call."""
    by_call: dict[str, list[AttemptEnded]] = {}
    for event in seen.events:
        if isinstance(event, AttemptEnded):
            by_call.setdefault(event.call_id, []).append(event)
    ends = [event for event in seen.events if isinstance(event, RequestEnded)]
    assert len(ends) == len([c for c in seen.callers if c.leaves_after is None or c.began >= 0])
    for end in ends:
        attempts = by_call.get(end.call_id, [])
        assert end.attempts == len(attempts)
        for provider, timeout in TIMEOUT.items():
            mine = [attempt for attempt in attempts if attempt.provider == provider]
            limit = 1 + (RETRIES if provider == "google" else min(1, RETRIES))
            assert len(mine) <= limit
            for n, attempt in enumerate(mine[:-1], start=1):
                assert attempt.reason is not None
                assert n <= RETRIES_OF[attempt.reason]
            assert all(a.latency_s <= timeout + TINY for a in mine)
        if end.result is not None:
            assert attempts[-1].reason is None
            assert attempts[-1].provider == end.result.provider
            assert (end.result.fallback_reason is None) == (end.result.provider == "google")
        order = [attempt.provider for attempt in attempts]
        assert order == sorted(order)  # google before openai, never back


def check_deadlines(seen: ObservedCalls) -> None:
    """No call exceeds its deadline; each one that stayed got an image or a library error."""
    for caller in seen.callers:
        if caller.deadline is not None:
            assert caller.ended - caller.began <= caller.deadline + TINY
        if caller.leaves_after is not None:
            assert caller.ended - caller.began <= caller.leaves_after + TINY
        elif caller.result is None:
            assert isinstance(caller.error, ImageGenerationError), caller.error
            if caller.error.reason not in FINAL and caller.deadline is None:
                assert caller.error.attempts or caller.error.retry_after is not None


def check_vote(event: AttemptEnded, took: list[float]) -> None:
    """Check the vote: cancelled calls cast none, requests cut short one if they ran long."""
    if event.cut_short:
        typical = models.typical_latency(event.provider, event.model, "2K")
        assert typical is not None
        usual = median(took[-16:]) if len(took) >= 4 else typical
        late = min(1.5 * usual, 0.7 * TIMEOUT[event.provider])
        if abs(event.latency_s - late) > 2 * TINY:  # else either is right
            allowed = {"throttled"} if event.latency_s > late else {"ignored"}
            assert event.counted in allowed | {"stale"}
    elif event.reason in NO_VOTE:
        assert event.counted in {"ignored", "stale"}
    elif event.reason is None and event.error_type is None:
        took.append(event.latency_s)


def check_breakers(seen: ObservedCalls, half_open: int) -> None:
    """Check that open routes get no request and due ones no more probes than allowed."""
    open_until: dict[str, float] = {}
    probes: dict[str, int] = {}
    took: dict[str, list[float]] = {}
    for event in seen.events:
        if isinstance(event, BreakerChanged):
            name = event.transition.name
            if event.transition.to_state == "open":
                assert event.transition.retry_after is not None
                open_until[name] = event.at + event.transition.retry_after
            elif event.transition.to_state == "closed":
                open_until.pop(name, None)
        if isinstance(event, AttemptStarted):
            name = f"{event.provider}:{event.model}"
            assert event.at >= open_until.get(name, -math.inf) - TINY
            assert event.probe == (name in open_until)
            probes[name] = probes.get(name, 0) + event.probe
            assert probes[name] <= half_open
        if isinstance(event, AttemptEnded):
            check_vote(event, took.setdefault(f"{event.provider}:{event.model}", []))
        if isinstance(event, AttemptEnded) and event.probe:
            probes[f"{event.provider}:{event.model}"] -= 1


def check_all(seen: ObservedCalls, half_open: int) -> None:
    started = [event for event in seen.events if isinstance(event, AttemptStarted)]
    ended = [event for event in seen.events if isinstance(event, AttemptEnded)]
    assert len(started) == len(ended) == sum(seen.sent.values())
    check_each_call(seen)
    check_deadlines(seen)
    check_breakers(seen, half_open)


random_scenarios = given(
    google=scripts,
    openai=scripts,
    planned_callers=callers,
    half_open=st.integers(1, 3),
    slots=st.integers(1, 4),
    ipm=st.sampled_from([10, 60, 6000]),
)


@settings(max_examples=150, deadline=None)
@random_scenarios
def test_random_scenarios_follow_the_rules(
    google: Any, openai: Any, planned_callers: list[Caller], half_open: int, slots: int, ipm: int
) -> None:
    """With random failures and cancellations, all rules hold and nothing leaks."""
    options = {"breaker_half_open_calls": half_open, "max_concurrent": slots, "ipm": ipm}
    check_all(run_callers(google, openai, planned_callers, **options), half_open)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None)
@random_scenarios
def test_many_random_scenarios_follow_the_rules(
    google: Any, openai: Any, planned_callers: list[Caller], half_open: int, slots: int, ipm: int
) -> None:
    """All rules hold for thousands of random scenarios."""
    options = {"breaker_half_open_calls": half_open, "max_concurrent": slots, "ipm": ipm}
    check_all(run_callers(google, openai, planned_callers, **options), half_open)
