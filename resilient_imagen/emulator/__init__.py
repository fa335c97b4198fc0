"""A loopback server that speaks both vendors' image APIs, with faults on demand."""

from __future__ import annotations

from resilient_imagen.emulator.app import Emulator
from resilient_imagen.emulator.faults import Fault, Latency, fixed, log_normal
from resilient_imagen.emulator.server import EmulatorServer, serve

__all__ = [
    "Emulator",
    "EmulatorServer",
    "Fault",
    "Latency",
    "fixed",
    "log_normal",
    "serve",
]
