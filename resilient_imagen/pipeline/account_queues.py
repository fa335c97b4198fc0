"""Queues of a step's accounts: whether a caller that waits in one queue should move to another."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Final

from resilient_imagen.pipeline.deadline import CLOCK_TOLERANCE
from resilient_imagen.reasons import Reason

if TYPE_CHECKING:
    from resilient_imagen.pipeline.route import Route
    from resilient_imagen.pipeline.route_state import RouteState
    from resilient_imagen.ratelimit.limiter import Slot

__all__ = ["AccountQueues"]

_CHECK_AGAIN: Final = 1.0
"""Minimum seconds between two comparisons of queues by a caller whose turn is overdue."""


class AccountQueues:
    """The queues of a step's other accounts, seen by a caller that waits in one queue.

    Such a caller moves to another account that can send sooner. It compares the queues when another
    account's breaker changes, and when its own turn is overdue.

    Args:
        state: The state of the call on the step.
        slot: Its place in the queue that it waits in.
    """

    def __init__(self, state: RouteState, slot: Slot) -> None:
        self._state = state
        self._slot = slot
        self._has_joined = False
        self.next_check = math.inf
        """Loop time at which the queues should be compared again."""

    def wait_for_changes(self) -> list[asyncio.Future[None]]:
        """Return futures that are done when the breaker of another account changes."""
        return [route.breaker.wait_for_change() for route in self._others()]

    def find_sooner(self) -> Route | None:
        """Return an account that can send sooner than the caller's turn comes, or None."""
        others = [route for route in self._others() if route.breaker.allows_calls()]
        if not self._state.step.has_accounts:
            return None
        resolution = self._state.adapted.request.resolution
        wait = self._state.route.estimated_wait(resolution, self._slot)
        self.next_check = asyncio.get_running_loop().time() + max(wait, _CHECK_AGAIN)
        best = self._state.step.best_of(others, resolution) if others else None
        if not self._has_joined:  # a shared place takes a moment to come, also in a free queue
            self._has_joined, best = True, None
        if best is None:
            return None
        sooner = best.estimated_wait(resolution) + CLOCK_TOLERANCE < wait
        return best if sooner or best.limiter.is_free() else None

    def _others(self) -> list[Route]:
        if not self._state.step.has_accounts:
            return []
        step, here = self._state.step, self._state.route
        # An account that was open may serve again; one that failed, or was full, is not for now.
        return [
            route
            for route in step.available_to(self._state)
            if route is not here and step.left.get(route) in {None, Reason.CIRCUIT_OPEN}
        ]
