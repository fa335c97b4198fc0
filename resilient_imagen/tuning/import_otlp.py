"""Trace import: read a recording from spans in OTLP JSON or in Jaeger's older format.

A trace may contain many calls. Each call is a span ``imagegen.generate`` or ``imagegen.edit``, and
the spans below it belong to the call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from resilient_imagen.reasons import Reason
from resilient_imagen.telemetry import names
from resilient_imagen.tuning.rows import (
    Asked,
    Attempted,
    Configured,
    RecordingError,
    Rejected,
    as_float,
    checked_route,
)

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator, Mapping

    from resilient_imagen.tuning.rows import Row

__all__ = ["OTHERS", "rows_of_jaeger", "rows_of_otlp"]

OTHERS: Final = "spans of others"
BUGS: Final = "requests that failed by a bug of the client's, left out"

_ROOTS: Final = frozenset({names.PREFIX + "generate", names.PREFIX + "edit"})
_ANSWERLESS: Final = frozenset({Reason.TIMEOUT, Reason.CANCELLED, Reason.DEADLINE})


class _Span(NamedTuple):
    name: str
    id: str
    parent: str
    """The id of its parent span."""
    start: float
    end: float
    attributes: Mapping[str, Any]
    resource: Mapping[str, Any]
    """The attributes of the process."""


def rows_of_otlp(document: Mapping[str, Any], notes: Counter[str]) -> Iterator[Row]:
    """Yield the rows of an OTLP object: a line of a collector's file, or a response of api/v3.

    Raises:
        RecordingError: A span of ours is not valid.
    """
    document = document.get("result", document)
    for resource in document.get("resourceSpans", ()):
        process = _attributes(resource.get("resource") or {})
        for scope in resource.get("scopeSpans", ()):
            for span in scope.get("spans", ()):
                yield from _rows(
                    _Span(
                        span.get("name", ""),
                        span["spanId"],
                        span.get("parentSpanId") or span["traceId"],
                        int(span["startTimeUnixNano"]) / 1e9,
                        int(span["endTimeUnixNano"]) / 1e9,
                        _attributes(span),
                        process,
                    ),
                    notes,
                )


def rows_of_jaeger(document: Mapping[str, Any], notes: Counter[str]) -> Iterator[Row]:
    """Yield the rows of a response of Jaeger's older ``/api/traces``.

    Raises:
        RecordingError: A span of ours is not valid.
    """
    for trace in document.get("data") or ():
        for span in trace.get("spans", ()):
            start = span["startTime"] / 1e6
            above = [
                each["spanID"]
                for each in span.get("references") or ()
                if each.get("refType") == "CHILD_OF"
            ]
            yield from _rows(
                _Span(
                    span.get("operationName", ""),
                    span["spanID"],
                    above[0] if above else trace["traceID"],
                    start,
                    start + span["duration"] / 1e6,
                    _tags(span),
                    _tags((trace.get("processes") or {}).get(span.get("processID")) or {}),
                ),
                notes,
            )


def _rows(span: _Span, notes: Counter[str]) -> Iterator[Row]:
    route = span.attributes.get(names.CIRCUIT_BREAKER_NAME)
    if names.ATTEMPT_OUTCOME in span.attributes and route is not None:
        if span.attributes[names.ATTEMPT_OUTCOME] == names.OTHER_ERROR:
            notes[BUGS] += 1
            return
        yield _attempt(span, checked_route(str(route)))
    elif span.name.startswith(names.REJECT_SPAN) and route is not None:
        yield Rejected(span.start, span.parent, checked_route(str(route)))
    elif span.name in _ROOTS:
        yield from _call(span)
    else:
        notes[OTHERS] += 1


def _call(span: _Span) -> Iterator[Row]:
    settings = span.attributes.get(names.SETTINGS)
    if settings is not None:
        yield Configured(span.start, _client(span.resource), str(settings))
    outcome = span.attributes.get(names.OUTCOME)
    if span.end < span.start:
        raise RecordingError("a span ends before it starts")
    if outcome is None:  # it was exported while the call was running, or by another version
        yield Asked(span.start, span.id)
        return
    provider, model = (span.attributes.get(n) for n in (names.PROVIDER_SERVED, names.MODEL_SERVED))
    served = None if provider is None or model is None else checked_route(f"{provider}:{model}")
    yield Asked(span.start, span.id, span.end - span.start, str(outcome), served)


def _client(resource: Mapping[str, Any]) -> str:
    """Identify the process of a span; empty if its resource does not."""
    instance = resource.get("service.instance.id")
    if instance is None and "process.pid" in resource:
        instance = f"{resource.get('host.name', '')}:{resource['process.pid']}"
    return "" if instance is None else str(instance)


def _attempt(span: _Span, route: str) -> Attempted:
    if span.end < span.start:
        raise RecordingError("a span ends before it starts")
    outcome = str(span.attributes[names.ATTEMPT_OUTCOME])
    try:
        reason = None if outcome == "success" else Reason(outcome)
    except ValueError:
        raise RecordingError(f"unknown {names.ATTEMPT_OUTCOME}") from None
    return Attempted(
        at=span.start,
        call=span.parent,
        route=route,
        latency=span.end - span.start,
        reason=reason,
        hint=_number(span.attributes, names.RETRY_AFTER),
        cost=_number(span.attributes, names.COST_USD),
        queue=_number(span.attributes, names.QUEUE_S) or 0.0,
        given_up=reason in _ANSWERLESS and span.attributes.get(names.ATTEMPT_STATUS) is None,
        probe=span.attributes.get(names.CIRCUIT_BREAKER_STATE) == "half_open",
    )


def _number(attributes: Mapping[str, Any], name: str) -> float | None:
    value = attributes.get(name)
    if value is None:
        return None
    number = as_float(value)
    if number is None:
        raise RecordingError(f"{name} is not a number")
    return number


def _attributes(owner: Mapping[str, Any]) -> dict[str, Any]:
    return {each["key"]: _plain(each["value"]) for each in owner.get("attributes", ())}


def _tags(owner: Mapping[str, Any]) -> dict[str, Any]:
    return {tag["key"]: tag.get("value") for tag in owner.get("tags") or ()}


def _plain(value: Mapping[str, Any]) -> Any:
    """Return an attribute's value without its OTLP wrapper; 64-bit integers are strings there."""
    for kind, content in value.items():
        if kind == "intValue":
            return int(content)
        if kind == "doubleValue":
            return float(content)
        if kind in {"stringValue", "boolValue"}:
            return content
    return None
