"""Log lines: through the application's structlog pipeline if it has one, else through logging.

structlog that nobody configured prints to standard output, so it is used only where the
application did configure it. Otherwise ordinary records go to the logger ``imagegen``, which keep
quiet unless the application lets them through.

Keys are the span attributes without ``imagegen.``: a log line can be pasted into a trace search.
No traceback is ever attached: formatters that show local variables would print the prompt.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace

from resilient_imagen.breaker import BreakerState
from resilient_imagen.reasons import POLICIES
from resilient_imagen.telemetry import attributes, events, names
from resilient_imagen.telemetry.outgoing import safe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["LogSink"]

_NAME: Final = "imagegen"

_logger = logging.getLogger(_NAME)
_logger.addHandler(logging.NullHandler())

_METHODS: Final[Mapping[int, str]] = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warning",
    logging.ERROR: "error",
}
_CHANGES: Final[Mapping[BreakerState, tuple[str, int]]] = {
    BreakerState.OPEN: (names.BREAKER_OPENED, logging.ERROR),
    BreakerState.FORCED_OPEN: (names.BREAKER_OPENED, logging.WARNING),
    BreakerState.HALF_OPEN: (names.BREAKER_HALF_OPENED, logging.INFO),
    BreakerState.CLOSED: (names.BREAKER_CLOSED, logging.INFO),
}

Line = tuple[int, str, "Callable[[], Mapping[str, Any]]"]


class LogSink:
    """Turns events into log lines.

    Every request sent leaves one line, ``imagegen.attempt.completed`` (info) or
    ``imagegen.attempt.failed`` (warning; error where somebody has to act), with all that a replay
    needs: time, route, latency_s, reason, retry.after, the breaker's state and the cost.
    """

    inline = True

    def handle(self, event: events.Event) -> None:
        """Write the line, if its level is let through."""
        compose = _LINES.get(type(event))
        if compose is None:
            return
        level, name, details = compose(event)
        write = _writer(level)
        if write is not None:
            write(name, {**_common(event), **_without_prefix(details())})


# -- where lines go ---------------------------------------------------------------------------


def _writer(level: int) -> Callable[[str, dict[str, Any]], None] | None:
    """How to write a line of this level, or None when nobody would read it."""
    structlog = sys.modules.get("structlog")  # who has not imported it has not configured it
    if structlog is not None and structlog.is_configured():
        return _structlog_writer(structlog, level)
    if not _logger.isEnabledFor(level):
        return None

    def write(name: str, details: dict[str, Any]) -> None:
        _logger.log(level, "%s", _rendered(name, details), extra={"event": name, **details})

    return write


def _structlog_writer(structlog: Any, level: int) -> Callable[[str, dict[str, Any]], None] | None:
    bound = structlog.get_logger(_NAME).bind()  # as configured now; never kept
    # Asked of the class: some wrappers take any attribute for a log method.
    if hasattr(type(bound), "is_enabled_for") and not bound.is_enabled_for(level):
        return None
    method = getattr(bound, _METHODS[level])
    return lambda name, details: method(name, **details)


def _rendered(name: str, details: Mapping[str, Any]) -> str:
    """``name key=value …``, for formatters that show the message alone."""
    return " ".join([name, *(f"{key}={_value(value)}" for key, value in details.items())])


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    plain = text and not any(sign in text for sign in ' "=\n')
    return text if plain or not isinstance(value, str) else json.dumps(text, ensure_ascii=False)


# -- what they say ----------------------------------------------------------------------------


def _common(event: events.Event) -> dict[str, Any]:
    """When, in which call, in which trace."""
    # The loop's time, told as seconds since the epoch: events keep their distance in virtual time.
    found: dict[str, Any] = {"time": round(event.at + time.time() - time.monotonic(), 6)}
    if event.call_id:
        found["call_id"] = event.call_id
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        found["trace_id"] = format(context.trace_id, "032x")
        found["span_id"] = format(context.span_id, "016x")
    return found


class _Keys(dict[str, str]):
    """Attribute names as log keys, each worked out once; there are some fifty."""

    def __missing__(self, name: str) -> str:
        key = self[name] = name.removeprefix(names.PREFIX)
        return key


_KEYS: Final = _Keys()


def _without_prefix(details: Mapping[str, Any]) -> dict[str, Any]:
    return {_KEYS[name]: value for name, value in details.items()}


def _request_started(event: events.RequestStarted) -> Line:
    return (
        logging.DEBUG,
        names.REQUEST_STARTED,
        lambda: {
            **attributes.of_request_start(event),
            "model": event.model,
            "aspect_ratio": event.request.aspect_ratio,
            "resolution": event.request.resolution,
            "prompt_chars": len(event.request.prompt),
        },
    )


def _references_changed(event: events.ReferencesChanged) -> Line:
    return (
        logging.WARNING if event.dropped else logging.INFO,
        names.REFERENCES_CHANGED,
        lambda: {
            names.REFERENCES_DROPPED: [
                {"index": dropped["index"], "why": safe(dropped["why"])}
                for dropped in event.dropped
            ],
            names.REFERENCES_NOTES: [safe(note) for note in event.notes],
        },
    )


def _attempt_ended(event: events.AttemptEnded) -> Line:
    failed = event.reason is not None or event.error_type is not None
    level = logging.WARNING if failed else logging.INFO
    if event.reason is not None and POLICIES[event.reason].loud:
        level = logging.ERROR
    return (
        level,
        names.ATTEMPT_FAILED if failed else names.ATTEMPT_COMPLETED,
        lambda: _attempt_details(event),
    )


def _attempt_details(event: events.AttemptEnded) -> dict[str, Any]:
    found: dict[str, Any] = {
        "route": f"{event.provider}:{event.model}",
        "latency_s": round(event.latency_s, 6),
        "reason": None if event.reason is None else str(event.reason),
        names.RETRY_AFTER: event.retry_after,
        names.PROVIDER: event.provider,
        names.MODEL: event.model,
        names.OPERATION: event.operation,
        names.ATTEMPT_NUMBER: event.number,
        names.ATTEMPT_MAX: event.limit,
        names.QUEUE_S: round(event.queue_s, 3),
        names.BREAKER_STATE: event.admitted,
        **attributes.of_attempt_end(event),
    }
    if event.probe:
        found[names.BREAKER_PROBE] = True
    if event.error_type is not None:
        found[names.EXCEPTION_TYPE] = event.error_type
    if event.vendor_message is not None:
        found[names.EXCEPTION_MESSAGE] = safe(event.vendor_message)
    return found


def _retry_scheduled(event: events.RetryScheduled) -> Line:
    return (
        logging.INFO,
        names.RETRY_SCHEDULED,
        lambda: {
            names.PROVIDER: event.provider,
            names.MODEL: event.model,
            names.ATTEMPT_NUMBER: event.number,
            "reason": str(event.reason),
            names.RETRY_BACKOFF: round(event.delay_s, 3),
            names.RETRY_HINTED: event.hinted,
        },
    )


def _fell_back(event: events.FellBack) -> Line:
    return (
        logging.WARNING,
        names.FALLBACK,
        lambda: {
            names.FALLBACK_FROM: event.from_route,
            names.FALLBACK_TO: event.to_route,
            names.FALLBACK_CAUSE: str(event.cause),
        },
    )


def _short_circuited(event: events.ShortCircuited) -> Line:
    return logging.INFO, names.BREAKER_REJECTED, lambda: attributes.of_reject(event)


def _breaker_changed(event: events.BreakerChanged) -> Line:
    change = event.transition
    name, level = _CHANGES[change.to_state]
    if change.shadow:
        level = min(level, logging.INFO)  # it only would have happened

    def details() -> dict[str, Any]:
        found: dict[str, Any] = {
            names.BREAKER_NAME: change.name,
            names.PROVIDER: event.provider,
            names.MODEL: event.model,
            names.BREAKER_FROM: change.from_state.value,
            names.BREAKER_TO: change.to_state.value,
            **attributes.breaker_numbers(change.numbers),
        }
        if change.cause is not None:
            found[names.BREAKER_CAUSE] = change.cause
        if change.retry_after is not None:
            found[names.BREAKER_RETRY_AFTER] = round(change.retry_after, 3)
        if change.shadow:
            found[names.BREAKER_SHADOW] = True
        return found

    return level, name, details


def _shadow_differed(event: events.ShadowDiffered) -> Line:
    return (
        logging.INFO,
        names.SHADOW_DIFFERED,
        lambda: {
            names.BREAKER_NAME: f"{event.provider}:{event.model}",
            names.SHADOW_WOULD: event.would,
            "reason": None if event.reason is None else str(event.reason),
            "latency_s": event.latency_s,
        },
    )


def _request_ended(event: events.RequestEnded) -> Line:
    failed = event.outcome != "success"
    level = logging.ERROR if failed and event.outcome != "cancelled" else logging.INFO

    def details() -> dict[str, Any]:
        found: dict[str, Any] = {
            names.OPERATION: event.operation,
            names.PROVIDER_PRIMARY: event.provider,
            "latency_s": round(event.latency_s, 6),
            **attributes.of_request_end(event),
        }
        if event.error_type is not None:
            found[names.EXCEPTION_TYPE] = event.error_type
        if event.error is not None:
            found[names.EXCEPTION_MESSAGE] = safe(event.error)
        return found

    return level, names.REQUEST_FAILED if failed else names.REQUEST_COMPLETED, details


def _warned(event: events.Warned) -> Line:
    return (
        logging.WARNING,
        names.WARNING,
        lambda: {"code": event.code, "warning": safe(event.message)},
    )


_LINES: Final[Mapping[type[events.Event], Callable[[Any], Line]]] = {
    events.RequestStarted: _request_started,
    events.ReferencesChanged: _references_changed,
    events.AttemptEnded: _attempt_ended,
    events.RetryScheduled: _retry_scheduled,
    events.FellBack: _fell_back,
    events.ShortCircuited: _short_circuited,
    events.BreakerChanged: _breaker_changed,
    events.ShadowDiffered: _shadow_differed,
    events.RequestEnded: _request_ended,
    events.Warned: _warned,
}
