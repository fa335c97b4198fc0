"""Recordings from log lines, traces and our own format: what is understood, and what is refused."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan
from telemetry_kit import Telemetry
from tuning_kit import ROOMY, bad, world

from resilient_imagen import Reason, Settings
from resilient_imagen.telemetry import otel
from resilient_imagen.telemetry.logs import LogSink
from resilient_imagen.telemetry.otel import SpanSink
from resilient_imagen.tuning import Recorder, Recording, RecordingError, load
from resilient_imagen.tuning.jaeger import rows_of_service
from resilient_imagen.tuning.readers import FOREIGN, SKIPPED, read_rows
from resilient_imagen.tuning.recording import (
    Asked,
    Attempted,
    Rejected,
    Row,
    gather,
    to_json,
)
from resilient_imagen.tuning.simulation import play

GOOGLE = "google:gemini-3-pro-image"
SCENARIO = world(bad(0.1, 4), bad(0.3, 3, reason=Reason.RATE_LIMITED, retry_after=20.0), hours=0.5)


def told(*sinks: Any) -> Recording:
    """What a run told these sinks; beside them our own recorder, whose recording is returned."""
    rows: list[Row] = []
    recorder = Recorder(rows.append, epoch=0.0)
    play(SCENARIO, Settings(**ROOMY), seed=1, sinks=[*sinks, recorder])
    return gather(rows)


def read(text: str, **options: Any) -> tuple[list[Row], Counter[str]]:
    notes: Counter[str] = Counter()
    return list(read_rows(text.splitlines(), notes, **options)), notes


def same(one: Recording, other: Recording) -> None:
    """Both tell the same story, to a tenth of a second."""
    assert one.duration == pytest.approx(other.duration, abs=0.1)
    assert len(one.asked) == len(other.asked)
    assert list(one.asked) == pytest.approx(list(other.asked), abs=0.1)
    assert list(one.routes) == list(other.routes)
    for name, log in one.routes.items():
        twin = other.routes[name]
        assert list(log.at) == pytest.approx(list(twin.at), abs=0.1)
        assert list(log.latency) == pytest.approx(list(twin.latency), abs=0.01)
        assert list(log.reason) == list(twin.reason)
        assert list(log.given_up) == list(twin.given_up)
        assert list(log.hint) == pytest.approx(list(twin.hint), nan_ok=True)
        assert list(log.cost) == pytest.approx(list(twin.cost), nan_ok=True)
        assert len(log.rejected) == len(twin.rejected)


# -- what is understood ---------------------------------------------------------------------------


@pytest.fixture
def structlog_lines() -> Iterator[io.StringIO]:
    """The application's structlog, writing JSON lines."""
    lines = io.StringIO()
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()],
        logger_factory=structlog.WriteLoggerFactory(lines),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )
    yield lines
    structlog.reset_defaults()


def test_structlogs_json_lines_are_a_recording(structlog_lines: io.StringIO) -> None:
    """The library's own log lines hold all that our recorder heard."""
    recording = told(LogSink())
    rows, notes = read(structlog_lines.getvalue())
    same(gather(rows), recording)
    assert notes == Counter()


def test_plain_log_lines_are_a_recording() -> None:
    """An ordinary formatter, with time and level in front, loses nothing either."""
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("imagegen")
    logger.addHandler(handler)
    before = logger.level
    logger.setLevel(logging.INFO)  # an assignment would leave a logger's cached "no" in place
    try:
        recording = told(LogSink())
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    rows, _ = read(lines.getvalue())
    same(gather(rows), recording)


def test_lines_among_those_of_others_are_found(structlog_lines: io.StringIO) -> None:
    """Other programs' lines, JSON or not, are counted and passed over; prefixes do no harm."""
    told(LogSink())
    others = '{"event": "user.login", "time": 3}\nGET / 200\n\n[1, 2]\n{"level": "info"}\n'
    mixed = others + "".join(
        f"2026-11-23T10:00:00Z app-1 {line}\n" for line in structlog_lines.getvalue().splitlines()
    )
    rows, notes = read(mixed)
    assert len(rows) == len(read(structlog_lines.getvalue())[0])
    assert notes[FOREIGN] == 4


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
        patch.setattr(otel, "time", SimpleNamespace(time_ns=virtual_ns))
        recording = told(SpanSink(telemetry.tracers))
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
        import httpx2

        return httpx2.MockTransport(self.answer)

    def answer(self, request: Any) -> Any:
        import httpx2

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
        from datetime import datetime

        import httpx2

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
        roots = [
            span.context.trace_id
            for span in self.spans
            if span.parent is None and first <= (span.start_time or 0) / 1e9 < last
        ]
        kept = set(roots[:limit])
        return [span for span in self.spans if span.context.trace_id in kept]


@pytest.mark.parametrize("old", [False, True], ids=["api v3", "older api"])
def test_a_jaeger_is_a_recording(
    traced: tuple[Recording, list[ReadableSpan]], monkeypatch: pytest.MonkeyPatch, old: bool
) -> None:
    """Everything is found, though it gives only a few traces at once, by either of its APIs."""
    import httpx2

    from resilient_imagen.tuning import jaeger

    recording, spans = traced
    monkeypatch.setattr(jaeger, "_TRACES", 50)
    fake = FakeJaeger(spans, old=old)
    now = max(span.end_time or 0 for span in spans) / 1e9 + 1
    with httpx2.Client(transport=fake.transport()) as client:
        rows = list(
            rows_of_service("http://jaeger/", "app", 2 * 3600, Counter(), now=now, client=client)
        )
    same(gather(rows), recording)
    assert fake.asked > len(recording.asked) / 50


