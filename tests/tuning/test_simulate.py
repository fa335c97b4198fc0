"""Made-up worlds: what `simulate` promises to those who assert on their own settings."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_imagen import Reason, Settings
from resilient_imagen.tuning import (
    LatencyDistribution,
    Measures,
    Outage,
    Scenario,
    Service,
    Traffic,
    simulate,
    waves,
)
from resilient_imagen.tuning.engine import run_simulation
from resilient_imagen.tuning.outcome_model import DeterministicRng, SimulatedRequest
from resilient_imagen.tuning.scenario import ScenarioOutcomes
from resilient_imagen.tuning.simulation import play

OUTAGE = Outage(start=600, duration=600, reason=Reason.OVERLOADED)


def test_an_outage_of_ten_minutes_is_cheap() -> None:
    """The documented use: a team's own limit on wasted requests, in one assertion."""
    measures = simulate(Scenario(outages=(OUTAGE,)), Settings())
    assert measures.wasted_requests < 20
    assert measures.lost_calls == 0
    assert measures.detected == measures.incidents == 1
    assert measures.detect_s is not None
    assert measures.detect_s < 120


def test_without_a_breaker_the_same_outage_is_not() -> None:
    """The assertion above can fail: with the breaker off every request of the outage is wasted."""
    measures = simulate(Scenario(outages=(OUTAGE,)), Settings(breaker_mode="off"))
    assert measures.wasted_requests > 60
    assert measures.detected == 0


@pytest.mark.no_cover
def test_it_is_repeatable_and_hangs_on_its_seed() -> None:
    """Same arguments, same measures; another seed, another world."""
    scenario = Scenario(outages=(OUTAGE,))
    assert simulate(scenario, Settings(), seed=4) == simulate(scenario, Settings(), seed=4)
    assert simulate(scenario, Settings(), seed=4) != simulate(scenario, Settings(), seed=5)


def test_sinks_hear_of_every_call() -> None:
    """Sinks receive the events that a client's sinks would, and the measures stay the same."""
    from resilient_imagen.testing import RecordingSink

    sink, scenario = RecordingSink(), Scenario(outages=(OUTAGE,))
    measures = simulate(scenario, Settings(), sinks=[sink])
    assert len(sink.calls) == measures.calls
    assert len(sink.attempts) == measures.requests
    assert {call.outcome for call in sink.calls} == {"success"}
    assert measures == simulate(scenario, Settings())


def test_measures_add_up() -> None:
    """Shares make one; images and failures make all calls; both vendors down means failures."""
    both = (OUTAGE, Outage(start=900, duration=120, provider="openai"))
    measures = simulate(Scenario(outages=both), Settings())
    assert measures.lost_calls > 0
    assert measures.images + measures.lost_calls == measures.calls
    assert math.isclose(sum(measures.share.values()), 1.0)
    assert measures.p50_s <= measures.p95_s <= measures.p99_s
    assert measures.extrapolated_share == 0.0


def test_a_hint_is_kept_to() -> None:
    """A throttled route is left alone for as long as it asks: two requests in two minutes."""
    throttled = Outage(
        start=600, duration=120, reason=Reason.RATE_LIMITED, retry_after=70, latency=0.2
    )
    google = Service(latency=LatencyDistribution(10, 20))
    openai = Service(latency=LatencyDistribution(10, 20))
    scenario = Scenario(services={"google": google, "openai": openai}, outages=(throttled,))
    assert simulate(scenario, Settings()).wasted_requests == 2


def test_a_refused_key_closes_the_accounts_other_models_too() -> None:
    """As in production, the route with the same key is skipped: one request is wasted, not two."""
    refused = Outage(start=600, duration=300, reason=Reason.UNAUTHENTICATED)
    chain = "google:gemini-3-pro-image,google:gemini-nano-banana-2.1,openai:gpt-image-2.5-flare"
    scenario = Scenario(
        traffic=Traffic(per_minute=2, duration=1200, spacing="even"), outages=(refused,)
    )
    assert simulate(scenario, Settings(routes=chain)).wasted_requests == 1


@pytest.mark.no_cover
def test_money_is_counted_for_requests_that_were_given_up() -> None:
    """A hanging request is billed, though it brought no image."""
    hang = Outage(start=600, duration=300, reason=Reason.TIMEOUT)
    measures = simulate(Scenario(outages=(hang,)), Settings())
    assert measures.wasted_usd == pytest.approx(measures.wasted_requests * 0.134)
    plain = simulate(Scenario(outages=(hang,)), Settings(on_timeout="abandon"))
    assert plain.wasted_s == pytest.approx(plain.wasted_requests * 60, rel=0.05)
    kept = simulate(Scenario(outages=(hang,)), Settings(hedge_probe_after=None))
    assert kept.wasted_s > 60 * kept.wasted_requests, "requests go on until the next route delivers"


