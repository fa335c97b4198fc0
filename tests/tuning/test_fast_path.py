"""The short cut changes nothing but the time a run takes; the loop keeps asyncio's promises."""

from __future__ import annotations

import asyncio
from typing import Any, Literal
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tuning_kit import ROOMY, SCENARIOS, TIGHT, bad, record, world

from resilient_imagen import Reason, Settings
from resilient_imagen.testing import run_virtual
from resilient_imagen.tuning.engine import _Play, run_simulation
from resilient_imagen.tuning.loop import run_lean
from resilient_imagen.tuning.recorded_outcomes import RecordedOutcomes
from resilient_imagen.tuning.scenario import Scenario, ScenarioOutcomes
from resilient_imagen.tuning.simulation_run import SimulationResult


def summary(played: SimulationResult) -> dict[str, Any]:
    """Everything that a run says, to a millisecond."""
    return {
        "seconds": [round(each, 3) for each in played.seconds],
        "served": list(played.served),
        "sent": sorted(
            (each.call, each.route, round(each.at, 3), str(each.reason)) for each in played.sent
        ),
        "changes": [(round(each.at, 3), each.route, each.state) for each in played.changes],
    }


def both(
    scenario: Scenario, settings: Settings, seed: int = 5
) -> tuple[SimulationResult, SimulationResult]:
    truth = ScenarioOutcomes(scenario, [route.provider for route in settings.routes])
    arrivals = list(scenario.traffic.arrivals(seed))
    return (
        run_simulation(settings, truth, arrivals, seed=seed, short_cut=False),
        run_simulation(settings, truth, arrivals, seed=seed),
    )


HURRIED: dict[str, Any] = {**TIGHT, "deadline": 150, "max_queue": 12}
"""Calls that leave queues by themselves, or are turned away from them."""
LIMITS = {"roomy": ROOMY, "tight": TIGHT, "hurried": HURRIED}
OVERLAPS: dict[str, dict[str, Any]] = {
    "no overlap": {"on_timeout": "abandon", "hedge_probe_after": None},
    "probes only": {"on_timeout": "abandon", "hedge_probe_after": 1},
    "slow requests": {"hedge_after": 25},
    "slow requests by p95": {"hedge_after": "p95"},
    "short queues": {"max_wait": 10},
    "all": {"hedge_after": 30, "max_wait": 5, "deadline": 100},
}
"""Settings for two requests of one call at a time; the defaults are in the other tests."""


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize(
    "name", ["blips", "flapping, 5 minutes of 30", "half hangs", "the other vendor, too"]
)
def test_a_run_with_the_short_cut_equals_one_without(name: str, limits: dict[str, Any]) -> None:
    """Call by call, request by request and opening by opening the same."""
    full, cut = both(SCENARIOS[name], Settings(**limits))
    assert summary(cut) == summary(full)
    assert len(full.changes) > 0 or name == "blips"


@pytest.mark.parametrize("overlap", OVERLAPS.values(), ids=OVERLAPS)
@pytest.mark.parametrize("limits", [ROOMY, TIGHT], ids=["roomy", "tight"])
@pytest.mark.parametrize("name", ["half hangs", "slow, twice", "storyboards"])
def test_a_run_in_which_requests_overlap_equals_one_without_the_short_cut(
    name: str, limits: dict[str, Any], overlap: dict[str, Any]
) -> None:
    """The pipeline takes a call over before its second request can start."""
    full, cut = both(SCENARIOS[name], Settings(**limits, **overlap))
    assert summary(cut) == summary(full)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_every_run_with_the_short_cut_equals_one_without(
    name: str, limits: dict[str, Any], seed: int
) -> None:
    """The same over all worlds, all limits and two seeds."""
    full, cut = both(SCENARIOS[name], Settings(**limits), seed)
    assert summary(cut) == summary(full)


