"""Recordings from log lines and our own format: what is understood, and what is refused."""

from __future__ import annotations

import gzip
import io
import json
import logging
import socket
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from tuning_kit import read, recorded_by, same

from resilient_imagen import Reason
from resilient_imagen.telemetry.logs import LogSink
from resilient_imagen.tuning import RecordingError, import_jaeger, import_logs, load
from resilient_imagen.tuning.gather import gather
from resilient_imagen.tuning.import_jaeger import rows_of_service
from resilient_imagen.tuning.import_logs import FOREIGN, SKIPPED, UNCLEAR, read_rows
from resilient_imagen.tuning.rows import Asked, Attempted, Configured, Rejected, Row, to_json

GOOGLE = "google:gemini-3-pro-image"
GOOD = to_json(Attempted(1e9, "c", GOOGLE, 2.0))


# -- what is understood ---------------------------------------------------------------------------


@contextmanager
def structlog_writes(*processors: Any) -> Iterator[io.StringIO]:
    """The application's structlog, with these processors, and what it writes."""
    lines = io.StringIO()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            *processors,
        ],
        logger_factory=structlog.WriteLoggerFactory(lines),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )
    try:
        yield lines
    finally:
        structlog.reset_defaults()


@pytest.fixture
def structlog_lines() -> Iterator[io.StringIO]:
    """The application's structlog, writing JSON lines."""
    with structlog_writes(structlog.processors.JSONRenderer()) as lines:
        yield lines


def test_structlogs_json_lines_are_a_recording(structlog_lines: io.StringIO) -> None:
    """The library's own log lines hold all that our recorder heard."""
    recording = recorded_by(LogSink())
    rows, notes = read(structlog_lines.getvalue())
    same(gather(rows), recording)
    assert notes == Counter()


@pytest.mark.no_cover
@pytest.mark.parametrize(
    "processors",
    [
        pytest.param([structlog.dev.ConsoleRenderer(colors=False)], id="console"),
        pytest.param([structlog.dev.ConsoleRenderer(colors=True)], id="console in colours"),
        pytest.param([structlog.processors.LogfmtRenderer()], id="logfmt"),
        pytest.param([structlog.processors.KeyValueRenderer()], id="key and value"),
        pytest.param(
            [structlog.processors.EventRenamer("msg"), structlog.processors.JSONRenderer()],
            id="JSON with another name for the event",
        ),
    ],
)
def test_other_renderers_lines_are_a_recording(processors: list[Any]) -> None:
    """However the application's structlog writes them, the lines are understood."""
    with structlog_writes(*processors) as lines:
        recording = recorded_by(LogSink())
    rows, notes = read(lines.getvalue())
    same(gather(rows), recording)
    assert notes == Counter()


class MessageAsJson(logging.Formatter):
    """Writes JSON that holds a record's message alone."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps({"level": record.levelname, "message": record.getMessage()})


@pytest.mark.no_cover
@pytest.mark.parametrize(
    "formatter",
    [
        logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"),
        logging.Formatter("%(message)s"),
        MessageAsJson(),
    ],
    ids=["with a prefix", "bare", "in JSON"],
)
def test_plain_log_lines_are_a_recording(formatter: logging.Formatter) -> None:
    """An ordinary formatter loses nothing either, whether or not it adds time and level."""
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(formatter)
    logger = logging.getLogger("imagegen")
    logger.addHandler(handler)
    before = logger.level
    logger.setLevel(logging.INFO)  # an assignment would leave a logger's cached "no" in place
    try:
        recording = recorded_by(LogSink())
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    rows, _ = read(lines.getvalue())
    same(gather(rows), recording)


COMPLETED = {
    "time": 1_700_000_010.0, "call_id": "c1", "attempt.latency_s": 2.0, "attempt.ago_s": 0.5,
    "attempt.queue_s": 1.25, "attempt.number": 1, "circuit_breaker.name": GOOGLE,
    "circuit_breaker.counted": "success", "cost_usd": 0.134, "latency_s": 4.0,
    "outcome": "success", "event": "imagegen.request.completed",
}  # fmt: skip
"""A call's line, with the request that brought the image in it."""
ITS_ROWS = [
    Asked(1_700_000_006.0, "c1", 4.0, "success", GOOGLE),
    Attempted(1_700_000_007.5, "c1", GOOGLE, 2.0, cost=0.134, queue=1.25),
]


@pytest.mark.parametrize("dot", [".", "_"])
def test_a_calls_line_tells_of_the_request_that_brought_the_image(dot: str) -> None:
    """It was sent before its answer, which was there before the call ended; dots may be gone."""
    line = json.dumps({key.replace(".", dot): value for key, value in COMPLETED.items()})
    assert read(line) == (ITS_ROWS, {})


