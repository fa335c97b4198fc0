"""Whom a record of the standard library's logging would reach: for most libraries, often nobody."""

from __future__ import annotations

import logging
import math
from types import FunctionType
from typing import Final

__all__ = ["reached_from"]

_WAYS: Final = ("_log", "handle", "callHandlers")
"""What a record goes through on its way to handlers."""


def reached_from(logger: logging.Logger) -> float:
    """The lowest level of the records that would reach anybody; infinity if none would."""
    if logger.disabled or not _is_heard(logger):
        return math.inf
    return max(logger.getEffectiveLevel(), logger.manager.disable + 1)


def _is_heard(logger: logging.Logger) -> bool:
    """Whether anything listens: a handler that does something, a filter, or a way of its own.

    Sentry and others replace logging's ways by theirs, and need no handler; so may a class of
    loggers.
    """
    if logger.filters:
        return True
    for way in _WAYS:
        found = getattr(type(logger), way)
        if type(found) is not FunctionType or found.__module__ != logging.__name__:
            return True
    at: logging.Logger | None = logger
    while at is not None:
        for handler in at.handlers:
            if type(handler) is not logging.NullHandler:
                return True
        at = at.parent if at.propagate else None
    return False
