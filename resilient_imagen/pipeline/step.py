"""Steps: the routes that serve one step of the chain, and the choice between them.

Most steps have one route. ``google+google_b:gemini-3-pro-image`` in IMAGE_GEN_ROUTES is one step
with two: the same model at two accounts, each with its queue and circuit breaker. The
state of a call on a step is shared by all requests that the call sends to the step's accounts, so
that retries and the reserve of the deadline count per step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING, Protocol, TypeAlias

from resilient_imagen.circuitbreaker import BreakerState
from resilient_imagen.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from resilient_imagen.pipeline.deadline import Deadline
    from resilient_imagen.pipeline.route import Route
    from resilient_imagen.reasons import Reason
    from resilient_imagen.settings import RouteName

__all__ = ["AccountChangedError", "OnRoute", "Step", "StepState", "steps_for_edit"]

Step: TypeAlias = "tuple[Route, ...]"
"""The routes of one step, in the order of IMAGE_GEN_ROUTES."""


class OnRoute(Protocol):
    """The state of a call on one route of a step."""

    route: Route
    """The account that the call is on now."""


class AccountChangedError(Exception):
    """The call continues with another account of the step, which its state names."""


def group_by_step(routes: Iterable[Route], names: Iterable[RouteName]) -> tuple[Step, ...]:
    """Return routes, one for each account of ``names`` and in that order, grouped by step."""
    remaining = iter(routes)
    return tuple(tuple(islice(remaining, len(name.accounts))) for name in names)


@dataclass(slots=True, eq=False)
class StepState:
    """The state of one call on one step."""

    index: int
    """Its place in the chain, from 0."""
    has_accounts: bool = field(init=False)
    """Whether there is a choice between several accounts."""
    routes: Step
    later_routes: tuple[Route, ...]
    """The routes of all later steps, in order."""
    max_attempts: int
    """Requests that the call may send to this step, beside the first one to each account."""
    deadline: Deadline | None = None
    """When this step must be done: the call's deadline, less the reserve for the next step.
    None until the call first queues."""
    attempt_number: int = 0
    """Requests that the call has sent to the step so far."""
    sent: dict[Route, int] = field(default_factory=dict)
    """Requests that the call has sent, by route."""
    left: dict[Route, Reason] = field(default_factory=dict)
    """Why accounts were left since the last back-off: a failed request or a rejection."""
    hinted_until: dict[Route, float] = field(default_factory=dict)
    """Loop times until which accounts asked the call to wait."""
    running: list[OnRoute] = field(default_factory=list)
    """The states of the call on this step that have not ended; two while requests overlap."""

    def __post_init__(self) -> None:
        """Note whether there is a choice; every call asks several times."""
        self.has_accounts = len(self.routes) > 1

    def note_sent(self, route: Route) -> int:
        """Count a request to a route; return how many the call has sent to it."""
        self.attempt_number += 1
        sent = self.sent[route] = self.sent.get(route, 0) + 1
        return sent

    def available_to(self, state: OnRoute) -> list[Route]:
        """Return the accounts on which no other request of the call runs."""
        taken = [each.route for each in self.running if each is not state]
        return [route for route in self.routes if route not in taken]

    def not_left_by(self, state: OnRoute) -> list[Route]:
        """Return the accounts that the call may turn to before it backs off."""
        return [route for route in self.available_to(state) if route not in self.left]

    def untried(self, now: float) -> list[Route]:
        """Return the usable accounts that got no request of the call, while the step has time."""
        if not self.has_accounts:
            return []
        if self.deadline is not None and not self.deadline.is_worth_starting(now):
            return []
        running = [each.route for each in self.running]
        return [
            route
            for route in self.routes
            if not (route in self.left or route in running or route in self.sent)
            and route.breaker.allows_calls()
        ]

    def best_of(self, routes: Sequence[Route], resolution: str) -> Route | None:
        """Return the usable route whose queue lets a request through soonest; None if none is left.

        Of equals, this is the one that got the fewest requests of the call, then the first one. If
        none is usable, this is one with a probe in flight, which may end well, or the first one.
        """
        usable = [route for route in routes if route.breaker.allows_calls()]
        if not usable:
            return min(routes, key=_is_open, default=None)
        return min(
            usable, key=lambda route: (route.estimated_wait(resolution), self._sent_to(route))
        )

    def first_ready(
        self, state: OnRoute, now: float, resolution: str
    ) -> tuple[Route, float | None]:
        """Return the account for a retry, and the seconds for which its server asked to wait.

        It is the account whose hint or open period is over first.
        """

        def ready(route: Route) -> tuple[float, float, int]:
            until = max(route.breaker.blocked_until() or now, self.hinted_until.get(route, now))
            return until, route.estimated_wait(resolution), self._sent_to(route)

        route = min(self.available_to(state), key=ready)
        hint = self.hinted_until.get(route, now) - now
        return route, hint if hint > 0 else None

    def _sent_to(self, route: Route) -> int:
        return self.sent.get(route, 0)


def steps_for_edit(steps: tuple[Step, ...], *, has_mask: bool) -> tuple[Step, ...]:
    """Return the steps without routes whose model takes no images: they would draw another one.

    For an edit with a mask, the steps with routes that support masks come first.

    Raises:
        InvalidRequestError: No route is left, or none supports masks.
    """
    able = tuple(tuple(route for route in step if route.takes_references) for step in steps)
    if not any(able):
        names = ", ".join(route.name for route in chain.from_iterable(steps))
        raise InvalidRequestError(
            f"an edit is possible on none of the routes {names}, which take no images; add "
            "another one to IMAGE_GEN_ROUTES, or max_references to the model's row in "
            "IMAGE_GEN_MODELS"
        )
    able = tuple(filter(None, able))
    return _masking_first(able) if has_mask else able


def _masking_first(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    able = _filtered(steps, supports_mask=True)
    if not able:
        routes = chain.from_iterable(steps)
        raise InvalidRequestError(
            f"mask is supported by none of the routes {', '.join(route.name for route in routes)}; "
            "add one of openai to IMAGE_GEN_ROUTES"
        )
    return (*able, *_filtered(steps, supports_mask=False))


def _filtered(steps: tuple[Step, ...], *, supports_mask: bool) -> tuple[Step, ...]:
    """Return the steps without the routes whose support of masks is another."""
    kept = (
        tuple(route for route in step if route.supports("mask") is supports_mask) for step in steps
    )
    return tuple(filter(None, kept))


def _is_open(route: Route) -> bool:
    return route.breaker.metrics().state is not BreakerState.HALF_OPEN
