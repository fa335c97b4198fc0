"""Log import: read a recording from lines of logs and traces, one line at a time.

A file may contain our log lines (of structlog or the standard library, among lines of other
programs), the output of an OpenTelemetry collector's file exporter, our recording format, or a
mixture; or one document of traces saved by Jaeger's user interface, which is read as a whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from resilient_imagen.reasons import Reason
from resilient_imagen.telemetry import names
from resilient_imagen.tuning.import_otlp import rows_of_jaeger, rows_of_otlp
from resilient_imagen.tuning.log_parsing import parsed
from resilient_imagen.tuning.rows import (
    MALFORMED,
    Asked,
    Attempted,
    Configured,
    RecordingError,
    Rejected,
    as_float,
    checked,
    checked_route,
)

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable, Iterator, Mapping
    from typing import IO

    from resilient_imagen.tuning.rows import Row

__all__ = ["FOREIGN", "SKIPPED", "UNCLEAR", "bounded", "read_rows"]

FOREIGN: Final = "lines of others"
UNCLEAR: Final = 'lines with "imagegen." in them that were not understood'
SKIPPED: Final = "broken lines skipped"
CANCELLED: Final = "requests that failed by a bug of the client's, left out"

_MAX_LINE: Final = 64_000_000
"""Maximum characters of a line of a recording."""
_PIECE: Final = 1_000_000
"""Characters that are skipped at a time."""
_OPENINGS: Final = frozenset({"{", '{"data":[', '{"data": ['})
"""First lines of a document of many lines, as a browser saves it."""


def bounded(lines: IO[str]) -> Iterator[str]:
    """Yield the lines of a file; a line that is too long is truncated."""
    while line := lines.readline(_MAX_LINE + 1):
        yield line
        rest = line if len(line) > _MAX_LINE else ""
        while rest and not rest.endswith("\n"):
            rest = lines.readline(_PIECE)


def read_rows(
    lines: Iterable[str], notes: Counter[str], *, skip_broken: bool = False
) -> Iterator[Row]:
    """Yield the rows of the lines, in the order of the lines.

    Args:
        lines: Lines of a log, of traces or of a recording.
        notes: Counts skipped data by kind.
        skip_broken: Count a broken line instead of ending with it. Lines of other programs are
            never broken.

    Raises:
        RecordingError: A line of ours is broken; the text has its number and the cause.
    """
    for number, line in _numbered(lines):
        try:
            for row in _rows_of_line(line, notes):
                yield checked(row)
        except MALFORMED as error:
            if not skip_broken:
                what = str(error) if isinstance(error, RecordingError) else "not as it should be"
                raise RecordingError(f"line {number}: {what}") from None
            notes[SKIPPED] += 1


def _numbered(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Yield numbered lines; the lines of a multi-line document are joined to one."""
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    for number, line in numbered:
        if len(line) < _PIECE and line.strip() in _OPENINGS:
            yield number, _joined(line, (rest for _, rest in numbered))
        else:
            yield number, line


def _joined(line: str, rest: Iterable[str]) -> str:
    """Join the lines of a document; the result is truncated if it is too long."""
    parts, size = [line], len(line)
    for each in rest:
        if size <= _MAX_LINE:
            parts.append(each)
            size += len(each)
    return "".join(parts)


def _rows_of_line(line: str, notes: Counter[str]) -> Iterator[Row]:
    if len(line) > _MAX_LINE:
        raise RecordingError("too long to be a line of a recording")
    text = line.strip().removeprefix("\ufeff")
    if not text:
        return
    found = parsed(text) or {}
    if "resourceSpans" in found or "resourceSpans" in _inner(found):
        yield from rows_of_otlp(found, notes)
    elif _is_jaegers(found.get("data")):
        yield from rows_of_jaeger(found, notes)
    elif _OWN & found.keys() and {"call", "route", "settings"} & found.keys():
        yield _own(found)
    else:
        yield from _logged(found, notes, UNCLEAR if names.PREFIX in text else FOREIGN)


