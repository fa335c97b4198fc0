"""Rows of a recording from spans: OTLP in JSON, and Jaeger's older shape of the same."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from resilient_imagen.reasons import Reason
from resilient_imagen.telemetry import names
from resilient_imagen.tuning.recording import Asked, Attempted, RecordingError, Rejected

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator, Mapping

    from resilient_imagen.tuning.recording import Row

__all__ = ["OTHERS", "rows_of_jaeger", "rows_of_otlp"]

OTHERS: Final = "spans of others"
BUGS: Final = "requests that failed by a bug of the client's, left out"

_ROOTS: Final = frozenset({names.PREFIX + "generate", names.PREFIX + "edit"})
_ANSWERLESS: Final = frozenset({Reason.TIMEOUT, Reason.CANCELLED, Reason.DEADLINE})


def rows_of_otlp(document: Mapping[str, Any], notes: Counter[str]) -> Iterator[Row]:
    """The rows of one OTLP object: a line of a collector's file, or an answer of Jaeger's api/v3.

    Raises:
        RecordingError: A span of ours is not as it should be.
    """
    document = document.get("result", document)
    for resource in document.get("resourceSpans", ()):
        for scope in resource.get("scopeSpans", ()):
            for span in scope.get("spans", ()):
                attributes = {
                    each["key"]: _plain(each["value"]) for each in span.get("attributes", ())
                }
                start = int(span["startTimeUnixNano"]) / 1e9
                end = int(span["endTimeUnixNano"]) / 1e9
                yield from _rows(
                    span.get("name", ""), span["traceId"], attributes, start, end, notes
                )


def rows_of_jaeger(document: Mapping[str, Any], notes: Counter[str]) -> Iterator[Row]:
    """The rows of one answer of Jaeger's older ``/api/traces``.

    Raises:
        RecordingError: A span of ours is not as it should be.
    """
    for trace in document.get("data") or ():
        for span in trace.get("spans", ()):
            attributes = {tag["key"]: tag.get("value") for tag in span.get("tags", ())}
            start = span["startTime"] / 1e6
            end = start + span["duration"] / 1e6
            yield from _rows(
                span.get("operationName", ""), trace["traceID"], attributes, start, end, notes
            )


def _rows(
    name: str,
    trace: str,
    attributes: Mapping[str, Any],
    start: float,
    end: float,
    notes: Counter[str],
) -> Iterator[Row]:
    route = attributes.get(names.BREAKER_NAME)
    if names.ATTEMPT_OUTCOME in attributes and route is not None:
        outcome = attributes[names.ATTEMPT_OUTCOME]
        if outcome == names.OTHER_ERROR:
            notes[BUGS] += 1
            return
        yield _attempt(trace, str(route), str(outcome), attributes, start, end)
    elif name.startswith(names.REJECT_SPAN) and route is not None:
        yield Rejected(start, trace, str(route))
    elif name in _ROOTS:
        yield Asked(start, trace)
    else:
        notes[OTHERS] += 1


def _attempt(
    trace: str, route: str, outcome: str, attributes: Mapping[str, Any], start: float, end: float
) -> Attempted:
    if end < start:
        raise RecordingError("a span ends before it starts")
    try:
        reason = None if outcome == "success" else Reason(outcome)
    except ValueError:
        raise RecordingError(f"{names.ATTEMPT_OUTCOME} is none that is known") from None
    return Attempted(
        at=start,
        call=trace,
        route=route,
        latency=end - start,
        reason=reason,
        hint=_number(attributes, names.RETRY_AFTER),
        cost=_number(attributes, names.COST_USD),
        queue=_number(attributes, names.QUEUE_S) or 0.0,
        given_up=reason in _ANSWERLESS and attributes.get(names.ATTEMPT_STATUS) is None,
    )


def _number(attributes: Mapping[str, Any], name: str) -> float | None:
    value = attributes.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RecordingError(f"{name} is not a number")
    return float(value)


def _plain(value: Mapping[str, Any]) -> Any:
    """An attribute's value out of its wrapping; 64-bit numbers come as text."""
    for kind, content in value.items():
        if kind == "intValue":
            return int(content)
        if kind == "doubleValue":
            return float(content)
        if kind in {"stringValue", "boolValue"}:
            return content
    return None
