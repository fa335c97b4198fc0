"""Log parsing: one log line to a dict, from JSON or from a formatter's ``key=value`` pairs."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from resilient_imagen.telemetry import names
from resilient_imagen.tuning.rows import RecordingError

__all__ = ["parsed"]

_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
# These patterns take linear time for any line: they start only at the beginning of a word and do
# not backtrack.
_NAMED: Final = re.compile(
    r"""(?<![\w.="'])(imagegen\.[a-z_.]++)[ ]++(?:\[[\w.]++\][ ]++)?(?=[\w.]++=)"""
)
"""The event's name before the pairs, as in our messages and in structlog's console renderer."""
_KEYED: Final = re.compile(r"""(?<!\S)event=["']?(imagegen\.[a-z_.]+)""")
"""The event's name among the pairs, as in logfmt and in structlog's key-value renderer."""
_PAIR: Final = re.compile(
    r"""(?<![\w.])([\w.]++)=("(?:[^"\\]|\\.)*+"|'(?:[^'\\]|\\.)*+'|\[[^\[\]]*+\]|[^\s"'\[]\S*+)"""
)
_OURS: Final = (
    names.PREFIX, '"sent"', '"asked"', '"rejected"', '"configured"', '"resourceSpans"',
)  # fmt: skip
"""Strings of which each of our lines contains at least one."""
_CALL_ID: Final = names.CALL_ID.removeprefix(names.PREFIX)
_PYTHONS: Final = {"None": None, "True": True, "False": False}


def parsed(text: str) -> dict[str, Any] | None:
    """Return the object in a line; None for a line of another program.

    Raises:
        RecordingError: The line begins like one of ours, but is truncated or not valid.
    """
    if "\x1b" in text:
        text = _COLOUR.sub("", text)
    start = text.find("{")
    if start < 0 or _NAMED.search(text[:start]) or (start and _KEYED.search(text)):
        return _of_text(text)
    try:
        found = json.loads(text[start:])
    except json.JSONDecodeError:
        wrong = "no complete JSON object (cut off?)"
    except ValueError:
        wrong = "a number has too many digits"
    except RecursionError:
        wrong = "the JSON is nested too deep"
    else:
        return _unfolded(found) if isinstance(found, dict) else None
    if any(mark in text for mark in _OURS):
        raise RecordingError(wrong)
    return None


def _unfolded(found: dict[str, Any]) -> dict[str, Any]:
    """Return an object with the pairs in its message, if a formatter has left out the fields."""
    message = found.get("message", found.get("msg"))
    inner = _of_text(message) if isinstance(message, str) and "event" not in found else None
    return found if inner is None else inner


def _of_text(text: str) -> dict[str, Any] | None:
    match = _NAMED.search(text)
    pairs = text[match.end() :] if match else text
    match = match or _KEYED.search(text)
    if match is None:
        return None
    return {
        **{key: _value(key, value) for key, value in _PAIR.findall(pairs)},
        "event": match[1],
    }


def _value(key: str, text: str) -> Any:
    if text in _PYTHONS:
        return _PYTHONS[text]
    if text.startswith("'"):
        return text[1:-1]
    if key == _CALL_ID and not text.startswith('"'):
        return text  # a hexadecimal id such as 12e4567890123456 is not a number
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
