"""Providers: the protocol, the built-in providers, and the rules that classify their failures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from resilient_imagen._provider_settings import BUILT_IN, provider_variables
from resilient_imagen.errors import ConfigurationError
from resilient_imagen.providers.base import check_provider

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from resilient_imagen.providers.base import Provider
    from resilient_imagen.settings import Settings

__all__ = ["build", "collect_providers", "needed_variable", "unknown_providers"]

_NEEDED: Final[Mapping[str, str]] = {
    "google": "api_key",
    "vertex": "project",  # looked up with the credentials if it is missing
    "openai": "api_key",
    "azure": "base_url",
}
"""The first setting to set, by kind."""


def build(name: str, settings: Settings) -> Provider | None:
    """Build the built-in or declared provider ``name``. Loads no SDK yet.

    Returns:
        None if the provider is unknown, or if its ``needed_variable`` is not set.

    Raises:
        ConfigurationError: A setting of the provider is not allowed, or azure-identity is needed
            and not installed.
    """
    chosen = settings.provider(name)
    if chosen is None:
        return None
    common: dict[str, Any] = {
        "name": name,
        "api_key": chosen.key,
        "max_connections": settings.max_concurrent_for(name),
    }
    if chosen.kind == "vertex":
        from resilient_imagen.providers.vertex import VertexProvider

        return VertexProvider(
            **common,
            base_url=chosen.base_url,
            project=None if chosen.project is None else chosen.project.get_secret_value(),
            location=chosen.location or "global",
            credentials=chosen.credentials,
            prompt_hints=settings.prompt_hints,
        )
    if getattr(chosen, _NEEDED[chosen.kind]) is None:
        return None
    if chosen.kind == "google":
        from resilient_imagen.providers.google import GoogleProvider

        return GoogleProvider(
            **common, base_url=chosen.base_url, prompt_hints=settings.prompt_hints
        )
    if chosen.kind == "azure":
        from resilient_imagen.providers.azure import AzureProvider

        return AzureProvider(
            **common, endpoint=chosen.base_url or "", quality=settings.openai_quality
        )
    from resilient_imagen.providers.openai import OpenAIProvider

    return OpenAIProvider(**common, base_url=chosen.base_url, quality=settings.openai_quality)


def needed_variable(name: str, settings: Settings) -> str:
    """Return the variable to set first for a built-in or declared provider."""
    declared = settings.providers.get(name)
    kind = name if declared is None else declared.kind
    return provider_variables(name, kind)[_NEEDED[kind]][0]


def collect_providers(
    settings: Settings, given: Iterable[Provider], warn: Callable[[str, str], None]
) -> dict[str, Provider]:
    """Return the providers that the routes name: given ones, then built-in and declared ones.

    Args:
        settings: Routes and keys.
        given: The application's providers. One with the name of another provider replaces it.
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
    named = {route.provider for route in settings.accounts}
    known = {*found, *BUILT_IN, *settings.providers}
    _check_names(named, set(found), known, set(settings.force_open))
    for name in sorted(named - set(found)):
        built = build(name, settings)
        if built is None:
            warn(
                "missing_key",
                f"{needed_variable(name, settings)} is not set: routes to {name} are off",
            )
        else:
            found[name] = built
    return found


def unknown_providers(unknown: Iterable[str], known: Iterable[str]) -> str:
    """Return the end of an error: the unknown names of providers, and those that are allowed."""
    shown, names = sorted(unknown), sorted(known)
    meant = [name.lower() for name in shown if name.lower() in names]
    hint = f" (a name is in lower case here: {', '.join(meant)})" if meant else ""
    return (
        f"{', '.join(shown)}{hint}; known providers: {', '.join(names)}; "
        "IMAGE_GEN_PROVIDER_<NAME> declares another one"
    )


def _check_names(named: set[str], given: set[str], known: set[str], forced_open: set[str]) -> None:
    for variable, names in (("ROUTES", named), ("FORCE_OPEN", forced_open)):
        if unknown := names - known:
            raise ConfigurationError(
                f"IMAGE_GEN_{variable} names {unknown_providers(unknown, known)}"
            )
    if idle := given - named:
        raise ConfigurationError(
            f"no route leads to {', '.join(sorted(idle))}; name it in IMAGE_GEN_ROUTES"
        )
