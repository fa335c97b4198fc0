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
    recording: Recording, settings: Settings, *, seed: int = 0, draw: int = 0
) -> tuple[SimulationResult, RecordedOutcomes]:
    """Replay a recording with other settings.

    Args:
        recording: The recording.
        settings: The settings to try.
        seed: Seed of all random choices.
        draw: Number of the draw of what is not recorded (`RecordedOutcomes`).
    """
    truth = RecordedOutcomes(recording, settings, draw=draw)
    return run_simulation(settings, truth, recording.asked, seed=seed), truth
