"""Traffic with overlap at its defaults: days without failures, and a primary that hangs for
half an hour.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable

import pytest
from pipeline_kit import now

from resilient_imagen import ImageClient, ImageGenerationError, Resolution, Settings
from resilient_imagen.models import typical_latency
from resilient_imagen.providers.base import ProviderResult
from resilient_imagen.request import ImageRequest
from resilient_imagen.telemetry.events import BreakerChanged
from resilient_imagen.testing import FakeProvider, RecordingSink, run_virtual

pytestmark = pytest.mark.no_cover

RESOLUTIONS: tuple[Resolution, ...] = ("1K", "2K", "4K")
SPREAD = 0.27
"""Sigma of the logarithm of the latency: the 95th percentile is 1.56 times the median."""
HOUR = 3600.0


class TypicalProvider(FakeProvider):
    """A provider with the model table's latencies that can hang for a while."""

    def __init__(self, name: str, seed: int, hangs: Callable[[], bool] = lambda: False) -> None:
        super().__init__(name)
        self._random = random.Random(f"{name} {seed}")
        self._hangs = hangs

    async def generate(self, request: ImageRequest, model: str) -> ProviderResult:
        median = typical_latency(self.name, model, request.resolution)
        assert median is not None
        self.latency = median * math.exp(self._random.gauss(0, SPREAD))
        if self._hangs():
            self.hang(times=1)
        return await super().generate(request, model)


async def send_traffic(
    client: ImageClient,
    seconds: float,
    every: float,
    deadline: float,
    seed: int,
    resolutions: tuple[Resolution, ...] = RESOLUTIONS,
) -> None:
    """Send a call every so many seconds, each of a random resolution."""
    chance = random.Random(seed)
    calls: set[asyncio.Task[None]] = set()

    async def call(resolution: Resolution) -> None:
        try:
            await client.generate("x", resolution=resolution, deadline=deadline)
        except ImageGenerationError:
            return

    while now() < seconds:
        task = asyncio.create_task(call(chance.choice(resolutions)))
        calls.add(task)
        task.add_done_callback(calls.discard)
        await asyncio.sleep(every)
    await asyncio.gather(*calls)


@pytest.mark.parametrize(
    "deadline",
    [60, pytest.param(90, marks=pytest.mark.ci), pytest.param(105, marks=pytest.mark.ci)],
)
def test_a_day_of_slow_large_images_opens_no_circuit(deadline: float) -> None:
    """Slow 2K and 4K images that exceed reserve or limit do not open a circuit."""

    async def main() -> None:
        providers = [TypicalProvider(name, 1) for name in ("google", "openai")]
        sink = RecordingSink()
        async with ImageClient(Settings(), providers=providers, sinks=[sink]) as client:
            await send_traffic(client, 24 * HOUR, 40, deadline, 1)
        assert sink.of(BreakerChanged) == []
        slow = [each for each in sink.calls if each.hedged == "timeout"]
        assert len(slow) > 50, "the day would prove nothing without slow images"

    run_virtual(main())


@pytest.mark.parametrize("resolutions", [RESOLUTIONS, ("1K",)], ids=["mixed", "1K"])
@pytest.mark.parametrize("deadline", [90, 105])
def test_a_primary_that_hangs_for_half_an_hour_costs_few_requests(
    deadline: float, resolutions: tuple[Resolution, ...]
) -> None:
    """At ten calls a minute at most 20 requests are wasted, and the circuit closes afterwards."""

    def hangs() -> bool:
        return HOUR <= now() < 1.5 * HOUR

    async def main() -> None:
        providers = [TypicalProvider("google", 1, hangs), TypicalProvider("openai", 1)]
        sink = RecordingSink()
        chosen = Settings(ipm=20, max_concurrent=16)
        async with ImageClient(chosen, providers=providers, sinks=[sink]) as client:
            await send_traffic(client, 2 * HOUR, 6, deadline, 1, resolutions)
        wasted = [
            each
            for each in sink.attempts
            if each.provider == "google" and each.reason and HOUR <= each.sent.at < 1.5 * HOUR
        ]
        assert 10 < len(wasted) <= 20
        last = sink.last(BreakerChanged)
        assert (last.provider, last.transition.to_state) == ("google", "closed")
        assert last.at - 1.5 * HOUR < 400

    run_virtual(main())
