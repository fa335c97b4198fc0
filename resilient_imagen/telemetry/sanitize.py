"""Sanitize third-party text before it is exported: redact and truncate.

Vendor messages are redacted where they are received, with the keys and the prompt at hand. This
module redacts every string that a sink exports once more.
"""

from __future__ import annotations

import re
from typing import Final

from resilient_imagen.redaction import redact

__all__ = ["safe", "safe_name"]

_MAX_TEXT: Final = 300
"""Maximum characters of an exported string."""
_NAME: Final = re.compile(r"(?!AIza|AQ\.|ya29|sk-|eyJ)[\w.:/@-]{1,63}")
"""A vendor's model name or response id: too short for an image, and unlike any key."""


def safe(text: object, limit: int = _MAX_TEXT) -> str:
    """Return ``text`` in one line of at most ``limit``, without keys and image data."""
    return redact(str(text), limit=limit)


def safe_name(text: str) -> str:
    """Return ``safe(text)``, quickly if ``text`` is an ordinary name."""
    return text if _NAME.fullmatch(text) else safe(text)
