"""What a request would meet: the one question that scenarios and recordings both answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from resilient_imagen.reasons import POLICIES, BreakerOutcome, Reason

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "NEVER",
    "DeterministicRng",
    "Incident",
    "OutcomeModel",
    "SimulatedOutcome",
    "SimulatedRequest",
    "fails",
]

NEVER: Final = float("inf")
"""Latency of a request that is never answered: the timeout ends it."""

_SICK: Final = frozenset({BreakerOutcome.FAILURE, BreakerOutcome.THROTTLED, BreakerOutcome.TRIP})

_MASK: Final = 2**64 - 1


class DeterministicRng:
    """Chance that hangs on what it is asked for, never on what was asked before.

    The same call, route and attempt draw the same numbers under all settings: what differs
    between two settings is then the settings' doing, and not luck.
    """

    __slots__ = ("_key", "_parts")

    def __init__(self, seed: int, *parts: int) -> None:
        self._parts = (seed, *parts)
        self._key: int | None = None  # most coins are never tossed

    def unit(self, salt: int = 0) -> float:
        """A number from 0 to below 1; another one for another ``salt``."""
        key = self._key
        if key is None:
            key = 0
            for part in self._parts:
                key = _mixed(key ^ (part & _MASK))
            self._key = key
        return (_mixed(key ^ salt) >> 11) * 2.0**-53


def _mixed(key: int) -> int:
    """SplitMix64's way of turning near numbers into far ones."""
    key = (key + 0x9E3779B97F4A7C15) & _MASK
    key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & _MASK
    return key ^ (key >> 31)


class SimulatedRequest(NamedTuple):
    """One request, as the truth sees it."""

    route: int
    """Index in the chain of routes."""
    at: float
    """Seconds since the start."""
    coin: DeterministicRng
    before: float | None = None
    """When the same call asked this route before."""


class SimulatedOutcome(NamedTuple):
    """What a request meets."""

    reason: Reason | None
    """None: an image."""
    latency: float
    """Seconds until the answer; NEVER for none."""
    retry_after: float | None = None
    """Seconds the server asks to wait."""
    cost_usd: float = 0.0
    """Dollars for the image, or for a request that was given up and is billed all the same."""
    seen: bool = True
    """False when it rests on an assumption, because nothing was recorded there."""


class Incident(NamedTuple):
    """A time in which a route was in trouble; seconds since the start."""

    start: float
    end: float


class OutcomeModel(Protocol):
    """A world that requests are sent into."""

    def outcome_for(self, ask: SimulatedRequest) -> SimulatedOutcome:
        """What this request meets; the same question gets the same answer."""
        ...

    def incidents(self) -> Sequence[Incident]:
        """When the first route was in trouble, in order, without overlap."""
        ...


def fails(reason: Reason | None) -> bool:
    """Whether a request that ended so says that the service is not well."""
    return reason is not None and POLICIES[reason].verdict in _SICK
