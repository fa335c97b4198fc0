"""Event streams are parsed incrementally, independent of the parts of the stream."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_imagen.providers.event_stream import EventStream

Event = tuple[str, str]
"""Name and data."""


def parsed(*parts: bytes) -> list[Event]:
    stream = EventStream()
    events = [event for part in parts for event in stream.feed(part)]
    if (last := stream.close()) is not None:
        events.append(last)
    return [(event.name, event.data.text.decode()) for event in events]


@pytest.mark.parametrize(
    ("text", "events"),
    [
        ("", []),
        ("\n\n\n", []),
        ("data: a\n\n", [("", "a")]),
        ("data:a\n\ndata:  b\n\n", [("", "a"), ("", " b")]),
        ("event: e\ndata: a\n\ndata: b\n\n", [("e", "a"), ("", "b")]),
        ("event: d\nevent: e\ndata: a\n\n", [("e", "a")]),
        ("event: e\n\ndata: a\n\n", [("", "a")]),
        ("data: a\ndata: b\n\n", [("", "a\nb")]),
        ("data\n\n", []),
        ("data:\n\n", []),
        ("event: ping\ndata: \n\ndata: a\n\n", [("", "a")]),
        (": comment\nid: 1\nretry: 5\ndata: a\n: more\n\n", [("", "a")]),
        ("database: x\ndata: a\n\n", [("", "a")]),
        ("\ufeffdata: a\n\n", [("", "a")]),
        ("data: a: b: c\n\n", [("", "a: b: c")]),
        ("data: a\r\n\r\ndata: b\r\r", [("", "a"), ("", "b")]),
        ("data: a\n\ndata: b", [("", "a"), ("", "b")]),
        (f"{'x' * 1000}\ndata: a\n\n", [("", "a")]),
        (f"{'x' * 1000}: y\ndata: a\n\n", [("", "a")]),
    ],
)
def test_fields_are_read_by_the_standard(text: str, events: list[Event]) -> None:
    """Whole or byte by byte, a stream gives the same events."""
    raw = text.encode()
    assert parsed(raw) == events
    assert parsed(*(raw[at : at + 1] for at in range(len(raw)))) == events


_NAMES = st.text("abc._é", max_size=6)
_LINES = st.lists(st.text("ab:é \x85\u2028", max_size=9), min_size=1, max_size=3)


@given(
    events=st.lists(st.tuples(_NAMES, _LINES), max_size=5),
    end=st.sampled_from(["\n", "\r", "\r\n"]),
    cuts=st.lists(st.integers(0, 300)),
)
def test_events_do_not_depend_on_the_parts(
    events: list[tuple[str, list[str]]], end: str, cuts: list[int]
) -> None:
    """Any line endings and cuts are accepted, inside a character or between CR and LF too."""
    lines = []
    for name, data in events:
        lines += [f"event: {name}", *(f"data: {line}" for line in data), ""]
    raw = "".join(line + end for line in lines).encode()
    at = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    parts = [raw[start:stop] for start, stop in pairwise(at)]
    assert parsed(*parts) == [(name, "\n".join(data)) for name, data in events if data != [""]]


def test_an_image_is_decoded_while_it_arrives() -> None:
    """Of a large image, only the decoded bytes are kept, not its characters."""
    stream = EventStream()
    (event,) = [
        event
        for part in (b'data: {"b64_json":"', *[b"AAAA" * 2**14] * 40, b'"}\n\n')
        for event in stream.feed(part)
    ]
    assert len(event.data.text) < 100
    assert stream.size == 0


def test_the_text_of_an_event_so_far_is_measured() -> None:
    """The size of an unfinished event is known, so an endless one is detected."""
    stream = EventStream()
    assert list(stream.feed(b"data: " + b'{"a"' * 1000)) == []
    assert stream.size == 4000