def _inner(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the content of a response of Jaeger's api/v3, which wraps it in ``result``."""
    inner = found.get("result")
    return inner if isinstance(inner, dict) else {}


def _is_jaegers(data: object) -> bool:
    return isinstance(data, list) and any(isinstance(it, dict) and "spans" in it for it in data)


# -- our own format -------------------------------------------------------------------------------


_OWN: Final = frozenset({"sent", "asked", "rejected", "configured"})


def _own(line: Mapping[str, Any]) -> Row:
    if "configured" in line:
        client = str(line.get("client", ""))
        return Configured(_time(line, "configured"), client, _text(line, "settings"))
    call = _text(line, "call")
    if "asked" in line:
        served = checked_route(_text(line, "served")) if line.get("served") is not None else None
        took, outcome = _maybe(line, "took"), _maybe_text(line, "outcome")
        return Asked(_time(line, "asked"), call, took, outcome, served)
    if "rejected" in line:
        return Rejected(_time(line, "rejected"), call, _route(line))
    return Attempted(
        at=_time(line, "sent"),
        call=call,
        route=_route(line),
        latency=_seconds(line, "latency"),
        reason=_reason(line.get("reason")),
        hint=_maybe(line, "hint"),
        cost=_maybe(line, "cost"),
        queue=_maybe(line, "queue") or 0.0,
        given_up=line.get("given_up") is True,
        probe=line.get("probe") is True,
    )


# -- log lines ------------------------------------------------------------------------------------

_ENDED: Final = frozenset({names.ATTEMPT_COMPLETED, names.ATTEMPT_FAILED})
_CALLS: Final = frozenset({names.REQUEST_COMPLETED, names.REQUEST_FAILED})
_ANSWERLESS: Final = frozenset({Reason.TIMEOUT, Reason.CANCELLED, Reason.DEADLINE})


def _key(name: str) -> str:
    """Return a key without dots, because some log processors replace the dots in keys."""
    return name.removeprefix(names.PREFIX).replace(".", "_")


_SERVED_IN: Final = _key("attempt.latency_s")


def _logged(found: Mapping[str, Any], notes: Counter[str], otherwise: str) -> Iterator[Row]:
    line = {_key(key): value for key, value in found.items()}
    event = line.get("event", line.get("message", line.get("msg")))
    if event in _ENDED:
        if line.get("reason") is None and _key(names.EXCEPTION_TYPE) in line:
            notes[CANCELLED] += 1  # an exception without a reason: a local bug, not a failure
            return
        yield _attempt(line)
    elif event == names.BREAKER_REJECTED:
        call, route = (
            _text(line, _key(names.CALL_ID)),
            _text(line, _key(names.CIRCUIT_BREAKER_NAME)),
        )
        yield Rejected(_time(line, "time"), call, checked_route(route))
    elif event in _CALLS:
        took = _seconds(line, "latency_s")
        served = _served(line) if _SERVED_IN in line else None
        asked = Asked(
            at=_time(line, "time") - took,
            call=_text(line, _key(names.CALL_ID)),
            took=took,
            outcome=_outcome(line, event),
            served=None if served is None or event == names.REQUEST_FAILED else served.route,
        )
        yield asked
        if served is not None:
            yield served
    elif event == names.SETTINGS_REPORTED:
        client = str(line.get(_key(names.CLIENT_ID), ""))
        yield Configured(_time(line, "time"), client, _text(line, _key(names.SETTINGS)))
    elif not (isinstance(event, str) and event.startswith(names.PREFIX)):
        notes[otherwise] += 1


def _outcome(line: Mapping[str, Any], event: object) -> str:
    if event == names.REQUEST_COMPLETED:
        return names.SUCCESS
    return _maybe_text(line, _key(names.OUTCOME)) or "error"


def _served(line: Mapping[str, Any]) -> Attempted:
    """Return the successful request from the log line of its call."""
    latency = _seconds(line, _SERVED_IN)
    return Attempted(
        at=_time(line, "time") - (_maybe(line, _key("attempt.ago_s")) or 0.0) - latency,
        call=_text(line, _key(names.CALL_ID)),
        route=checked_route(_text(line, _key(names.CIRCUIT_BREAKER_NAME))),
        latency=latency,
        reason=None,
        hint=None,
        cost=_maybe(line, _key(names.COST_USD)),
        queue=_maybe(line, _key("attempt.queue_s")) or 0.0,
        given_up=False,
        probe=_is_probe(line),
    )


def _is_probe(line: Mapping[str, Any]) -> bool:
    return line.get(_key(names.CIRCUIT_BREAKER_STATE)) == "half_open"


def _attempt(line: Mapping[str, Any]) -> Attempted:
    latency = _seconds(line, "latency_s")
    reason = _reason(line.get("reason"))
    return Attempted(
        at=_time(line, "time") - latency,
        call=_text(line, _key(names.CALL_ID)),
        route=_route(line),
        latency=latency,
        reason=reason,
        hint=_maybe(line, _key(names.RETRY_AFTER)),
        cost=_maybe(line, _key(names.COST_USD)),
        queue=_maybe(line, _key(names.QUEUE_S)) or 0.0,
        given_up=reason in _ANSWERLESS and line.get(_key(names.ATTEMPT_STATUS)) is None,
        probe=_is_probe(line),
    )


# -- checked fields -------------------------------------------------------------------------------

_NO_TIME: Final = 1e11
"""Seconds since the epoch, in the year 5138; as milliseconds it is 1973."""


def _number(line: Mapping[str, Any], name: str) -> float:
    value = line.get(name)
    number = as_float(value)
    if number is None:
        raise RecordingError(f"{name} is {'missing' if value is None else 'not a number'}")
    return number


def _time(line: Mapping[str, Any], name: str) -> float:
    """Return a time in seconds since the epoch."""
    value = _number(line, name)
    if value >= _NO_TIME:
        raise RecordingError(f"{name} is not in seconds since the epoch (milliseconds?)")
    return value


def _seconds(line: Mapping[str, Any], name: str) -> float:
    value = _number(line, name)
    if value < 0:
        raise RecordingError(f"{name} is negative")
    return value


def _maybe(line: Mapping[str, Any], name: str) -> float | None:
    return None if line.get(name) is None else _number(line, name)


def _maybe_text(line: Mapping[str, Any], name: str) -> str | None:
    return None if line.get(name) is None else _text(line, name)


def _text(line: Mapping[str, Any], name: str) -> str:
    value = line.get(name)
    if not isinstance(value, str | int) or value == "":
        raise RecordingError(f"{name} is missing")
    return str(value)


def _route(line: Mapping[str, Any]) -> str:
    return checked_route(_text(line, "route"))


def _reason(word: Any) -> Reason | None:
    try:
        return None if word is None else Reason(word)
    except ValueError:
        raise RecordingError("unknown reason") from None
