"""Settings of a route and how they change: its breaker, its time limit, its provider's queue."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, TypedDict

from resilient_imagen.circuitbreaker import BreakerConfig

if TYPE_CHECKING:
    from resilient_imagen.pipeline.route import Route
    from resilient_imagen.settings import Settings

__all__ = ["Limits", "breaker_config", "limits_of", "reconfigure_route"]


class Limits(TypedDict):
    """The limits of a provider's queue."""

    max_concurrent: int
    per_minute: float
    burst: int


def breaker_config(settings: Settings, provider: str, vendor: str | None) -> BreakerConfig:
    """Return the settings of a provider's breakers.

    Args:
        settings: All settings.
        provider: The provider's name.
        vendor: The vendor whose models it serves; None means by the name.
    """
    return BreakerConfig(
        **settings.breaker_settings(provider),
        probe_deadline=settings.timeout_for(provider, vendor) + 1.0,
    )


def limits_of(settings: Settings, provider: str, vendor: str | None) -> Limits:
    """Return the limits of a provider's queue; arguments as in ``breaker_config``."""
    return {
        "max_concurrent": settings.max_concurrent_for(provider),
        "per_minute": settings.ipm_for(provider, vendor),
        "burst": settings.burst,
    }


def reconfigure_route(route: Route, before: Settings, after: Settings) -> None:
    """Give a route the time limit and the breaker's thresholds that differ between two settings.

    The breaker keeps its state and its counts. Requests in flight may still end by the time limit
    that they were sent with.
    """
    name, vendor = route.provider.name, route.vendor
    route.timeout = after.timeout_for(name, vendor)
    was, config = (asdict(breaker_config(each, name, vendor)) for each in (before, after))
    changes = {field: value for field, value in config.items() if value != was[field]}
    if not changes:
        return
    try:
        changed = replace(route.breaker.config, **changes)
    except ValueError:  # it does not fit to values that the application has set
        changed = BreakerConfig(**config)
    route.breaker.reconfigure(changed)
