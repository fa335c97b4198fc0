"""Record, replay, sweep and report: tune thresholds from what really happened.

``simulate`` plays made-up worlds, ``replay`` and ``sweep`` recordings; all of them with the
production pipeline, on virtual time. On the command line: ``resilient-imagen tune``.
"""

from resilient_imagen.tuning.knobs import TunableSettings
from resilient_imagen.tuning.load import load
from resilient_imagen.tuning.measure import Measures
from resilient_imagen.tuning.rank import Recommendation, Objective, Evaluation
from resilient_imagen.tuning.recorder import Recorder
from resilient_imagen.tuning.recording import Recording, RecordingError
from resilient_imagen.tuning.scenario import (
    LatencyDistribution,
    Scenario,
    Service,
    Traffic,
    Outage,
    waves,
)
from resilient_imagen.tuning.simulation import simulate
from resilient_imagen.tuning.sweep import Sweep, replay, sweep

__all__ = [
    "Recommendation",
    "TunableSettings",
    "LatencyDistribution",
    "Objective",
    "Measures",
    "Recorder",
    "Recording",
    "RecordingError",
    "Scenario",
    "Service",
    "Sweep",
    "Traffic",
    "Evaluation",
    "Outage",
    "load",
    "replay",
    "simulate",
    "sweep",
    "waves",
]
