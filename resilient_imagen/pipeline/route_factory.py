"""Routes as the settings define them: the breaker, the time limit and the provider's queue of each.

``RouteFactory`` builds routes, and gives them other limits when the settings change.
"""

from __future__ import annotations

import random
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, TypedDict

from resilient_imagen.circuitbreaker import BreakerConfig, CircuitBreaker
from resilient_imagen.pipeline.route import Route
from resilient_imagen.providers.base import endpoint_of
from resilient_imagen.ratelimit.limiter import RateLimiter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from resilient_imagen.distributed import RedisCoordinator
    from resilient_imagen.providers.base import Provider
    from resilient_imagen.settings import Settings

__all__ = ["RouteFactory", "new_breaker", "new_limiter"]


class RouteFactory:
    """Builds routes; those of one provider share its queue.

    Args:
        settings: Limits and thresholds.
        coordinator: Shares breakers and queues with other processes; None to share nothing.
    """

    def __init__(self, settings: Settings, coordinator: RedisCoordinator | None) -> None:
        self._settings = settings
        self._coordinator = coordinator
        self._limiters: dict[str, tuple[RateLimiter, str]] = {}
        """The queue and the vendor of each provider, by its name."""

    def build(self, provider: Provider, model: str) -> Route:
        """Return a new route, with a breaker of its own."""
        settings, name, vendor = self._settings, provider.name, endpoint_of(provider).vendor
        most = settings.max_reference_mb
        return Route(
            provider,
            model,
            new_breaker(settings, name, model, kind=self._breaker_kind(), vendor=vendor),
            self._limiter_of(provider),
            settings.timeout_for(name, vendor),
            max_total_bytes=None if most is None else int(most * 1e6),
        )

    def reconfigure(self, settings: Settings, routes: Iterable[Route]) -> None:
        """Give routes and queues the limits that differ from the settings before.

        A breaker that the application has configured by itself keeps its other values.
        """
        before, self._settings = self._settings, settings
        for route in routes:
            _reconfigure_route(route, before, settings)
        for name, (limiter, vendor) in self._limiters.items():
            was, limits = (_limits_of(each, name, vendor) for each in (before, settings))
            if was != limits:
                limiter.reconfigure(**limits)

    def _limiter_of(self, provider: Provider) -> RateLimiter:
        name = provider.name
        if name not in self._limiters:
            vendor = endpoint_of(provider).vendor
            limiter = new_limiter(self._settings, name, vendor, self._limiter_kind(name))
            self._limiters[name] = limiter, vendor
        return self._limiters[name][0]

    def _limiter_kind(self, name: str) -> Callable[..., RateLimiter]:
        if self._coordinator is None:
            return RateLimiter
        from resilient_imagen.distributed.redis_limiter import RedisRateLimiter

        return partial(RedisRateLimiter, name, coordinator=self._coordinator)

    def _breaker_kind(self) -> Callable[..., CircuitBreaker]:
        if self._coordinator is None:
            return CircuitBreaker
        from resilient_imagen.distributed.redis_breaker import RedisCircuitBreaker

        return partial(RedisCircuitBreaker, coordinator=self._coordinator)


def new_limiter(
    settings: Settings,
    provider: str,
    vendor: str | None = None,
    kind: Callable[..., RateLimiter] = RateLimiter,
) -> RateLimiter:
    """Return the queue of a provider, made by ``kind``; ``vendor`` as in ``new_breaker``."""
    return kind(max_queue=settings.max_queue, **_limits_of(settings, provider, vendor))


def new_breaker(
    settings: Settings,
    provider: str,
    model: str,
    random: Callable[[], float] = random.random,
    kind: Callable[..., CircuitBreaker] = CircuitBreaker,
    vendor: str | None = None,
) -> CircuitBreaker:
    """Return the breaker of one route.

    Args:
        settings: Its thresholds, and whether it is forced open.
        provider: The name of the route's provider.
        model: The route's model.
        random: Returns 0 to 1 for the jitter.
        kind: Makes the breaker.
        vendor: The vendor whose models the provider serves; None means by its name.
    """
    config = _breaker_config(settings, provider, vendor)
    breaker = kind(f"{provider}:{model}", config, random=random)
    breaker.force_open = provider in settings.force_open
    return breaker


class _Limits(TypedDict):
    """The limits of a provider's queue."""

    max_concurrent: int
    per_minute: float
    burst: int


def _breaker_config(settings: Settings, provider: str, vendor: str | None) -> BreakerConfig:
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


def _limits_of(settings: Settings, provider: str, vendor: str | None) -> _Limits:
    """Return the limits of a provider's queue; arguments as in ``new_breaker``."""
    return {
        "max_concurrent": settings.max_concurrent_for(provider),
        "per_minute": settings.ipm_for(provider, vendor),
        "burst": settings.burst,
    }


def _reconfigure_route(route: Route, before: Settings, after: Settings) -> None:
    """Give a route the time limit and the breaker's thresholds that differ between two settings.

    The breaker keeps its state and its counts. Requests in flight may still end by the time limit
    that they were sent with.
    """
    name, vendor = route.provider.name, route.vendor
    route.timeout = after.timeout_for(name, vendor)
    was, config = (asdict(_breaker_config(each, name, vendor)) for each in (before, after))
    changes = {field: value for field, value in config.items() if value != was[field]}
    if not changes:
        return
    try:
        changed = replace(route.breaker.config, **changes)
    except ValueError:  # it does not fit to values that the application has set
        changed = BreakerConfig(**config)
    route.breaker.reconfigure(changed)
