"""Steps test kit: a client with a step of two Google accounts, and OpenAI, on virtual time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pipeline_kit import FAST, ONE_AT_A_TIME, PipelineScenario, run_with_client

from resilient_imagen import Settings
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
class StepScenario(PipelineScenario):
    """A client whose first step has two accounts."""

    google_b: FakeProvider

    def account(self, provider: str) -> CircuitBreaker:
        """Return the circuit of an account of the step."""
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
        return super().idle() and not self.google_b.in_flight


def run_steps(
    scene: Callable[[StepScenario], Awaitable[T]],
    *,
    sinks: Sequence[EventSink] = (),
    **settings: Any,
) -> T:
    """Run ``scene`` on virtual time with these settings, without overlap unless they ask for it."""
    google, google_b = FakeProvider("google"), FakeProvider("google_b")
    google_b.endpoint = Endpoint("google")
    openai, events = FakeProvider("openai", latency=2.0), RecordingSink()
    return run_with_client(
        lambda client: scene(StepScenario(google, openai, client, events, google_b)),
        Settings(**{"routes": CHAIN, **FAST, **ONE_AT_A_TIME, **settings}),
        [google, google_b, openai],
        sinks=[events, *sinks],
    )
