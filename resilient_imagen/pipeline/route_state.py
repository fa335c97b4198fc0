"""One call's time on one route."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from resilient_imagen.reasons import BreakerOutcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resilient_imagen.circuitbreaker import Permit
    from resilient_imagen.errors import ImageGenerationError
    from resilient_imagen.pipeline.deadline import Deadline
    from resilient_imagen.pipeline.route import AdaptedRequest, Route

__all__ = ["PermitRevokedError", "RouteState"]


class PermitRevokedError(Exception):
    """The breaker changed its mind while the caller waited; ask at the entrance again."""


@dataclass(slots=True)
class RouteState:
    """One call's time on one route."""

    route: Route
    later_routes: Sequence[Route]
    max_attempts: int
    """Requests this route may send for this call."""
    adapted: AdaptedRequest = field(init=False)
    """What is asked for, cut to what the route's model takes; set once the breaker let us in."""
    deadline: Deadline = field(init=False)
    """When this route must be done: the call's deadline, less the reserve for the next route.
    Set when the call first queues for the route."""
    max_server_wait: float = math.inf
    """Seconds of a server's hint that are waited for where no other route can serve."""
    attempt_number: int = 0
    """Requests sent on it so far."""
    sent_at: float = 0.0
    """Loop time at which the latest request was sent."""
    first_failure_at: float | None = None
    """Loop time of the first failure without a server's hint, from which back-offs are summed."""
    permit: Permit | None = None
    """The breaker's leave to send one request."""
    queue_s: float = 0.0
    """Seconds the latest request waited for its turn."""
    last_error: ImageGenerationError | None = None
    """How the latest request failed."""
    retry_in: float | None = None
    """Seconds until the route is asked again, or None when it is not."""

    @property
    def alternative(self) -> Route | None:
        """The first later route that would let a caller through right now, or None."""
        return next((route for route in self.later_routes if route.breaker.allows_calls()), None)

    def drop_permit(self, *, only_if_stale: bool = False) -> None:
        """Hand the permit back without a vote; harmless when it was settled already."""
        if self.permit is not None and not (only_if_stale and not self.permit.stale):
            if not self.permit.settled:
                self.permit.settle(BreakerOutcome.NEUTRAL)
            self.permit = None
