"""Scenario test kit: two emulated vendors, real SDKs with in-memory transport, virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest

from resilient_imagen import (
    AllProvidersFailedError,
    ContentBlockedError,
    ImageClient,
    ImageResult,
    Reason,
    Settings,
)
from resilient_imagen.emulator import Emulator, faults
from resilient_imagen.emulator.faults import Fault
from resilient_imagen.emulator.http_messages import Delivery
from resilient_imagen.emulator.vendor import Vendor
from resilient_imagen.providers.google import GoogleProvider
from resilient_imagen.providers.openai import OpenAIProvider
from resilient_imagen.testing import TINY_PNG, run_virtual

HEALTHY = 4.0
"""Seconds of a successful request, at both vendors."""
SLACK = 0.01
BUDGET = 6
"""Maximum requests to a failing primary in a scenario."""
UNPACED: dict[str, Any] = {"ipm": 6000}
"""The default settings with a rate limit that a scenario does not reach."""

CUT_LATE = faults.cut(40 / 60)
DRIES_UP = replace(faults.cut(20 / 60), delivery=Delivery(cut_at=20 / 60, seconds=30.0))
"""A third of the body over 30 seconds, without a read timeout; then the connection is closed."""
TOO_LONG = faults.status(
    400,
    {
        "error": {
            "code": 400,
            "status": "INVALID_ARGUMENT",
            "message": "The input token count (70000) exceeds the maximum number of tokens allowed",
        }
    },
)


@dataclass
class OutageScenario:
    """Both vendors, and a client that sends to them."""

    google: Vendor
    openai: Vendor
    client: ImageClient

    async def ask(self, **options: Any) -> ImageResult:
        """Generate one image, which must be complete."""
        result = await self.client.generate("a lighthouse", **options)
        assert result.image_bytes == TINY_PNG
        return result

    @property
    def gaps(self) -> list[float]:
        """Return the seconds between the requests that Google received."""
        times = [seen.time for seen in self.google.requests]
        return [after - before for before, after in pairwise(times)]


def run_outage_scenario(
    scene: Callable[[OutageScenario], Awaitable[None]], **settings: Any
) -> None:
    """Run a scenario; check that a call then succeeds at once, and that nothing leaks."""

    async def main() -> None:
        app = Emulator(picture=TINY_PNG, latency=HEALTHY)
        google = GoogleProvider(
            api_key="made-up", base_url="http://emulator", transport=app.transport()
        )
        openai = OpenAIProvider(
            api_key="made-up", base_url="http://emulator/v1", transport=app.transport()
        )
        providers = [google, openai]
        async with ImageClient(Settings(**settings), providers=providers) as client:
            scenario = OutageScenario(app.google, app.openai, client)
            await scene(scenario)
            app.heal()
            asked = now()
            await scenario.ask()
            assert now() - asked <= HEALTHY + 60.0 / client.settings.ipm + SLACK
            assert (app.google.in_flight, app.openai.in_flight) == (0, 0)

    run_virtual(main())


def now() -> float:
    return asyncio.get_running_loop().time()


async def both_refuse(scenario: OutageScenario) -> None:
    """Both vendors block the prompt; the primary's refusal ends the call."""
    for vendor in (scenario.google, scenario.openai):
        vendor.set(faults.blocked())
    with pytest.raises(ContentBlockedError, match="blocked by safety filters") as caught:
        await scenario.ask()
    assert caught.value.reason is Reason.CONTENT_BLOCKED
    assert len(scenario.google.requests) + len(scenario.openai.requests) == 1
    assert len(caught.value.attempts) == 1


async def both_overloaded(scenario: OutageScenario) -> None:
    """Both vendors are overloaded: the error has the primary's status and names both, in time."""
    for vendor in (scenario.google, scenario.openai):
        vendor.set(faults.overload())
    with pytest.raises(AllProvidersFailedError, match="503 UNAVAILABLE") as caught:
        await scenario.ask()
    assert now() <= 25.0
    assert caught.value.reason is Reason.OVERLOADED
    assert {attempt.provider for attempt in caught.value.attempts} == {"google", "openai"}
    assert len(scenario.google.requests) <= BUDGET


def primary_hangs(timeout: float) -> Callable[[OutageScenario], Awaitable[None]]:
    """Return a scenario: the primary never answers, times out once, and the call falls back."""

    async def scene(scenario: OutageScenario) -> None:
        scenario.google.set(faults.hang())
        result = await scenario.ask()
        assert (result.provider, result.fallback_reason) == ("openai", "timeout")
        assert len(scenario.google.requests) == 1
        assert now() <= timeout + HEALTHY + SLACK

    return scene


def single_fault(fault: Fault, longest: float) -> Callable[[OutageScenario], Awaitable[None]]:
    """Return a scenario: after one fault the primary's retry succeeds in ``longest`` seconds."""

    async def scene(scenario: OutageScenario) -> None:
        scenario.google.fail(fault)
        result = await scenario.ask()
        assert (result.provider, result.attempts) == ("google", 2)
        assert scenario.openai.requests == ()
        assert now() <= longest

    return scene
