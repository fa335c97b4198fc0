"""Simulation: measure settings in a scenario.

For example, to test an application's settings::

    def test_an_outage_of_ten_minutes_is_cheap() -> None:
        outage = Outage(start=600, duration=600, reason=Reason.OVERLOADED)
        measures = simulate(Scenario(outages=(outage,)), Settings())
        assert measures.wasted_requests < 20
        assert measures.lost_calls == 0
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilient_imagen.settings import Settings
from resilient_imagen.tuning.engine import run_simulation
from resilient_imagen.tuning.run_metrics import measure
from resilient_imagen.tuning.scenario import ScenarioOutcomes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resilient_imagen.telemetry.sink import EventSink
    from resilient_imagen.tuning.run_metrics import Measures
    from resilient_imagen.tuning.scenario import Scenario
    from resilient_imagen.tuning.simulation_run import SimulationResult

__all__ = ["play", "simulate"]


def simulate(
    scenario: Scenario,
    settings: Settings | None = None,
    *,
    seed: int = 0,
    sinks: Sequence[EventSink] = (),
) -> Measures:
    """Run a scenario's calls through the production pipeline on virtual time, and measure them.

    An hour of ten images a minute takes some tens of milliseconds. Equal arguments give equal
    measures on any machine. It runs its own event loop, so no loop may be running in the thread.

    Args:
        scenario: Traffic, services and outages.
        settings: The settings; None reads them from the environment. Keys are not needed.
        seed: Seed of all random choices.
        sinks: Sinks that receive every event, as an ImageClient's do; they make it slower.

    Raises:
        ValueError: The scenario has no service for a route of the settings.
        RuntimeError: A loop is running in this thread; ``asyncio.to_thread(simulate, ...)`` works.
        ConfigurationError: The environment contains a setting that is not allowed.
    """
    settings = Settings() if settings is None else settings
    truth = ScenarioOutcomes(scenario, settings)
    return measure(play(scenario, settings, seed=seed, sinks=sinks), truth.incidents())


def play(
    scenario: Scenario, settings: Settings, *, seed: int = 0, sinks: Sequence[EventSink] = ()
) -> SimulationResult:
    """Run a scenario like `simulate`; return the result of every call and request."""
    truth = ScenarioOutcomes(scenario, settings)
    return run_simulation(settings, truth, scenario.traffic.arrivals(seed), seed=seed, sinks=sinks)
