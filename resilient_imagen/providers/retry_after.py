"""Retry hints: parse the vendors' forms of "retry after" to seconds."""

from __future__ import annotations

import math
import re
import time
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

from resilient_imagen.circuitbreaker.open_period import valid_hint

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["retry_hint"]

_UNIT: Final = r"(?:ms|milliseconds?|hours?|h|minutes?|mins?|m|seconds?|secs?|s)(?![a-z])"
_AMOUNT: Final = rf"[0-9]{{1,12}}(?:\.[0-9]{{1,12}})?\s*{_UNIT}"
_IN_TEXT: Final = re.compile(
    rf"\b(?:try again|retry|resets?)\s+(?:in|after)\s+((?:{_AMOUNT}[\s,]*(?:and\s+)?)+)",
    re.IGNORECASE | re.ASCII,
)
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]+)", re.IGNORECASE | re.ASCII)
_SPELT: Final = re.compile(rf"(?:{_AMOUNT}[\s,]*(?:and\s+)?)+", re.IGNORECASE | re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,12})?")
_SECONDS: Final = {"ms": 0.001, "m": 60.0, "h": 3600.0, "s": 1.0}


def retry_hint(
    headers: Mapping[str, str], details: Iterable[Mapping[str, Any]], message: str
) -> float | None:
    """Return the seconds to wait, above 0 and at most one day; None without a usable hint.

    The most exact source takes precedence: Google's RetryInfo, then the headers, then the message.
    """
    for seconds in (_retry_info(details), *_headers(headers), _in_text(message)):
        if (hint := valid_hint(seconds)) is not None:
            return hint
    return None


def _retry_info(details: Iterable[Mapping[str, Any]]) -> float | None:
    for detail in details:
        if str(detail.get("@type")).endswith("google.rpc.RetryInfo"):
            return _delay(detail.get("retryDelay", detail.get("retry_delay")))
    return None


def _delay(value: Any) -> float | None:
    """Parse a protobuf duration: its JSON form, an object, or a relay's variant."""
    if isinstance(value, dict):
        seconds, nanos = value.get("seconds"), value.get("nanos")
        return (_spelt(str(seconds)) or 0.0) + (_spelt(str(nanos)) or 0.0) / 1e9
    return _spelt(str(value))


def _spelt(text: str) -> float | None:
    """Parse seconds from a number, or from amounts with units: ``37``, ``37.5s``, ``1m2s``."""
    text = text.strip()
    if _NUMBER.fullmatch(text):
        return float(text)
    return _sum(text) if _SPELT.fullmatch(text) else None


def _headers(headers: Mapping[str, str]) -> Iterable[float | None]:
    exact = _NUMBER.fullmatch(headers.get("retry-after-ms", "").strip())
    yield float(exact[0]) / 1000 if exact else None
    plain = headers.get("retry-after", "").strip()
    seconds = _spelt(plain)
    yield _until(plain, headers.get("date", "")) if seconds is None else seconds


def _until(moment: str, now: str) -> float | None:
    """Return the seconds until a date, by the server's Date header if it sent one."""
    then = _timestamp(moment)
    if then is None:
        return None
    return then - (_timestamp(now) or time.time())


def _timestamp(date: str) -> float | None:
    """Parse an HTTP date to seconds since the epoch. A date without a zone is in UTC."""
    try:
        moment = parsedate_to_datetime(date)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def _in_text(message: str) -> float | None:
    found = _IN_TEXT.search(message)
    return None if found is None else _sum(found[1])


def _sum(amounts: str) -> float:
    parts = _PART.findall(amounts.lower())
    return math.fsum(float(number) * _seconds(unit) for number, unit in parts)


def _seconds(unit: str) -> float:
    """Return the seconds in a unit, in any of its spellings."""
    if unit.startswith("milli"):
        return _SECONDS["ms"]
    return _SECONDS.get(unit) or _SECONDS[unit[0]]
