"""Votes: the breaker's counts, places and times after a call, for every way in which it ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pipeline_kit import FAST, ONE_AT_A_TIME, PipelineScenario, now, run_scenario

from resilient_imagen import (
    CircuitOpenError,
    DeadlineExceededError,
    ImageClient,
    ImageResult,
    Reason,
    Settings,
)
from resilient_imagen.circuitbreaker import BreakerConfig, BreakerMode
from resilient_imagen.images.fit import Fitted
from resilient_imagen.reasons import BreakerOutcome
from resilient_imagen.snapshots import BreakerSnapshot
from resilient_imagen.telemetry.events import AttemptEnded
from resilient_imagen.testing import FakeProvider, run_virtual
from resilient_imagen.tuning import LatencyDistribution, Outage, Scenario, Service, Traffic
from resilient_imagen.tuning.engine import run_simulation
from resilient_imagen.tuning.scenario import ScenarioOutcomes
from resilient_imagen.tuning.simulation_run import SimulationResult


def numbers(scenario: PipelineScenario) -> BreakerSnapshot:
    return scenario.client.snapshot()["routes"][0]["breaker"]


def test_a_caller_that_leaves_casts_no_vote() -> None:
    """A cancelled call casts no vote, closed or half-open, and frees its place at once."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.hang()
        for _ in range(5):
            await _leave(scenario)
        assert (scenario.state(), numbers(scenario)["consecutive"]) == ("closed", 0)
        assert numbers(scenario)["window"]["calls"] == 0
        await _open_google(scenario)
        scenario.google.heal().hang()
        await asyncio.sleep(70)
        await _leave(scenario)
        assert (scenario.state(), numbers(scenario)["probes_in_flight"]) == ("half_open", 0)
        scenario.google.heal()
        assert (await scenario.ask()).provider == "google"
        assert scenario.state() == "closed"

    run_scenario(scene, **FAST)


def test_a_request_cut_short_early_casts_no_vote() -> None:
    """A probe that ran for less than a healthy request may take leaves the circuit half-open."""

    async def scene(scenario: PipelineScenario) -> None:
        await _open_google(scenario)
        scenario.google.heal().hang()
        await asyncio.sleep(70)
        assert (await scenario.ask(deadline=40)).provider == "openai"
        assert (scenario.state(), numbers(scenario)["probes_in_flight"]) == ("half_open", 0)

    run_scenario(scene, **FAST)


@pytest.mark.parametrize("deadline", [90, 105])
def test_requests_that_the_reserve_cuts_short_late_open_the_circuit(deadline: float) -> None:
    """A request that hangs until its share of the deadline is over counts as a failure in a row."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.hang()
        for number in (1, 2):
            assert (await scenario.ask(deadline=deadline)).fallback_reason == "timeout"
            assert numbers(scenario)["consecutive"] == number
            assert numbers(scenario)["window"]["calls"] == 0, "the failure rate leaves it out"
        assert (await scenario.ask(deadline=deadline)).fallback_reason == "timeout"
        assert (scenario.state(), numbers(scenario)["why"]) == ("open", "timeout")
        assert (await scenario.ask(deadline=deadline)).fallback_reason == "circuit_open"
        assert [e.vote for e in scenario.events.of(AttemptEnded) if e.provider == "google"] == [
            BreakerOutcome.THROTTLED
        ] * 3

    run_scenario(scene, **FAST)


def test_a_request_that_the_deadline_itself_cuts_short_late_counts_too() -> None:
    """A hanging request on the last route votes as a failure when the deadline ends it."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.hang()
        for _ in range(3):
            with pytest.raises(DeadlineExceededError):
                await scenario.ask(deadline=50)
        assert (scenario.state(), numbers(scenario)["why"]) == ("open", "timeout")
        with pytest.raises(CircuitOpenError, match="gemini-3-pro-image: skipped after timed out"):
            await scenario.ask(deadline=50)

    run_scenario(scene, fallback_on="overloaded", **FAST)


