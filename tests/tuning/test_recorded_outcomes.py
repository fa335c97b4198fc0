"""The outcomes of requests by a recording, and those that it assumes where none was recorded."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from statistics import fmean
from typing import Any

import pytest

from resilient_imagen import Reason, Settings
from resilient_imagen.tuning.gather import gather
from resilient_imagen.tuning.outcome_model import (
    NEVER,
    DeterministicRng,
    SimulatedOutcome,
    SimulatedRequest,
)
from resilient_imagen.tuning.recorded_outcomes import ASSUMED_LATENCY, RecordedOutcomes
from resilient_imagen.tuning.recording import Recording
from resilient_imagen.tuning.rows import Attempted

pytestmark = pytest.mark.no_cover

ROUTE = "google:gemini-3-pro-image"
FAILED = {"reason": Reason.OVERLOADED}
START = 1e9


def recording(*requests: tuple[float, dict[str, Any]], route: str = ROUTE) -> Recording:
    """Requests at these seconds; each brings an image in ten seconds unless it says otherwise."""
    return gather(
        Attempted(**{"at": START + at, "call": str(at), "route": route, "latency": 10.0, **rest})
        for at, rest in requests
    )


def truth(found: Recording, *, draw: int = 0, **settings: Any) -> RecordedOutcomes:
    return RecordedOutcomes(found, Settings(routes=f"{ROUTE},openai:m", **settings), draw=draw)


def ask(at: float, call: int = 0, route: int = 0, before: float | None = None) -> SimulatedRequest:
    """Return a request; calls draw other random numbers."""
    return SimulatedRequest(route, at, DeterministicRng(1, call, route), before)


def every(start: float, end: float, step: float, **rest: Any) -> Iterable[tuple[float, Any]]:
    return [(at, rest) for at in range(int(start), int(end), int(step))]


def share(world: RecordedOutcomes, at: float) -> float:
    """Return the share of a hundred requests at a time that fail."""
    return sum(world.outcome_for(ask(at, call)).reason is not None for call in range(100)) / 100


def shares(found: Recording, *times: float, draws: int = 40) -> list[float]:
    """Return the failing shares at these times, averaged over the draws."""
    worlds = [truth(found, draw=draw) for draw in range(draws)]
    return [fmean(share(world, at) for world in worlds) for at in times]


def test_a_request_has_the_outcome_of_the_one_recorded_at_that_time() -> None:
    """Outcome, latency, hint and cost are those of the request nearest in time."""
    hinted = {"reason": Reason.RATE_LIMITED, "hint": 7.0, "latency": 0.5}
    world = truth(recording((0, {"cost": 0.2}), (10, hinted), (20, {"latency": 12.0})))
    assert world.outcome_for(ask(4)) == SimulatedOutcome(None, 10.0, None, 0.2)
    assert world.outcome_for(ask(6)) == SimulatedOutcome(Reason.RATE_LIMITED, 0.5, 7.0, 0.0)
    assert world.outcome_for(ask(16)) == SimulatedOutcome(None, 12.0, None, 0.2)


def test_a_retry_does_not_have_the_outcome_of_the_request_that_it_repeats() -> None:
    """After a single failure among images a retry succeeds; in an outage it fails."""
    blip = truth(recording(*every(0, 250, 25), (250, FAILED), *every(275, 500, 25)))
    assert blip.outcome_for(ask(250)).reason is Reason.OVERLOADED
    assert share(blip, 255) == 1.0
    assert sum(blip.outcome_for(ask(255, call, before=250)).reason is None
               for call in range(100)) >= 90  # fmt: skip
    outage = truth(recording(*every(0, 500, 25, **FAILED)))
    assert outage.outcome_for(ask(255, before=250)).reason is Reason.OVERLOADED


def test_the_end_of_an_outage_in_a_gap_differs_by_draw() -> None:
    """Between failures and images, the outage ends somewhere in the gap, and that is not known."""
    found = recording(*every(0, 60, 10, **FAILED), *every(600, 900, 10))
    early, middle, late = shares(found, 70, 320, 590)
    assert early > 0.8
    assert 0.2 < middle < 0.8
    assert late < 0.2
    assert not truth(found).outcome_for(ask(320)).seen
    assert truth(found).outcome_for(ask(55)).seen
    in_each_draw = [share(truth(found, draw=draw), 320) for draw in range(20)]
    assert min(in_each_draw) < 0.1
    assert max(in_each_draw) > 0.9


def test_an_outage_between_failed_probes_has_no_images_in_it() -> None:
    """Images before and after an outage do not stand for requests inside it."""
    found = recording(*every(0, 1200, 10), *every(1200, 4800, 60, **FAILED), *every(4800, 6000, 10))
    assert min(shares(found, 1530, 3030, 4530, draws=10)) > 0.9


def test_a_gap_that_begins_with_failures_fails_no_more_often_than_the_service() -> None:
    """A breaker opens at three failures in a row; half of the requests in the gap would fail."""
    chance, at, in_a_row = random.Random(5), 0.0, 0
    requests, gaps = [*every(-600, 0, 10)], []
    while at < 7200:
        failed = chance.random() < 0.5
        requests.append((at, {**FAILED, "latency": 1.0} if failed else {}))
        in_a_row = in_a_row + 1 if failed else 0
        if in_a_row >= 3:
            gaps.append(600 + at + 30)  # a recording begins with its first request
            at, in_a_row = at + 60, 2  # the next request is a probe, which opens if it fails
        else:
            at += 8
    found = recording(*requests)
    assert len(gaps) > 30
    assert fmean(shares(found, *gaps, draws=10)) == pytest.approx(0.5, abs=0.06)


def test_one_failure_before_a_gap_does_not_fill_it() -> None:
    """A breaker with FAIL_MAX=1 opened at a single failure: most requests would have succeeded."""
    found = recording(*every(0, 1200, 10), (1200, FAILED), *every(1320, 2400, 10))
    assert max(shares(found, 1240, 1290)) < 0.2


def test_outcomes_beyond_the_ends_are_those_of_the_ends() -> None:
    """Before the first request and after the last, the regime of the end continues."""
    world = truth(recording(*every(100, 160, 10, **FAILED), *every(500, 900, 10)))
    assert share(world, -40) > 0.9
    assert share(world, 900) < 0.1
    assert not world.outcome_for(ask(900)).seen


def test_a_request_that_was_given_up_has_no_earlier_response() -> None:
    """A shorter limit would have ended it too; with a longer one, others that took longer count."""
    given_up = {"reason": Reason.TIMEOUT, "latency": 60.0, "given_up": True}
    alone = recording((0, {}), (100, given_up), (200, {}))

    def outcome(found: Recording, limit: float) -> SimulatedOutcome:
        world = truth(found, per_call_timeout=limit, on_timeout="abandon")
        return world.outcome_for(ask(100))

    assert outcome(alone, 30)[:2] == (Reason.TIMEOUT, NEVER)
    assert outcome(alone, 60).seen
    assert (outcome(alone, 90).latency, outcome(alone, 90).seen) == (NEVER, False)
    others = recording((0, {}), (100, given_up), (200, {"latency": 80.0}))
    longer = outcome(others, 90)
    assert (longer.reason, longer.latency, longer.seen) == (None, 80.0, False)
    kept = truth(others, per_call_timeout=60).outcome_for(ask(100))
    assert kept.latency == 80.0, "a request that is kept past its limit may deliver"


def test_responses_continue_beyond_the_longest_one_that_was_recorded() -> None:
    """Some requests responded after their limit, so that the service was slow and did not hang."""
    left = {"reason": Reason.TIMEOUT, "latency": 80.0, "given_up": True}
    late = every(0, 400, 40, latency=70.0)
    kept = every(20, 400, 40, **left)
    some = recording(*late, *kept, (400, {**left, "latency": 60.0}))
    world = truth(some, per_call_timeout=300, on_timeout="abandon")
    met = [world.outcome_for(ask(180, call)) for call in range(200)]
    assert {each.reason for each in met} == {None}
    # Ten responses in 300 seconds of waiting after the limit of 60 s: one in 30 seconds.
    assert fmean(each.latency for each in met) == pytest.approx(80 + 30, abs=6)
    assert not any(each.seen for each in met)


def test_abandoned_requests_lengthen_the_latencies_of_those_that_took_longer() -> None:
    """A request abandoned after 80 seconds has the latency of one that took longer, if any did."""
    left = {"reason": Reason.TIMEOUT, "given_up": True}
    some = recording((0, {"latency": 70.0}), (100, {**left, "latency": 60.0}),
                     (200, {**left, "latency": 80.0}), (300, {"latency": 95.0}))  # fmt: skip
    met = [truth(some, per_call_timeout=120).outcome_for(ask(100, call)) for call in range(300)]
    latencies = Counter(each.latency for each in met)
    assert set(latencies) == {70.0, 95.0}
    assert latencies[95.0] == pytest.approx(200, abs=40)  # its own third, and that of the abandoned


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


def test_a_route_whose_requests_were_all_cancelled_does_not_respond() -> None:
    """No request nearby had a response or reached a time limit, so no latency is known."""
    left = {"reason": Reason.CANCELLED, "latency": 20.0, "given_up": True}
    met = truth(recording((0, left), (10, left)), per_call_timeout=120).outcome_for(ask(0))
    assert (met.reason, met.latency) == (Reason.TIMEOUT, NEVER)


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
        # single failures are not an incident
        ([(at, FAILED if at % 100 == 0 else {}) for at in range(0, 1000, 10)], []),
        # outages with images in between that outnumber the failures
        (
            [
                *every(0, 300, 2),
                *every(300, 330, 3, **FAILED),
                *every(330, 440, 2),
                *every(440, 470, 3, **FAILED),
                *every(470, 600, 2),
            ],
            [(300, 328.5), (440, 468.5)],
        ),
        # two images inside an outage do not divide it, and frequent single failures do not hide it
        (
            [
                (at, FAILED if at % 20 == 0 or (300 <= at < 330 and at not in (314, 316)) else {})
                for at in range(0, 600, 2)
            ],
            [(300, 329)],
        ),
        # still on at the end
        ([*every(0, 300, 10), *every(300, 400, 10, **FAILED)], [(300, 400)]),
    ],
)
def test_incidents_are_found(
    requests: Iterable[tuple[float, Any]], spans: list[tuple[float, float]]
) -> None:
    """Repeated failures are an incident until halfway to the next image; single ones are not."""
    assert [tuple(span) for span in truth(recording(*requests)).incidents()] == spans


def test_a_part_of_a_recording_is_one() -> None:
    """Calls, requests and times of the part, counted from its own start."""
    whole = recording(*every(0, 100, 10))
    part = whole.between(30, 60)
    assert list(part.asked) == [0, 10, 20]
    assert list(part.routes[ROUTE].at) == [0, 10, 20]
    assert part.origin == START + 30
