"""When to come back: the vendors' many ways of saying it, as seconds."""

from __future__ import annotations

import math
import re
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["MAX_HINT", "retry_hint"]

MAX_HINT: Final = 86_400.0
"""Seconds; whoever names more than a day means something else."""

_UNIT: Final = r"(?:ms|milliseconds?|hours?|h|minutes?|mins?|m|seconds?|secs?|s)(?![a-z])"
_AMOUNT: Final = rf"[0-9]{{1,12}}(?:\.[0-9]{{1,12}})?\s*{_UNIT}"
_IN_TEXT: Final = re.compile(
    rf"\b(?:try again|retry|resets?)\s+(?:in|after)\s+((?:{_AMOUNT}[\s,]*)+)", re.IGNORECASE
)
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]+)", re.IGNORECASE)
_DURATION: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)s")
_NUMBER: Final = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,12})?")
_SECONDS: Final = {"ms": 0.001, "m": 60.0, "h": 3600.0, "s": 1.0}


def retry_hint(
    headers: Mapping[str, str], details: Iterable[Mapping[str, Any]], message: str
) -> float | None:
    """Seconds to wait, above 0 and at most MAX_HINT, or None when nothing usable is said.

    What is most exact wins: Google's RetryInfo, then the headers, then the text.
    """
    for seconds in (_retry_info(details), *_headers(headers), _text(message)):
        if seconds is not None and 0 < seconds <= MAX_HINT:
            return seconds
    return None


def _retry_info(details: Iterable[Mapping[str, Any]]) -> float | None:
    for detail in details:
        if str(detail.get("@type", "")).endswith("google.rpc.RetryInfo"):
            delay = _DURATION.fullmatch(str(detail.get("retryDelay", "")))
            if delay:
                return float(delay[1])
    return None


def _headers(headers: Mapping[str, str]) -> Iterable[float | None]:
    exact = _NUMBER.fullmatch(headers.get("retry-after-ms", "").strip())
    yield float(exact[0]) / 1000 if exact else None
    plain = headers.get("retry-after", "").strip()
    seconds = _NUMBER.fullmatch(plain)
    yield float(seconds[0]) if seconds else _until(plain, headers.get("date", ""))


def _until(moment: str, now: str) -> float | None:
    """Seconds until a date, by the server's own clock if it told the time."""
    then = _timestamp(moment)
    if then is None:
        return None
    return then - (_timestamp(now) or time.time())


def _timestamp(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def _text(message: str) -> float | None:
    found = _IN_TEXT.search(message)
    if found is None:
        return None
    parts = _PART.findall(found[1].lower())
    return math.fsum(float(number) * _seconds(unit) for number, unit in parts)


def _seconds(unit: str) -> float:
    """Seconds in one of a unit, however it is spelt."""
    if unit.startswith("milli"):
        return _SECONDS["ms"]
    return _SECONDS.get(unit) or _SECONDS[unit[0]]
