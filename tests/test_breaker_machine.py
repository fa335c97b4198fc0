"""pybreaker really is the state machine, and only the gate's clock ends an opening."""

from __future__ import annotations

import subprocess
import sys

import pybreaker
import pytest
from breaker_kit import HandClock, fail, let_in, make_gate, opened, refused

from resilient_imagen.breaker import BreakerState, CircuitBreaker
from resilient_imagen.reasons import BreakerOutcome


def circuit_of(gate: CircuitBreaker) -> pybreaker.CircuitBreaker:
    return gate._machine._pybreaker._circuit


def test_pybreaker_holds_the_state() -> None:
    """Its state and counters are those that the gate reports, all the way round."""
    gate, clock = make_gate(half_open_calls=2)
    circuit = circuit_of(gate)
    assert (circuit.current_state, circuit.fail_max, circuit.success_threshold) == ("closed", 3, 2)
    fail(gate, 3)
    assert (circuit.current_state, circuit.fail_counter) == ("open", 3)
    clock.pass_(60.0)
    let_in(gate).settle(BreakerOutcome.SUCCESS)
    assert (circuit.current_state, circuit.success_counter) == ("half-open", 1)
    let_in(gate).settle(BreakerOutcome.SUCCESS)
    assert (circuit.current_state, circuit.success_counter) == ("closed", 0)
    assert circuit.fail_counter == 0


@pytest.mark.parametrize("seconds", [1.0, 1e9])
def test_a_stray_call_through_pybreaker_never_ends_an_opening(seconds: float) -> None:
    """However long it has been open, the gate and not pybreaker's clock begins the round."""
    gate, clock = opened()
    clock.pass_(seconds)
    with pytest.raises(pybreaker.CircuitBreakerError):
        circuit_of(gate).call(lambda: None)

    assert gate.metrics().state is BreakerState.OPEN


def test_transitions_made_on_pybreaker_itself_are_followed() -> None:
    """Its notification is the one truth: opened by hand, the gate rejects and then recovers."""
    gate, _ = make_gate(HandClock(5.0))
    straggler = let_in(gate)
    circuit_of(gate).open()
    assert refused(gate).retry_after == 60.0
    assert straggler.settle(BreakerOutcome.SUCCESS).counted == "stale"
    circuit_of(gate).close()
    assert gate.allows_calls()
    circuit_of(gate).half_open()
    assert let_in(gate).probe


def test_importing_the_breaker_does_not_load_pybreaker() -> None:
    """Only making a gate loads pybreaker, so that importing the library stays light."""
    code = (
        "import sys, resilient_imagen.breaker as b; print('pybreaker' in sys.modules);"
        "b.Gate('x', b.BreakerConfig()); print('pybreaker' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["False", "True"]
