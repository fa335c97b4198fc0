"""Log records: through the application's structlog pipeline if it has one, else through logging.

structlog prints to standard output unless it is configured, so it is used only where the
application has configured it. Otherwise ordinary records go to the logger ``imagegen``. Like any
library's, it has no handler but a NullHandler: the application decides where records go, for
instance by ``logging.basicConfig()``.

The contents of the records are built in ``log_records``. No traceback is ever attached: formatters
that show local variables would print the prompt.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from opentelemetry import trace

from resilient_imagen.reasons import Reason
from resilient_imagen.telemetry import events, names
from resilient_imagen.telemetry.log_records import LINES
from resilient_imagen.telemetry.sink import SelectiveSink
from resilient_imagen.telemetry.summaries import summary

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from resilient_imagen.telemetry.spans import SpanSink

__all__ = ["LogSink"]

_NAME: Final = "imagegen"

_logger = logging.getLogger(_NAME)
_silence: Final = logging.NullHandler()
_logger.addHandler(_silence)

_ABOUT_REJECTIONS: Final = frozenset(
    {events.ShortCircuited, events.RouteFallback, events.BreakerChanged}
)

_METHODS: Final[Mapping[int, str]] = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warning",
    logging.ERROR: "error",
}


class LogSink(SelectiveSink):
    """Turns events into log records.

    Every request that failed leaves one record, ``imagegen.attempt.failed`` (warning; error where
    an operator has to act), with all data for a replay: time, route, latency_s, reason, retry.after
    and the breaker's state. The request that delivered the image is described in the record of its
    call, ``imagegen.request.completed`` (info): a successful call leaves one record. An image that
    came too late for its call has a record, ``imagegen.attempt.completed`` (info). While a circuit
    is open, only the first call that it rejects leaves a warning; the record about its closing has
    the number of rejected calls.

    Args:
        spans: Knows which span an event is about; without it, the current one.
    """

    def __init__(self, spans: SpanSink | None = None) -> None:
        self._spans = spans
        self._rejected: Counter[str] = Counter()
        """Calls that each open breaker has rejected, by its name."""

    def handler_of(self, kind: type[events.Event]) -> Callable[[Any], None] | None:
        """Return the method that writes a record about events of a type, or None."""
        return self._write if kind in LINES else None

    def _write(self, event: events.Event) -> None:
        """Write a record about the event, if its level is enabled."""
        composed = LINES[type(event)](event)
        if composed is None:
            return
        level, name, details = composed
        rejected = self._count_rejected(event) if type(event) in _ABOUT_REJECTIONS else 0
        if isinstance(event, events.RouteFallback) and rejected > 1:
            level = min(level, logging.INFO)
        write = _writer(level)
        if write is not None:
            described = {_KEYS[key]: value for key, value in details().items()}
            common = self._common(event)
            if isinstance(event, events.BreakerChanged) and rejected:
                common["summary"] += f"; it rejected {rejected} call{'s'[: rejected > 1]}"
                described[_KEYS[names.CIRCUIT_BREAKER_REJECTED]] = rejected
            write(name, common | described)

    def _count_rejected(self, event: events.Event) -> int:
        """Return how many calls the breaker of an event has rejected since it opened."""
        if isinstance(event, events.ShortCircuited):
            self._rejected[f"{event.provider}:{event.model}"] += 1
        elif isinstance(event, events.RouteFallback):
            return self._rejected[event.from_route] if event.cause is Reason.CIRCUIT_OPEN else 0
        elif isinstance(event, events.BreakerChanged) and not event.transition.shadow:
            return self._rejected.pop(event.transition.name, 0)
        return 0

    def _common(self, event: events.Event) -> dict[str, Any]:
        """Return the keys of every record: summary, time, and the ids of the call and its trace."""
        # Loop time, as seconds since the epoch: events keep their distance in virtual time.
        found: dict[str, Any] = {
            "summary": summary(event),
            "time": round(event.at + time.time() - time.monotonic(), 6),
        }
        if event.call_id:
            found["call_id"] = event.call_id
        if self._spans is None:
            context = trace.get_current_span().get_span_context()
        else:
            context = self._spans.span_of(event)
        if context.is_valid:
            found["trace_id"] = format(context.trace_id, "032x")
            found["span_id"] = format(context.span_id, "016x")
        return found


class _Keys(dict[str, str]):
    """Attribute names and their log keys, each computed once; there are some fifty."""

    def __missing__(self, name: str) -> str:
        key = self[name] = name.removeprefix(names.PREFIX)
        return key


_KEYS: Final = _Keys()


# -- destination of records -------------------------------------------------------------------

Write: TypeAlias = "Callable[[str, dict[str, Any]], None]"
"""Writes a record with a name, and keys with their values."""


def _writer(level: int) -> Write | None:
    """Return the function that writes records of this level, or None if they are filtered out."""
    # An application that has not imported structlog has not configured it.
    structlog = sys.modules.get("structlog")
    if structlog is None or not structlog.is_configured():
        return _log_record(level) if _logger.isEnabledFor(level) and _has_receiver() else None
    logger = _bound(structlog)
    # Look at the class: some wrappers accept any attribute as a log method.
    if hasattr(type(logger), "is_enabled_for") and not logger.is_enabled_for(level):
        return None
    method = getattr(logger, _METHODS[level])
    return lambda name, details: method(name, **details)


def _bound(structlog: Any) -> Any:
    try:
        return structlog.get_logger(_NAME).bind()
    except TypeError:  # the application's factory takes no name
        return structlog.get_logger().bind()


def _has_receiver() -> bool:
    """Return whether any handler but our own receives records.

    Warnings are enabled in a program that does not configure logging, although nothing receives
    them. Building the records of a fallback takes as long as the fallback itself.
    """
    if logging.Logger.callHandlers.__globals__ is not vars(logging):
        return True  # replaced, as by Sentry, which needs no handler
    parent = _logger.parent if _logger.propagate else None
    return _logger.handlers != [_silence] or (parent is not None and parent.hasHandlers())


def _log_record(level: int) -> Write:
    def write(name: str, details: dict[str, Any]) -> None:
        _logger.log(level, "%s", _Rendered(name, details), extra={"event": name, **details})

    return write


class _Rendered:
    """``name key=value …``, for formatters that show the message alone; rendered on demand."""

    def __init__(self, name: str, details: Mapping[str, Any]) -> None:
        self._name = name
        self._details = details

    def __str__(self) -> str:
        pairs = (f"{key}={_value(value)}" for key, value in self._details.items())
        return " ".join([self._name, *pairs])

    __repr__ = __str__


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    plain = text and not any(sign in text for sign in ' "=\n')
    return text if plain or not isinstance(value, str) else json.dumps(text, ensure_ascii=False)
