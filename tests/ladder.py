"""A client over two scripted providers on virtual time: what the ladder's tests share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from resilient_imagen import ImageClient, ImageResult, Settings
from resilient_imagen.testing import FakeProvider, RecordingSink, run_virtual

T = TypeVar("T")

FAST = {"ipm": 6000}
"""Pacing out of the way."""


def now() -> float:
    return asyncio.get_running_loop().time()


@dataclass
class World:
    """Google, OpenAI and a client that knows only them."""

    google: FakeProvider
    openai: FakeProvider
    client: ImageClient
    told: RecordingSink

    async def ask(self, **options: Any) -> ImageResult:
        return await self.client.generate("a lighthouse", **options)

    def breaker(self, index: int = 0) -> str:
        state = self.client.snapshot()["routes"][index]["breaker"]["state"]
        assert isinstance(state, str)
        return state

    def idle(self) -> bool:
        """Whether nothing is in flight, queued or on probation."""
        return all(
            route["queue"]["in_flight"] == 0
            and route["queue"]["waiting"] == 0
            and route["breaker"]["probes_in_flight"] == 0
            for route in self.client.snapshot()["routes"]
        ) and not (self.google.in_flight or self.openai.in_flight)


def play(scene: Callable[[World], Awaitable[T]], **settings: Any) -> T:
    """Run ``scene`` on virtual time with these settings."""

    async def main() -> T:
        google, openai = FakeProvider("google"), FakeProvider("openai", latency=2.0)
        told = RecordingSink()
        async with ImageClient(
            Settings(**settings), providers=[google, openai], sinks=[told]
        ) as client:
            return await scene(World(google, openai, client, told))

    return run_virtual(main())