@pytest.mark.no_cover
def test_both_requests_of_a_call_count() -> None:
    """A slow request that loses is recorded with its price, beside the one that served the call."""
    slow = Outage(start=0, duration=3600, share=0.0, slower=3.0)
    scenario = Scenario(outages=(slow,))
    settings = Settings(hedge_after=30, hedge_budget=1, ipm=100, max_concurrent=100)
    run = play(scenario, settings, seed=1)
    measures = simulate(scenario, settings, seed=1)
    requests = Counter(each.call for each in run.sent)
    lost = [each for each in run.sent if each.reason is Reason.CANCELLED]
    assert set(requests.values()) == {1, 2}
    assert measures.requests == sum(requests.values()) > measures.images
    assert measures.unused + measures.wasted_requests == measures.requests - measures.images
    assert measures.unused >= len(lost) > 100
    assert {each.cost_usd for each in lost} == {0.134, 0.18}


def test_a_probe_counts_although_its_call_has_ended() -> None:
    """A run ends when the probe that hangs beside the last call has reached its limit."""
    hang = Outage(start=600, duration=3600, reason=Reason.TIMEOUT)
    calls = [0.0, 600.0, 606.0, 612.0, 800.0]
    scenario = Scenario(outages=(hang,))
    truth = ScenarioOutcomes(scenario, Settings())
    run = run_simulation(Settings(), truth, calls)
    probe = run.sent[-1]
    assert (probe.call, probe.route, probe.at) == (4, 0, 800.0)
    assert (probe.reason, probe.seconds, probe.cost_usd) == (Reason.TIMEOUT, 60.0, 0.134)
    assert run.served[4] == 1
    assert run.seconds[4] < 60


