"""What the fleet knows of one route's circuit, as a worker last heard it."""

from __future__ import annotations

import json
from typing import Final, NamedTuple, Self

from resilient_imagen.breaker.views import BreakerState

__all__ = ["UNKNOWN", "Record"]

_MICRO: Final = 1e-6


class Record(NamedTuple):
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
            return cls(
                route=str(told["route"]),
                epoch=str(told["epoch"]),
                version=int(told["version"]),
                generation=int(told["generation"]),
                state=BreakerState(told["state"]),
                left=float(told["left"]) * _MICRO,
                openings=int(told["openings"]),
                closes=bool(told.get("closes")),  # older workers do not tell it
                cause=str(told["cause"]) or None,
                brief=str(told["brief"]) or None,
                lease=float(told["lease"]) * _MICRO,
                workers=int(told["workers"]),
                granted=bool(told["granted"]),
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not a record: {type(error).__name__}") from None


UNKNOWN: Final = Record("", "", 0, 0, BreakerState.CLOSED)
"""Before anything was heard."""
