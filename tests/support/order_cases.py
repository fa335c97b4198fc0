"""Orders that processes refuse, through Redis as through a control file."""

from __future__ import annotations

from typing import Final

REFUSALS: Final = [
    (
        "breaker open googel",
        "0 of 1 worker obeys; 1 not: no such route; routes are google:gemini-3-pro-image, ",
    ),
    (
        "settings set IMAGE_GEN_BREAKER_RESET_TIMEOUT=9000",
        "1 not: IMAGE_GEN_BREAKER_RESET_MAX must not be less than IMAGE_GEN_BREAKER_RESET_TIME",
    ),
    ("breaker close openai", "1 not: forced open by their own settings"),
]
"""Command lines, and the part of the answer that states the cause. OpenAI is forced open."""
