"""A circuit breaker for asyncio, usable for calls of any kind. See README.md in this folder.

pybreaker is loaded when the first `CircuitBreaker` is created, not by this import.
"""

from resilient_imagen.circuitbreaker.breaker import CircuitBreaker
from resilient_imagen.circuitbreaker.config import BreakerConfig, BreakerMode
from resilient_imagen.circuitbreaker.permit import Permit
from resilient_imagen.circuitbreaker.types import (
    BreakerMetrics,
    BreakerState,
    Counted,
    Hold,
    Rejection,
    Settlement,
    StateChange,
    Transition,
)

__all__ = [
    "BreakerConfig",
    "BreakerMetrics",
    "BreakerMode",
    "BreakerState",
    "CircuitBreaker",
    "Counted",
    "Hold",
    "Permit",
    "Rejection",
    "Settlement",
    "StateChange",
    "Transition",
]
