"""Router: creates the routes, configured or named by calls, and chooses those that serve a call."""

from __future__ import annotations

import asyncio
import math
import re
from collections import OrderedDict
from itertools import chain
from typing import TYPE_CHECKING, Final

from resilient_imagen import models
from resilient_imagen._provider_settings import BUILT_IN
from resilient_imagen._settings_types import parse_routes
from resilient_imagen.circuitbreaker import BreakerState
from resilient_imagen.errors import ConfigurationError, InvalidRequestError
from resilient_imagen.images.limits import ImageLimits
from resilient_imagen.pipeline.model_names import ModelNames
from resilient_imagen.pipeline.route_factory import RouteFactory, new_breaker, new_limiter
from resilient_imagen.pipeline.time_limits import find_unnoticed_hang, warn_of_short_limits
from resilient_imagen.providers import build, needed_variable, unknown_providers
from resilient_imagen.providers.base import endpoint_of
from resilient_imagen.reasons import Reason
from resilient_imagen.redaction import redact
from resilient_imagen.telemetry import events

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from resilient_imagen.circuitbreaker import CircuitBreaker, Hold, Transition
    from resilient_imagen.distributed import RedisCoordinator
    from resilient_imagen.pipeline.route import Route
    from resilient_imagen.pipeline.step import Step
    from resilient_imagen.providers.base import Provider
    from resilient_imagen.settings import RouteName, Settings
    from resilient_imagen.snapshots import RouteSnapshot
    from resilient_imagen.telemetry.dispatcher import SinkDispatcher

__all__ = ["Router"]

_NAME: Final = re.compile(
    r"(?!AIza|AQ\.|ya29|sk-|eyJ)[A-Za-z0-9][\w.:@-]*(?:/[A-Za-z0-9][\w.:@-]*)*"
)
"""A model's name, which is used in addresses and on spans. A string that looks like a key does not
match: a caller may have passed it by mistake."""
_MAX_NAME: Final = 200
"""Characters of a model's name."""
_MAX_IDLE_DYNAMIC_ROUTES: Final = 32
"""Routes kept for models that callers name, beside those with a breaker that is not to be lost."""
_MAX_DYNAMIC_ROUTES: Final = 256
"""Routes kept for such models at all, however many of their breakers are open."""
_MAX_WARNINGS: Final = 256
"""Warnings remembered so as not to be repeated: some name a model that a caller chose."""