def test_a_line_of_before_tells_of_a_request_by_itself() -> None:
    """Logs may be older than the library."""
    line = {
        "event": "imagegen.attempt.completed", "time": 1_700_000_009.5, "call_id": "c1",
        "route": GOOGLE, "latency_s": 2.0, "reason": None, "cost_usd": 0.134, "queue_s": 1.25,
    }  # fmt: skip
    assert read(json.dumps(line))[0] == ITS_ROWS[1:]


def test_a_calls_line_that_was_cut_off_tells_nothing_wrong() -> None:
    """Wherever the text ends: all of it, or the call alone with the image, or nothing at all."""
    pairs = (f"{key}={json.dumps(value)}" for key, value in COMPLETED.items() if key != "event")
    text = f"INFO imagegen: imagegen.request.completed {' '.join(pairs)}"
    whole = len(text) - len(" outcome=success")
    for end in range(text.index("time="), whole - len("4.0") - 2):
        rows, _ = read(text[:end], skip_broken=True)
        assert rows == [], text[:end]
    assert read(text[:whole])[0] == ITS_ROWS


@pytest.mark.parametrize(
    "call", ["12e4567890123456", "1234567890123e01", "1234567890123456", "0123456789012345"]
)
def test_a_calls_id_is_no_number(call: str) -> None:
    """Sixteen hexadecimal digits may look like one; they are kept as they are."""
    (row,), _ = read(
        f"INFO imagegen: imagegen.attempt.completed time=1.7e9 call_id={call} route={GOOGLE}"
        " latency_s=2.0 reason=null"
    )
    assert isinstance(row, Attempted)
    assert row.call == call


@pytest.mark.parametrize(
    "line",
    [
        '{"message": "job done", "result": "ok"}',
        '{"message": "job done", "result": {"images": 3}}',
        '{"event": "mail", "sent": 3, "time": 5}',
        '{"data": [1, {"x": 2}]}',
        "{'asctime': 'a dict, as Python shows it'}",
        '{"event": "another program\'s, cut o',
    ],
)
def test_lines_of_others_are_never_broken(line: str) -> None:
    """JSON that has a key of ours by chance, or is none, is passed over."""
    rows, notes = read(f"{GOOD}\n{line}\n{GOOD}")
    assert len(rows) == 2
    assert notes == {FOREIGN: 1}


def test_lines_that_seem_to_be_ours_are_counted_apart() -> None:
    """A line of the library in an unknown wrapping is counted as unclear."""
    wrapped = json.dumps({"log": json.dumps({"event": "imagegen.attempt.completed"})})
    assert read(wrapped) == ([], {UNCLEAR: 1})


def test_lines_among_those_of_others_are_found(structlog_lines: io.StringIO) -> None:
    """Other programs' lines, JSON or not, are counted and passed over; prefixes do no harm."""
    recorded_by(LogSink())
    others = '{"event": "user.login", "time": 3}\nGET / 200\n\n[1, 2]\n{"level": "info"}\n'
    mixed = others + "".join(
        f"2026-11-23T10:00:00Z app-1 {line}\n" for line in structlog_lines.getvalue().splitlines()
    )
    rows, notes = read(mixed)
    assert len(rows) == len(read(structlog_lines.getvalue())[0])
    assert notes[FOREIGN] == 4


# -- our own format -------------------------------------------------------------------------------

