"""What a caller waits for in an outage when nothing is set but, for some, the pace."""

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
    now,
    nowhere_to_go,
    passing,
    refused,
    run_outage_scenario,
    silence,
)

from resilient_imagen import InvalidRequestError, ProviderOverloadedError
from resilient_imagen.emulator import faults

# -- faults of test_scenarios.py, without its settings --------------------------------------------


def test_openais_filter_is_not_gone_around_either() -> None:
    """S13 with the chain the other way round."""
    run_outage_scenario(
        refused, routes="openai:gpt-image-2.5-flare,google:gemini-3-pro-image", **UNPACED
    )


def test_where_no_reason_leads_on_the_primarys_own_error_surfaces() -> None:
    """What it said reaches the caller as it is."""

    async def scene(scenario: OutageScenario) -> None:
        scenario.google.set(faults.overload())
        with pytest.raises(ProviderOverloadedError, match="503 UNAVAILABLE"):
            await scenario.ask()
        assert len(scenario.google.requests) <= BUDGET

    run_outage_scenario(scene, fallback_on="circuit_open", **UNPACED)


def test_no_answer_costs_a_minute() -> None:
    """Waited for once, and never repeated where there is a way on."""
    run_outage_scenario(silence(60.0), **UNPACED)


def test_a_picture_that_takes_20_seconds_is_waited_for() -> None:
    """A picture has no first token, and 20 s is an ordinary time for one."""

    async def scene(scenario: OutageScenario) -> None:
        scenario.google.set(faults.drip(20.0))
        assert (await scenario.ask()).provider == "google"
        assert now() == pytest.approx(20.0 + HEALTHY, abs=1.0)

    run_outage_scenario(scene, **UNPACED)


@pytest.mark.parametrize(("deadline", "longest"), [(45, 45.0), (None, 180.0)])
def test_a_body_that_stalls_is_left_within_the_deadline(
    deadline: float | None, longest: float
) -> None:
    """The fallback gets its share of the caller's time; without a deadline each try has its own."""

    async def scene(scenario: OutageScenario) -> None:
        scenario.google.set(DRIES_UP)
        assert (await scenario.ask(deadline=deadline)).provider == "openai"
        assert now() <= longest

    run_outage_scenario(scene, **UNPACED)


def test_a_request_at_fault_goes_nowhere_else() -> None:
    """One that is too long is the caller's to shorten, unless IMAGE_GEN_FALLBACK_ON says more."""

    async def scene(scenario: OutageScenario) -> None:
        scenario.google.set(TOO_LONG)
        with pytest.raises(InvalidRequestError, match="400 INVALID_ARGUMENT"):
            await scenario.ask()
        assert (len(scenario.google.requests), len(scenario.openai.requests)) == (1, 0)

    run_outage_scenario(scene, **UNPACED)


# -- the timing table: a picture takes 3 to 10 seconds -----------------------------------------


@pytest.mark.parametrize("seconds", [3.0, 10.0])
def test_row_google_healthy(seconds: float) -> None:
    """3 to 10 s: what the picture takes, and nothing on top."""

    async def scene(scenario: OutageScenario) -> None:
        scenario.google.set_latency(seconds)
        result = await scenario.ask()
        assert (result.provider, result.attempts) == ("google", 1)
        assert now() == pytest.approx(seconds, abs=SLACK)
        scenario.google.set_latency(HEALTHY)

    run_outage_scenario(scene)


def test_row_google_503_retry_works() -> None:
    """About 10 s: one pause, then the picture."""
    run_outage_scenario(passing(faults.overload(), 10.0 + SLACK))


def test_row_google_down_for_more_than_30_minutes() -> None:
    """Only the first image takes 15 to 20 s; the others take as long as OpenAI does."""

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
        # A probe that fails costs the one call that carried it nothing but its own instant.
        assert max(seconds[1:]) <= HEALTHY + 1.0
        # Three requests trip the breaker. Each failed probe costs the next call of its minute.
        assert len(scenario.google.requests) <= 3 + 40 // 2

    run_outage_scenario(scene)


def test_row_both_down() -> None:
    """About 25 s until the failure, and it names both."""
    run_outage_scenario(nowhere_to_go)
