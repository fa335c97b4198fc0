"""pybreaker is the state machine; only the breaker's clock ends an open period."""

from __future__ import annotations

import subprocess
import sys

import pybreaker
import pytest
from breaker_kit import ManualClock, fail, make_breaker, opened, refused, send_call

from resilient_imagen.circuitbreaker import BreakerState, CircuitBreaker
from resilient_imagen.reasons import BreakerOutcome


def circuit_of(breaker: CircuitBreaker) -> pybreaker.CircuitBreaker:
    return breaker._machine._pybreaker


def test_pybreaker_holds_the_state() -> None:
    """pybreaker's state and counters equal the reported ones in every state."""
    breaker, clock = make_breaker(half_open_calls=2)
    circuit = circuit_of(breaker)
    assert (circuit.current_state, circuit.fail_max, circuit.success_threshold) == ("closed", 3, 2)
    fail(breaker, 3)
    assert (circuit.current_state, circuit.fail_counter) == ("open", 3)
    clock.advance(60.0)
    send_call(breaker).settle(BreakerOutcome.SUCCESS)
    assert (circuit.current_state, circuit.success_counter) == ("half-open", 1)
    send_call(breaker).settle(BreakerOutcome.SUCCESS)
    assert (circuit.current_state, circuit.success_counter) == ("closed", 0)
    assert circuit.fail_counter == 0


@pytest.mark.parametrize("seconds", [1.0, 1e9])
def test_a_stray_call_through_pybreaker_never_ends_an_opening(seconds: float) -> None:
    """A call through pybreaker itself does not end an open period."""
    breaker, clock = opened()
    clock.advance(seconds)
    with pytest.raises(pybreaker.CircuitBreakerError):
        circuit_of(breaker).call(lambda: None)

    assert breaker.metrics().state is BreakerState.OPEN


def test_transitions_made_on_pybreaker_itself_are_followed() -> None:
    """After pybreaker is opened directly, the breaker rejects and then recovers."""
    breaker, _ = make_breaker(ManualClock(5.0))
    late_call = send_call(breaker)
    breaker.metrics()  # its time is the present now
    circuit_of(breaker).open()
    assert refused(breaker).retry_after == 60.0
    assert late_call.settle(BreakerOutcome.SUCCESS).counted == "stale"
    circuit_of(breaker).close()
    assert breaker.allows_calls()
    circuit_of(breaker).half_open()
    assert send_call(breaker).probe


def test_importing_the_breaker_does_not_load_pybreaker() -> None:
    """Only creating a breaker imports pybreaker."""
    code = (
        "import sys, resilient_imagen.circuitbreaker as b; print('pybreaker' in sys.modules);"
        "b.CircuitBreaker('x', b.BreakerConfig()); print('pybreaker' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["False", "True"]
