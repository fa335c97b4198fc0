"""Retry hints of an application's provider are checked like those of the vendors."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pipeline_kit import FAST, PipelineScenario, now, run_scenario

from resilient_imagen import ImageGenerationError, RateLimitedError, Reason
from resilient_imagen.providers.base import ProviderImage, ProviderResult
from resilient_imagen.request import ImageRequest
from resilient_imagen.telemetry.events import AttemptEnded
from resilient_imagen.testing import TINY_PNG

NONSENSE: list[Any] = [
    0, 0.0, -1, -1e12, math.nan, math.inf, -math.inf, 1e12, 1_795_987_722, 10**400, True, "5", b"5",
]  # fmt: skip


class Throttled:
    """A provider that fails once with the given hint, then serves."""

    name = "google"

    def __init__(self, wait: Any, *, later: bool) -> None:
        self.wait, self.later, self.sent = wait, later, 0

    async def generate(self, request: ImageRequest, model: str) -> ProviderResult:
        self.sent += 1
        if self.sent > 1:
            return ProviderResult((ProviderImage(TINY_PNG, "image/png"),), model)
        error = RateLimitedError(status=429, retry_after=None if self.later else self.wait)
        if self.later:
            error.retry_after = self.wait
        raise error

    async def aclose(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize("later", [False, True], ids=["argument", "attribute"])
@pytest.mark.parametrize("wait", NONSENSE, ids=lambda wait: repr(wait)[:12])
def test_an_invalid_wait_is_ignored(wait: Any, later: bool) -> None:
    """For an invalid hint the retry backs off, and no attempt, event or breaker has it."""

    async def scene(scenario: PipelineScenario) -> None:
        provider = Throttled(wait, later=later)
        scenario.google.generate = provider.generate  # type: ignore[method-assign]
        result = await scenario.ask()
        assert (result.provider, result.attempts) == ("google", 2)
        assert 3.5 - 0.01 <= now() <= 5.1
        assert [event.retry_after for event in scenario.events.of(AttemptEnded)] == [None, None]
        assert scenario.state() == "closed"

    run_scenario(scene, **FAST)


@pytest.mark.parametrize(("wait", "expected"), [(2, 2.0), (0.5, 0.5), (200_000, 86_400.0)])
def test_a_valid_wait_is_used(wait: float, expected: float) -> None:
    """Error and attempt have the hint, limited to a day."""

    async def scene(scenario: PipelineScenario) -> None:
        provider = Throttled(wait, later=False)
        scenario.google.generate = provider.generate  # type: ignore[method-assign]
        scenario.openai.fail(Reason.INVALID_REQUEST, status=400)
        with pytest.raises(ImageGenerationError) as caught:
            await scenario.ask()
        assert [attempt.retry_after for attempt in caught.value.attempts] == [expected, None]

    run_scenario(scene, **FAST, max_retries=0)
