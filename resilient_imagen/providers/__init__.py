"""Who makes pictures; beside each, the table that turns its failures into reasons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resilient_imagen.providers.base import Provider
    from resilient_imagen.settings import Settings

__all__ = ["BUILT_IN", "build"]

BUILT_IN: Final[Mapping[str, str]] = {
    "google": "GOOGLE_GENAI_API_KEY",
    "openai": "OPENAI_API_KEY",
}
"""The providers that come with the library, and the variable that holds each one's key."""


def build(name: str, settings: Settings) -> Provider | None:
    """The built-in provider ``name``, or None when its key is missing. Loads no SDK yet.

    Raises:
        ConfigurationError: The key cannot be sent as it is.
    """
    if name == "google":
        if settings.google_api_key is None:
            return None
        from resilient_imagen.providers.google import GoogleProvider

        return GoogleProvider(
            api_key=settings.google_api_key.get_secret_value(),
            base_url=settings.google_base_url,
            max_connections=settings.max_concurrent,
            prompt_hints=settings.prompt_hints,
        )
    if settings.openai_api_key is None:
        return None
    from resilient_imagen.providers.openai import OpenAIProvider

    return OpenAIProvider(
        api_key=settings.openai_api_key.get_secret_value(),
        base_url=settings.openai_base_url,
        max_connections=settings.max_concurrent,
        quality=settings.openai_quality,
    )
