"""Sanitize third-party text before it is exported: redact and truncate.

Vendor messages are redacted where they come in, with the keys and the prompt at hand. This is the
second lock, for every text that a sink writes.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Final

from resilient_imagen.redaction import redact

__all__ = ["is_silent", "safe", "safe_name"]

_MAX_TEXT: Final = 300
"""Characters of a text that leave."""
_NAME: Final = re.compile(r"(?!AIza|AQ\.|ya29|sk-|eyJ)[\w.:/@-]{1,63}")
"""A vendor's name for a model or an answer: too short for a picture, and unlike any key."""


@cache
def is_silent(provider: object) -> bool:
    """Whether a provider of spans or metrics is OpenTelemetry's API's own, which keeps none."""
    return type(provider).__module__.startswith(("opentelemetry.trace", "opentelemetry.metrics"))


def safe(text: object, limit: int = _MAX_TEXT) -> str:
    """``text`` without anything that looks like a key or a picture, in one line of ``limit``."""
    return redact(str(text), limit=limit)


def safe_name(text: str) -> str:
    """``safe``, without the work where a glance is enough."""
    return text if _NAME.fullmatch(text) else safe(text)