def test_a_jaeger_that_is_none_is_named() -> None:
    """No server, or another one's answer, is one clear error."""
    import httpx2

    def refuse(request: Any) -> Any:
        raise httpx2.ConnectError("no", request=request)

    def other(request: Any) -> Any:
        return httpx2.Response(200, text="<html>")

    for handler, says in ((refuse, "ConnectError"), (other, "no JSON")):
        with (
            httpx2.Client(transport=httpx2.MockTransport(handler)) as client,
            pytest.raises(RecordingError, match=says),
        ):
            list(rows_of_service("http://x", "app", 60, Counter(), client=client))


# -- our own format -------------------------------------------------------------------------------

times = st.floats(1e9, 2e9)
words = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=12)
routes = st.builds("{}:{}".format, words, words)
maybe = st.none() | st.floats(0, 1e4)
rows_of_any_kind = st.one_of(
    st.builds(Asked, times, words),
    st.builds(Rejected, times, words, routes),
    st.builds(
        Attempted,
        at=times,
        call=words,
        route=routes,
        latency=st.floats(0, 1e4),
        reason=st.none() | st.sampled_from(Reason),
        hint=maybe,
        cost=maybe,
        queue=st.floats(0, 1e4),
        given_up=st.booleans(),
    ),
)


@given(st.lists(rows_of_any_kind, max_size=20))
def test_our_own_format_loses_nothing(rows: list[Row]) -> None:
    """Written and read again, every row is the same."""
    assert read("\n".join(to_json(row) for row in rows))[0] == rows


def read_or_refused(text: str) -> None:
    """Either way it is by our own error, or not at all; skipping never raises."""
    refused = None
    try:
        read(text)
    except RecordingError as error:
        refused = str(error)
    assert refused is None or refused.startswith("line ")
    read(text, skip_broken=True)


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Nothing but a RecordingError comes out, whatever a line holds; skipping never raises."""
    read_or_refused(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["sent", "asked", "rejected", "call", "route", "latency", "event", "time",
                 "resourceSpans", "scopeSpans", "spans", "attributes", "result", "reason", "data"]
            ),
            inner,
            max_size=5,
        ),
        max_leaves=12,
    )
)  # fmt: skip
def test_any_json_is_read_or_refused(value: Any) -> None:
    """The same for JSON that looks like ours and is not."""
    read_or_refused(json.dumps(value))


GOOD = to_json(Attempted(1e9, "c", GOOGLE, 2.0))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"sent": 1.0, "call": "c", "rou', "cut off"),
        ('{"sent": 1.0, "call": "c"}', "route is missing"),
        ('{"sent": 1.0, "route": "a:b", "latency": 1}', "call is missing"),
        ('{"sent": "now", "call": "c", "route": "a:b", "latency": 1}', "sent is not a number"),
        ('{"sent": 1.0, "call": "c", "route": "a:b", "latency": -1}', "latency is negative"),
        ('{"sent": 1.0, "call": "c", "route": "a", "latency": 1}', "provider:model"),
        ('{"sent": NaN, "call": "c", "route": "a:b", "latency": 1}', "sent is not a number"),
        ('{"sent": 1, "call": "c", "route": "a:b", "latency": 1, "reason": "bad"}', "reason"),
        ('{"event": "imagegen.attempt.failed", "time": 5}', "latency_s is missing"),
        ("x imagegen.attempt.completed latency_s=3", "time is missing"),
        ('{"resourceSpans": [{"scopeSpans": [{"spans": [{"name": "x"}]}]}]}', "not as it should"),
    ],
)
def test_a_broken_line_is_named(line: str, says: str) -> None:
    """The error holds the line's number and what is wrong; with skipping it is counted."""
    text = f"{GOOD}\n\n{line}\n{GOOD}"
    with pytest.raises(RecordingError, match=f"^line 3: .*{says}"):
        read(text)
    rows, notes = read(text, skip_broken=True)
    assert len(rows) == 2
    assert notes[SKIPPED] == 1


@pytest.mark.parametrize("text", ["", "\n\n", '{"event": "other"}\n', '{"asked": 1, "call": "c"}'])
def test_a_file_without_requests_is_no_recording(text: str, tmp_path: Path) -> None:
    """Empty, or full of other things: the error names the file."""
    path = tmp_path / "calls.log"
    path.write_text(text)
    with pytest.raises(RecordingError, match=r"calls\.log: the recording holds no request"):
        load(path)


def test_a_file_is_read_line_by_line() -> None:
    """A reader that has taken one line has asked for no more than that."""
    asked = []

    def lines() -> Iterator[str]:
        for number in range(1000):
            asked.append(number)
            yield GOOD

    reader = read_rows(lines(), Counter())
    next(reader)
    assert asked == [0]


def test_an_order_that_is_mixed_up_is_put_right() -> None:
    """Lines come in the order of ends; requests are kept in that of their sending."""
    rows: list[Row] = [
        Attempted(1e9 + 30, "b", "p:m", 1.0),
        Rejected(1e9 + 50, "c", "p:m"),
        Attempted(1e9 + 10, "a", "p:m", 60.0, queue=4.0),
    ]
    recording = gather(rows)
    assert list(recording.asked) == [0, 24, 44]
    assert list(recording.routes["p:m"].at) == [4, 24]
    assert list(recording.routes["p:m"].rejected) == [44]


def test_own_bugs_are_no_evidence() -> None:
    """A request that failed by an exception of ours is left out, and counted."""
    line = {
        "event": "imagegen.attempt.failed", "time": 1e9, "call_id": "c", "route": "p:m",
        "latency_s": 1.0, "reason": None, "exception.type": "KeyError",
    }  # fmt: skip
    rows, notes = read(json.dumps(line))
    assert rows == []
    assert sum(notes.values()) == 1
