"""Recordings from spans: a collector's file, and Jaeger by either of its APIs."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from telemetry_kit import Telemetry
from tuning_kit import read, recorded_by, same

from resilient_imagen import ImageClient, Reason, Settings
from resilient_imagen.telemetry import spans
from resilient_imagen.telemetry.spans import SpanSink
from resilient_imagen.testing import FakeProvider, run_virtual
from resilient_imagen.tuning import Recording, RecordingError, import_jaeger
from resilient_imagen.tuning.gather import gather
from resilient_imagen.tuning.import_jaeger import rows_of_service
from resilient_imagen.tuning.import_logs import FOREIGN
from resilient_imagen.tuning.rows import Asked, Attempted, Configured, Row


def above(span: ReadableSpan) -> str:
    """The id of the span above it; empty for none."""
    return "" if span.parent is None else format(span.parent.span_id, "016x")


def as_otlp(spans: list[ReadableSpan]) -> dict[str, Any]:
    """As a collector's file exporter writes them."""

    def value(given: Any) -> dict[str, Any]:
        if isinstance(given, bool):
            return {"boolValue": given}
        if isinstance(given, int):
            return {"intValue": str(given)}
        return {"doubleValue": given} if isinstance(given, float) else {"stringValue": str(given)}

    return {
        "resourceSpans": [
            {
                "resource": {"attributes": []},
                "scopeSpans": [
                    {
                        "scope": {"name": "resilient_imagen"},
                        "spans": [
                            {
                                "traceId": format(span.context.trace_id, "032x"),
                                "spanId": format(span.context.span_id, "016x"),
                                "parentSpanId": above(span),
                                "name": span.name,
                                "startTimeUnixNano": str(span.start_time),
                                "endTimeUnixNano": str(span.end_time),
                                "attributes": [
                                    {"key": key, "value": value(each)}
                                    for key, each in (span.attributes or {}).items()
                                ],
                            }
                            for span in spans
                        ],
                    }
                ],
            }
        ]
    }


def as_jaeger(spans: list[ReadableSpan]) -> dict[str, Any]:
    """As Jaeger's older API answers."""
    traces: dict[str, list[dict[str, Any]]] = {}
    for span in spans:
        trace = format(span.context.trace_id, "032x")
        traces.setdefault(trace, []).append(
            {
                "traceID": trace,
                "spanID": format(span.context.span_id, "016x"),
                "references": [
                    {"refType": "CHILD_OF", "traceID": trace, "spanID": parent}
                    for parent in [above(span)]
                    if parent
                ],
                "operationName": span.name,
                "startTime": (span.start_time or 0) // 1000,
                "duration": ((span.end_time or 0) - (span.start_time or 0)) // 1000,
                "tags": [
                    {"key": key, "type": "string", "value": each}
                    for key, each in (span.attributes or {}).items()
                ],
            }
        )
    return {"data": [{"traceID": key, "spans": each} for key, each in traces.items()]}


@pytest.fixture(scope="module")
def traced() -> tuple[Recording, list[ReadableSpan]]:
    """A recording, and the spans of the same run."""
    telemetry = Telemetry()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spans, "time", SimpleNamespace(time_ns=virtual_ns))
        recording = recorded_by(SpanSink(telemetry.tracers))
    return recording, telemetry.spans()


def virtual_ns() -> int:
    """Spans of a run on virtual time are as far apart as its calls."""
    return int((1.75e9 + asyncio.get_running_loop().time()) * 1e9)


def test_a_collectors_file_is_a_recording(traced: tuple[Recording, list[ReadableSpan]]) -> None:
    """Spans hold what log lines hold; a file has many lines of them."""
    recording, spans = traced
    half = len(spans) // 2
    lines = "\n".join(json.dumps(as_otlp(part)) for part in (spans[:half], spans[half:]))
    rows, _ = read(lines)
    same(gather(rows), recording)


@pytest.mark.parametrize("indent", [None, 2])
def test_what_jaegers_page_saves_is_a_recording(
    traced: tuple[Recording, list[ReadableSpan]], indent: int | None
) -> None:
    """One document on one line or on many; so is a collector's, were it written prettily."""
    recording, spans = traced
    for shape in (as_jaeger, as_otlp):
        rows, notes = read(json.dumps(shape(spans), indent=indent))
        same(gather(rows), recording)
        assert notes[FOREIGN] == 0


class FakeJaeger:
    """Answers like Jaeger: api/v3 or the older API, never more than so many traces at once."""

    def __init__(self, spans: list[ReadableSpan], *, old: bool) -> None:
        self.spans, self.old, self.asked = spans, old, 0

    def transport(self) -> Any:
        return httpx2.MockTransport(self.answer)

    def answer(self, request: Any) -> Any:
        self.asked += 1
        params = dict(request.url.params)
        if request.url.path == "/api/v3/traces":
            if self.old:
                return httpx2.Response(501, text="not here")
            return self.v3(params)
        first, last = int(params["start"]) / 1e6, int(params["end"]) / 1e6
        found = self.within(first, last, int(params["limit"]))
        return httpx2.Response(200, json=as_jaeger(found))

    def v3(self, params: dict[str, str]) -> Any:
        first, last = (
            datetime.fromisoformat(params[f"query.startTime{end}"]).timestamp()
            for end in ("Min", "Max")
        )
        found = self.within(first, last, int(params["query.searchDepth"]))
        if not found:
            return httpx2.Response(404, json={"error": {"message": "No traces found"}})
        half = len(found) // 2
        text = "\n".join(
            json.dumps({"result": as_otlp(part)}) for part in (found[:half], found[half:])
        )
        return httpx2.Response(200, text=text)

    def within(self, first: float, last: float, limit: int) -> list[ReadableSpan]:
        """Whole traces of which any span began then, as Jaeger finds them."""
        found = [
            span.context.trace_id
            for span in self.spans
            if first <= (span.start_time or 0) / 1e9 <= last
        ]
        kept = set(list(dict.fromkeys(found))[:limit])
        return [span for span in self.spans if span.context.trace_id in kept]