@example(  # the time for the first route ends with the caller's, when the other wants a probe
    fail_max=1, retries=0, reset=30.0, timeout=30.0, slots=1, share=0.3, reason=Reason.TIMEOUT,
    batch=1, slow=None, deadline=30.0, max_queue=None, all_open="fail", both_fail=True, seed=1,
    on_timeout="abandon", probe_after=None, hedge_after=None, max_wait=None,
)  # fmt: skip
@settings(max_examples=50, deadline=None)
@given(
    fail_max=st.integers(1, 4),
    retries=st.integers(0, 3),
    reset=st.sampled_from([5.0, 30.0, 90.0]),
    timeout=st.sampled_from([15.0, 30.0, 60.0]),
    slots=st.integers(1, 6),
    share=st.sampled_from([0.3, 0.7, 1.0]),
    reason=st.sampled_from([Reason.OVERLOADED, Reason.TIMEOUT, Reason.RATE_LIMITED]),
    batch=st.sampled_from([1, 4]),
    slow=st.sampled_from([None, 20.0]),
    deadline=st.sampled_from([None, 30.0, 70.0, 150.0, 600.0]),
    max_queue=st.sampled_from([None, 0, 3, 12]),
    all_open=st.sampled_from(["fail", "wait"]),
    both_fail=st.booleans(),
    on_timeout=st.sampled_from(["keep", "abandon"]),
    probe_after=st.sampled_from([None, 0.5, 3.0, 20.0]),
    hedge_after=st.sampled_from([None, "p95", 15.0, 30.0]),
    max_wait=st.sampled_from([None, 0.0, 7.0, 30.0]),
    seed=st.integers(0, 9),
)
def test_any_settings_agree(
    fail_max: int,
    retries: int,
    reset: float,
    timeout: float,
    slots: int,
    share: float,
    reason: Reason,
    batch: int,
    slow: float | None,
    deadline: float | None,
    max_queue: int | None,
    all_open: Literal["fail", "wait"],
    both_fail: bool,
    on_timeout: Literal["keep", "abandon"],
    probe_after: float | None,
    hedge_after: float | Literal["p95"] | None,
    max_wait: float | None,
    seed: int,
) -> None:
    """The short cut is exact for any settings, slots, deadline and outage."""
    made = Settings(
        breaker_fail_max=fail_max,
        max_retries=retries,
        breaker_reset_timeout=reset,
        breaker_slow_call=slow,
        per_call_timeout=timeout,
        max_concurrent=slots,
        deadline=deadline,
        max_queue=max_queue,
        when_all_open=all_open,
        on_timeout=on_timeout,
        hedge_probe_after=probe_after,
        hedge_after=hedge_after,
        max_wait=max_wait,
    )
    if deadline is not None or max_wait is not None:
        batch = 1  # calls of a batch whose time is up at the same instant may change places
    if max_wait is not None:
        slow = None  # and so may calls that leave a queue when the breaker opens
    other = [bad(0.15, 5, provider="openai")] if both_fail else []
    scenario = world(bad(0.1, 8, share=share, reason=reason), *other, hours=0.4, batch=batch)
    full, cut = both(scenario, made, seed)
    assert summary(cut) == summary(full)


def test_the_short_cut_is_exact_on_recordings_too() -> None:
    """Retries there look at the request before: it must be the same one."""
    recording = record(SCENARIOS["blips"], Settings(**ROOMY))
    made = Settings(**ROOMY, max_retries=3, breaker_fail_max=2)
    truth = RecordedOutcomes(recording, made)
    full = run_simulation(made, truth, recording.asked, short_cut=False)
    cut = run_simulation(made, truth, recording.asked)
    assert summary(cut) == summary(full)


def test_calls_with_a_deadline_take_the_short_cut_too() -> None:
    """Most of them never come near it, and are as fast to play as if they had none."""
    made = Settings(**ROOMY, deadline=240, max_queue=40)
    truth = ScenarioOutcomes(SCENARIOS["blips"], [route.provider for route in made.routes])
    arrivals = list(SCENARIOS["blips"].traffic.arrivals(5))
    with mock.patch.object(_Play, "_climb", autospec=True, side_effect=_Play._climb) as climb:
        played = run_simulation(made, truth, arrivals, seed=5)
    assert len(played.started) > 1000
    assert climb.call_count < len(played.started) / 5


def test_callers_who_cannot_wait_are_not_made_to() -> None:
    """Where deadlines and full queues do bite, calls fail as they should."""
    made = Settings(**TIGHT, deadline=40, max_queue=2)
    full, cut = both(SCENARIOS["hang of 10 minutes"], made)
    assert summary(cut) == summary(full)
    assert list(cut.served).count(-1) > 0


def test_a_local_bug_ends_the_run() -> None:
    """A truth that raises is a bug: it comes out as it is, and does not hang the run."""

    class Broken:
        def outcome_for(self, ask: object) -> Any:
            raise ZeroDivisionError

        def incidents(self) -> Any:
            return ()

    with pytest.raises(ZeroDivisionError):
        run_simulation(Settings(), Broken(), [0.0, 1.0], short_cut=False)


# -- the loop -------------------------------------------------------------------------------------


async def story() -> list[object]:
    """Sleeps, timeouts, cancellation, futures and ties: what the pipeline is made of."""
    loop = asyncio.get_running_loop()
    told: list[object] = []

    async def sleeper(name: str, seconds: float) -> str:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            told.append((loop.time(), name, "cancelled"))
            raise
        told.append((loop.time(), name))
        return name

    tasks = [loop.create_task(sleeper(name, at)) for name, at in [("a", 3), ("b", 1), ("c", 1)]]
    done, _ = await asyncio.wait(tasks, timeout=2)
    told.append((loop.time(), len(done)))
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5):
            await loop.create_future()
    told.append(loop.time())
    told.append(await asyncio.gather(sleeper("d", 2), sleeper("e", 0)))
    return told


def test_the_lean_loop_does_what_the_virtual_one_does() -> None:
    """Same order, same times."""
    assert run_lean(story()) == run_virtual(story())


def test_a_run_that_waits_for_nothing_says_so() -> None:
    """A future that nobody resolves is an error, not a hanging process."""

    async def forever() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="deadlock"):
        run_lean(forever())
