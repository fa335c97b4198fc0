"""Overlap: the reasons to have two requests of one call in flight, and to cancel one of them.

A call has three reasons to send a second request before the first has ended:

- ``probe``: the first request is a half-open breaker's probe, and takes longer than
  IMAGE_GEN_HEDGE_PROBE_AFTER. No caller should pay for a probe with its time.
- ``slow``: the first request takes longer than IMAGE_GEN_HEDGE_AFTER, and the budget allows it.
- ``timeout``: the first request has reached its time limit. With IMAGE_GEN_ON_TIMEOUT=keep it goes
  on beside the next route, because the vendor may have been paid for its image.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from resilient_imagen.reasons import Reason

__all__ = ["MAX_IN_FLIGHT", "REFUSALS", "SECONDS_TO_END", "CancelCause", "OverlapKind"]

MAX_IN_FLIGHT: Final = 2
"""Requests of one call that may run at the same time."""
SECONDS_TO_END: Final = 1.0
"""Seconds that cancelled requests have to close their connections."""
REFUSALS: Final = frozenset({Reason.CONTENT_BLOCKED, Reason.INVALID_REQUEST})
"""Reasons that concern the request itself, whichever route it is sent to."""


class OverlapKind(StrEnum):
    """Why the next route got a request while one was in flight."""

    PROBE = "probe"
    SLOW = "slow"
    TIMEOUT = "timeout"

    @property
    def fallback_cause(self) -> Reason:
        """Return the reason for which the first route counts as left."""
        return Reason.CIRCUIT_OPEN if self is OverlapKind.PROBE else Reason.TIMEOUT


class CancelCause(StrEnum):
    """Why the library itself cancelled a request."""

    CALLER = "caller"
    """The caller left, or its deadline passed."""
    DELIVERED = "delivered"
    """Another route delivered first."""
    DISPLACED = "displaced"
    """A third request of the call took its place."""
    ROUND_ENDED = "round_ended"
    """The breaker no longer needs this probe."""
