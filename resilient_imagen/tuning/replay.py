"""Replay: send the calls of a recording through the pipeline again, with other settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilient_imagen.tuning.engine import run_simulation
from resilient_imagen.tuning.recorded_outcomes import RecordedOutcomes

if TYPE_CHECKING:
    from resilient_imagen.settings import Settings
    from resilient_imagen.tuning.recording import Recording
    from resilient_imagen.tuning.simulation_run import SimulationResult

__all__ = ["replay"]


def replay(
    recording: Recording, settings: Settings, *, seed: int = 0, turning: float = 0.5
) -> tuple[SimulationResult, RecordedOutcomes]:
    """Replay a recording with other settings.

    Args:
        recording: The recording.
        settings: The settings to try.
        seed: Seed of all random choices.
        turning: Turning point in an unseen gap, from 0 (its start) to 1 (its end).
    """
    truth = RecordedOutcomes(recording, settings, turning=turning)
    return run_simulation(settings, truth, recording.asked, seed=seed), truth
