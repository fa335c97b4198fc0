"""What the library costs per call, with everything switched on and with nothing.

Run ``python benchmarks/overhead.py [calls]``. Providers answer at once, so what is measured is our
own: queue, breaker, timers, telemetry; in microseconds of processor time, all threads together.
Looking at the picture is left out, but in its own row: that happens in a thread, on pictures that
took seconds to make. Each setting runs in processes of its own, which take turns; each number is
that of the best stretch of calls, for what else the machine does can only add to it. What it costs
to await the provider alone is taken off.

- nothing: neither an SDK nor structlog's configuration, logging as Python starts with it.
- spans: the SDK with a batch processor and an exporter that drops, and metrics with a reader in
  memory: encoding and sending are the application's, and happen elsewhere. Two spans a call. The
  processor's queue is emptied after each stretch of calls, outside of what is measured: it never
  fills where a picture takes seconds, and neither does its thread fight ours for the interpreter.
- logs: structlog's JSON from level INFO on, to the null device. One line a call.
- everything: both.
- fallback: as nothing, but Google refuses each call and OpenAI serves it; the breaker stays closed.
  No handler would receive its two warnings, so that no record is made of them.

Goals per call: 250 µs with everything, 50 µs with nothing, 100 µs for a fallback. They were set on
a machine of which three figures are known: a span, a histogram's record and a line of structlog, as
others make them. They are measured in the same way here, thousands in a row, and the middle one of
the three ratios says what the goals' machine would need: the last column.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import subprocess
import sys
import time
from statistics import median
from typing import TYPE_CHECKING, Any

from opentelemetry import trace

from resilient_imagen import ImageClient, Settings
from resilient_imagen.errors import ImageGenerationError, provider_failure
from resilient_imagen.pipeline.fitter import FittedImage, ImageFitter
from resilient_imagen.providers.base import ProviderImage, ProviderResult, TokenUsage
from resilient_imagen.reasons import Reason
from resilient_imagen.request import ImageRequest
from resilient_imagen.testing import TINY_PNG

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.sdk.trace import ReadableSpan

GOALS = {"nothing": 50.0, "everything": 250.0, "fallback": 100.0}
"""µs per call, where the yardstick is."""
YARDSTICKS = {"one span": 15.9, "one record": 6.8, "one line": 10.2}
"""µs that these took there."""
SETTINGS = ("bare", "nothing", "spans", "logs", "everything", "with picture")
FALLBACK = ("bare fallback", "fallback")
"""Google refuses every call at once and OpenAI serves it: by hand, and through the library."""
ROUNDS = 5
"""Of a yardstick, in each process."""
STRETCH = 100
"""Calls that are measured before the batch processor's queue is emptied."""
PROCESSES = 5
"""For each setting."""


class Instant:
    """A provider that has the picture ready."""

    def __init__(self, name: str = "google") -> None:
        self.name = name
        images = (ProviderImage(TINY_PNG, "image/png"),)
        self.result = ProviderResult(images, "gemini-3-pro-image", TokenUsage(10, 100, 110))

    async def generate(self, request: ImageRequest, model: str) -> ProviderResult:
        """Hand it over."""
        del request, model
        return self.result

    async def aclose(self) -> None:
        """Nothing to close."""
        return


class Down(Instant):
    """A provider that is overloaded, and says so at once."""

    async def generate(self, request: ImageRequest, model: str) -> ProviderResult:
        """Refuse."""
        del request
        raise provider_failure(Reason.OVERLOADED, provider=self.name, model=model, status=503)


def switch_on(setting: str) -> None:
    """Install what an application would have installed."""
    if setting in {"one span", "one record", "spans", "everything"}:
        from opentelemetry import metrics
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import (
            BatchSpanProcessor,
            SpanExporter,
            SpanExportResult,
        )

        class Dropping(SpanExporter):
            """Keeps nothing: what a real one does happens elsewhere."""

            def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
                del spans
                return SpanExportResult.SUCCESS

        tracers = TracerProvider()
        tracers.add_span_processor(BatchSpanProcessor(Dropping()))
        trace.set_tracer_provider(tracers)
        metrics.set_meter_provider(MeterProvider([InMemoryMetricReader()]))
    if setting in {"one line", "logs", "everything"}:
        import structlog

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


class Unfitted(ImageFitter):
    """Passes every image on as it is."""

    async def fit(self, request: ImageRequest, answer: ProviderResult) -> FittedImage:
        """Return the image of the answer."""
        del request
        (image,) = answer.images
        return FittedImage(image.data, image.mime_type)


