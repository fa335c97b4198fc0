"""Tuning: find good settings by replaying recorded traffic.

``simulate`` runs scenarios, ``replay`` and ``sweep`` run recordings, all with the production
pipeline on virtual time. On the command line: ``resilient-imagen tune``.
"""

from resilient_imagen.tuning.evidence import Evidence
from resilient_imagen.tuning.fidelity import Fidelity
from resilient_imagen.tuning.load import load
from resilient_imagen.tuning.prediction import Estimate
from resilient_imagen.tuning.recommendation import Evaluation, Objective, Recommendation
from resilient_imagen.tuning.recorder import Recorder
from resilient_imagen.tuning.recording import Recording
from resilient_imagen.tuning.replay import replay
from resilient_imagen.tuning.result import Metrics
from resilient_imagen.tuning.rows import RecordingError
from resilient_imagen.tuning.run_metrics import Measures
from resilient_imagen.tuning.scenario import (
    LatencyDistribution,
    Outage,
    Scenario,
    Service,
    Traffic,
    waves,
)
from resilient_imagen.tuning.simulation import simulate
from resilient_imagen.tuning.sweep import Sweep, WhatIf, sweep, what_if
from resilient_imagen.tuning.tunable_settings import TunableSettings

__all__ = [
    "Estimate",
    "Evaluation",
    "Evidence",
    "Fidelity",
    "LatencyDistribution",
    "Measures",
    "Metrics",
    "Objective",
    "Outage",
    "Recommendation",
    "Recorder",
    "Recording",
    "RecordingError",
    "Scenario",
    "Service",
    "Sweep",
    "Traffic",
    "TunableSettings",
    "WhatIf",
    "load",
    "replay",
    "simulate",
    "sweep",
    "waves",
    "what_if",
]
