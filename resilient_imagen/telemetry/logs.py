"""Log lines: through the application's structlog pipeline if it has one, else through logging.

structlog that nobody configured prints to standard output, so it is used only where the
application did configure it. Otherwise ordinary records go to the logger ``imagegen``, which keep
quiet unless the application lets them through.

What the lines say is put together in ``lines``. No traceback is ever attached: formatters that show
local variables would print the prompt.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace

from resilient_imagen.telemetry import names
from resilient_imagen.telemetry.lines import LINES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from resilient_imagen.telemetry import events
    from resilient_imagen.telemetry.otel import SpanSink

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


class LogSink:
    """Turns events into log lines.

    Every request sent leaves one line, ``imagegen.attempt.completed`` (info) or
    ``imagegen.attempt.failed`` (warning; error where somebody has to act), with all that a replay
    needs: time, route, latency_s, reason, retry.after, the breaker's state and the cost.

    Args:
        spans: Knows which span an event is about; without it, the current one.
    """

    inline = True

    def __init__(self, spans: SpanSink | None = None) -> None:
        self._spans = spans

    def handle(self, event: events.Event) -> None:
        """Write the line, if its level is let through."""
        compose = LINES.get(type(event))
        if compose is None:
            return
        level, name, details = compose(event)
        write = _writer(level)
        if write is not None:
            write(name, {**self._common(event), **_without_prefix(details())})

    def _common(self, event: events.Event) -> dict[str, Any]:
        """When, in which call, in which trace."""
        # The loop's time, told as seconds since the epoch: events keep their distance in virtual
        # time.
        found: dict[str, Any] = {"time": round(event.at + time.time() - time.monotonic(), 6)}
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
    """Attribute names as log keys, each worked out once; there are some fifty."""

    def __missing__(self, name: str) -> str:
        key = self[name] = name.removeprefix(names.PREFIX)
        return key


_KEYS: Final = _Keys()


def _without_prefix(details: Mapping[str, Any]) -> dict[str, Any]:
    return {_KEYS[name]: value for name, value in details.items()}


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
    try:
        bound = structlog.get_logger(_NAME).bind()  # as configured now; never kept
    except TypeError:  # the application's factory makes one logger for all, whatever the name
        bound = structlog.get_logger().bind()
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
