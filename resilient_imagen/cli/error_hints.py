"""What a person can do about an error: which key to look at, and what its vendor says of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from resilient_imagen.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resilient_imagen.errors import ImageGenerationError

__all__ = ["advised", "keys_to_check", "vendor_words"]

_VARIABLES: Final = {
    "google": ("GOOGLE_GENAI_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY"),
    "vertex": ("VERTEX_API_KEY", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT"),
    "openai": ("OPENAI_API_KEY",),
    "azure": ("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT"),
}
"""In the order in which Settings reads them. Any other provider has <NAME>_API_KEY."""
_ABOUT_THE_KEY: Final = frozenset({Reason.UNAUTHENTICATED, Reason.FORBIDDEN})


def keys_to_check(error: ImageGenerationError) -> list[str]:
    """The variables that hold the keys that were refused, in the order of the routes."""
    failures = [(each.provider, each.reason) for each in error.attempts]
    failures += [(part.provider or "", part.reason) for part in _parts(error)]
    refused = dict.fromkeys(who for who, reason in failures if reason in _ABOUT_THE_KEY)
    return [
        _in_use(_VARIABLES.get(who, (f"{who.upper()}_API_KEY",)))
        for who in refused
        if who in _VARIABLES or os.environ.get(f"IMAGE_GEN_PROVIDER_{who.upper()}")
    ]


def vendor_words(error: ImageGenerationError) -> dict[str, str]:
    """What each vendor says of a key that it refused, redacted and bounded."""
    return {
        part.provider: part.vendor_message
        for part in _parts(error)
        if part.reason in _ABOUT_THE_KEY and part.provider and part.vendor_message
    }


def advised(line: str, error: ImageGenerationError) -> str:
    """The line, and what there is to say about keys."""
    said = [f'{who} says "{words}"' for who, words in vendor_words(error).items()]
    keys = keys_to_check(error)
    return "; ".join([line, *said, *([f"check {' and '.join(keys)}"] if keys else [])])


def _parts(error: ImageGenerationError) -> Iterator[ImageGenerationError]:
    """The routes' own errors, where there are several."""
    yield from getattr(error, "errors", (error,))


def _in_use(variables: tuple[str, ...]) -> str:
    return next((name for name in variables if os.environ.get(name, "").strip()), variables[0])
