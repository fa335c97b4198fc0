"""A circuit breaker that is right under asyncio: `Gate`, its permits and its numbers.

Nothing here loads pybreaker until the first `Gate` is made.
"""

from resilient_imagen.breaker.config import BreakerConfig, BreakerMode
from resilient_imagen.breaker.gate import CircuitBreaker
from resilient_imagen.breaker.permit import Permit
from resilient_imagen.breaker.views import (
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
    "BreakerMode",
    "BreakerMetrics",
    "BreakerState",
    "Counted",
    "CircuitBreaker",
    "Permit",
    "Rejection",
    "Settlement",
    "StateChange",
    "Transition",
]