class Router:
    """The configured steps in order, and more routes for those that callers name.

    Args:
        settings: Routes, limits and thresholds.
        providers: The usable providers by name.
        dispatcher: Passes warnings and the changes of breakers to the sinks.
        coordinator: Shares breakers and limiters with other processes; None to share nothing.

    Raises:
        ConfigurationError: No route can be used, or a route's model is another vendor's.
    """

    def __init__(
        self,
        settings: Settings,
        providers: Mapping[str, Provider],
        dispatcher: SinkDispatcher,
        coordinator: RedisCoordinator | None = None,
    ) -> None:
        self._settings = settings
        self._dispatcher = dispatcher
        self._coordinator = coordinator
        self._factory = RouteFactory(settings, coordinator)
        self._names = ModelNames(settings, self._warn)
        self._warned: OrderedDict[str, None] = OrderedDict()
        self.image_limits: ImageLimits = ImageLimits(
            allow_private=settings.reference_private_urls, allow_http=settings.reference_http_urls
        )
        self._providers = dict(providers)
        if not any(route.provider in self._providers for route in settings.accounts):
            named = dict.fromkeys(route.provider for route in settings.accounts)
            keys = (needed_variable(name, settings) for name in named)
            raise ConfigurationError(f"no route can be used: set {' or '.join(keys)}")
        self._dynamic_routes: OrderedDict[str, Route] = OrderedDict()
        self._hold_for: Callable[[str], Hold | None] = _no_hold
        self.routes: tuple[Route, ...] = ()
        self.steps: tuple[Step, ...] = self._configured_steps()
        self.routes = tuple(chain.from_iterable(self.steps))
        self._off = {
            route: _forced_open(new_breaker(settings, route.provider, route.model))
            for route in settings.accounts
            if route.provider not in self._providers
        }
        warn_of_short_limits(settings, self.routes, self._warn)
        self._warned_of_deadline = False
        if settings.deadline is not None:
            self.check_deadline(settings.deadline, "IMAGE_GEN_DEADLINE")

    @property
    def providers(self) -> Sequence[Provider]:
        """Every provider, to be closed."""
        return tuple(self._providers.values())

    def reconfigure(self, settings: Settings) -> None:
        """Use other limits, thresholds and another order of routes; the providers stay.

        Only what differs from the settings before is changed, so that a breaker that the
        application has configured by itself keeps its other values.

        Args:
            settings: Their routes are the configured ones, in any order and grouping.

        Raises:
            ConfigurationError: None of the routes can be used. Nothing is changed then.
        """
        steps = self.steps_in_order(settings)
        before, self._settings, self.steps = self._settings, settings, steps
        if settings.routes != before.routes:
            for step in settings.routes:
                for account in step.accounts:
                    if (found := self._configured_route(account)) is not None:
                        found.step = _shared_step(step)
        self._factory.reconfigure(settings, self.all_routes)

    def steps_in_order(self, settings: Settings) -> tuple[Step, ...]:
        """Return the steps in the order of other settings. Raises as ``reconfigure``."""
        if settings.routes == self._settings.routes:
            return self.steps
        seen: set[Route] = set()
        ordered: list[Step] = []
        for name in settings.routes:  # a retired model and its successor are one route
            found = map(self._configured_route, name.accounts)
            step = tuple(route for route in found if route is not None and route not in seen)
            seen.update(step)
            ordered.append(step)
        if not seen:
            raise ConfigurationError("IMAGE_GEN_ROUTES names no route that can be used")
        return tuple(filter(None, ordered))

    def _configured_route(self, account: RouteName) -> Route | None:
        """Return a route of IMAGE_GEN_ROUTES; None if it is off."""
        if account.provider not in self._providers:
            return None
        name = f"{account.provider}:{self._resolve_configured_model(account)}"
        return next((route for route in self.routes if route.name == name), None)

    def hold(self, hold_for: Callable[[str], Hold | None]) -> None:
        """Hold breakers as an operator orders, also those of routes that are added later.

        Args:
            hold_for: Returns the hold of a route, given as ``provider:model``; None for no hold.
        """
        self._hold_for = hold_for
        for route in self.all_routes:
            route.breaker.hold(hold_for(route.name))

    def _configured_steps(self) -> tuple[Step, ...]:
        """Build the routes of the settings whose providers are usable, grouped by step.

        A retired model's successor may be another route already: it is built once.
        """
        steps, known = [], set()
        for name in self._settings.routes:
            found = [
                (account.provider, self._resolve_configured_model(account))
                for account in name.accounts
                if account.provider in self._providers
            ]
            new = [route for route in found if route not in known]
            known.update(new)
            step = tuple(self._new_route(*route, configured=True) for route in new)
            for route in step:
                route.step = _shared_step(name)
            steps.append(step)
        return tuple(step for step in steps if step)

    def steps_for(
        self, model: str | None, routes: str | Iterable[str] | None = None
    ) -> tuple[Step, ...]:
        """Return the steps for one call.

        Args:
            model: Stands in for the model of the first step.
            routes: Stands in for the configured routes, in the syntax of IMAGE_GEN_ROUTES.

        Raises:
            InvalidRequestError: ``routes`` is malformed or names an unknown provider, none of its
                routes can be used, or a model belongs to another vendor than its provider.
        """
        steps = self.steps if routes is None else self._steps_named(routes)
        if model is None:
            return steps
        given = model.strip() if isinstance(model, str) else ""
        if len(given) > _MAX_NAME or not _NAME.fullmatch(given):
            raise InvalidRequestError(
                f"model must be a model's name of at most {_MAX_NAME} characters, or None"
            )
        model = self._names.named(given)
        for first in steps[0]:
            if not first.serves_own_models_only:
                continue
            model = self._names.successor_of(model)
            vendor = models.vendor_of(model)
            if vendor not in {None, first.vendor}:
                if routes is None and vendor == self._settings.routes[0].provider:
                    message = f"routes to {vendor} are off, so that model {model} is not used"
                    self._warn("model_not_used", message)
                    return steps
                where = "IMAGE_GEN_ROUTES" if routes is None else "routes"
                raise InvalidRequestError(
                    f"model {model} belongs to {vendor}, and the first route is "
                    f"{first.name}; change {where} to put another vendor first"
                )
            self._names.warn_if_unknown(model)
        if all(model == route.model for route in steps[0]):
            return steps
        step = tuple(self._route_named(route.provider.name, model) for route in steps[0])
        self._name_step(step)
        later = (tuple(route for route in other if route not in step) for other in steps[1:])
        return (step, *filter(None, later))

    def _steps_named(self, routes: str | Iterable[str]) -> tuple[Step, ...]:
        """Return the steps of a chain that a caller names; routes are kept between calls.

        Routes whose provider lacks its key are left out, as those of IMAGE_GEN_ROUTES are.
        """
        try:
            names = parse_routes(routes)
        except ValueError as error:
            shown = redact(routes if isinstance(routes, str) else repr(routes), limit=_MAX_NAME)
            raise InvalidRequestError(f"routes {error}; got {shown}") from None
        steps: list[Step] = []
        seen: set[Route] = set()
        for name in names:
            found = [self._route_of_call(account) for account in name.accounts]
            step = tuple(route for route in found if route is not None and route not in seen)
            seen.update(step)
            self._name_step(step)
            steps.append(step)
        if not seen:
            missing = dict.fromkeys(
                needed_variable(account.provider, self._settings)
                for name in names
                for account in name.accounts
            )
            raise InvalidRequestError(f"routes: none can be used; set {' or '.join(missing)}")
        return tuple(filter(None, steps))

    def _name_step(self, step: Step) -> None:
        """Name the step of routes that are not configured: the step of the latest call."""
        providers = "+".join(route.provider.name for route in step)
        for route in step:
            if route.name in self._dynamic_routes:
                route.step = f"{providers}:{route.model}" if len(step) > 1 else None

    def _route_of_call(self, name: RouteName) -> Route | None:
        """Return the route with a name that a caller gave; None if its provider lacks its key."""
        if len(name) > _MAX_NAME or not _NAME.fullmatch(name.model):
            raise InvalidRequestError(
                f"routes must name models of at most {_MAX_NAME} characters, without special ones"
            )
        provider = self._provider_named(name.provider)
        if provider is None:
            return None
        model, vendor = self._names.resolve(name, endpoint_of(provider))
        if vendor is not None:
            raise InvalidRequestError(f"routes: {name} is not valid: {model} is a {vendor} model")
        return self._route_named(provider.name, model)

    def _provider_named(self, name: str) -> Provider | None:
        """Return a provider, built now if no configured route leads to it; None without its key."""
        if name in self._providers:
            return self._providers[name]
        known = {*self._providers, *BUILT_IN, *self._settings.providers}
        if name not in known:
            unknown = unknown_providers([redact(name, limit=_MAX_NAME)], known)
            raise InvalidRequestError(f"routes names the provider {unknown}")
        provider = build(name, self._settings)
        if provider is None:
            variable = needed_variable(name, self._settings)
            self._warn("missing_key", f"{variable} is not set: routes to {name} are off")
            return None
        self._providers[name] = provider
        if self._coordinator is not None:
            self._coordinator.add_account(name, endpoint_of(provider).account)
        return provider

    @property
    def all_routes(self) -> tuple[Route, ...]:
        """Every route: the configured ones, then those for models that callers named."""
        return (*self.routes, *self._dynamic_routes.values())

    def routes_of_provider(self, name: str) -> Sequence[Route]:
        """All routes that share the provider's account."""
        return [route for route in self.all_routes if route.provider.name == name]

    def snapshot(self) -> list[RouteSnapshot]:
        """Every route's breaker and queue, as plain JSON; may be called outside the loop, too.

        Configured routes that are off come last: the first row is that of the first route in use.
        """
        now = events.now()
        return [*(route.snapshot(now) for route in self.all_routes), *map(self._absent, self._off)]

    def configured_snapshot(self) -> list[RouteSnapshot]:
        """Return the rows of ``snapshot`` without routes for models that callers named."""
        return [row for row in self.snapshot() if row["route"] not in self._dynamic_routes]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all routes, of configured ones that are off, too."""
        return (*(route.name for route in self.all_routes), *(off.key for off in self._off))

    @property
    def breakers(self) -> Mapping[str, CircuitBreaker]:
        """Each route's circuit breaker, by ``provider:model``."""
        return {route.name: route.breaker for route in self.all_routes}

    @property
    def names_in_use(self) -> tuple[str, ...]:
        """The names of the routes that calls take; an operator may leave configured ones out."""
        return tuple(route.name for route in chain.from_iterable(self.steps))

    @property
    def primary(self) -> tuple[str, ...]:
        """The names of the routes of the first configured step, also of one that is off."""
        first = self._settings.routes[0].accounts
        if all(account in self._off for account in first):
            return tuple(account.key for account in first)
        return tuple(route.name for route in self.steps[0])

    def _absent(self, route: RouteName) -> RouteSnapshot:
        """Describe a route that is off, with everything that a route in use has."""
        found: RouteSnapshot = {
            "route": route.key,
            "provider": route.provider,
            "model": route.model,
            "off": f"{needed_variable(route.provider, self._settings)} is not set",
            "breaker": self._off[route].snapshot(),
            "queue": new_limiter(self._settings, route.provider).snapshot(),
            "usual_latency_s": {},
            "last_fallback": None,
        }
        for step in self._settings.routes:  # an order may leave the route out
            if route in step.accounts and (shared := _shared_step(step)) is not None:
                found["step"] = shared
        return found

    def _resolve_configured_model(self, route: RouteName) -> str:
        """Return the model to request on a configured route.

        Raises:
            ConfigurationError: The vendor is sure not to have it.
        """
        endpoint = endpoint_of(self._providers[route.provider])
        model, vendor = self._names.resolve(route, endpoint)
        if vendor is not None:
            raise ConfigurationError(
                f"IMAGE_GEN_ROUTES: {route} is not valid: {model} is a {vendor} model"
            )
        return model

    def check_deadline(self, seconds: float, name: str = "deadline") -> None:
        """Warn, once, of a deadline whose share for the first route is too short to notice a hang.

        Args:
            seconds: The deadline of a call; may be infinite.
            name: The name of the deadline in the warning.
        """
        if self._warned_of_deadline or len(self.routes) == 1 or math.isinf(seconds):
            return
        found = find_unnoticed_hang(seconds, name, self._settings, self.steps)
        if found is not None:
            self._warned_of_deadline = True
            self._warn("hanging_goes_unseen", found)

    def _route_named(self, provider: str, model: str) -> Route:
        name = f"{provider}:{model}"
        for route in self.routes:
            if route.name == name:
                return route
        if name not in self._dynamic_routes:
            self._dynamic_routes[name] = self._add_dynamic_route(provider, model)
            self._make_room()
        self._dynamic_routes.move_to_end(name)
        return self._dynamic_routes[name]

    def _make_room(self) -> None:
        """Forget a route that was not used for longest, after one was added.

        Names come from callers, so that their number has no limit. A breaker that is open or counts
        failures goes only if there are far too many of them.
        """
        newest = next(reversed(self._dynamic_routes))
        idle = [
            name
            for name, route in self._dynamic_routes.items()
            if route.forgettable and name != newest
        ]
        if len(idle) >= _MAX_IDLE_DYNAMIC_ROUTES:
            del self._dynamic_routes[idle[0]]
        elif len(self._dynamic_routes) > _MAX_DYNAMIC_ROUTES:
            self._dynamic_routes.popitem(last=False)

    def _add_dynamic_route(self, provider: str, model: str) -> Route:
        """A route for a model that a caller names; what its account has come to holds for it."""
        route = self._new_route(provider, model)
        now = asyncio.get_running_loop().time()
        for sibling in self.routes_of_provider(provider):
            until = sibling.breaker.blocked_until()
            if until is None or sibling.breaker.metrics().state is BreakerState.FORCED_OPEN:
                continue
            if sibling.account_failure is not None and until > now:
                cause, summary = sibling.account_failure
                route.breaker.open_for(until - now, cause=cause, summary=summary)
                route.account_failure = sibling.account_failure
                break
        return route

    def _new_route(self, provider: str, model: str, *, configured: bool = False) -> Route:
        """Build a route, and announce it and the changes of its breaker."""
        route = self._factory.build(self._providers[provider], model)
        route.breaker.subscribe(self._breaker_changed, inline=True)
        self._dispatcher.emit(
            events.RouteRegistered(
                provider=provider, model=model, breaker=route.breaker, configured=configured
            )
        )
        route.breaker.subscribe(route.on_transition, inline=True)
        route.breaker.hold(self._hold_for(route.name))
        return route

    def _breaker_changed(self, transition: Transition) -> None:
        next_route = self._next_route(transition)
        self._dispatcher.emit(
            events.BreakerChanged(at=transition.at, transition=transition, next_route=next_route)
        )

    def _next_route(self, transition: Transition) -> str | None:
        """Return the first usable route after one whose breaker has opened, if calls leave it."""
        opened = transition.to_state in {BreakerState.OPEN, BreakerState.FORCED_OPEN}
        if not opened or not self._settings.falls_back_on(Reason.CIRCUIT_OPEN):
            return None
        names = [[route.name for route in step] for step in self.steps]
        # A model that a caller names replaces the first step's.
        index = next((i for i, step in enumerate(names) if transition.name in step), 0)
        following = [*self.steps[index], *chain.from_iterable(self.steps[index + 1 :])]
        if transition.name not in names[index]:
            following = following[len(self.steps[index]) :]
        usable = (route.name for route in following if route.breaker.allows_calls())
        return next((name for name in usable if name != transition.name), None)

    def _warn(self, code: str, message: str) -> None:
        if message not in self._warned:
            self._dispatcher.emit(events.OperatorWarning(code=code, message=message))
        self._warned[message] = None
        self._warned.move_to_end(message)
        if len(self._warned) > _MAX_WARNINGS:
            self._warned.popitem(last=False)


def _shared_step(name: RouteName) -> str | None:
    """Return the name of a step with several accounts; None if it has one."""
    return None if name.accounts == (name,) else str(name)


def _no_hold(_route: str) -> None:
    """Hold no breaker."""


def _forced_open(breaker: CircuitBreaker) -> CircuitBreaker:
    breaker.force_open = True
    return breaker