times = st.floats(1e9, 2e9)
words = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=12)
routes = st.builds("{}:{}".format, words, words)
maybe = st.none() | st.floats(0, 1e4)
rows_of_any_kind = st.one_of(
    st.builds(
        Asked,
        times,
        words,
        took=maybe,
        outcome=st.none() | st.sampled_from(["success", "error", "deadline", "cancelled"]),
        served=st.none() | routes,
    ),
    st.builds(Configured, times, words, st.just("IMAGE_GEN_IPM=3 IMAGE_GEN_MAX_WAIT=")),
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
        probe=st.booleans(),
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
        ("latency_s=3 call_id=c event=imagegen.attempt.completed", "time is missing"),
        ('{"sent": 1e12, "call": "c", "route": "a:b", "latency": 1}', "milliseconds"),
        ('{"asked": 1764000000000, "call": "c"}', "milliseconds"),
        ('{"event": "imagegen.attempt.failed", "time": 1e12, "latency_s": 1}', "milliseconds"),
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


def test_a_gzip_file_is_unpacked_on_the_way(tmp_path: Path) -> None:
    """By its content, not its name; one that is cut off is broken at its end."""
    path = tmp_path / "calls.log"
    packed = gzip.compress("".join(f"{GOOD}\n" for _ in range(50)).encode())
    path.write_bytes(packed)
    assert len(load(path).asked) == 1
    path.write_bytes(packed[:-12])
    with pytest.raises(RecordingError, match="gzip"):
        load(path)
    assert load(path, skip_broken=True).notes[SKIPPED] == 1


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


def test_a_calls_lines_may_stand_far_apart() -> None:
    """All callers of a week first, then all requests: each call is one."""
    calls = range(20_000)
    rows: list[Row] = [Asked(1e9 + 30 * call, str(call)) for call in calls]
    rows += [Attempted(1e9 + 30 * call + 9, str(call), "p:m", 20.0) for call in calls]
    assert len(gather(rows).asked) == 20_000


def test_own_bugs_are_no_evidence() -> None:
    """A request that failed by an exception of ours is left out, and counted."""
    line = {
        "event": "imagegen.attempt.failed", "time": 1e9, "call_id": "c", "route": "p:m",
        "latency_s": 1.0, "reason": None, "exception.type": "KeyError",
    }  # fmt: skip
    rows, notes = read(json.dumps(line))
    assert rows == []
    assert sum(notes.values()) == 1


# -- hostile and damaged input --------------------------------------------------------------------

HUGE = "9" * 400
DEEP = '{"sent":' * 100_000
SPAN = (
    '{"resourceSpans": [{"scopeSpans": [{"spans": [{"name": "imagegen.generate", "traceId": "t",'
    ' "spanId": %s, "startTimeUnixNano": %s, "endTimeUnixNano": "2000000000000000000"}]}]}]}'
)
TAGGED = (
    '{"data": [{"traceID": "t", "spans": [{"operationName": "x", "spanID": "s", "startTime": %s,'
    ' "duration": %s, "tags": [{"key": "imagegen.attempt.outcome", "value": %s},'
    ' {"key": "imagegen.circuit_breaker.name", "value": "p:m"},'
    ' {"key": "imagegen.cost_usd", "value": %s}]}]}]}'
)


def sent(**more: str) -> str:
    """A line of our own format, each field in JSON as given."""
    fields = {"sent": "1e9", "call": '"c"', "route": '"p:m"', "latency": "1", **more}
    return "{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}"


def asked(**more: str) -> str:
    """Return a line about a call in the recording format, with fields given as JSON."""
    fields = {"asked": "1e9", "call": '"c"', **more}
    return "{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}"


def configured(settings: str) -> str:
    """Return a line about settings in the recording format."""
    return json.dumps({"configured": 1e9, "client": "a", "settings": settings})


HOSTILE = {
    "deep JSON": (DEEP, "nested too deep"),
    "a number of 400 digits": (sent(sent=HUGE), "sent is not a number"),
    "a number of 5000 digits": (sent(sent="9" * 5000), "too many digits"),
    "a latency of 400 digits": (sent(latency=HUGE), "latency is not a number"),
    "a hint of 400 digits": (sent(hint=HUGE), "hint is not a number"),
    "a negative number of 400 digits": (sent(queue="-" + HUGE), "queue is not a number"),
    "year 0": (sent(sent="-62167219200"), "the time -6.* is not in seconds since the epoch"),
    "year -9999999": (sent(sent="-1e300"), "the time -1e.300 is not in seconds since the epoch"),
    "infinity": (sent(sent="Infinity"), "sent is not a number"),
    "not a number": (sent(latency="NaN"), "latency is not a number"),
    "an overflow": (sent(cost="1e999"), "cost is not a number"),
    "a negative cost": (sent(cost="-0.1"), "cost is negative"),
    "an impossible cost": (sent(cost="1e9"), "cost is 1e.09, more than 10000 US dollars"),
    "an impossible latency": (
        sent(latency="1e300"),
        "latency is 1e.300, more than 10000 seconds; is it in milli",
    ),
    "an impossible queue": (sent(queue="1e300"), "queue is 1e.300, more than 86400 seconds"),
    "a negative queue": (sent(queue="-3"), "queue is negative .-3.; it is in seconds"),
    "a negative hint": (sent(hint="-20"), "hint is negative"),
    "a negative duration of a call": (asked(took="-1"), "took is negative"),
    "a call that took weeks": (asked(took="1e7"), "took is 1e.07, more than 172800 seconds"),
    "a latency in milliseconds": (sent(latency="21500"), "latency is 21500, .*in milliseconds"),
    "settings that are no pairs": (configured("always fast"), "settings are not NAME=VALUE"),
    "endless settings": (configured("A=1 " * 10_000), "settings or client are too long"),
    "a queue from before all time": (
        sent(sent="5", queue="1000"),
        "the time -995 is not in seconds",
    ),
    "a route with an escape": (sent(route=r'"p:m\u001b[2J"'), "route is not provider:model"),
    "half a character in a route": (sent(route=r'"p:\ud800"'), "route is not provider:model"),
    "a reversed route": (sent(route=r'"p:\u202em"'), "route is not provider:model"),
    "an endless route": (sent(route=f'"p:{"m" * 1000}"'), "route is longer than 200 characters"),
    "an endless call": (sent(call=f'"{"c" * 1000}"'), "call is longer than 200 characters"),
    "a call that is a list": (sent(call="[1]"), "call is missing"),
    "a span before all time": (
        SPAN % ('"s"', '"-62167219200000000000"'),
        "the time -6.* is not",
    ),
    "a span of 400 digits": (SPAN % ('"s"', f'"{HUGE}"'), "not as it should be"),
    "a span whose id is a list": (SPAN % ("[1]", '"1000000000000000000"'), "call is missing"),
    "a span whose id is an object": (SPAN % ("{}", '"1000000000000000000"'), "call is missing"),
    "a tagged span of 400 digits": (TAGGED % (HUGE, 1, '"success"', 1), "not as it should be"),
    "a span of negative length": (TAGGED % (1e15, -5, '"success"', 1), "ends before it starts"),
    "a tag of 400 digits": (TAGGED % (1e15, 5, '"success"', HUGE), "cost_usd is not a number"),
    "a tag of negative dollars": (TAGGED % (1e15, 5, '"success"', -1), "cost is negative"),
    "a deep tag": (
        TAGGED % (1e15, 5, "[" * 400 + "]" * 400, 1),
        "unknown imagegen.attempt.outcome",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_line_is_named(name: str, tmp_path: Path) -> None:
    """The error holds the file, the line and what is wrong; with skipping, the line is counted."""
    line, says = HOSTILE[name]
    path = tmp_path / "calls.jsonl"
    path.write_text(f"{GOOD}\n{line}\n{GOOD}\n")
    with pytest.raises(RecordingError, match=rf"calls\.jsonl: line 2: .*{says}"):
        load(path)
    loaded = load(path, skip_broken=True)
    assert len(loaded.routes[GOOGLE]) == 2
    assert loaded.notes[SKIPPED] == 1


@pytest.mark.parametrize("line", ["[" * 100_000, '{"other":' * 100_000, f'{{"time": {HUGE}}}'])
def test_a_hostile_line_of_others_is_passed_over(line: str) -> None:
    """It is no business of ours."""
    rows, notes = read(f"{GOOD}\n{line}\n{GOOD}")
    assert len(rows) == 2
    assert notes == {FOREIGN: 1}


@pytest.mark.no_cover
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("document", [False, True], ids=["one line", "many lines"])
def test_an_endless_line_is_not_held(
    pack: Callable[[bytes], bytes], document: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is cut off at the longest that a line may be, packed or not, and so is a document."""
    monkeypatch.setattr(import_logs, "_MAX_LINE", 100_000)
    monkeypatch.setattr(import_logs, "_PIECE", 10_000)
    path = tmp_path / "calls.jsonl"
    endless = b"{\n" + b'"x": 1,\n' * 200_000 if document else b"x" * 32_000_000 + b"\n"
    path.write_bytes(pack(f"{GOOD}\n".encode() + endless + f"{GOOD}\n".encode()))
    del endless
    tracemalloc.start()
    try:
        with pytest.raises(RecordingError, match="line 2: too long to be a line"):
            load(path)
        loaded = load(path, skip_broken=True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000
    assert len(loaded.routes[GOOGLE]) == (1 if document else 2)
    assert loaded.notes[SKIPPED] == 1


@pytest.mark.no_cover
@pytest.mark.parametrize(
    "line",
    [
        "imagegen.attempt.failed a=1 " + "a" * 1_000_000,
        "imagegen.attempt.failed " + "a=[" * 100_000,
        "imagegen.attempt.failed " + 'a="' * 100_000,
        "imagegen.attempt.failed " + "a.b" * 100_000,
        "imagegen." * 120_000 + " ",
        "imagegen.attempt.failed" + " " * 1_000_000,
        "imagegen.a [" * 100_000,
        "event=imagegen." * 70_000,
    ],
    ids=lambda line: line[:40],
)
def test_a_long_text_is_read_in_time(line: str) -> None:
    """The time grows with the line's length, not with its square: that would be hours here."""
    read_or_refused(line)


def test_a_recording_of_endless_routes_is_refused() -> None:
    """Each would take memory, and a column of the table."""
    rows = [Attempted(1e9 + number, "c", f"p:m{number}", 1.0) for number in range(1001)]
    with pytest.raises(RecordingError, match="more than 1000 routes"):
        gather(rows)
    assert len(gather(rows[:1000]).routes) == 1000


@pytest.mark.parametrize("cut", [1, 9, 30, -9])
def test_a_damaged_gzip_file_is_named(cut: int, tmp_path: Path) -> None:
    """Wherever it was cut off, or with a byte that is wrong; what came before may be kept."""
    packed = bytearray(gzip.compress("".join(f"{GOOD}\n" for _ in range(50)).encode()))
    path = tmp_path / "calls.gz"
    for content in (bytes(packed[:cut]), bytes(packed[:20] + b"\xff" + packed[21:])):
        path.write_bytes(content)
        with pytest.raises(RecordingError, match=r"calls\.gz: "):
            load(path)


def test_bytes_that_are_no_text_are_no_reason_to_stop(tmp_path: Path) -> None:
    """Other programs' lines may hold them."""
    path = tmp_path / "calls.log"
    path.write_bytes(b"\xff\xfe\x80 GET /\n" + f"{GOOD}\n".encode() + b"\xc3(\n")
    assert load(path).notes[FOREIGN] == 2


def test_a_closed_standard_input_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a shell closes it with <&-."""
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(RecordingError, match="-: standard input is closed"):
        load("-")


# -- a Jaeger that cannot be trusted --------------------------------------------------------------


def from_jaeger(answer: Callable[[httpx2.Request], httpx2.Response]) -> list[Row]:
    """What is read of the last two seconds from a server that answers so."""
    with httpx2.Client(transport=httpx2.MockTransport(answer)) as client:
        return list(rows_of_service("http://x", "app", 2, Counter(), now=1.0e9 + 1, client=client))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (DEEP, "not JSON"),
        (SPAN % ('"s"', f'"{HUGE}"'), "not as it should be"),
        (SPAN % ("[1]", '"1000000000000000000"'), "not as it should be|call is missing"),
        ('{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": []}]}]}]}', "not as it should"),
    ],
)
def test_a_hostile_answer_is_named(text: str, says: str) -> None:
    """Whatever a server sends, it ends in our own error."""
    with pytest.raises(RecordingError, match=says):
        from_jaeger(lambda _: httpx2.Response(200, text=text))


@pytest.mark.parametrize("status", [200, 404, 500])
def test_an_endless_answer_is_not_read_to_its_end(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time is halved as where there are too many traces, and then it is named."""
    monkeypatch.setattr(import_jaeger, "_MOST", 100_000)
    read_in_all: list[int] = []
    asked: list[httpx2.Request] = []

    def endless() -> Iterator[bytes]:
        while True:
            read_in_all.append(10_000)
            yield b" " * 10_000

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        return httpx2.Response(status, content=endless())

    with pytest.raises(RecordingError, match=r"is larger than|Jaeger answers"):
        from_jaeger(answer)
    assert sum(read_in_all) <= 120_000 * len(asked)
    assert len(asked) < 10


def test_a_packed_answer_is_counted_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousandth of it comes over the wire."""
    monkeypatch.setattr(import_jaeger, "_MOST", 100_000)
    packed = gzip.compress(b" " * 5_000_000)
    headers = {"content-encoding": "gzip"}
    with pytest.raises(RecordingError, match="is larger than"):
        from_jaeger(lambda _: httpx2.Response(200, content=packed, headers=headers))


def test_what_fits_after_halving_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy hour whose traces are too large in one answer is read in parts."""
    monkeypatch.setattr(import_jaeger, "_MOST", 1000)

    def answer(request: httpx2.Request) -> httpx2.Response:
        times = [request.url.params[f"query.startTime{end}"] for end in ("Min", "Max")]
        first, last = (datetime.fromisoformat(time).timestamp() for time in times)
        text = SPAN % ('"s"', f'"{int(1e18)}"') if first <= 1e9 <= last else "{}"
        return httpx2.Response(200, text=text + " " * (1000 if last - first > 1.5 else 0))

    assert from_jaeger(answer) == [Asked(1e9, "s")]


def test_a_jaeger_that_nobody_serves_is_described_in_the_systems_words() -> None:
    """A refused connection says so, instead of naming a Python class."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound, and nobody listens
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        with pytest.raises(RecordingError, match=r"cannot be asked: .*Connection refused"):
            list(rows_of_service(url, "shop", 60, Counter()))