def test_no_callback_of_the_loop_fails_when_a_probe_ends_beside_its_call(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A probe that hangs ends at its limit, although the next route has served its call before."""
    hang = Outage(start=5400, duration=1800, reason=Reason.TIMEOUT)
    scenario = Scenario(traffic=Traffic(per_minute=8, duration=3 * 3600), outages=(hang,))
    run = play(scenario, Settings(ipm=20, max_concurrent=16), seed=3)
    probes = [each for each in run.sent if each.route == 0 and 5600 < each.at < 7000]
    assert probes
    assert all(each.seconds == pytest.approx(60.0) for each in probes)
    assert not [each for each in caplog.records if each.name == "asyncio"]


@pytest.mark.no_cover
def test_the_slowest_requests_are_hedged_by_p95() -> None:
    """Without a number of seconds, about one request of twenty gets a second one beside it."""
    service = Service(latency=LatencyDistribution(20, 45))
    scenario = Scenario(
        traffic=Traffic(per_minute=10, duration=4 * 3600),
        services={"google": service, "openai": service},
    )
    limits: dict[str, Any] = {"ipm": 100, "max_concurrent": 100, "on_timeout": "abandon"}
    measures = simulate(scenario, Settings(**limits, hedge_after="p95"))
    assert 0.03 < measures.unused / measures.calls < 0.06
    assert measures.p99_s < simulate(scenario, Settings(**limits)).p99_s


def test_a_route_without_a_service_is_named() -> None:
    """The text says which provider the scenario lacks."""
    with pytest.raises(ValueError, match="openai"):
        simulate(Scenario(services={"google": Service()}), Settings())


@given(st.floats(0.5, 100), st.floats(1, 10))
def test_latency_is_what_its_two_numbers_say(median: float, factor: float) -> None:
    """Half of the answers are there by the median, 95 % by the other number; more take longer."""
    latency = LatencyDistribution(median, median * factor)
    assert latency.at(0.5) == pytest.approx(median)
    assert latency.at(0.95) == pytest.approx(median * factor)
    assert all(a <= b for a, b in pairwise(latency.at(share / 100) for share in range(1, 100)))


@pytest.mark.parametrize(("median", "p95"), [(0, 1), (2, 1), (1, math.inf), (math.nan, 1)])
def test_an_impossible_latency_is_refused(median: float, p95: float) -> None:
    """Not 0 < median <= p95 is an error at once."""
    with pytest.raises(ValueError, match="0 < median"):
        LatencyDistribution(median, p95)


@pytest.mark.parametrize(
    ("kind", "field", "value", "says"),
    [
        (Traffic, "per_minute", 0, "above 0"),
        (Traffic, "per_minute", -1, "above 0"),
        (Traffic, "duration", math.inf, "finite"),
        (Traffic, "batch", 0, "1 or more"),
        (Traffic, "swing", 1.0, "below 1"),
        (Traffic, "spacing", "odd", "even or random"),
        (Service, "blips", 3, "from 0 to 1"),
        (Service, "blip_reason", Reason.CIRCUIT_OPEN, "overloaded, rate_limited"),
        (Outage, "start", -1, "0 or more"),
        (Outage, "duration", -600, "above 0"),
        (Outage, "duration", math.nan, "above 0"),
        (Outage, "share", 2.0, "from 0 to 1"),
        (Outage, "latency", -1.0, "0 or more"),
        (Outage, "slower", 0.0, "above 0"),
        (Outage, "ramp", -1.0, "0 or more"),
        (Outage, "retry_after", -5.0, "0 or more"),
        (Outage, "reason", "overloaded", "a Reason: overloaded, rate_limited"),
        (Outage, "reason", Reason.CANCELLED, "a Reason: overloaded, rate_limited"),
    ],
)
def test_nonsense_is_refused(kind: Any, field: str, value: object, says: str) -> None:
    """At once, by the field's name and what it may be, rather than by a run that never ends."""
    given = {"start": 0, "duration": 60} if kind is Outage else {}
    with pytest.raises(ValueError, match=rf"^{field} must be .*{says}"):
        kind(**{**given, field: value})


def test_a_trouble_of_nobodys_is_refused() -> None:
    """A provider's name that is misspelt would be an outage that never happens."""
    with pytest.raises(ValueError, match="provider must be one of the services: google, openai"):
        Scenario(outages=(Outage(start=0, duration=60, provider="gogle"),))


def test_inside_a_running_loop_it_says_what_to_do() -> None:
    """One clear error, which leaves the loop as it was; in a thread it works."""

    async def main() -> Measures:
        with pytest.raises(RuntimeError, match=r"asyncio\.to_thread"):
            simulate(Scenario(), Settings())
        await asyncio.sleep(0)
        return await asyncio.to_thread(simulate, Scenario(), Settings())

    assert asyncio.run(main()) == simulate(Scenario(), Settings())


def test_a_bug_in_the_outcome_model_ends_the_run() -> None:
    """The model's exception is raised unchanged, and no call is left waiting."""

    class Broken:
        def outcome_for(self, ask: object) -> Any:
            raise ZeroDivisionError

        def incidents(self) -> Any:
            return ()

    with pytest.raises(ZeroDivisionError):
        run_simulation(Settings(), Broken(), [0.0, 1.0])


def test_traffic_comes_as_described() -> None:
    """Even spacing, batches, the asked rate, and busier middays."""
    even = list(Traffic(per_minute=6, duration=60, spacing="even").arrivals(0))
    assert even == [0, 10, 20, 30, 40, 50]
    batches = list(Traffic(per_minute=6, duration=60, spacing="even", batch=3).arrivals(0))
    assert batches == [0, 0, 0, 30, 30, 30]
    many = list(Traffic(per_minute=10, duration=36_000).arrivals(1))
    assert len(many) == pytest.approx(6000, rel=0.05)
    assert all(a <= b for a, b in pairwise(many))
    day = list(Traffic(per_minute=10, duration=86_400, swing=0.8).arrivals(1))
    assert len(day) == pytest.approx(14_400, rel=0.05)
    noon = sum(39_600 < at < 46_800 for at in day)
    night = sum(at < 7200 for at in day)
    assert noon > 4 * night


def test_outages_repeat_grow_and_overlap() -> None:
    """Waves start at the given distance, a ramp grows, and overlapping outages are one incident."""
    starts = [each.start for each in waves(OUTAGE, every=900, times=3)]
    assert starts == [600, 1500, 2400]
    ramp = Outage(start=100, duration=100, ramp=50)
    assert [ramp.strength(at) for at in (99, 100, 125, 150, 199, 200)] == [0, 0, 0.5, 1, 1, 0]
    scenario = Scenario(outages=(OUTAGE, Outage(start=900, duration=600), ramp))
    spans = ScenarioOutcomes(scenario, Settings()).incidents()
    assert [tuple(span) for span in spans] == [(100, 200), (600, 1500)]


def test_chance_hangs_on_what_is_asked_alone() -> None:
    """The same call, route and attempt meet the same, in whatever order one asks; others differ."""
    truth = ScenarioOutcomes(Scenario(), Settings())
    asks = [
        SimulatedRequest(route, 5.0, DeterministicRng(1, call, route))
        for call in range(20)
        for route in (0, 1)
    ]
    forwards = [truth.outcome_for(ask) for ask in asks]
    assert forwards == [truth.outcome_for(ask) for ask in reversed(asks)][::-1]
    assert len({met.latency for met in forwards}) == len(asks)
    units = [DeterministicRng(1, call).unit() for call in range(2000)]
    assert sum(units) / len(units) == pytest.approx(0.5, abs=0.03)


@pytest.mark.no_cover
def test_two_accounts_of_a_step_serve_twice_as_many_calls() -> None:
    """A simulated step shares its calls between its accounts, each with its own pace."""
    two_steps = Scenario(
        traffic=Traffic(per_minute=18, duration=600),
        services={name: Service() for name in ("google", "google_b")},
    )
    played = play(two_steps, Settings(routes="google+google_b:m", ipm=10, max_concurrent=20))
    served = list(played.served)
    assert played.routes == ("google:m", "google_b:m")
    assert min(served.count(0), served.count(1)) > 80
    assert served.count(-1) == 0
