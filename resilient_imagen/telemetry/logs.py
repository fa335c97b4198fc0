"""Log lines: through the application's structlog pipeline if it has one, else through logging.

structlog that nobody configured prints to standard output, so it is used only where the
application did configure it. Otherwise ordinary records go to the logger ``imagegen``. Like any
library's, it has no handler but a NullHandler: the application decides where records go, for
instance by ``logging.basicConfig()``.

What the lines say is put together in ``lines``. No traceback is ever attached: formatters that show
local variables would print the prompt.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from operator import is_not
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from opentelemetry import trace

from resilient_imagen.telemetry import names, stdlib
from resilient_imagen.telemetry.log_records import LINES
from resilient_imagen.telemetry.summaries import summary

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from resilient_imagen.telemetry import events
    from resilient_imagen.telemetry.spans import SpanSink

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

    Every request that failed leaves one line, ``imagegen.attempt.failed`` (warning; error where
    somebody has to act), with all that a replay needs: time, route, latency_s, reason, retry.after
    and the breaker's state. The one that brought the image is told with its call, in
    ``imagegen.request.completed`` (info): a call that goes well leaves a single line. Who begins to
    listen during a call hears all of the next one.

    Args:
        spans: Knows which span an event is about; without it, the current one.
    """

    inline = True

    def __init__(self, spans: SpanSink | None = None) -> None:
        self._spans = spans

    def told_from(self) -> float:
        """The lowest level of the lines that would reach anybody."""
        structlog = _configured()
        if structlog is None:
            _pipeline.forget()
            return stdlib.reached_from(_logger)
        _pipeline.refresh(structlog)
        return _pipeline.lowest

    def handle(self, event: events.Event) -> None:
        """Write the line, if its level is let through."""
        compose = LINES.get(type(event))
        composed = None if compose is None else compose(event)
        if composed is None:
            return
        level, name, details = composed
        write = _written(level, known=event.call_id != "")
        if write is not None:
            told = {_KEYS[key]: value for key, value in details().items()}
            write(name, self._common(event) | told)

    def _common(self, event: events.Event) -> dict[str, Any]:
        """When, what happened in a sentence, in which call, in which trace."""
        # The loop's time, told as seconds since the epoch: events keep their distance in virtual
        # time.
        found: dict[str, Any] = {
            "time": round(event.at + time.time() - time.monotonic(), 6),
            "summary": summary(event),
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
    """Attribute names as log keys, each worked out once; there are some fifty."""

    def __missing__(self, name: str) -> str:
        key = self[name] = name.removeprefix(names.PREFIX)
        return key


_KEYS: Final = _Keys()


# -- where lines go ---------------------------------------------------------------------------


Write: TypeAlias = "Callable[[str, dict[str, Any]], None]"
"""Writes a line, of a name and keys with their values."""


def _configured() -> Any:
    """The module structlog where the application has configured it, else None."""
    structlog = sys.modules.get("structlog")  # who has not imported it has not configured it
    return structlog if structlog is not None and structlog.is_configured() else None


def _written(level: int, *, known: bool) -> Write | None:
    """How lines of this level are written, or None when nobody would read them.

    ``known``: they belong to a call, at whose beginning the application's pipeline was looked at.
    """
    structlog = _configured()
    if structlog is not None:
        if not known or _pipeline.is_unknown:  # or it was configured since
            _pipeline.refresh(structlog)
        return _pipeline.writer(level)
    if not _logger.isEnabledFor(level):
        return None

    def write(name: str, details: dict[str, Any]) -> None:
        _logger.log(level, "%s", _Rendered(name, details), extra={"event": name, **details})

    return write


class _Pipeline:
    """The application's structlog logger, made anew when anything it was made of has changed."""

    def __init__(self) -> None:
        self._made_of: tuple[object, ...] = ()
        self._logger: Any = None

    def refresh(self, structlog: Any) -> None:
        """Look at what the application has configured by now."""
        # Loggers that print keep the stream that was there when they were made.
        made_of = (*structlog.get_config().values(), sys.stdout, sys.stderr)
        if len(made_of) != len(self._made_of) or any(map(is_not, made_of, self._made_of)):
            self._logger, self._made_of = _bound(structlog), made_of

    def forget(self) -> None:
        """There is none; one that comes is to be looked at first."""
        self._made_of = ()

    @property
    def is_unknown(self) -> bool:
        """Whether nobody has looked at it yet."""
        return not self._made_of

    @property
    def lowest(self) -> float:
        """The lowest level that it lets through."""
        return next(filter(self._lets_through, _METHODS), math.inf)

    def writer(self, level: int) -> Write | None:
        """How lines of this level are written, or None when the pipeline lets none through."""
        if not self._lets_through(level):
            return None
        method = getattr(self._logger, _METHODS[level])
        return lambda name, details: method(name, **details)

    def _lets_through(self, level: int) -> bool:
        # Asked of the class: some wrappers take any attribute for a log method.
        asks = hasattr(type(self._logger), "is_enabled_for")
        return not asks or self._logger.is_enabled_for(level)


_pipeline: Final = _Pipeline()


def _bound(structlog: Any) -> Any:
    try:
        return structlog.get_logger(_NAME).bind()
    except TypeError:  # the application's factory makes one logger for all, whatever the name
        return structlog.get_logger().bind()


class _Rendered:
    """``name key=value …``, for formatters that show the message alone; made when they do."""

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
