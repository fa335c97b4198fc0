"""The instruments of one meter, with gauges that read the breakers when they are collected."""

from __future__ import annotations

import threading
from importlib.metadata import version
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from opentelemetry import metrics
from opentelemetry.metrics import Observation

from resilient_imagen.circuitbreaker import BreakerState
from resilient_imagen.telemetry import names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Meter, MeterProvider

    from resilient_imagen.circuitbreaker import BreakerMetrics, CircuitBreaker

__all__ = ["Instruments", "instruments"]

# The conventions' own buckets for model calls and tokens; ours for whole calls, in seconds.
_INFERENCE_S: Final = [0.01 * 2**power for power in range(14)]
_TOKENS: Final = [4**power for power in range(14)]
_CALL_S: Final = [0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300]
_ATTEMPTS: Final = [1, 2, 3, 4, 5, 6, 8, 10]

_WORST_FIRST: Final = (
    BreakerState.OPEN,
    BreakerState.FORCED_OPEN,
    BreakerState.HALF_OPEN,
    BreakerState.CLOSED,
)


class Instruments:
    """All instruments of one meter, and the breakers that its gauges read."""

    def __init__(self, meter: Meter) -> None:
        self._breakers: WeakKeyDictionary[CircuitBreaker, str] = WeakKeyDictionary()
        # Callers add breakers while an exporter's thread reads them.
        self._lock = threading.Lock()
        self.client_duration: Histogram = meter.create_histogram(
            names.CLIENT_DURATION,
            "s",
            "Duration of one request to a model.",
            explicit_bucket_boundaries_advisory=_INFERENCE_S,
        )
        self.client_tokens: Histogram = meter.create_histogram(
            names.CLIENT_TOKENS,
            "{token}",
            "Tokens used by one request.",
            explicit_bucket_boundaries_advisory=_TOKENS,
        )
        self.duration: Histogram = meter.create_histogram(
            names.OPERATION_DURATION,
            "s",
            "Duration of a whole call: queueing, retries and fallback included.",
            explicit_bucket_boundaries_advisory=_CALL_S,
        )
        self.attempts: Histogram = meter.create_histogram(
            names.OPERATION_ATTEMPTS,
            "{attempt}",
            "Requests sent for one call.",
            explicit_bucket_boundaries_advisory=_ATTEMPTS,
        )
        self.queue: Histogram = meter.create_histogram(
            names.QUEUE_DURATION,
            "s",
            "Time that one call waited in the queues of its routes.",
            explicit_bucket_boundaries_advisory=_CALL_S,
        )
        self.cost: Counter = meter.create_counter(
            names.COST, "{USD}", "Known cost of the requests, at the prices of the model table."
        )
        self.retries: Counter = meter.create_counter(
            names.RETRY_COUNT, "{retry}", "Retries on the same route, by error type."
        )
        self.fallbacks: Counter = meter.create_counter(
            names.FALLBACK_COUNT, "{fallback}", "Fallbacks to the next route, by cause."
        )
        self.hedges: Counter = meter.create_counter(
            names.HEDGE_COUNT, "{hedge}", "Requests sent beside one in flight, by the reason."
        )
        self.breaker_calls: Counter = meter.create_counter(
            names.BREAKER_CALLS, "{call}", "Requests by their result for the breaker."
        )
        self.breaker_transitions: Counter = meter.create_counter(
            names.BREAKER_TRANSITIONS, "{transition}", "Changes of a breaker's state."
        )
        self.shadow: Counter = meter.create_counter(
            names.SHADOW_COUNT, "{call}", "Requests on which candidate settings differ."
        )
        meter.create_observable_gauge(
            names.BREAKER_STATE_GAUGE, [self._states], "1", "1 for the present state, 0 for others."
        )
        meter.create_observable_gauge(
            names.BREAKER_RATE_GAUGE, [self._rates], "1", "Failed share of the window's calls."
        )
        meter.create_observable_gauge(
            names.BREAKER_WINDOW_GAUGE, [self._windows], "{call}", "Calls in the window."
        )

    def watch(self, breaker: CircuitBreaker, name: str) -> None:
        """Include a breaker in the gauges, under this name, for as long as it exists."""
        with self._lock:
            self._breakers[breaker] = name

    def forget(self, breaker: CircuitBreaker) -> None:
        """Remove the breaker from the gauges."""
        with self._lock:
            self._breakers.pop(breaker, None)

    def _numbers(self) -> Mapping[str, list[BreakerMetrics]]:
        """Return the numbers of all breakers that share a name, by name."""
        with self._lock:
            watched = list(self._breakers.items())
        found: dict[str, list[BreakerMetrics]] = {}
        for breaker, name in watched:
            found.setdefault(name, []).append(breaker.metrics())
        return found

    def _states(self, _options: CallbackOptions) -> Iterable[Observation]:
        """Yield one state for each name: the worst of the breakers that share it."""
        for name, breakers in self._numbers().items():
            worst = min((numbers.state for numbers in breakers), key=_WORST_FIRST.index)
            for state in _WORST_FIRST:
                yield Observation(
                    int(state is worst),
                    {names.CIRCUIT_BREAKER_NAME: name, names.CIRCUIT_BREAKER_STATE: state.value},
                )

    def _rates(self, _options: CallbackOptions) -> Iterable[Observation]:
        for name, breakers in self._numbers().items():
            rate = max(numbers.failure_rate for numbers in breakers)
            yield Observation(rate, {names.CIRCUIT_BREAKER_NAME: name})

    def _windows(self, _options: CallbackOptions) -> Iterable[Observation]:
        for name, breakers in self._numbers().items():
            calls = sum(numbers.window_calls for numbers in breakers)
            yield Observation(calls, {names.CIRCUIT_BREAKER_NAME: name})


_per_meter: WeakKeyDictionary[Meter, Instruments] = WeakKeyDictionary()
_global: list[Meter] = []
"""The global provider's meter, once it is used: the API creates a new proxy for each request."""


def instruments(provider: MeterProvider | None) -> Instruments:
    """Return the meter's instruments: one set for all clients."""
    if provider is None or provider is metrics.get_meter_provider():
        if not _global:
            _global.append(metrics.get_meter(names.SCOPE, version(names.DISTRIBUTION)))
        meter = _global[0]
    else:
        meter = provider.get_meter(names.SCOPE, version(names.DISTRIBUTION))
    if meter not in _per_meter:
        _per_meter[meter] = Instruments(meter)
    return _per_meter[meter]
