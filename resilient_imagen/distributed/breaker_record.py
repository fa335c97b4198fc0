"""Shared breaker record: the state of one route's breaker in Redis, as last received."""

from __future__ import annotations

import json
import math
from typing import Any, Final, NamedTuple, Self

from resilient_imagen.circuitbreaker.types import BreakerState
from resilient_imagen.distributed.scripts import PROTOCOL
from resilient_imagen.errors import trusted_summary
from resilient_imagen.reasons import Reason

__all__ = ["UNKNOWN_RECORD", "BreakerRecord", "NewerProtocolError", "trusted_texts"]

_MICRO: Final = 1e-6
_REASONS: Final = frozenset(map(str, Reason))
_LONGEST_LEASE: Final = 3600.0
"""Seconds; the scripts keep no lease for longer."""
_EXACT: Final = 2**53
"""Integers from here on are not exact in Lua."""


class NewerProtocolError(ValueError):
    """The stored data belong to workers with a newer version of the protocol.

    Args:
        protocol: The version of the data.
    """

    def __init__(self, protocol: int) -> None:
        super().__init__(f"protocol {protocol}")
        self.protocol = protocol

    @classmethod
    def check(cls, fields: Any) -> None:
        """Raise NewerProtocolError if an answer belongs to a newer protocol."""
        protocol = fields.get("protocol", 1)
        if isinstance(protocol, int | float) and protocol > PROTOCOL:
            raise cls(int(min(protocol, _EXACT)))


class BreakerRecord(NamedTuple):
    """The shared record of one route's breaker. Durations count from its receipt."""

    route: str
    epoch: str
    """Identifies the store's data; it changes if data are lost. Empty: nothing received yet."""
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
    summary: str | None = None
    lease: float = 0.0
    """Maximum seconds until a lease for a probe is free; 0: one is free."""
    workers: int = 0
    """Number of workers with a heartbeat within the last minute."""
    settings: str = ""
    """The settings of the worker that sent the command before this one."""
    granted: bool = False
    """Whether the requested lease is granted."""

    @classmethod
    def parse(cls, text: bytes | str) -> Self:
        """Parse a record from a command's answer or a published message.

        Raises:
            NewerProtocolError: The data belong to a newer protocol.
            ValueError: The text is not a record.
        """
        try:
            fields = json.loads(text)
            NewerProtocolError.check(fields)
            cause, summary = trusted_texts(str(fields["cause"]), str(fields["summary"]))
            return cls(
                route=str(fields["route"]),
                epoch=str(fields["epoch"]),
                version=_counter(fields["version"]),
                generation=_counter(fields["generation"]),
                state=BreakerState(fields["state"]),
                left=_seconds(fields["left"]),
                openings=max(int(fields["openings"]), 0),
                closes=bool(fields["closes"]),
                cause=cause,
                summary=summary,
                lease=min(_seconds(fields["lease"]), _LONGEST_LEASE),
                workers=int(fields["workers"]),
                settings=str(fields["settings"]),
                granted=bool(fields["granted"]),
            )
        except (AttributeError, KeyError, OverflowError, RecursionError, TypeError) as error:
            raise ValueError(f"not a record: {type(error).__name__}") from None


def trusted_texts(cause: str, summary: str) -> tuple[str | None, str | None]:
    """Return a stored cause and summary, limited to reasons and the summaries of errors."""
    reason = Reason(cause) if cause in _REASONS else None
    return reason, trusted_summary(summary, reason) if summary else None


def _counter(number: Any) -> int:
    counter = int(number)
    if not 0 <= counter < _EXACT:
        raise ValueError("not a record: a number is out of range")
    return counter


def _seconds(micros: Any) -> float:
    """Convert a duration in microseconds to seconds; infinity if it is negative or NaN."""
    seconds = float(micros) * _MICRO
    return seconds if seconds >= 0 else math.inf


UNKNOWN_RECORD: Final = BreakerRecord("", "", 0, 0, BreakerState.CLOSED)
"""The record before the first one is received."""
