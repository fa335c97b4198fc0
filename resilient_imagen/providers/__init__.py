"""Providers: the protocol, the built-in providers, and the rules that classify their failures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from resilient_imagen.errors import ConfigurationError
from resilient_imagen.providers.base import check_provider

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from resilient_imagen.providers.base import Provider
    from resilient_imagen.settings import Settings

__all__ = ["BUILT_IN", "build", "collect_providers"]

BUILT_IN: Final[Mapping[str, str]] = {
    "google": "GOOGLE_GENAI_API_KEY",
    "openai": "OPENAI_API_KEY",
}
"""The providers that come with the library, and the variable that holds each one's key."""


def build(name: str, settings: Settings) -> Provider | None:
    """Build the built-in provider ``name``; return None if its key is missing. Loads no SDK yet.

    Raises:
        ConfigurationError: The key contains characters that cannot be sent.
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


def collect_providers(
    settings: Settings, given: Iterable[Provider], warn: Callable[[str, str], None]
) -> dict[str, Provider]:
    """Return the providers that the routes name: given ones first, then built-in ones with a key.

    Args:
        settings: Routes and keys.
        given: The application's providers. One with the name of a built-in provider replaces it.
        warn: Called with a code and a message for each provider that has no key.

    Raises:
        TypeError: One of ``given`` is not a provider.
        ConfigurationError: Two providers have the same name, a route or IMAGE_GEN_FORCE_OPEN names
            an unknown provider, or no route uses a given provider.
    """
    found: dict[str, Provider] = {}
    for provider in given:
        check_provider(provider)
        if provider.name in found:
            raise ConfigurationError(f"two providers are named {provider.name}; rename one")
        found[provider.name] = provider
    named = {route.provider for route in settings.routes}
    _check_names(named, set(found), set(settings.force_open))
    for name in sorted(named - set(found)):
        built = build(name, settings)
        if built is None:
            warn("missing_key", f"{BUILT_IN[name]} is not set: routes to {name} are off")
        else:
            found[name] = built
    return found


def _check_names(named: set[str], given: set[str], forced_open: set[str]) -> None:
    known = given | set(BUILT_IN)
    for variable, names in (("ROUTES", named), ("FORCE_OPEN", forced_open)):
        if unknown := names - known:
            raise ConfigurationError(
                f"IMAGE_GEN_{variable} names {', '.join(sorted(unknown))}; "
                f"known providers: {', '.join(sorted(known))}"
            )
    if idle := given - named:
        raise ConfigurationError(
            f"no route leads to {', '.join(sorted(idle))}; name it in IMAGE_GEN_ROUTES"
        )
