"""One call's time on one route."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from resilient_imagen.reasons import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resilient_imagen.breaker import Permit
    from resilient_imagen.errors import ImageGenerationError
    from resilient_imagen.lane import Lane, Tailored

__all__ = ["NotAdmittedError", "Turn"]


class NotAdmittedError(Exception):
    """The breaker changed its mind while the caller waited; ask at the entrance again."""


@dataclass(slots=True)
class Turn:
    """One call's time on one route."""

    lane: Lane
    following: Sequence[Lane]
    limit: int
    """Requests this route may send for this call."""
    tailored: Tailored = field(init=False)
    """What is asked for, cut to what the route's model takes; set once the breaker let us in."""
    until: float = math.inf
    """Loop time by which this route must be done: the deadline, less what the next route needs.
    Settled when the call first queues for the route."""
    patience: float = math.inf
    """Seconds of a server's hint that are waited for where no other route can serve."""
    number: int = 0
    """Requests sent on it so far."""
    sent_at: float = 0.0
    """Loop time at which the latest request was sent."""
    failed_first: float | None = None
    """Loop time at which the first of them failed."""
    permit: Permit | None = None
    """The breaker's leave to send one request."""
    queue_s: float = 0.0
    """Seconds the latest request waited for its turn."""
    failed: ImageGenerationError | None = None
    """How the latest request failed."""
    retry_in: float | None = None
    """Seconds until the route is asked again, or None when it is not."""

    @property
    def alternative(self) -> Lane | None:
        """The first later route that would let a caller through right now, or None."""
        return next((lane for lane in self.following if lane.gate.usable()), None)

    def drop_permit(self, *, only_if_stale: bool = False) -> None:
        """Hand the permit back without a vote; harmless when it was settled already."""
        if self.permit is not None and not (only_if_stale and not self.permit.stale):
            if not self.permit.settled:
                self.permit.settle(Verdict.NEUTRAL)
            self.permit = None
