"""Loop test kit: one client with a scripted Google and a real Redis, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from resilient_imagen import ConfigurationError, ImageClient, Settings
from resilient_imagen.pipeline.route import Route
from resilient_imagen.providers.google import GoogleProvider
from resilient_imagen.reasons import Reason
from resilient_imagen.telemetry.events import OperatorWarning
from resilient_imagen.testing import FakeProvider, RecordingSink

PATIENCE = 60.0
"""Seconds after which a test counts as hanging."""


class LoopScenario:
    """A client, its provider and its warnings."""

    def __init__(self, url: str, *, api_key: str = "", **more: Any) -> None:
        self.google = FakeProvider("google", latency=0.005)
        if api_key:
            self.google.endpoint = GoogleProvider(api_key=api_key).endpoint
        self.sink = RecordingSink()
        numbers = {"ipm": 60_000, "max_retries": 0, "breaker_reset_timeout": 1.0, **more}
        settings = Settings(redis_url=url, routes="google:pro", **numbers)
        self.client = ImageClient(settings, providers=[self.google], sinks=[self.sink])

    async def ask(self) -> None:
        await self.client.generate("a lighthouse")

    async def open_breaker(self) -> None:
        """Open the breaker by three calls to an overloaded Google."""
        self.google.fail(Reason.OVERLOADED, status=503, latency=0, times=3)
        for _ in range(3):
            with pytest.raises(Exception, match="503"):
                await self.ask()

    async def refuses(self, why: str) -> None:
        """Check that warm-up and calls raise an error without secrets, and send no request."""
        async with self.client:
            for attempt in (self.client.warm_up, self.ask, self.ask):
                with pytest.raises(ConfigurationError, match=why) as caught:
                    await attempt()
                assert "hunter2" not in repr(caught.value)
            assert self.google.sent == []

    @property
    def route(self) -> Route:
        return self.client._routing.routes[0]

    @property
    def joined(self) -> bool:
        coordinator = self.client.snapshot()["fleet"]
        return coordinator is not None and coordinator["joined"]

    @property
    def state(self) -> str:
        state: str = self.client.snapshot()["routes"][0]["breaker"]["state"]
        return state

    @property
    def losses(self) -> list[str]:
        """Return the warnings so far that Redis is unavailable."""
        return [
            event.message for event in self.sink.of(OperatorWarning) if event.code == "redis_away"
        ]

    async def warnings(self) -> list[str]:
        """Close the event dispatcher, and return all warnings that Redis is unavailable."""
        await self.client._dispatcher.close()
        return self.losses


async def until(true: Callable[[], bool]) -> None:
    """Wait until ``true()`` is true."""
    async with asyncio.timeout(PATIENCE):
        while not true():  # noqa: ASYNC110 - the condition has no event
            await asyncio.sleep(0.005)


def run_loop_scenario(scene: Coroutine[Any, Any, None]) -> None:
    """Run a scenario, and check that no task is left."""

    async def main() -> None:
        async with asyncio.timeout(3 * PATIENCE):
            await scene
        await asyncio.sleep(0.02)  # transports of refused connections close a moment later
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert others == set()

    asyncio.run(main())
