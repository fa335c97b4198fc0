"""Health: one status for a health check, and a sentence about each route that does not serve."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
from pipeline_kit import FAST, PipelineScenario, run_scenario

from resilient_imagen import Health, ImageClient, ImageGenerationError, Reason, Settings, sync
from resilient_imagen.control import new_order
from resilient_imagen.testing import FakeProvider, run_virtual

GOOGLE, OPENAI = "google:gemini-3-pro-image", "openai:gpt-image-2.5-flare"
ONE_TRY: dict[str, Any] = {**FAST, "max_retries": 0, "breaker_fail_max": 1}


async def fail(scenario: PipelineScenario, *providers: FakeProvider) -> None:
    """Let one call fail at these providers, which opens their circuits."""
    for provider in providers:
        provider.fail(Reason.OVERLOADED, times=1)
    try:
        await scenario.ask()
    except ImageGenerationError:
        assert len(providers) == 2


def test_a_client_whose_primary_serves_is_ok() -> None:
    """A new client is ok without a reason, and the check sends no request."""

    async def scene(scenario: PipelineScenario) -> None:
        assert scenario.client.health() == {"status": "ok", "reasons": []}
        assert scenario.google.sent == []

    run_scenario(scene)


def test_an_open_primary_degrades_and_two_open_routes_are_down() -> None:
    """The status follows the breakers; each reason has the cause and the time of the next probe."""

    async def scene(scenario: PipelineScenario) -> None:
        await fail(scenario, scenario.google)
        health = scenario.client.health()
        assert health["status"] == "degraded"
        (reason,) = health["reasons"]
        assert re.fullmatch(
            rf"{GOOGLE}: circuit open after overloaded, next probe in [56]\d s", reason
        )
        await fail(scenario, scenario.openai, scenario.openai)
        health = scenario.client.health()
        assert health["status"] == "down"
        assert [each.partition(": ")[0] for each in health["reasons"]] == [GOOGLE, OPENAI]
        json.dumps(health)

    run_scenario(scene, **ONE_TRY)


def test_a_failing_fallback_leaves_the_client_ok() -> None:
    """The primary serves, and the reason about the fallback is listed."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.client.breakers[OPENAI].force_open = True
        assert scenario.client.health() == {
            "status": "ok",
            "reasons": [f"{OPENAI}: circuit forced open by an operator"],
        }

    run_scenario(scene)


def test_a_client_that_only_needs_a_probe_is_not_down() -> None:
    """All circuits are due for a probe; without requests they would never close."""

    async def scene(scenario: PipelineScenario) -> None:
        await fail(scenario, scenario.google, scenario.openai)
        assert scenario.client.health()["status"] == "down"
        await asyncio.sleep(70)
        health = scenario.client.health()
        assert health["status"] == "degraded"
        assert health["reasons"][0] == (
            f"{GOOGLE}: circuit open after overloaded, the next request is a probe"
        )
        call = asyncio.create_task(scenario.ask())
        await asyncio.sleep(0.5)
        assert scenario.client.health()["reasons"][0] == (
            f"{GOOGLE}: circuit half-open after overloaded, a probe decides"
        )
        await call
        assert scenario.client.health()["status"] == "ok"

    run_scenario(scene, **ONE_TRY)


@pytest.mark.parametrize(
    ("given", "status", "reason"),
    [
        ("openai", "ok", f"{OPENAI} is off: OPENAI_API_KEY is not set"),
        ("google", "degraded", f"{GOOGLE} is off: GOOGLE_GENAI_API_KEY is not set"),
    ],
)
def test_a_route_that_is_off_is_listed_with_the_cause(given: str, status: str, reason: str) -> None:
    """A missing key of the primary degrades the client, and one of the fallback does not."""

    async def main() -> Health:
        other = FakeProvider("google" if given == "openai" else "openai")
        async with ImageClient(Settings(), providers=[other]) as client:
            return client.health()

    assert run_virtual(main()) == {"status": status, "reasons": [reason]}


def test_a_route_that_an_order_leaves_out_does_not_count() -> None:
    """Calls do not use the route, so it cannot replace the others."""

    async def scene(scenario: PipelineScenario) -> None:
        client = scenario.client
        client.obey(new_order("set", "IMAGE_GEN_ROUTES", value=GOOGLE, by="ops"))
        left_out = f"{OPENAI} is left out by an operator's order"
        assert client.health() == {"status": "ok", "reasons": [left_out]}
        await fail(scenario, scenario.google, scenario.openai)
        assert client.health()["status"] == "down"

    run_scenario(scene, **ONE_TRY)


def test_a_route_that_is_off_is_listed_although_an_order_leaves_it_out() -> None:
    """The snapshot lists it, too."""

    async def main() -> None:
        routes = f"{GOOGLE}, {OPENAI}"
        async with ImageClient(Settings(routes=routes), providers=[FakeProvider("google")]) as made:
            made.obey(new_order("set", "IMAGE_GEN_ROUTES", value=GOOGLE, by="ops"))
            assert [row["route"] for row in made.snapshot()["routes"]] == [GOOGLE, OPENAI]
            assert made.health()["reasons"] == [f"{OPENAI} is off: OPENAI_API_KEY is not set"]

    run_virtual(main())


def test_one_account_of_the_primary_is_enough() -> None:
    """A step with two accounts serves while one of them does."""

    async def main() -> None:
        accounts = [FakeProvider(name) for name in ("google", "google_b", "openai")]
        settings = Settings(routes=f"google+google_b:gemini-3-pro-image, {OPENAI}")
        async with ImageClient(settings, providers=accounts) as client:
            client.breakers[GOOGLE].force_open = True
            assert client.health()["status"] == "ok"
            client.breakers["google_b:gemini-3-pro-image"].force_open = True
            assert client.health()["status"] == "degraded"

    run_virtual(main())


def test_a_model_that_a_caller_names_does_not_count() -> None:
    """The circuit of a caller-named model is open, and the configured routes serve."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, times=1)
        await scenario.ask(model="gemini-3.1-flash-image")
        assert scenario.state(2) == "open"
        assert scenario.client.health() == {"status": "ok", "reasons": []}

    run_scenario(scene, **ONE_TRY)


def test_a_closed_client_is_down() -> None:
    """A closed client accepts no calls."""

    async def main() -> Health:
        client = ImageClient(Settings(), providers=[FakeProvider("google")])
        await client.aclose()
        return client.health()

    assert run_virtual(main()) == {"status": "down", "reasons": ["the client is closed"]}


def test_the_synchronous_client_has_the_same_health() -> None:
    """The synchronous client has the same answer."""
    with sync.ImageClient(
        Settings(), providers=[FakeProvider("google"), FakeProvider("openai")]
    ) as client:
        assert client.health() == {"status": "ok", "reasons": []}
