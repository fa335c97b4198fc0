"""What a recording says that a request would have met, and what it admits not to know."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from resilient_imagen import Reason, Settings
from resilient_imagen.tuning.outcome_model import (
    NEVER,
    DeterministicRng,
    SimulatedOutcome,
    SimulatedRequest,
)
from resilient_imagen.tuning.recorded_outcomes import ASSUMED_LATENCY, RecordedOutcomes
from resilient_imagen.tuning.recording import Attempted, Recording, gather

ROUTE = "google:gemini-3-pro-image"
FAILED = {"reason": Reason.OVERLOADED}
START = 1e9


def recording(*requests: tuple[float, dict[str, Any]], route: str = ROUTE) -> Recording:
    """Requests at these seconds; each brings an image in ten seconds unless it says otherwise."""
    return gather(
        Attempted(**{"at": START + at, "call": str(at), "route": route, "latency": 10.0, **rest})
        for at, rest in requests
    )


def truth(found: Recording, *, turning: float = 0.5, **settings: Any) -> RecordedOutcomes:
    return RecordedOutcomes(
        found, Settings(routes=f"{ROUTE},openai:m", **settings), turning=turning
    )


def ask(at: float, call: int = 0, route: int = 0, before: float | None = None) -> SimulatedRequest:
    return SimulatedRequest(route, at, DeterministicRng(1, call, route), before)


def every(start: float, end: float, step: float, **rest: Any) -> Iterable[tuple[float, Any]]:
    return [(at, rest) for at in range(int(start), int(end), int(step))]


def share(world: RecordedOutcomes, at: float) -> float:
    """Of a hundred callers at that moment: how many would have failed."""
    return sum(world.outcome_for(ask(at, call)).reason is not None for call in range(100)) / 100


def test_a_request_meets_what_the_nearest_one_met() -> None:
    """Outcome, latency, hint and cost are those of the request nearest in time."""
    hinted = {"reason": Reason.RATE_LIMITED, "hint": 7.0, "latency": 0.5}
    world = truth(recording((0, {"cost": 0.2}), (10, hinted), (20, {"latency": 12.0})))
    assert world.outcome_for(ask(4)) == SimulatedOutcome(None, 10.0, None, 0.2)
    assert world.outcome_for(ask(6)) == SimulatedOutcome(Reason.RATE_LIMITED, 0.5, 7.0, 0.0)
    assert world.outcome_for(ask(16)) == SimulatedOutcome(None, 12.0, None, 0.2)


def test_a_retry_is_not_the_request_that_it_repeats() -> None:
    """Alone between images, a failure is over; among failures, it is not."""
    blip = truth(recording((0, {}), (25, FAILED), (50, {})))
    assert blip.outcome_for(ask(25)).reason is Reason.OVERLOADED
    assert blip.outcome_for(ask(30, before=25)).reason is None
    outage = truth(recording((0, FAILED), (25, FAILED), (50, FAILED)))
    assert outage.outcome_for(ask(30, before=25)).reason is Reason.OVERLOADED


def test_a_gap_turns_where_it_is_told_to() -> None:
    """Failures before, images after: in the middle, at the start or at the end, and all unseen."""
    found = recording(*every(0, 60, 10, **FAILED), *every(600, 660, 10))
    for turning, fails_at in ((0.5, (200, 300)), (0.0, ()), (1.0, (200, 300, 400, 550))):
        world = truth(found, turning=turning)
        for at in (200, 300, 400, 550):
            assert share(world, at) == (1.0 if at in fails_at else 0.0)
            assert not world.outcome_for(ask(at)).seen
    assert truth(found).outcome_for(ask(55)).seen


def test_one_failure_before_a_gap_does_not_fill_it() -> None:
    """A nervous breaker opened at a single failure: most callers would have been served."""
    found = recording(*every(0, 60, 10), (60, FAILED), *every(180, 240, 10))
    assert 0.05 < share(truth(found), 100) < 0.45
    assert share(truth(found), 150) == 0.0


def test_before_the_first_and_after_the_last_their_like_is_met() -> None:
    """Beyond the recording's ends there is nothing but its ends."""
    world = truth(recording(*every(100, 160, 10, **FAILED), *every(500, 560, 10)))
    assert share(world, 0) == 1.0
    assert share(world, 900) == 0.0
    assert not world.outcome_for(ask(900)).seen