def test_a_probe_that_is_cut_short_late_has_failed() -> None:
    """A probe that is cut short late opens the circuit again."""

    async def scene(scenario: PipelineScenario) -> None:
        await _open_google(scenario)
        scenario.google.heal().hang()
        await asyncio.sleep(70)
        assert (await scenario.ask(deadline=105)).provider == "openai"
        assert scenario.state() == "open"

    run_scenario(scene, **FAST)


def test_a_caller_that_leaves_late_casts_no_vote_either() -> None:
    """A cancelled call casts no vote, however long its request ran."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.hang()
        for _ in range(4):
            task = asyncio.create_task(scenario.ask(deadline=100))
            await asyncio.sleep(49)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert (scenario.state(), numbers(scenario)["consecutive"]) == ("closed", 0)

    run_scenario(scene, **FAST)


def test_late_is_measured_against_the_routes_own_latency_at_that_resolution() -> None:
    """Four successes of 10 s make 15 s late at their resolution, and at no other."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.latency = 10.0
        for _ in range(4):
            await scenario.ask(resolution="1K")
        scenario.google.hang()
        await scenario.ask(resolution="1K", deadline=28)
        assert numbers(scenario)["consecutive"] == 0, "14 s of 15"
        await scenario.ask(resolution="4K", deadline=32)
        assert numbers(scenario)["consecutive"] == 0, "16 s, and nothing is known about 4K"
        await scenario.ask(resolution="1K", deadline=32)
        assert numbers(scenario)["consecutive"] == 1

    run_scenario(scene, **FAST)


def test_with_few_successes_late_is_measured_against_the_model_table() -> None:
    """With three successes, the limit is 1.5 times the 20 s of the model table."""

    async def scene(scenario: PipelineScenario) -> None:
        for _ in range(3):
            await scenario.ask(resolution="1K")
        scenario.google.hang()
        await scenario.ask(resolution="1K", deadline=58)
        assert numbers(scenario)["consecutive"] == 0
        await scenario.ask(resolution="1K", deadline=60)
        assert numbers(scenario)["consecutive"] == 1

    run_scenario(scene, **FAST)


def test_a_custom_providers_request_is_late_after_a_share_of_its_limit() -> None:
    """For a custom provider, a request is late after 70 % of its time limit."""

    async def main() -> None:
        local = FakeProvider("local").hang()
        chosen = Settings(
            routes="local:m,openai:gpt-image-2", per_call_timeout=20, **FAST, **ONE_AT_A_TIME
        )
        async with ImageClient(chosen, providers=[local, FakeProvider("openai")]) as client:
            for deadline, failures in ((27, 0), (29, 1)):
                assert (await client.generate("x", deadline=deadline)).provider == "openai"
                breaker = client.snapshot()["routes"][0]["breaker"]
                assert breaker["consecutive"] == failures

    run_virtual(main())


