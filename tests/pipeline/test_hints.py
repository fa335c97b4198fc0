"""Rate limits with a hint, and refusals during an outage, in whole calls on virtual time."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from resilient_imagen import ContentBlockedError, ImageClient, Settings
from resilient_imagen.errors import provider_failure
from resilient_imagen.providers.base import Provider, ProviderImage, ProviderResult
from resilient_imagen.reasons import Reason
from resilient_imagen.request import ImageRequest
from resilient_imagen.telemetry.events import BreakerChanged
from resilient_imagen.testing import TINY_PNG, FakeProvider, RecordingSink, run_virtual


class Google:
    """A provider whose responses follow a script."""

    name = "google"

    def __init__(self, answer: Callable[[], Awaitable[None]]) -> None:
        self.requests = 0
        self._answer = answer

    async def generate(self, request: ImageRequest, model: str) -> ProviderResult:
        del request
        self.requests += 1
        await self._answer()
        return ProviderResult((ProviderImage(TINY_PNG, "image/png"),), model)

    async def aclose(self) -> None:
        return


def failing(reason: Reason, status: int, hint: float | None = None) -> Exception:
    return provider_failure(reason, provider="google", status=status, retry_after=hint)


def now() -> float:
    return asyncio.get_running_loop().time()


async def call_regularly(
    google: Google, seconds: float, pause: float, **settings: Any
) -> tuple[Counter[str], RecordingSink]:
    """Request an image every `pause` seconds; count them by the provider that served."""
    served: Counter[str] = Counter()
    sink = RecordingSink()
    numbers = {"ipm": 6000, "max_concurrent": 60, "routes": "google:pro,openai:flare", **settings}
    providers: list[Provider] = [google, FakeProvider("openai", latency=10.0)]

    async with ImageClient(Settings(**numbers), providers=providers, sinks=[sink]) as client:

        async def call() -> None:
            try:
                served[(await client.generate("a lighthouse")).provider] += 1
            except ContentBlockedError:
                served["refused"] += 1

        async with asyncio.TaskGroup() as calls:
            for _ in range(int(seconds / pause)):
                calls.create_task(call())
                await asyncio.sleep(pause)
    return served, sink


def test_short_hints_delay_calls_by_no_more_than_the_hint() -> None:
    """5 % of 429s with a hint of 2 s at 30 calls a minute: Google serves at least 94 of 100."""
    chance = random.Random(7)

    async def answer() -> None:
        if chance.random() < 0.05:
            await asyncio.sleep(0.3)
            raise failing(Reason.RATE_LIMITED, 429, 2.0)
        await asyncio.sleep(20.0)

    async def scenario() -> tuple[Counter[str], RecordingSink]:
        return await call_regularly(Google(answer), 3600, 2.0)

    served, sink = run_virtual(scenario())
    changes = Counter(
        (event.transition.from_state.value, event.transition.to_state.value)
        for event in sink.of(BreakerChanged)
    )

    assert served.total() == 1800
    assert served["google"] >= 0.94 * served.total(), served
    assert set(changes) == {("closed", "open"), ("open", "closed")}
    assert changes["closed", "open"] == changes["open", "closed"] > 50


def test_refusals_during_an_outage_do_not_close_the_circuit() -> None:
    """A refused probe does not close the circuit, even if one of five requests is refused.

    In half an hour, Google receives at most a probe per open period; a refused probe is repeated.
    """
    count = iter(range(10**6))

    async def answer() -> None:
        await asyncio.sleep(0.3)
        if now() >= 1800.0:
            return
        if next(count) % 5 == 4:
            raise failing(Reason.CONTENT_BLOCKED, 400)
        raise failing(Reason.OVERLOADED, 503)

    async def scenario() -> tuple[int, Counter[str], RecordingSink]:
        google = Google(answer)
        served, sink = await call_regularly(google, 1790, 6.0, max_retries=0)
        return google.requests, served, sink

    requests, served, sink = run_virtual(scenario())

    assert all(event.transition.to_state != "closed" for event in sink.of(BreakerChanged))
    assert requests <= 3 + 30 * 5 // 4
    assert served["openai"] + served["refused"] == served.total()
