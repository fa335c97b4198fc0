"""A real Jaeger as a recording: what was sent there is found again, by either of its APIs."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace

import httpx2
import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the otel extra")

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from trace_backends import Jaeger, jaeger
from tuning_kit import ROOMY, bad, world

from resilient_imagen import Settings
from resilient_imagen.telemetry import spans
from resilient_imagen.telemetry.sink import EventSink
from resilient_imagen.telemetry.spans import SpanSink
from resilient_imagen.tuning import Recorder, Recording
from resilient_imagen.tuning.gather import gather
from resilient_imagen.tuning.import_jaeger import rows_of_service
from resilient_imagen.tuning.rows import Attempted, Row
from resilient_imagen.tuning.simulation import play

pytestmark = pytest.mark.jaeger


@pytest.fixture(scope="module")
def filled() -> Iterator[tuple[Jaeger, str, Recording]]:
    """Half an hour with an outage, that ended just now, in a real Jaeger."""
    with pytest.MonkeyPatch.context() as patch, jaeger() as backend:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            patch.delenv(name, raising=False)
        service = f"tuned-{secrets.token_hex(4)}"
        begun = time.time() - 3600

        def virtual_ns() -> int:
            return int((begun + asyncio.get_running_loop().time()) * 1e9)

        patch.setattr(spans, "time", SimpleNamespace(time_ns=virtual_ns))
        exporter = OTLPSpanExporter(endpoint=f"{backend.otlp}/v1/traces", timeout=10)
        tracers = TracerProvider(resource=Resource({"service.name": service}))
        tracers.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=10_000))
        rows: list[Row] = []
        sinks: list[EventSink] = [SpanSink(tracers), Recorder(rows.append, epoch=begun)]
        play(world(bad(0.1, 6), hours=0.5), Settings(**ROOMY), seed=1, sinks=sinks)
        tracers.shutdown()
        yield backend, service, gather(rows)


def size(recording: Recording) -> tuple[int, int, int]:
    """Calls, requests sent and refusals in it."""
    logs = recording.routes.values()
    return (
        len(recording.asked),
        sum(len(log.at) for log in logs),
        sum(len(log.rejected) for log in logs),
    )


def from_jaeger(backend: Jaeger, service: str, whole: Recording) -> Recording:
    """What is found there, once it has everything: it takes in spans in its own order and time."""
    give_up = time.monotonic() + 60
    while True:
        rows = list(rows_of_service(backend.url, service, 2 * 3600, Counter()))
        late = time.monotonic() > give_up
        if late or any(isinstance(row, Attempted) for row in rows):  # at first it has none
            found = gather(rows)
            if late or size(found) == size(whole):
                return found
        time.sleep(0.2)  # another process is at work; there is nothing else to wait for


@pytest.mark.parametrize("old", [False, True], ids=["api v3", "older api"])
def test_a_real_jaeger_gives_the_recording_back(
    filled: tuple[Jaeger, str, Recording], monkeypatch: pytest.MonkeyPatch, old: bool
) -> None:
    """Every call and every request is found again, though it gives few traces at once."""
    from resilient_imagen.tuning import import_jaeger as reader

    backend, service, recording = filled
    monkeypatch.setattr(reader, "_TRACES", 60)
    if old:
        send = httpx2.Client.send

        def refuse(
            self: httpx2.Client, request: httpx2.Request, **options: bool
        ) -> httpx2.Response:
            if "/api/v3/" in request.url.path:
                return httpx2.Response(501, text="not here", request=request)
            return send(self, request, stream=options.get("stream", False))

        monkeypatch.setattr(httpx2.Client, "send", refuse)
    found = from_jaeger(backend, service, recording)
    assert size(found) == size(recording)
    for name, log in recording.routes.items():
        assert list(found.routes[name].reason) == list(log.reason)
        assert list(found.routes[name].latency) == pytest.approx(list(log.latency), abs=0.01)
        assert len(found.routes[name].rejected) == len(log.rejected)