async def measure(setting: str, calls: int) -> list[float]:
    """Seconds of processor time per call, all threads together; stretch by stretch."""
    switch_on(setting)
    if setting in YARDSTICKS:
        return yardstick(setting, calls)
    settings = Settings(routes="google:gemini-3-pro-image", ipm=1_000_000, burst=1_000_000)
    providers = [Instant()]
    if setting == "fallback":  # every time: a breaker that opened would spare us the work
        settings = Settings(
            ipm=1_000_000, burst=1_000_000, max_retries=0, breaker_fail_max=10**9,
            breaker_min_calls=10**9,
        )  # fmt: skip
        providers = [Down(), Instant("openai")]
    async with ImageClient(settings, providers=providers) as client:
        if setting != "with picture":
            client._pipeline._attempts._fitter = Unfitted("none")  # noqa: SLF001
        once = {"bare": just_ask, "bare fallback": ask_another}.get(
            setting, lambda: client.generate("a lighthouse")
        )
        flush = getattr(trace.get_tracer_provider(), "force_flush", lambda: None)
        stretches = []
        stretch = min(calls, STRETCH)
        for _ in range(calls // stretch):
            started = time.process_time()
            for _ in range(stretch):
                await once()
            stretches.append((time.process_time() - started) / stretch)
            flush()
        return stretches


def yardstick(which: str, times: int) -> list[float]:
    """Seconds of processor time for one of what the goals' machine is known by."""
    import structlog
    from opentelemetry import metrics

    tracer = trace.get_tracer("yardstick")
    histogram = metrics.get_meter("yardstick").create_histogram("yardstick")
    ten = {f"key.{number}": number for number in range(10)}
    five = {f"key.{number}": "word" for number in range(5)}
    eight: dict[str, Any] = {f"key_{number}": number for number in range(8)}
    write = structlog.get_logger().bind().info
    once: Callable[[], object] = {
        "one span": lambda: tracer.start_span("yardstick", attributes=ten).end(),
        "one record": lambda: histogram.record(1.5, five),
        "one line": lambda: write("yardstick", **eight),
    }[which]
    stretches = []
    for _ in range(ROUNDS):
        started = time.process_time()
        for _ in range(times):
            once()
        stretches.append((time.process_time() - started) / times)
    return stretches


async def just_ask() -> None:
    await Instant().generate(ImageRequest("a lighthouse"), "gemini-3-pro-image")


async def ask_another() -> None:
    try:
        await Down().generate(ImageRequest("a lighthouse"), "gemini-3-pro-image")
    except ImageGenerationError:
        await just_ask()


def figures(
    calls: int,
    rounds: int,
    settings: Sequence[str],
    sum_up: Callable[[list[float]], float] = min,
) -> dict[str, float]:
    """Microseconds of processor time per call; the best stretch, unless told otherwise."""
    found: dict[str, list[float]] = {setting: [] for setting in settings}
    for _ in range(rounds):
        for setting in settings:
            command = [sys.executable, __file__, str(calls), "--only", setting]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[setting] += json.loads(done.stdout)
    return {setting: sum_up(found[setting]) * 1e6 for setting in settings}


def slower(taken: Mapping[str, float]) -> float:
    """How many times as long as the goals' machine this one takes."""
    return median(taken[which] / there for which, there in YARDSTICKS.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("calls", nargs="?", type=int, default=5000)
    parser.add_argument(
        "--only",
        choices=(*YARDSTICKS, *SETTINGS, *FALLBACK),
        help="measure one setting in this process",
    )
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(asyncio.run(measure(arguments.only, arguments.calls))))
        return
    taken = figures(arguments.calls, PROCESSES, (*YARDSTICKS, *SETTINGS, *FALLBACK))
    for which, there in YARDSTICKS.items():
        print(
            f"{which}: {taken[which]:.1f} µs, {taken[which] / there:.2f} times the goals' machine"
        )
    machine = slower(taken)
    print(f"{'setting':12} {'µs':>7} {'ratio':>6} {'goal':>6} {'scaled':>7}")
    own = {setting: taken[setting] - taken["bare"] for setting in SETTINGS[1:]}
    own["fallback"] = taken["fallback"] - taken["bare fallback"]
    for setting, cost in own.items():
        line = f"{setting:12} {cost:7.1f} {cost / own['nothing']:6.1f}"
        if goal := GOALS.get(setting):
            scaled = cost / machine
            line += f" {goal:6.0f} {scaled:7.1f} {'met' if scaled < goal else 'MISSED'}"
        print(line)


if __name__ == "__main__":
    main()
