"""The pipeline under every combination of valid settings.

Settings, provider behaviour and callers are drawn at random. Every call must end in time with an
image or a documented error, and must leave nothing behind.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from pipeline_kit import now, run_guarded

from resilient_imagen import (
    ConfigurationError,
    ImageClient,
    ImageGenerationError,
    ImageResult,
    Reason,
    Resolution,
    Settings,
)
from resilient_imagen.circuitbreaker import CircuitBreaker
from resilient_imagen.testing import FakeProvider

pytestmark = pytest.mark.no_cover

ROUTES = (
    "google:gemini-3-pro-image",
    "google:gemini-nano-banana-2.1",
    "openai:gpt-image-2.5-flare",
    "local:m",
)
CHOICES: Mapping[str, Sequence[Any]] = {
    "max_concurrent": (1, 2, 4, 1000),
    "ipm": (0.5, 10, 60, 6000, 1_000_000),
    "openai_ipm": (None, 0.5, 6000),
    "burst": (1, 2, 5, 1000),
    "max_queue": (None, 0, 1, 3),
    "per_call_timeout": (0.5, 5, 60, 600),
    "openai_timeout": (1, 180),
    "deadline": (None, None, 0.01, 1, 30, 105, 600),
    "breaker_mode": ("on", "on", "on", "off", "shadow"),
    "breaker_fail_max": (1, 2, 3, 10),
    "breaker_failure_rate": (0.01, 0.5, 1),
    "breaker_window": (1, 60, 300),
    "breaker_min_calls": (1, 6),
    "breaker_slow_call": (None, None, 0.1, 20),
    "breaker_reset_timeout": (0.5, 60),
    "breaker_reset_factor": (0, 0.1, 5, 1e300),
    "breaker_reset_max": (0.5, 60, 600),
    "breaker_half_open_calls": (1, 2, 5),
    "hedge_probe_after": (3, None, 0.05),
    "hedge_after": (None, "p95", 1.0, 20),
    "hedge_budget": (0.05, 0, 1),
    "on_timeout": ("keep", "keep", "abandon"),
    "max_wait": (None, None, 0, 5),
    "when_all_open": ("fail", "wait"),
    "fit": ("crop", "pad", "none", "exact"),
    "shadow": (None, None, {"fail_max": 1}),
}
RETRIES = ((0, 5.0), (1, 5.0), (2, 5.0), (2, 0.0), (5, 60.0), (20, 0.001), (20, 0.0))
"""Retries and their base delay, drawn together: twenty that double from a minute take a century."""

NO_PART = {
    *("google_api_key", "openai_api_key", "google_base_url", "openai_base_url", "providers"),
    "models",
    *("openai_quality", "prompt_hints", "strict_references", "max_reference_mb"),
    *("reference_http_urls", "reference_private_urls", "redis_url", "capture_content"),
    *("control", "control_secret", "control_file"),
}
"""Settings of providers, references, shared state and telemetry."""

chosen = st.fixed_dictionaries(
    {
        **{name: st.sampled_from(values) for name, values in CHOICES.items()},
        "retries": st.sampled_from(RETRIES),
        "routes": st.lists(st.sampled_from(ROUTES), min_size=1, max_size=3, unique=True),
        "force_open": st.sets(st.sampled_from(["google", "openai"])),
        "fallback_on": st.none() | st.sets(st.sampled_from(Reason), min_size=1),
    }
)

LONGEST_HINT = 86_400.0
HINTS = (None, None, None, 0.0, -1.0, math.nan, math.inf, 1e-9, 2.0, 30.0, 3600.0, 1e12)
HANG, BUG = "hang", "bug"

scripts = st.lists(
    st.tuples(
        st.sampled_from([None, None, *Reason, HANG, HANG, BUG]),
        st.sampled_from([0.0, 0.1, 5.0, 45.0, 400.0]),
        st.sampled_from(HINTS),
        st.sampled_from([1, 2, 3, 30, None]),
    ),
    max_size=6,
)


@dataclass(frozen=True)
class Caller:
    start: float
    leaves_after: float | None
    deadline: float | None
    model: str | None
    resolution: Resolution


callers = st.lists(
    st.builds(
        Caller,
        start=st.sampled_from([0.0, 0.0, 0.1, 61.0]) | st.floats(0, 300),
        leaves_after=st.none() | st.none() | st.sampled_from([0.0, 0.1, 5.0, 50.0]),
        deadline=st.none() | st.none() | st.sampled_from([0.005, 1.0, 20.0, 90.0]),
        model=st.sampled_from([None, None, None, "another-1", "another-2"]),
        resolution=st.sampled_from(["1K", "2K"]),
    ),
    min_size=1,
    max_size=8,
)


def follow(provider: FakeProvider, script: Sequence[tuple[Any, float, float | None, Any]]) -> None:
    """Let the provider follow the script, and then serve."""
    for outcome, latency, hint, times in script:
        if outcome == HANG:
            provider.hang(times=times)
        elif outcome == BUG:
            provider.crash(KeyError("bug"), times=times)
        elif outcome is not None:
            provider.fail(
                outcome,
                times=times,
                latency=latency,
                retry_after=hint,
                account_wide=outcome is Reason.QUOTA_EXHAUSTED,
            )


def longest(made: Settings, calls: int) -> float:
    """Return the seconds in which any call without a deadline has ended.

    The bound is the sum of all requests of all calls in sequence, each after its queue and the
    longest open period, and of the back-offs of one call.
    """
    timeout = max(made.per_call_timeout, made.openai_timeout)
    requests = calls * len(made.routes) * (1 + made.max_retries)
    place = 60 / min(made.ipm, made.openai_ipm or made.ipm)
    opening = max(1.1 * made.breaker_reset_max, LONGEST_HINT)
    back_offs = made.retry_base_delay * 2.0 ** (made.max_retries + 1)
    return requests * (2 * timeout + 2 + place + opening) + back_offs


def watch(breaker: CircuitBreaker, waiting: list[asyncio.Future[None]]) -> None:
    """Record every future that a caller awaits at the breaker."""
    changed = breaker.wait_for_change

    def noted() -> asyncio.Future[None]:
        future = changed()
        waiting.append(future)
        return future

    breaker.wait_for_change = noted  # type: ignore[method-assign]


async def run_callers(
    made: Settings, plans: Sequence[Any], planned_callers: Sequence[Caller]
) -> None:
    """Run the callers; check how each call ends and that nothing leaks."""
    names = ("google", "openai", "local")
    used = {route.provider for route in made.routes}
    providers = [FakeProvider(name) for name in names if name in used]
    for provider, plan in zip(providers, plans, strict=False):
        follow(provider, plan)
    waiting: list[asyncio.Future[None]] = []
    async with ImageClient(made, providers=providers) as client:
        for breaker in client.breakers.values():
            watch(breaker, waiting)
        tasks = [
            asyncio.create_task(one_call(client, made, caller, planned_callers))
            for caller in planned_callers
        ]
        await asyncio.gather(*tasks)
        # A hedged probe goes on without its caller, for its time limit at most.
        await asyncio.sleep(max(made.per_call_timeout, made.openai_timeout))
        for route in client.snapshot()["routes"]:
            assert (route["queue"]["in_flight"], route["queue"]["waiting"]) == (0, 0)
            assert route["breaker"]["probes_in_flight"] == 0
        assert all(future.done() for future in waiting)
        for provider in providers:
            assert provider.in_flight == 0
            # As many requests as run within their limit may be kept beyond it.
            kept = made.max_concurrent if made.on_timeout == "keep" else 0
            assert provider.max_in_flight <= made.max_concurrent + kept
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def one_call(
    client: ImageClient, made: Settings, caller: Caller, planned_callers: Sequence[Caller]
) -> None:
    """Run one call, perhaps cancel it, and check its end."""
    await asyncio.sleep(caller.start)
    began = now()
    task = asyncio.create_task(
        client.generate(
            "x", deadline=caller.deadline, model=caller.model, resolution=caller.resolution
        )
    )
    if caller.leaves_after is not None:
        asyncio.get_running_loop().call_later(caller.leaves_after, task.cancel)
    deadline = made.deadline if caller.deadline is None else caller.deadline
    bound = longest(made, len(planned_callers)) if deadline is None else deadline
    if caller.leaves_after is not None:
        bound = min(bound, caller.leaves_after)
    await asyncio.wait({task}, timeout=bound + 0.01)
    assert task.done(), f"still running after {now() - began} s"
    if task.cancelled():
        assert caller.leaves_after is not None
        return
    error = task.exception()
    assert error is None or isinstance(error, ImageGenerationError | KeyError), repr(error)
    if error is None:
        assert isinstance(task.result(), ImageResult)
    elif isinstance(error, ImageGenerationError):
        assert str(error)
        assert error.reason in Reason


def startable(values: dict[str, Any]) -> Settings | None:
    """Return the settings, or None if they are not valid."""
    values = dict(values)
    retries, delay = values.pop("retries")
    used = {route.partition(":")[0] for route in values["routes"]}
    values["force_open"] = tuple(sorted(values["force_open"] & used))
    try:
        return Settings(max_retries=retries, retry_base_delay=delay, **values)
    except ConfigurationError:
        return None


def test_every_setting_that_a_call_depends_on_is_drawn() -> None:
    """Every setting is either drawn in this test or listed as irrelevant for a call."""
    drawn = {*CHOICES, "max_retries", "retry_base_delay", "routes", "force_open", "fallback_on"}
    assert drawn | NO_PART == set(Settings.model_fields)


def check(values: dict[str, Any], plans: Sequence[Any], planned_callers: Sequence[Caller]) -> None:
    made = startable(values)
    assume(made is not None)
    assert made is not None
    run_guarded(run_callers(made, plans, planned_callers))


any_scenario = given(
    values=chosen, plans=st.tuples(scripts, scripts, scripts), planned_callers=callers
)

DEFAULTS: dict[str, Any] = {
    **{name: Settings.model_fields[name].get_default() for name in CHOICES},
    "retries": (2, 5.0),
    "routes": list(ROUTES[:1]) + list(ROUTES[2:3]),
    "force_open": set(),
    "fallback_on": None,
}
ONE_CALLER = [Caller(0.0, None, None, None, "1K")]


@example(  # the route behind is free, but must not be entered
    values={
        **DEFAULTS,
        "when_all_open": "wait",
        "force_open": {"google"},
        "fallback_on": {Reason.OVERLOADED},
    },
    plans=([], [], []),
    planned_callers=ONE_CALLER,
)
@example(  # the new route's clock began with it, and sees steps that the loop's time cannot show
    values={**DEFAULTS, "breaker_slow_call": 0.1, "routes": ["local:m"]},
    plans=([(HANG, 0.0, None, None)], [], []),
    planned_callers=[Caller(142.06691290343926, None, None, "another-1", "1K")],
)
@settings(max_examples=100, deadline=None)
@any_scenario
def test_any_settings_end_every_call(
    values: dict[str, Any], plans: Sequence[Any], planned_callers: list[Caller]
) -> None:
    """Every call ends within its deadline or a bound, nothing leaks, and no error is unknown."""
    check(values, plans, planned_callers)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@any_scenario
def test_any_settings_end_every_call_thousands_of_times(
    values: dict[str, Any], plans: Sequence[Any], planned_callers: list[Caller]
) -> None:
    """Every call ends within its bound for thousands of examples."""
    check(values, plans, planned_callers)
