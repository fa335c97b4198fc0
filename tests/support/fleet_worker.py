"""Worker process of a fleet, controlled by lines of JSON on standard input.

Each line is a numbered command; the answer is one line, with the number, on standard output:

- ``{"do": "open", "settings": {...}, "traced": false}`` creates the client and connects to Redis;
  the answer is the longest stall of the loop;
- ``{"do": "load", "callers": 2, "seconds": 5, "pause": 0.05, "rest": 1}`` requests images for that
  time; the answer has the outcomes of the calls and the stalls since the client was opened;
- ``{"do": "close"}``.

Times are `time.monotonic`, which is one clock for all processes of a machine.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from collections import Counter
from typing import Any

from fleet_stalls import StallWatch
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

import resilient_imagen.distributed.redis_breaker
import resilient_imagen.distributed.redis_limiter  # noqa: F401 - compile modules before measurements
from resilient_imagen import ImageClient, ImageGenerationError, Settings
from resilient_imagen.reasons import Reason
from resilient_imagen.telemetry.events import (
    BreakerChanged,
    Event,
    OperatorWarning,
    OrderApplied,
    OrderEnded,
)

PROMPT = os.environ["FLEET_PROMPT"]


class Notes:
    """A sink that records changes of the breaker, orders and warnings."""

    inline = True

    def __init__(self) -> None:
        self.changes: list[tuple[float, str]] = []
        self.warnings: list[str] = []
        self.orders: list[tuple[float, str, str]] = []

    def handle(self, event: Event) -> None:
        if isinstance(event, BreakerChanged):
            self.changes.append((event.at, event.transition.to_state.value))
        elif isinstance(event, OperatorWarning):
            self.warnings.append(event.code)
        elif isinstance(event, OrderApplied | OrderEnded):
            self.orders.append((event.at, type(event).__name__, event.order))


class OrdersOnSpans(SpanProcessor):
    """Counts calls by the orders on their spans."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def on_end(self, span: ReadableSpan) -> None:
        if span.name == "imagegen.generate":
            self.counts[str((span.attributes or {}).get("imagegen.control.orders", ""))] += 1


class Process:
    """The commands."""

    def __init__(self, stalls: StallWatch) -> None:
        self.stalls = stalls
        self.client: ImageClient | None = None
        self.notes = Notes()
        self.spans = OrdersOnSpans()

    async def prepare(self) -> None:
        """Generate a first image, so that measurements do not include the first use of the SDK."""
        async with ImageClient(Settings(max_retries=0)) as client:
            await client.generate(PROMPT)
        gc.collect()
        gc.freeze()  # garbage of the SDK's import must not be part of the measurement

    async def open(self, settings: dict[str, Any], *, traced: bool = False) -> dict[str, Any]:
        await self.close()
        tracers = None
        if traced:
            self.spans, tracers = OrdersOnSpans(), TracerProvider()
            tracers.add_span_processor(self.spans)
        self.notes = Notes()
        self.stalls.worst = 0.0
        self.client = ImageClient(Settings(**settings), sinks=[self.notes], tracer_provider=tracers)
        await self.client.warm_up()
        stall, self.stalls.worst = self.stalls.worst, 0.0
        return {**(self.client.snapshot()["fleet"] or {}), "stall": stall}

    async def close(self) -> dict[str, Any]:
        if self.client is not None:
            await self.client.aclose()
        return {}

    async def load(self, callers: int, seconds: float, pause: float, rest: float) -> dict[str, Any]:
        assert self.client is not None
        client = self.client
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        ended: Counter[str] = Counter()
        slowest = 0.0
        self.notes.changes.clear()

        async def caller() -> None:
            nonlocal slowest
            while loop.time() < end:
                began = loop.time()
                try:
                    await client.generate(PROMPT)
                    ended["image"] += 1
                except ImageGenerationError as error:
                    ended[str(error.reason)] += 1
                    if error.reason is not Reason.CIRCUIT_OPEN:
                        await asyncio.sleep(rest)
                slowest = max(slowest, loop.time() - began)
                await asyncio.sleep(pause)

        await asyncio.gather(*(caller() for _ in range(callers)))
        snapshot = client.snapshot()
        return {
            "ended": dict(ended),
            "slowest": slowest,
            "changes": self.notes.changes,
            "warnings": self.notes.warnings,
            "orders": self.notes.orders,
            "control": snapshot["control"]["orders"],
            "spans": self.spans.counts,
            "stall": self.stalls.worst,
            "joined": snapshot["fleet"]["joined"] if snapshot["fleet"] else None,
            "state": snapshot["routes"][0]["breaker"]["state"],
        }


async def main(stalls: StallWatch) -> None:
    if skew := float(os.environ.get("FLEET_CLOCK_SKEW", "0")):
        true_time, true_ns = time.time, time.time_ns
        time.time = lambda: true_time() + skew
        time.time_ns = lambda: true_ns() + int(skew * 1e9)
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    process = Process(stalls)
    await process.prepare()
    while line := await reader.readline():
        command = json.loads(line)
        number = command.pop("number")
        answer = await getattr(process, command.pop("do"))(**command)
        sys.stdout.write(json.dumps({"number": number, **answer}) + "\n")
        sys.stdout.flush()
    await process.close()


if __name__ == "__main__":
    watch = StallWatch()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(watch)) as runner:
        runner.run(main(watch))
