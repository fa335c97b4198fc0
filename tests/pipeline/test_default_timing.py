"""Duration of calls during outages at the default settings."""

from __future__ import annotations

import asyncio

import pytest
from scenario_kit import (
    BUDGET,
    DRIES_UP,
    HEALTHY,
    SLACK,
    TOO_LONG,
    UNPACED,
    OutageScenario,
    both_overloaded,
    both_refuse,
    now,
    primary_hangs,
    run_outage_scenario,
    single_fault,
)

from resilient_imagen import InvalidRequestError, ProviderOverloadedError
from resilient_imagen.emulator import faults

# -- faults of test_scenarios.py, without its settings --------------------------------------------


def test_a_refusal_by_openai_as_primary_is_not_sent_to_google() -> None:
    """A content refusal by the primary OpenAI is not sent on to Google."""
    run_outage_scenario(
        both_refuse, routes="openai:gpt-image-2.5-flare,google:gemini-3-pro-image", **UNPACED
    )


def test_with_an_empty_fallback_on_the_primarys_error_is_raised() -> None:
    """If no reason allows a fallback, the primary's error is raised unchanged."""

    async def scene(scenario: OutageScenario) -> None:
        scenario.google.set(faults.overload())
        with pytest.raises(ProviderOverloadedError, match="503 UNAVAILABLE"):
            await scenario.ask()
        assert len(scenario.google.requests) <= BUDGET

    run_outage_scenario(scene, fallback_on="circuit_open", **UNPACED)


def test_no_answer_costs_a_minute() -> None:
    """A request without a response costs one time limit and is not repeated if a route is left."""
    run_outage_scenario(primary_hangs(60.0), **UNPACED)


def test_an_image_that_takes_20_seconds_is_waited_for() -> None:
    """A response whose image arrives after 20 s is not a timeout."""

    async def scene(scenario: OutageScenario) -> None:
        scenario.google.set(faults.drip(20.0))
        assert (await scenario.ask()).provider == "google"
        assert now() == pytest.approx(20.0 + HEALTHY, abs=1.0)

    run_outage_scenario(scene, **UNPACED)


@pytest.mark.parametrize(("deadline", "longest"), [(45, 45.0), (None, 180.0)])
def test_a_body_that_stalls_is_left_within_the_deadline(
    deadline: float | None, longest: float
) -> None:
    """With a deadline, a stalled body leaves time for the fallback; without one, limits apply."""

    async def scene(scenario: OutageScenario) -> None:
        scenario.google.set(DRIES_UP)
        assert (await scenario.ask(deadline=deadline)).provider == "openai"
        assert now() <= longest

    run_outage_scenario(scene, **UNPACED)


def test_an_invalid_request_does_not_fall_back() -> None:
    """At the default settings, a request that is too long is not sent to the fallback."""

    async def scene(scenario: OutageScenario) -> None:
        scenario.google.set(TOO_LONG)
        with pytest.raises(InvalidRequestError, match="400 INVALID_ARGUMENT"):
            await scenario.ask()
        assert (len(scenario.google.requests), len(scenario.openai.requests)) == (1, 0)

    run_outage_scenario(scene, **UNPACED)


# -- the timing table: an image takes 3 to 10 seconds ------------------------------------------


@pytest.mark.parametrize("seconds", [3.0, 10.0])
def test_row_google_healthy(seconds: float) -> None:
    """A healthy Google adds nothing to the 3 to 10 s of its image."""

    async def scene(scenario: OutageScenario) -> None:
        scenario.google.set_latency(seconds)
        result = await scenario.ask()
        assert (result.provider, result.attempts) == ("google", 1)
        assert now() == pytest.approx(seconds, abs=SLACK)
        scenario.google.set_latency(HEALTHY)

    run_outage_scenario(scene)


def test_row_google_503_retry_works() -> None:
    """A retried 503 adds one back-off: about 10 s."""
    run_outage_scenario(single_fault(faults.overload(), 10.0 + SLACK))


def test_row_google_down_for_more_than_30_minutes() -> None:
    """Only the first image takes 15 to 20 s; later ones take as long as OpenAI."""

    async def scene(scenario: OutageScenario) -> None:
        scenario.google.set(faults.overload())
        seconds = []
        for _ in range(40):
            asked = now()
            result = await scenario.ask()
            assert result.provider == "openai"
            seconds.append(now() - asked)
            await asyncio.sleep(60.0 - seconds[-1])
        assert seconds[0] <= 20.0
        # A probe that fails at once does not delay the call that sent it.
        assert max(seconds[1:]) <= HEALTHY + 1.0
        # Three requests trip the breaker. Each failed probe costs the next call of its minute.
        assert len(scenario.google.requests) <= 3 + 40 // 2

    run_outage_scenario(scene)


def test_row_both_down() -> None:
    """If both vendors are down, the call fails after about 25 s and names both."""
    run_outage_scenario(both_overloaded)
