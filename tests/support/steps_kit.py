"""Steps test kit: a client with a step of two Google accounts, and OpenAI, on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pipeline_kit import ONE_AT_A_TIME, run_guarded

from resilient_imagen import ImageClient, ImageResult, Settings
from resilient_imagen.circuitbreaker import CircuitBreaker
from resilient_imagen.providers.base import Endpoint
from resilient_imagen.telemetry.events import AccountChanged
from resilient_imagen.telemetry.sink import EventSink
from resilient_imagen.testing import FakeProvider, RecordingSink

T = TypeVar("T")

PRO = "gemini-3-pro-image"
STEP = f"google+google_b:{PRO}"
GPT = "gpt-image-2.5-flare"
CHAIN = f"{STEP},openai:{GPT}"


@dataclass
class StepScenario:
    """A client whose first step has two accounts."""

    google: FakeProvider
    google_b: FakeProvider
    openai: FakeProvider
    client: ImageClient
    events: RecordingSink

    async def ask(self, **options: Any) -> ImageResult:
        return await self.client.generate("a lighthouse", **options)

    def breaker(self, provider: str) -> CircuitBreaker:
        return self.client.breakers[f"{provider}:{PRO}"]

    def changes(self) -> list[tuple[str, str, str]]:
        """Return the changes of account so far: from, to and cause."""
        return [
            (each.from_route.split(":")[0], each.to_route.split(":")[0], str(each.cause))
            for each in self.events.of(AccountChanged)
        ]

    def asked(self) -> list[str]:
        """Return the providers of all requests that have ended."""
        return [each.provider for each in self.events.attempts]

    def idle(self) -> bool:
        """Return whether no request is in flight or queued, and no probe is sent."""
        return all(
            route["queue"]["in_flight"] == 0
            and route["queue"]["waiting"] == 0
            and route["breaker"]["probes_in_flight"] == 0
            for route in self.client.snapshot()["routes"]
        ) and not (self.google.in_flight + self.google_b.in_flight + self.openai.in_flight)


def run_steps(
    scene: Callable[[StepScenario], Awaitable[T]],
    *,
    sinks: Sequence[EventSink] = (),
    **settings: Any,
) -> T:
    """Run ``scene`` on virtual time with these settings, without overlap unless they ask for it."""

    async def main() -> T:
        chosen = Settings(**{"routes": CHAIN, "ipm": 6000, **ONE_AT_A_TIME, **settings})
        google, google_b = FakeProvider("google"), FakeProvider("google_b")
        openai, events = FakeProvider("openai", latency=2.0), RecordingSink()
        google_b.endpoint = Endpoint("google")
        used = {route.provider for route in chosen.accounts}
        providers = [each for each in (google, google_b, openai) if each.name in used]
        async with ImageClient(chosen, providers=providers, sinks=[events, *sinks]) as client:
            answer = await scene(StepScenario(google, google_b, openai, client, events))
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left
        return answer

    return run_guarded(main())
