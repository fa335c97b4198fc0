"""A circuit breaker that is right under asyncio: `CircuitBreaker`, its permits and its numbers.

Nothing here loads pybreaker until the first `CircuitBreaker` is made.
"""

from resilient_imagen.circuitbreaker.breaker import CircuitBreaker
from resilient_imagen.circuitbreaker.config import BreakerConfig, BreakerMode
from resilient_imagen.circuitbreaker.permit import Permit
from resilient_imagen.circuitbreaker.types import (
    BreakerMetrics,
    BreakerState,
    Counted,
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
    "Permit",
    "Rejection",
    "Settlement",
    "StateChange",
    "Transition",
]
