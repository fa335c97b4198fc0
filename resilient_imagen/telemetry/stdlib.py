"""Whom a record of the standard library's logging would reach: for most libraries, often nobody."""

from __future__ import annotations

import logging
import math
from types import FunctionType
from typing import Final

__all__ = ["reached_from"]

_WAYS: Final = ("isEnabledFor", "getEffectiveLevel", "log", "_log", "handle", "callHandlers")
"""What a record, and the question whether there shall be one, goes through."""


def reached_from(logger: logging.Logger) -> float:
    """The lowest level of the records that would reach anybody; infinity if none would."""
    if not all(_is_loggings_own(logger, way) for way in _WAYS):
        return logging.NOTSET  # who replaces one of them, as Sentry does, may want everything
    if logger.disabled or not _is_heard(logger):
        return math.inf
    return max(logger.getEffectiveLevel(), logger.manager.disable + 1)


def _is_loggings_own(logger: logging.Logger, way: str) -> bool:
    found = getattr(type(logger), way)
    is_its = type(found) is FunctionType and found.__globals__ is vars(logging)
    return is_its and way not in vars(logger)


def _is_heard(logger: logging.Logger) -> bool:
    """Whether anything listens: a handler that does something, a filter, a factory of records."""
    if logger.filters or logging.getLogRecordFactory() is not logging.LogRecord:
        return True
    quiet = False
    at: logging.Logger | None = logger
    while at is not None:
        for handler in at.handlers:
            if type(handler) is not logging.NullHandler:
                return True
            quiet = True
        at = at.parent if at.propagate else None
    return not quiet and logging.lastResort is not None
