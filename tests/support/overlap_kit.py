"""Overlap test kit: a client with three scripted routes on virtual time; overlap is on, as by
default.

The routes are ``google`` and ``openai``, the default ones, and ``local``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pipeline_kit import FAST, PipelineScenario, run_with_client

from resilient_imagen import Reason, Settings
from resilient_imagen.telemetry.events import AttemptEnded
from resilient_imagen.testing import FakeProvider, RecordingSink

T = TypeVar("T")

TWO_ROUTES = "google:gemini-3-pro-image,openai:gpt-image-2.5-flare"
THREE_ROUTES = f"{TWO_ROUTES},local:m"


@dataclass
class OverlapScenario(PipelineScenario):
    """A client with a primary, a slower second route, and a third one."""

    local: FakeProvider

    async def make_probe_due(self, index: int = 0) -> None:
        """Open a circuit, and wait until its next request is a probe."""
        self.circuit(index).force_trip(cause="overloaded", summary="503")
        await asyncio.sleep(1300)

    async def learn_latency(self, seconds: float, times: int = 4) -> None:
        """Let the primary serve images with this latency, ``times`` times."""
        self.google.latency = seconds
        for _ in range(times):
            await self.ask()

    def requests(self, provider: str) -> list[AttemptEnded]:
        """Return the requests of a provider that have ended."""
        return [each for each in self.events.attempts if each.provider == provider]

    def request(self, provider: str = "google") -> AttemptEnded:
        """Return the only request of a provider that has ended."""
        (only,) = self.requests(provider)
        return only

    def outcomes(self) -> list[tuple[str, Reason | None]]:
        """Return provider and reason of every request that has ended, in that order."""
        return [(each.provider, each.reason) for each in self.events.attempts]


def run_overlap(
    scene: Callable[[OverlapScenario], Awaitable[T]],
    google: FakeProvider | None = None,
    **settings: Any,
) -> T:
    """Run ``scene`` on virtual time with these settings, perhaps with another primary."""
    google = FakeProvider("google") if google is None else google
    openai, local = FakeProvider("openai", latency=2.0), FakeProvider("local", latency=2.0)
    events = RecordingSink()
    return run_with_client(
        lambda client: scene(OverlapScenario(google, openai, client, events, local)),
        Settings(**{"routes": TWO_ROUTES, **FAST, **settings}),
        [google, openai, local],
        sinks=[events],
    )
