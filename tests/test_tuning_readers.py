"""Recordings from log lines and our own format: what is understood, and what is refused."""

from __future__ import annotations

import gzip
import io
import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from tuning_kit import read, same, told

from resilient_imagen import Reason
from resilient_imagen.telemetry.logs import LogSink
from resilient_imagen.tuning import RecordingError, load
from resilient_imagen.tuning.readers import FOREIGN, SKIPPED, UNCLEAR, read_rows
from resilient_imagen.tuning.recording import (
    Asked,
    Attempted,
    Rejected,
    Row,
    gather,
    to_json,
)

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
    recording = told(LogSink())
    rows, notes = read(structlog_lines.getvalue())
    same(gather(rows), recording)
    assert notes == Counter()


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
        recording = told(LogSink())
    rows, notes = read(lines.getvalue())
    same(gather(rows), recording)
    assert notes == Counter()


class MessageAsJson(logging.Formatter):
    """Writes JSON that holds a record's message alone."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps({"level": record.levelname, "message": record.getMessage()})


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
        recording = told(LogSink())
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
    Asked(1_700_000_006.0, "c1"),
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
    """Wrapped in a way that is not known: whoever wonders where the calls are is told."""
    wrapped = json.dumps({"log": json.dumps({"event": "imagegen.attempt.completed"})})
    assert read(wrapped) == ([], {UNCLEAR: 1})


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
