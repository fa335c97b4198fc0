"""Shared breaker record: the state of one route's breaker in Redis, as last received."""

from __future__ import annotations

import json
import math
from typing import Any, Final, NamedTuple, Self

from resilient_imagen.circuitbreaker.types import BreakerState
from resilient_imagen.errors import trusted_summary
from resilient_imagen.reasons import Reason

__all__ = ["UNKNOWN_RECORD", "BreakerRecord", "trusted_texts"]

_MICRO: Final = 1e-6
_REASONS: Final = frozenset(map(str, Reason))
_LONGEST_LEASE: Final = 3600.0
"""Seconds; the scripts keep no lease for longer."""


class BreakerRecord(NamedTuple):
    """The shared record of one route's breaker. Durations count from its receipt."""

    route: str
    epoch: str
    """Identifies the store's data; it changes if the data are lost. Empty: nothing received yet."""
    version: int
    """Number of the record within its epoch; a higher one is newer."""
    generation: int
    """Number of the state; outcomes of an earlier state do not count in this one."""
    state: BreakerState
    left: float = 0.0
    """Remaining seconds of the open period."""
    openings: int = 0
    """Openings since it was last closed."""
    closes: bool = False
    """Whether the breaker closes after the open period; otherwise it is due for a probe."""
    cause: str | None = None
    brief: str | None = None
    lease: float = 0.0
    """Maximum seconds until a lease for a probe is free; 0: one is free."""
    workers: int = 0
    """Number of workers with a heartbeat within the last minute."""
    granted: bool = False
    """Whether the requested lease is granted."""

    @classmethod
    def parse(cls, text: bytes | str) -> Self:
        """Parse a record from a command's answer or a published message.

        Raises:
            ValueError: The text is not a record.
        """
        try:
            fields = json.loads(text)
            cause, brief = trusted_texts(str(fields["cause"]), str(fields["brief"]))
            return cls(
                route=str(fields["route"]),
                epoch=str(fields["epoch"]),
                version=int(fields["version"]),
                generation=int(fields["generation"]),
                state=BreakerState(fields["state"]),
                left=_seconds(fields["left"]),
                openings=max(int(fields["openings"]), 0),
                closes=bool(fields.get("closes")),  # absent in records of older workers
                cause=cause,
                brief=brief,
                lease=min(_seconds(fields["lease"]), _LONGEST_LEASE),
                workers=int(fields["workers"]),
                granted=bool(fields["granted"]),
            )
        except (AttributeError, KeyError, OverflowError, TypeError) as error:
            raise ValueError(f"not a record: {type(error).__name__}") from None


def trusted_texts(cause: str, brief: str) -> tuple[str | None, str | None]:
    """Return a stored cause and summary, limited to reasons and the summaries of errors."""
    reason = Reason(cause) if cause in _REASONS else None
    return reason, trusted_summary(brief, reason) if brief else None


def _seconds(micros: Any) -> float:
    """Convert a duration in microseconds to seconds; infinity if it is negative or NaN."""
    seconds = float(micros) * _MICRO
    return seconds if seconds >= 0 else math.inf


UNKNOWN_RECORD: Final = BreakerRecord("", "", 0, 0, BreakerState.CLOSED)
"""The record before the first one is received."""
