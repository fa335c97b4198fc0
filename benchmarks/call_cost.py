"""What this library adds to a call, in microseconds: providers respond at once.

    python benchmarks/call_cost.py                                   # all, as JSON
    python benchmarks/call_cost.py plain | observed | sync CALLS     # in this process

Each kind is measured in a fresh process, and the cost of the provider is subtracted. Checking the
image is left out: it happens in a thread, beside requests of many seconds.

- plain: ``ok``, processor time without telemetry and with logging as Python starts with it;
  ``fallback``, the same for calls that Google rejects and OpenAI serves.
- observed: ``observed``, as ``ok``, with OpenTelemetry's SDK (a batch processor whose exporter
  drops the spans, a metric reader in memory) and structlog's JSON lines from INFO on.
- sync: ``hop``, wall-clock time of a call through ``resilient_imagen.sync`` over one in a
  coroutine, which is the way to the shared loop and back.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from unittest.mock import patch

from stopwatch import Figures, best, medians
from table import OURS

from resilient_imagen import ImageClient, Settings, sync
from resilient_imagen.errors import ImageGenerationError
from resilient_imagen.pipeline.fitter import FittedImage, ImageFitter
from resilient_imagen.providers.base import ProviderResult
from resilient_imagen.reasons import Reason
from resilient_imagen.request import ImageRequest
from resilient_imagen.testing import FakeProvider

TITLES = {
    "ok": "added to a call, µs of CPU",
    "fallback": "added to a call that falls back, µs of CPU",
    "observed": "added with OpenTelemetry's SDK and JSON log lines, µs of CPU",
    "hop": "a call by `resilient_imagen.sync` instead of `await`, µs more",
}
GOOGLE, OPENAI = "gemini-3-pro-image", "gpt-image-2.5-flare"
REQUEST = ImageRequest("a lighthouse")


def google() -> FakeProvider:
    return FakeProvider("google", latency=0)


def settings(routes: str = f"google:{GOOGLE}") -> Settings:
    """Return settings without limits and retries, by which the breaker never opens."""
    return Settings(
        routes=routes, ipm=1_000_000, burst=1_000_000, max_retries=0,
        breaker_fail_max=10**9, breaker_min_calls=10**9,
    )  # fmt: skip


async def unchecked(_: ImageFitter, __: ImageRequest, answer: ProviderResult) -> FittedImage:
    """Return the image of the response without a look at it."""
    (image,) = answer.images
    return FittedImage(image.data, image.mime_type)


async def added(calls: int, bare: Callable[[], Awaitable[object]], client: ImageClient) -> float:
    """Return the microseconds by which a call of the client exceeds a bare one."""
    async with client:
        taken = await best(calls, bare=bare, ours=lambda: client.generate("a lighthouse"))
    return taken["ours"] - taken["bare"]


async def added_to_google(calls: int) -> float:
    """Return the microseconds that a call of a healthy provider costs more by the client."""
    up = google()
    client = ImageClient(settings(), providers=[up])
    return await added(calls, lambda: up.generate(REQUEST, GOOGLE), client)


async def plain(calls: int) -> Figures:
    """Measure ``ok`` and ``fallback``."""
    down = google().fail(Reason.OVERLOADED, latency=0, status=503)
    other = FakeProvider("openai", latency=0)

    async def by_hand() -> None:
        try:
            await down.generate(REQUEST, GOOGLE)
        except ImageGenerationError:
            await other.generate(REQUEST, OPENAI)

    both = settings(f"google:{GOOGLE},openai:{OPENAI}")
    client = ImageClient(both, providers=[down, other])
    return {"ok": await added_to_google(calls), "fallback": await added(calls, by_hand, client)}


async def observed(calls: int) -> Figures:
    """Measure ``observed``."""
    install_telemetry()
    return {"observed": await added_to_google(calls)}


def install_telemetry() -> None:
    """Install what an application would have installed; nothing is sent."""
    import structlog
    from opentelemetry import metrics, trace
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class Dropping(SpanExporter):
        """An exporter that drops spans."""

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            del spans
            return SpanExportResult.SUCCESS

    tracers = TracerProvider()
    tracers.add_span_processor(BatchSpanProcessor(Dropping(), max_queue_size=2**17))
    trace.set_tracer_provider(tracers)
    metrics.set_meter_provider(MeterProvider([InMemoryMetricReader()]))
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(Path(os.devnull).open("w")),  # noqa: SIM115 - lives as long as the process
    )


async def hop(calls: int) -> Figures:
    """Measure the way to the shared loop of ``resilient_imagen.sync``, from this thread."""
    async with ImageClient(settings(), providers=[google()]) as awaited:
        with sync.ImageClient(settings(), providers=[google()]) as blocking:

            async def call() -> None:
                blocking.generate("a lighthouse")

            taken = await best(
                calls,
                time.perf_counter,
                awaited=lambda: awaited.generate("a lighthouse"),
                hop=call,
            )
    return {"hop": taken["hop"] - taken["awaited"]}


KINDS: dict[str, Callable[[int], Coroutine[None, None, Figures]]] = {
    "plain": plain,
    "observed": observed,
    "sync": hop,
}


def measure(rounds: int, calls: int, peers: Mapping[str, Sequence[str]]) -> dict[str, Figures]:
    """Return the medians of several rounds by design, in which the designs take turns.

    Args:
        rounds: Number of rounds.
        calls: Calls in each stretch.
        peers: Commands that print ``ok`` and ``fallback`` of other libraries.
    """
    own = {kind: [sys.executable, __file__, kind, str(calls)] for kind in KINDS}
    found = medians({**own, **peers}, rounds)
    ours = {key: value for kind in KINDS for key, value in found.pop(kind).items()}
    return {OURS: ours, **found}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        with patch.object(ImageFitter, "fit", unchecked):
            print(json.dumps(asyncio.run(KINDS[sys.argv[1]](int(sys.argv[2])))))
    else:
        print(json.dumps(measure(3, 500, {})[OURS]))
