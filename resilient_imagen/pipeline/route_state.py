"""The state of one call on one route."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from resilient_imagen.pipeline.deadline import CLOCK_TOLERANCE
from resilient_imagen.reasons import BreakerOutcome

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from resilient_imagen.circuitbreaker import Permit
    from resilient_imagen.errors import ImageGenerationError
    from resilient_imagen.pipeline.deadline import Deadline
    from resilient_imagen.pipeline.overlap import CancelCause, OverlapKind
    from resilient_imagen.pipeline.route import AdaptedRequest, Route
    from resilient_imagen.pipeline.step import StepState

__all__ = ["RouteState"]


@dataclass(slots=True, eq=False)
class RouteState:
    """The state of one call on one route."""

    step: StepState
    """The step that the route belongs to."""
    route: Route
    """The route; of a step with several accounts, the one that the call is on now."""
    deadline: Deadline
    """The time by which this route must be done: the call's deadline, less the reserve for the next
    route. Until the call first queues for the route, it is the call's deadline itself."""
    adapted: AdaptedRequest = field(init=False)
    """The request, cut to what the route's model takes. Set when the breaker let the call in."""
    sent_at: float = 0.0
    """Loop time at which the latest request was sent."""
    time_limit: float = 0.0
    """The time limit of that request, in seconds. An operator may change the route's meanwhile."""
    first_failure_at: float | None = None
    """Loop time of the first failure without a server's hint, from which back-offs are summed."""
    permit: Permit | None = None
    """The breaker's permit for the next request."""
    queue_s: float = 0.0
    """Seconds that the latest request waited in the queue."""
    last_error: ImageGenerationError | None = None
    """How the latest request failed."""
    failed_route: Route | None = None
    """The route of that request."""
    note_change: Callable[[], None] | None = None
    """Wakes the stage across routes; None once the route's task has ended."""
    task: asyncio.Task[Any] | None = None
    """The task that runs the call on this route; None once it has ended."""
    timer: asyncio.Timeout | None = None
    """Ends the request in flight."""
    overlap: OverlapKind | None = None
    """Why this route was used beside an earlier one; None if the earlier one had failed."""
    overlaps_due: list[OverlapKind] = field(default_factory=list)
    """Why the next route may start beside the request in flight; emptied when that has ended."""
    successor_started: bool = False
    """Whether the next route was started, so that this one sends nothing more."""
    past_limit: bool = False
    """Whether the request in flight has exceeded its time limit."""
    detached: bool = False
    """Whether the request in flight continues without its call."""
    cancel_cause: CancelCause | None = None
    """Why the library cancelled the task; None if it did not."""

    @property
    def measured_latency(self) -> float | None:
        """Return the measured latency for what is asked; None if too little was measured."""
        return self.route.measured_latency(self.adapted.request.resolution)

    @property
    def later_routes(self) -> Sequence[Route]:
        """Return the routes of later steps, which the call may fall back to, in order."""
        return self.step.later_routes

    @property
    def other_routes(self) -> list[Route]:
        """Return all routes that the call may leave this one for without a back-off, in order."""
        if not self.step.has_accounts:
            return list(self.later_routes)
        siblings = self.step.not_left_by(self)
        return [*(route for route in siblings if route is not self.route), *self.later_routes]

    def sooner_account(self) -> Route | None:
        """Return a usable account of the step whose queue is shorter than this one's, or None.

        A probe stays: its permit belongs to its account.
        """
        if self.permit is not None and self.permit.probe:
            return None
        resolution = self.adapted.request.resolution
        wait = self.route.estimated_wait(resolution)
        others = [route for route in self.step.not_left_by(self) if route is not self.route]
        best = self.step.best_of(others, resolution)
        if best is None or not best.breaker.allows_calls():
            return None
        return best if best.estimated_wait(resolution) + CLOCK_TOLERANCE < wait else None

    @property
    def may_lead_on(self) -> bool:
        """Return whether the step has another account, or is followed by another step."""
        return bool(self.later_routes) or self.step.has_accounts

    @property
    def is_pending_probe(self) -> bool:
        """Return whether the request in flight is a probe that the breaker still waits for."""
        permit = self.permit
        return (
            self.timer is not None
            and permit is not None
            and permit.probe
            and not permit.settled
            and not permit.stale
        )

    def note_failure(self, error: ImageGenerationError) -> None:
        """Remember a failed request, and for how long its server asked to wait."""
        self.last_error, self.failed_route = error, self.route
        hinted_until = self.step.hinted_until
        hinted_until.pop(self.route, None)
        if error.retry_after is not None:
            hinted_until[self.route] = asyncio.get_running_loop().time() + error.retry_after

    def ask_for_overlap(self, kind: OverlapKind) -> None:
        """Ask the stage across routes to start the next route beside the request in flight."""
        self.overlaps_due.append(kind)
        if self.note_change is not None:
            self.note_change()

    def take_overlaps(self) -> list[OverlapKind]:
        """Return why the next route is due, each reason once."""
        kinds, self.overlaps_due = self.overlaps_due, []
        return kinds

    @property
    def cancellations(self) -> int:
        """Return how often the route's task was asked to cancel."""
        return 0 if self.task is None else self.task.cancelling()

    def cancel(self, cause: CancelCause) -> None:
        """Cancel the route's task, if it still runs. The first cause remains."""
        if self.task is not None and not self.task.done():
            self.cancel_cause = self.cancel_cause or cause
            self.task.cancel()

    def detach(self) -> None:
        """Let the request in flight continue without its call, until its own time limit."""
        self.detached = True
        if self.timer is not None and not self.timer.expired():
            self.timer.reschedule(self.sent_at + self.time_limit)

    def drop_permit(self, *, only_if_stale: bool = False) -> None:
        """Give the permit back without a vote; do nothing if it was settled before."""
        if self.permit is not None and not (only_if_stale and not self.permit.stale):
            if not self.permit.settled:
                self.permit.settle(BreakerOutcome.NEUTRAL)
            self.permit = None
