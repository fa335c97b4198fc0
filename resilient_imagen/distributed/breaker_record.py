"""What the fleet knows of one route's circuit, as a worker last heard it."""

from __future__ import annotations

import json
import math
from typing import Any, Final, NamedTuple, Self

from resilient_imagen.circuitbreaker.types import BreakerState
from resilient_imagen.errors import trusted_brief
from resilient_imagen.reasons import Reason

__all__ = ["UNKNOWN_RECORD", "BreakerRecord", "trusted_texts"]

_MICRO: Final = 1e-6
_REASONS: Final = frozenset(map(str, Reason))
_LONGEST_LEASE: Final = 3600.0
"""Seconds; the scripts keep none for longer."""


class BreakerRecord(NamedTuple):
    """One route's shared record. Durations count from the moment it was told."""

    route: str
    epoch: str
    """The store's memory: another one after it was lost. Empty: nothing was heard yet."""
    version: int
    """Of two records of one epoch, the higher is the newer."""
    generation: int
    """Number of the state; what was seen in an earlier one says nothing about this one."""
    state: BreakerState
    left: float = 0.0
    """Seconds that the opening lasts still."""
    openings: int = 0
    """Openings since it was last closed."""
    closes: bool = False
    """The circuit is closed when the opening is over; otherwise it is due for a probe."""
    cause: str | None = None
    brief: str | None = None
    lease: float = 0.0
    """Seconds until a probe's place is free at the latest; 0: one is free."""
    workers: int = 0
    """Workers heard of within the last minute."""
    granted: bool = False
    """Whether the lease that was asked for is held."""

    @classmethod
    def parse(cls, text: bytes | str) -> Self:
        """Read what a step answers and the channel tells.

        Raises:
            ValueError: It is nothing of the kind.
        """
        try:
            told = json.loads(text)
            cause, brief = trusted_texts(str(told["cause"]), str(told["brief"]))
            return cls(
                route=str(told["route"]),
                epoch=str(told["epoch"]),
                version=int(told["version"]),
                generation=int(told["generation"]),
                state=BreakerState(told["state"]),
                left=_seconds(told["left"]),
                openings=max(int(told["openings"]), 0),
                closes=bool(told.get("closes")),  # older workers do not tell it
                cause=cause,
                brief=brief,
                lease=min(_seconds(told["lease"]), _LONGEST_LEASE),
                workers=int(told["workers"]),
                granted=bool(told["granted"]),
            )
        except (AttributeError, KeyError, OverflowError, TypeError) as error:
            raise ValueError(f"not a record: {type(error).__name__}") from None


def trusted_texts(cause: str, brief: str) -> tuple[str | None, str | None]:
    """Cause and short text as stored, with nothing but reasons and an error's own words in them."""
    reason = Reason(cause) if cause in _REASONS else None
    return reason, trusted_brief(brief, reason) if brief else None


def _seconds(micros: Any) -> float:
    """A duration as told; infinity, if it is not a number that a duration can have."""
    seconds = float(micros) * _MICRO
    return seconds if seconds >= 0 else math.inf


UNKNOWN_RECORD: Final = BreakerRecord("", "", 0, 0, BreakerState.CLOSED)
"""Before anything was heard."""
