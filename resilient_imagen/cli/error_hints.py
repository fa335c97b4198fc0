"""Advice about a refused key: its variable, and the vendor's message."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from resilient_imagen.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resilient_imagen.errors import ImageGenerationError

__all__ = ["advised", "keys_to_check"]

_VARIABLES: Final = {
    "google": ("GOOGLE_GENAI_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY"),
    "vertex": ("VERTEX_API_KEY", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT"),
    "openai": ("OPENAI_API_KEY",),
    "azure": ("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT"),
}
"""In the order in which Settings reads them. Any other provider has <NAME>_API_KEY."""
_ABOUT_THE_KEY: Final = frozenset({Reason.UNAUTHENTICATED, Reason.FORBIDDEN})


def keys_to_check(error: ImageGenerationError) -> list[str]:
    """Return the variables of the keys that were refused, in the order of the routes."""
    failures = [(each.provider, each.reason) for each in error.attempts]
    failures += [(each.provider or "", each.reason) for each in _route_errors(error)]
    refused = dict.fromkeys(name for name, reason in failures if reason in _ABOUT_THE_KEY)
    return [
        _in_use(_VARIABLES.get(name, (f"{name.upper()}_API_KEY",)))
        for name in refused
        if name in _VARIABLES or os.environ.get(f"IMAGE_GEN_PROVIDER_{name.upper()}")
    ]


def advised(line: str, error: ImageGenerationError) -> str:
    """Return the line with the vendors' messages about refused keys, and the keys to check."""
    words = {
        each.provider: each.vendor_message
        for each in _route_errors(error)
        if each.reason in _ABOUT_THE_KEY and each.vendor_message
    }
    keys = keys_to_check(error)
    said = [f'{provider} says "{message}"' for provider, message in words.items()]
    return "; ".join([line, *said, *([f"check {' and '.join(keys)}"] if keys else [])])


def _route_errors(error: ImageGenerationError) -> Sequence[ImageGenerationError]:
    return getattr(error, "errors", (error,))


def _in_use(variables: tuple[str, ...]) -> str:
    return next((name for name in variables if os.environ.get(name, "").strip()), variables[0])
