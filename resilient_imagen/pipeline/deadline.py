"""Deadlines: every computation with the time that a call, a route or a request has left."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from resilient_imagen.pipeline.route import Route

__all__ = ["CLOCK_TOLERANCE", "MIN_USEFUL_SECONDS", "Deadline"]

CLOCK_TOLERANCE: Final = 1e-3
"""Seconds by which a timer and the clock may disagree."""

MIN_USEFUL_SECONDS: Final = 1e-3
"""Seconds that must be left for a request to be worth sending."""


class Deadline(NamedTuple):
    """A loop time by which a call, or its time on one route, must be over."""

    at: float
    """Loop time in seconds; infinite when there is no limit."""

    @classmethod
    def after(cls, seconds: float, now: float) -> Deadline:
        """Return the deadline ``seconds`` from ``now``; infinite seconds mean no limit."""
        return cls(now + seconds)

    @property
    def timer_at(self) -> float | None:
        """The loop time for ``asyncio.timeout_at``: None when there is no limit."""
        return None if math.isinf(self.at) else self.at

    def remaining(self, now: float) -> float:
        """Return the seconds that are left."""
        return self.at - now

    def has_passed(self, now: float) -> bool:
        """Return whether a timer for this deadline may have fired."""
        return now + CLOCK_TOLERANCE >= self.at

    def latest_start(self, latency: float | None = None) -> float:
        """Return the latest loop time at which it is worth sending a request.

        Args:
            latency: Seconds that the request is expected to take; None if that is unknown.
        """
        return self.at - MIN_USEFUL_SECONDS - (latency or 0.0)

    def is_worth_starting(self, at: float, latency: float | None = None) -> bool:
        """Return whether a request that is sent at loop time ``at`` has useful time left."""
        return at < self.latest_start(latency)

    def less_reserve(self, now: float, timeout: float) -> Deadline:
        """Return the deadline of a route that leaves a reserve for the next one.

        The reserve is the next route's time limit per request, but at most half of what is left.
        """
        if math.isinf(self.at):
            return self
        return Deadline(self.at - min(timeout, self.remaining(now) / 2))

    def share(self, now: float, later_routes: Iterable[Route]) -> Deadline:
        """Return the deadline of a route, with a reserve for the first later one that can use it.

        A later route can use its reserve if its circuit breaker lets calls through by then.
        """
        for route in later_routes:
            share = self.less_reserve(now, route.timeout)
            if not route.rejects_at(share.at):
                return share
        return self

    def cuts_short(self, limit_at: float) -> bool:
        """Return whether it is earlier than ``limit_at``, a request's own time limit."""
        return self.at < limit_at

    def attempt_timer_at(self, limit_at: float, call: Deadline) -> float | None:
        """Return when the timer of a request on a route with this deadline fires.

        Args:
            limit_at: Loop time of the request's own time limit.
            call: The deadline of the whole call, which has a timer of its own.

        Returns:
            A loop time; None if the call's timer fires first.
        """
        if not self.cuts_short(limit_at):
            return limit_at
        return None if self.at >= call.at else self.at
