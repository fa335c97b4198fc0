"""What this library adds to a call, in microseconds: providers respond at once.

    python benchmarks/call_cost.py                                   # all, as JSON
    python benchmarks/call_cost.py plain | observed | sync CALLS     # in this process

Each kind is measured in a fresh process. A figure is that of the best stretch of calls,
because other work of the machine can only add to it; what is compared takes turns.
Checking the image is left out: it happens in a thread, beside requests of many seconds.

- plain: ``ok``, processor time over that of the provider, without telemetry and with logging as
  Python starts with it; ``fallback``, the same for calls that Google rejects and OpenAI serves.
- observed: ``observed``, as ``ok``, with OpenTelemetry's SDK (a batch processor whose exporter
  drops the spans, a metric reader in memory) and structlog's JSON lines from INFO on.
- sync: ``hop``, wall-clock time of a call through ``resilient_imagen.sync`` over one in a
  coroutine, which is the way to the shared loop and back.
"""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from stopwatch import best

from resilient_imagen import ImageClient, Settings, sync
from resilient_imagen.cost import TokenUsage
from resilient_imagen.errors import ImageGenerationError, provider_failure
from resilient_imagen.pipeline.fitter import FittedImage, ImageFitter
from resilient_imagen.providers.base import Endpoint, ProviderImage, ProviderResult
from resilient_imagen.reasons import Reason
from resilient_imagen.request import ImageRequest
from resilient_imagen.testing import TINY_PNG

Figures = dict[str, float]


class Instant:
    """A provider that responds at once."""

    def __init__(self, name: str = "google") -> None:
        self.name = name
        self.endpoint = Endpoint(name)
        images = (ProviderImage(TINY_PNG, "image/png"),)
        self.result = ProviderResult(images, "gemini-3-pro-image", TokenUsage(10, 100, 110))

    async def generate(self, request: ImageRequest, model: str) -> ProviderResult:
        """Return the image."""
        del request, model
        return self.result

    async def aclose(self) -> None:
        """Do nothing: there are no connections."""


class Down(Instant):
    """A provider that is overloaded."""

    async def generate(self, request: ImageRequest, model: str) -> ProviderResult:
        """Raise a 503."""
        del request
        raise provider_failure(Reason.OVERLOADED, provider=self.name, model=model, status=503)


class Unfitted(ImageFitter):
    """An image fitter that does not look at images."""

    async def fit(self, request: ImageRequest, answer: ProviderResult) -> FittedImage:
        """Return the image of the response."""
        del request
        (image,) = answer.images
        return FittedImage(image.data, image.mime_type)


def client(*providers: Instant) -> ImageClient:
    """Return a client without effective limits; the breaker never opens."""
    settings = Settings(
        routes=",".join(f"{each.name}:{_MODELS[each.name]}" for each in providers),
        ipm=1_000_000, burst=1_000_000, max_retries=0, breaker_fail_max=10**9,
        breaker_min_calls=10**9,
    )  # fmt: skip
    made = ImageClient(settings, providers=providers)
    made._pipeline._attempts._fitter = Unfitted("none")  # noqa: SLF001 - no setting turns it off
    return made


_MODELS = {"google": "gemini-3-pro-image", "openai": "gpt-image-2.5-flare"}


async def plain(calls: int) -> Figures:
    """Measure ``ok`` and ``fallback``."""
    google, openai, down = Instant(), Instant("openai"), Down()
    request = ImageRequest("a lighthouse")

    async def by_hand() -> None:
        try:
            await down.generate(request, "gemini-3-pro-image")
        except ImageGenerationError:
            await openai.generate(request, "gpt-image-2.5-flare")

    async with client(google) as healthy, client(down, openai) as falling_back:
        taken = await best(
            calls,
            bare=lambda: google.generate(request, "gemini-3-pro-image"),
            ok=lambda: healthy.generate("a lighthouse"),
            by_hand=by_hand,
            fallback=lambda: falling_back.generate("a lighthouse"),
        )
    return {
        "ok": taken["ok"] - taken["bare"],
        "fallback": taken["fallback"] - taken["by_hand"],
    }


async def observed(calls: int) -> Figures:
    """Measure a call with spans, metrics and log lines switched on."""
    _switch_telemetry_on()
    google, request = Instant(), ImageRequest("a lighthouse")
    async with client(google) as healthy:
        taken = await best(
            calls,
            bare=lambda: google.generate(request, "gemini-3-pro-image"),
            observed=lambda: healthy.generate("a lighthouse"),
        )
    return {"observed": taken["observed"] - taken["bare"]}


def _switch_telemetry_on() -> None:
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
        logger_factory=structlog.WriteLoggerFactory(open("/dev/null", "w")),  # noqa: SIM115, PTH123 - lives as long as the process
    )


async def hop(calls: int) -> Figures:
    """Measure the way to the shared loop of ``resilient_imagen.sync``, from this thread."""
    settings = Settings(routes="google:gemini-3-pro-image", ipm=1_000_000, burst=1_000_000)

    async def call() -> None:
        images.generate("a lighthouse")

    async with ImageClient(settings, providers=[Instant()]) as awaited:
        with sync.ImageClient(settings, providers=[Instant()]) as images:
            taken = await best(
                calls,
                time.perf_counter,
                awaited=lambda: awaited.generate("a lighthouse"),
                hop=call,
            )
    return {"hop": taken["hop"] - taken["awaited"]}


KINDS: dict[str, Callable[[int], Any]] = {"plain": plain, "observed": observed, "sync": hop}


def measure(rounds: int, calls: int, peers: dict[str, list[str]]) -> dict[str, Figures]:
    """Return medians of several rounds by design, in which the designs take turns.

    Args:
        rounds: Number of rounds.
        calls: Calls in each stretch.
        peers: Commands that print ``ok`` and ``fallback`` of other libraries.
    """
    commands = {kind: [sys.executable, __file__, kind] for kind in KINDS} | peers
    runs: dict[str, list[Figures]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            printed = subprocess.check_output([*command, str(calls)], text=True, timeout=600)
            runs[name].append(json.loads(printed.splitlines()[-1]))
    found = {
        name: {key: median(run[key] for run in each) for key in each[0]}
        for name, each in runs.items()
    }
    own = {key: value for kind in KINDS for key, value in found.pop(kind).items()}
    return {"ours": own, **found}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(asyncio.run(KINDS[sys.argv[1]](int(sys.argv[2])))))
    else:
        print(json.dumps(measure(3, 500, {})["ours"]))