def from_fake(fake: FakeJaeger, now: float) -> tuple[list[Row], Counter[str]]:
    """What is read from it, an hour and then another."""
    notes: Counter[str] = Counter()
    with httpx2.Client(transport=fake.transport()) as client:
        rows = rows_of_service("http://jaeger/", "app", 2 * 3600, notes, now=now, client=client)
        return list(rows), notes


def end_of(spans: list[ReadableSpan]) -> float:
    return max(span.end_time or 0 for span in spans) / 1e9


@pytest.mark.no_cover
@pytest.mark.parametrize("old", [False, True], ids=["api v3", "older api"])
@pytest.mark.parametrize("after", [1.0, 2600.7, 3000.0, 3599.3])
def test_a_jaeger_is_a_recording(
    traced: tuple[Recording, list[ReadableSpan]],
    monkeypatch: pytest.MonkeyPatch,
    old: bool,
    after: float,
) -> None:
    """Everything is found once, though few traces are given at once and some straddle two pieces.

    ``after`` seconds: where the pieces of time are cut.
    """
    recording, spans = traced
    monkeypatch.setattr(import_jaeger, "_TRACES", 50)
    fake = FakeJaeger(spans, old=old)
    rows, _ = from_fake(fake, end_of(spans) + after)
    same(gather(rows), recording)
    assert fake.asked > len(recording.asked) / 50


def test_traces_of_others_count_where_jaeger_gives_only_so_many(
    traced: tuple[Recording, list[ReadableSpan]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service's other traces use up what is given at once: none of ours is lost behind them."""
    recording, spans = traced
    monkeypatch.setattr(import_jaeger, "_TRACES", 50)
    telemetry = Telemetry()
    begun = min(span.start_time or 0 for span in spans)
    for second in range(0, 1800, 5):
        moment = begun + int(second * 1e9)
        telemetry.tracers.get_tracer("app").start_span("GET /", start_time=moment).end(moment + 1)
    rows, _ = from_fake(FakeJaeger(telemetry.spans() + spans, old=False), end_of(spans) + 1)
    same(gather(rows), recording)


@pytest.mark.parametrize("shape", [as_otlp, as_jaeger])
def test_calls_of_one_trace_are_told_apart(shape: Any) -> None:
    """A storyboard's scenes in one trace of the application are as many calls, fallbacks too."""
    telemetry = Telemetry()

    async def main() -> None:
        google = FakeProvider("google").fail(Reason.OVERLOADED)
        made = Settings(ipm=6000, max_retries=1, breaker_fail_max=4)
        async with ImageClient(
            made, providers=[google, FakeProvider("openai")], tracer_provider=telemetry.tracers
        ) as client:
            with telemetry.tracers.get_tracer("app").start_as_current_span("POST /storyboard"):
                await asyncio.gather(*(client.generate(f"scene {n}") for n in range(8)))

    run_virtual(main())
    rows, _ = read(json.dumps(shape(telemetry.spans())))
    calls = {row.call for row in rows if isinstance(row, Asked)}
    assert len(calls) == len(gather(rows).asked) == 8
    served = [row for row in rows if isinstance(row, Attempted) and row.reason is None]
    assert {row.call for row in served} == calls
    settings = {row.settings for row in rows if isinstance(row, Configured)}
    assert settings == {"IMAGE_GEN_IPM=6000 IMAGE_GEN_MAX_RETRIES=1 IMAGE_GEN_BREAKER_FAIL_MAX=4"}
    assert {row.call for row in rows if not isinstance(row, Configured)} == calls


def test_a_jaeger_that_is_none_is_named() -> None:
    """No server, another one's answer, or a broken span: one clear error."""

    def refuse(request: Any) -> Any:
        raise httpx2.ConnectError("refused", request=request)

    def answering(text: str) -> Any:
        return lambda request: httpx2.Response(200, text=text)

    broken = '{"result": {"resourceSpans": [{"scopeSpans": [{"spans": [{"name": "x"}]}]}]}}'
    for handler, says in (
        (refuse, "cannot be asked: refused"),
        (answering("<html>"), "not JSON"),
        (answering("[]"), "not an object"),
        (answering(broken), "not as it should be"),
        (answering('{"data": 3}'), "not as it should be"),
    ):
        with (
            httpx2.Client(transport=httpx2.MockTransport(handler)) as client,
            pytest.raises(RecordingError, match=says),
        ):
            list(rows_of_service("http://x", "app", 60, Counter(), client=client))


def test_a_span_of_no_route_is_named() -> None:
    """A breaker's name that is not provider:model is refused, in attempts and in refusals."""
    telemetry = Telemetry()
    tracer = telemetry.tracers.get_tracer("app")
    outcome = {"imagegen.attempt.outcome": "success"}
    for name, attributes in (("generate_content m", outcome), ("circuit_breaker reject g", {})):
        telemetry.exporter.clear()
        tracer.start_span(
            name, attributes={"imagegen.circuit_breaker.name": "weird", **attributes}
        ).end()
        with pytest.raises(RecordingError, match="provider:model"):
            read(json.dumps(as_otlp(telemetry.spans())))