def test_a_candidate_breaker_counts_requests_that_were_cut_short() -> None:
    """Beside a live breaker that opens at the third, one with fail_max=2 opens at the second."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.hang()
        for deadline in (40, 105, 105):
            await scenario.ask(deadline=deadline)
        assert scenario.state() == "closed"
        shadow = scenario.client.snapshot()["shadow"]
        assert shadow is not None
        candidate = shadow["routes"][0]
        assert (candidate["state"], candidate["why"]) == ("open", "timeout")

    run_scenario(scene, shadow={"fail_max": 2}, **FAST)


HOURS = 1.5
SERVICES = {
    "google": Service(latency=LatencyDistribution(19.0, 30.0)),
    "openai": Service(latency=LatencyDistribution(21.0, 32.0)),
}


def traffic(deadline: float, *outages: Outage) -> SimulationResult:
    """Simulate ten calls a minute for 90 minutes with this deadline."""
    scenario = Scenario(
        traffic=Traffic(per_minute=10, duration=HOURS * 3600, spacing="even"),
        services=SERVICES,
        outages=outages,
    )
    chosen = Settings(deadline=deadline, ipm=20, max_concurrent=16)
    truth = ScenarioOutcomes(scenario, chosen)
    return run_simulation(chosen, truth, scenario.traffic.arrivals(1), seed=1)


@pytest.mark.no_cover
@pytest.mark.parametrize("deadline", [60, 90, 105])
def test_a_hanging_primary_opens_the_circuit_under_any_deadline(deadline: float) -> None:
    """Of 300 calls in half an hour few wait for Google, and nearly all get their image."""
    simulated = traffic(deadline, Outage(start=1800, duration=1800, reason=Reason.TIMEOUT))
    during = [number for number, at in enumerate(simulated.started) if 1800 <= at < 3600]
    wasted = [s for s in simulated.sent if s.reason and s.route == 0 and 1800 <= s.at < 3600]
    assert len(during) == 300
    assert len(wasted) <= 20
    assert sum(simulated.seconds[number] for number in during) / 300 < 26
    assert list(simulated.served).count(-1) <= 5, (
        "OpenAI takes longer than the reserve now and then"
    )


@pytest.mark.no_cover
@pytest.mark.parametrize("deadline", [60, 90, 105])
def test_a_healthy_primary_is_not_suspected_under_any_deadline(deadline: float) -> None:
    """Occasional slow images that are cut short do not open the breaker."""
    simulated = traffic(deadline)
    assert [s for s in simulated.sent if s.reason is not None] or deadline == 105
    assert simulated.changes == []


def test_a_probe_returned_from_the_queue_casts_no_vote() -> None:
    """A probe's permit that is returned from the queue casts no vote."""

    async def scene(scenario: PipelineScenario) -> None:
        first = asyncio.create_task(scenario.ask())
        await asyncio.sleep(0)
        await _trip_google(scenario)
        await first
        await asyncio.sleep(70 - now() % 1)
        spent = asyncio.create_task(scenario.ask())  # takes the place in this minute
        await asyncio.sleep(0.1)
        spent.cancel()
        await asyncio.gather(spent, return_exceptions=True)
        waiting = asyncio.create_task(scenario.ask())
        await asyncio.sleep(0.1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert scenario.state() == "half_open"
        assert numbers(scenario)["probes_in_flight"] == 0

    run_scenario(scene, ipm=10, openai_ipm=6000)


def test_a_back_off_ends_the_moment_the_route_opens() -> None:
    """A caller that backs off continues at the moment at which the route opens."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503)
        sleeper = asyncio.create_task(scenario.ask())
        await asyncio.sleep(0.2)  # it has failed once and sleeps
        breaker = scenario.client.breakers["google:gemini-3-pro-image"]
        breaker.open_for(100, cause="overloaded", summary="503")
        opened = now()
        assert (await sleeper).attempts == 2
        assert scenario.openai.sent[0].at == opened

    run_scenario(scene, **FAST)


def test_a_waiting_caller_is_served_right_after_the_probes_success() -> None:
    """On the only route, a caller that waits for a probe is served right after its success."""

    async def scene(scenario: PipelineScenario) -> None:
        await _trip_google(scenario)
        await asyncio.sleep(700)
        scenario.google.latency = 3.0
        asked = now()
        first = asyncio.create_task(scenario.ask())
        await asyncio.sleep(0)
        second = asyncio.create_task(scenario.ask())
        await asyncio.gather(first, second)
        assert scenario.google.sent[-1].at - asked == pytest.approx(3.0, abs=0.05)

    run_scenario(scene, force_open="openai", **FAST)


def test_a_caller_does_not_queue_at_a_route_that_has_opened() -> None:
    """If the route opens while a call is prepared, the call falls back without queueing."""

    class Slow(FakeProvider):
        async def warm_up(self) -> None:
            await asyncio.sleep(3)

    async def main() -> None:
        google, openai = Slow("google"), FakeProvider("openai")
        async with ImageClient(
            Settings(ipm=1, openai_ipm=6000), providers=[google, openai]
        ) as client:
            first = asyncio.create_task(client.generate("x"))
            await asyncio.sleep(0.1)
            second = asyncio.create_task(client.generate("x"))
            await asyncio.sleep(1)
            client.breakers["google:gemini-3-pro-image"].open_for(500, cause=None, summary=None)
            await asyncio.gather(first, second)
            assert [sent.at for sent in openai.sent] == pytest.approx([3.0, 3.1], abs=0.05)

    run_virtual(main())


def test_fitting_an_image_does_not_count_as_time_of_the_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Slow fitting of an image does not make a probe or a watched call slow."""

    async def slow_fit(data: bytes, **_: Any) -> Fitted:
        await asyncio.sleep(10)
        return Fitted(data, "image/png", 9, 16, ())

    monkeypatch.setattr("resilient_imagen.pipeline.fitter.fit", slow_fit)

    async def probe(scenario: PipelineScenario) -> None:
        await _open_google(scenario)
        scenario.google.heal().latency = 59.0
        await asyncio.sleep(70)
        assert (await scenario.ask()).provider == "google"
        assert scenario.state() == "closed"

    async def watched(scenario: PipelineScenario) -> None:
        scenario.google.latency = 29.0
        await asyncio.gather(*(scenario.ask() for _ in range(4)))
        assert (scenario.state(), numbers(scenario)["consecutive"]) == ("closed", 0)

    async def leaver(scenario: PipelineScenario) -> None:
        await _open_google(scenario)
        scenario.google.heal().latency = 1.0
        await asyncio.sleep(70)
        task = asyncio.create_task(scenario.ask())
        await asyncio.sleep(5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert scenario.state() == "closed"  # the service had answered

    run_scenario(probe, **FAST)
    run_scenario(watched, breaker_slow_call=30, **FAST)
    run_scenario(leaver, **FAST)


def test_a_caller_is_cancelled_although_its_provider_hides_the_cancellation() -> None:
    """If a provider converts a cancellation to an error, the call is cancelled without a vote."""

    class Hiding(FakeProvider):
        async def generate(self, request: Any, model: str) -> Any:
            try:
                return await super().generate(request, model)
            except asyncio.CancelledError:
                raise ConnectionError("lost") from None

    async def main() -> None:
        google = Hiding("google")
        google.hang()
        async with ImageClient(
            Settings(ipm=6000), providers=[google, FakeProvider("openai")]
        ) as client:
            task = asyncio.create_task(client.generate("x"))
            await asyncio.sleep(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            breaker = client.snapshot()["routes"][0]["breaker"]
            assert breaker["consecutive"] == 0
            result = await client.generate("x", deadline=40)
            assert (result.provider, result.fallback_reason) == ("openai", "timeout")

    run_virtual(main())


def test_hints_in_a_row_do_not_make_the_next_opening_long() -> None:
    """Five short hints count neither as failures nor as failed probes."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.RATE_LIMITED, status=429, retry_after=5)
        for _ in range(5):
            await scenario.ask()
            await asyncio.sleep(6)
            assert numbers(scenario)["state"] == "closed"
        scenario.google.heal().fail(Reason.OVERLOADED, status=503)
        for _ in range(2):
            await scenario.ask()
            assert numbers(scenario)["state"] == "closed"
        await scenario.ask()
        assert numbers(scenario)["retry_after"] == pytest.approx(60, rel=0.11)

    run_scenario(scene, max_retries=0, **FAST)


def test_a_recovered_account_does_not_open_new_routes() -> None:
    """After an account has recovered, newly named models start with a closed circuit."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.UNAUTHENTICATED, status=401, account_wide=True)
        await scenario.ask()
        scenario.google.heal()
        await asyncio.sleep(700)
        assert (await scenario.ask()).provider == "google"
        await _open_google(scenario)
        scenario.google.heal()
        assert (await scenario.ask(model="gemini-nano-banana-2.1")).provider == "google"

    run_scenario(scene, **FAST)


def test_a_new_route_inherits_the_remaining_open_period() -> None:
    """A new route of an account with 30 s left stays open for 30 s."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.UNAUTHENTICATED, status=401, account_wide=True)
        await scenario.ask()
        left = numbers(scenario)["retry_after"]
        assert left is not None
        scenario.google.heal()
        await asyncio.sleep(left - 30)
        await scenario.ask(model="gemini-nano-banana-2.1")
        late = scenario.client.breakers["google:gemini-nano-banana-2.1"].snapshot()
        assert late["retry_after"] == pytest.approx(28, abs=0.5)  # OpenAI took two

    run_scenario(scene, **FAST)


def test_without_fallback_for_timeouts_no_reserve_is_cut_off() -> None:
    """If timeouts do not fall back, the first route gets the whole deadline."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.latency = 25.0
        assert (await scenario.ask(deadline=40)).provider == "google"

    run_scenario(scene, fallback_on="overloaded", **FAST)


def test_without_fallback_for_open_circuits_the_probe_is_waited_for() -> None:
    """If open circuits do not fall back, the call waits for the probe in flight."""

    async def scene(scenario: PipelineScenario) -> None:
        await _open_google(scenario)
        scenario.google.heal()
        await asyncio.sleep(70)
        results = await asyncio.gather(scenario.ask(), scenario.ask())
        assert [result.provider for result in results] == ["google", "google"]

    run_scenario(scene, fallback_on="overloaded", **FAST)


def test_every_breaker_setting_reaches_the_breaker() -> None:
    """Every breaker setting reaches the breaker's configuration."""
    chosen = {
        "breaker_mode": "shadow",
        "breaker_fail_max": 7,
        "breaker_failure_rate": 0.25,
        "breaker_window": 111,
        "breaker_min_calls": 9,
        "breaker_slow_call": 33,
        "breaker_reset_timeout": 44,
        "breaker_reset_factor": 3,
        "breaker_reset_max": 555,
        "breaker_half_open_calls": 2,
        "per_call_timeout": 77,
    }
    expected = BreakerConfig(
        mode=BreakerMode.SHADOW,
        fail_max=7,
        failure_rate=0.25,
        window=111.0,
        min_calls=9,
        slow_call=33.0,
        reset_timeout=44.0,
        reset_factor=3.0,
        reset_max=555.0,
        half_open_calls=2,
        probe_deadline=78.0,
    )
    known = {name for name in Settings.model_fields if name.startswith("breaker_")}
    assert known <= chosen.keys()

    async def scene(scenario: PipelineScenario) -> None:
        breaker = scenario.client.breakers["google:gemini-3-pro-image"]
        assert breaker._machine.config == expected

    run_scenario(scene, **chosen)


def test_operators_may_change_a_breaker_while_calls_go_on() -> None:
    """An operator can force, release and reconfigure a breaker during calls."""

    async def scene(scenario: PipelineScenario) -> None:
        breaker = scenario.client.breakers["google:gemini-3-pro-image"]
        breaker.force_open = True
        assert (await scenario.ask()).fallback_reason == "circuit_open"
        breaker.force_open = False
        breaker.reconfigure(BreakerConfig(fail_max=1))
        scenario.google.fail(Reason.OVERLOADED, status=503)
        assert (await scenario.ask()).attempts == 2
        assert scenario.state() == "open"

    run_scenario(scene, **FAST)


async def _leave(scenario: PipelineScenario) -> None:
    """Start a call and cancel it after a second."""
    task: asyncio.Task[ImageResult] = asyncio.create_task(scenario.ask())
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _open_google(scenario: PipelineScenario) -> None:
    scenario.google.heal().fail(Reason.OVERLOADED, status=503)
    await scenario.ask()
    assert scenario.state() == "open"


async def _trip_google(scenario: PipelineScenario) -> None:
    breaker = scenario.client.breakers["google:gemini-3-pro-image"]
    breaker.open_for(60, cause="overloaded", summary="503")
