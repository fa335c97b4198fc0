"""Outcome model: the outcomes of simulated requests, from a scenario or a recording."""

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
"""Latency of a request without a response, which the timeout ends."""

_SICK: Final = frozenset({BreakerOutcome.FAILURE, BreakerOutcome.THROTTLED, BreakerOutcome.TRIP})

_MASK: Final = 2**64 - 1


class DeterministicRng:
    """A deterministic random source keyed by its inputs, independent of call order.

    The same call, route and attempt draw the same numbers under all settings, so a difference
    between two settings is caused by the settings, not by chance.
    """

    __slots__ = ("_key", "_parts")

    def __init__(self, seed: int, *parts: int) -> None:
        self._parts = (seed, *parts)
        self._key: int | None = None  # computed on first use: most are never used

    def unit(self, salt: int = 0) -> float:
        """Return a number from 0 to below 1, which depends on ``salt``."""
        key = self._key
        if key is None:
            key = 0
            for part in self._parts:
                key = _mixed(key ^ (part & _MASK))
            self._key = key
        return (_mixed(key ^ salt) >> 11) * 2.0**-53


def _mixed(key: int) -> int:
    """Return the SplitMix64 hash of a key."""
    key = (key + 0x9E3779B97F4A7C15) & _MASK
    key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & _MASK
    return key ^ (key >> 31)


class SimulatedRequest(NamedTuple):
    """One request, the input of an outcome model."""

    route: int
    """Index in the chain of routes."""
    at: float
    """Seconds since the start."""
    coin: DeterministicRng
    before: float | None = None
    """Time of the call's previous request to this route; None for the first one."""


class SimulatedOutcome(NamedTuple):
    """The outcome of a request."""

    reason: Reason | None
    """None: an image."""
    latency: float
    """Seconds until the response; NEVER without a response."""
    retry_after: float | None = None
    """Seconds the server asks to wait."""
    cost_usd: float = 0.0
    """Dollars for the image, or for a request that was abandoned and is billed."""
    seen: bool = True
    """Whether it is based on recorded requests; False if it is an assumption."""


class Incident(NamedTuple):
    """An interval in which a route failed; seconds since the start."""

    start: float
    end: float


class OutcomeModel(Protocol):
    """A model of the outcomes of requests."""

    def outcome_for(self, ask: SimulatedRequest) -> SimulatedOutcome:
        """Return the outcome of a request; equal requests have equal outcomes."""
        ...

    def incidents(self) -> Sequence[Incident]:
        """Return the incidents of the first route, in order, without overlap."""
        ...


def fails(reason: Reason | None) -> bool:
    """Return whether a reason is a failure of the service."""
    return reason is not None and POLICIES[reason].verdict in _SICK