def test_an_answer_that_was_given_up_is_known_to_be_late() -> None:
    """A shorter limit would have ended it too; a longer one meets those that took longer."""
    given_up = {"reason": Reason.TIMEOUT, "latency": 60.0, "given_up": True}
    alone = recording((0, {}), (100, given_up), (200, {}))
    assert truth(alone, per_call_timeout=30).outcome_for(ask(100))[:2] == (Reason.TIMEOUT, NEVER)
    assert truth(alone, per_call_timeout=60).outcome_for(ask(100)).seen
    longer = truth(alone, per_call_timeout=90).outcome_for(ask(100))
    assert (longer.latency, longer.seen) == (NEVER, False)
    others = recording((0, {}), (100, given_up), (200, {"latency": 80.0}))
    longer = truth(others, per_call_timeout=90).outcome_for(ask(100))
    assert (longer.reason, longer.latency, longer.seen) == (None, 80.0, False)


def test_a_caller_that_left_says_only_that_it_was_not_served_yet() -> None:
    """Cancelled after five seconds: others took ten, so this one would have, too."""
    left = {"reason": Reason.CANCELLED, "latency": 5.0, "given_up": True}
    met = truth(recording((0, {}), (10, left), (20, {}))).outcome_for(ask(10))
    assert (met.reason, met.latency, met.seen) == (None, 10.0, False)


def test_a_timeout_of_the_servers_is_an_answer() -> None:
    """504 after 20 seconds came from the server: no limit of ours changes it."""
    gateway = {"reason": Reason.TIMEOUT, "latency": 20.0}
    met = truth(recording((0, gateway)), per_call_timeout=120).outcome_for(ask(0))
    assert (met.reason, met.latency, met.seen) == (Reason.TIMEOUT, 20.0, True)


def test_a_route_that_was_never_asked_is_assumed_to_work() -> None:
    """It rests on an assumption, and says so."""
    met = truth(recording((0, {}))).outcome_for(ask(0, route=1))
    assert (met.reason, met.latency, met.seen) == (None, ASSUMED_LATENCY, False)


def test_costs_that_are_missing_are_filled_in() -> None:
    """From the route's other images, else from the model table."""
    world = truth(recording((0, {"cost": 0.3}), (10, {}), (20, {"cost": 0.3})))
    assert world.outcome_for(ask(10)).cost_usd == 0.3
    assert truth(recording((0, {}))).outcome_for(ask(0)).cost_usd == 0.134


@pytest.mark.parametrize(
    ("requests", "spans"),
    [
        (every(0, 600, 10), []),
        ([*every(0, 300, 10), (300, FAILED), *every(310, 600, 10)], []),
        ([*every(0, 300, 10), *every(300, 400, 10, **FAILED), *every(400, 600, 10)], [(300, 395)]),
        # found by probes alone, a minute and more apart
        ([(0, {}), (60, FAILED), (120, FAILED), (300, FAILED), (600, {})], [(60, 450)]),
        ([(0, {}), (60, FAILED), (75, FAILED), (90, {})], [(60, 82.5)]),
        # a failure now and then is no trouble
        ([(at, FAILED if at % 100 == 0 else {}) for at in range(0, 1000, 10)], []),
        # still on at the end
        ([*every(0, 300, 10), *every(300, 400, 10, **FAILED)], [(300, 400)]),
    ],
)
def test_troubles_are_found(
    requests: Iterable[tuple[float, Any]], spans: list[tuple[float, float]]
) -> None:
    """Failures that keep coming are a trouble, up to halfway to the next image; blips are none."""
    assert [tuple(span) for span in truth(recording(*requests)).incidents()] == spans


def test_a_part_of_a_recording_is_one() -> None:
    """Calls, requests and times of the part, counted from its own start."""
    whole = recording(*every(0, 100, 10))
    part = whole.between(30, 60)
    assert list(part.asked) == [0, 10, 20]
    assert list(part.routes[ROUTE].at) == [0, 10, 20]
    assert part.origin == START + 30
