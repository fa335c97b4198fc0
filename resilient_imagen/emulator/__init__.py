"""Emulator: a loopback server with both vendors' image APIs and injectable faults.

    app = Emulator()
    app.google.fail(faults.status(503), times=3)
    async with EmulatorServer(app) as server:
        ...  # GOOGLE_GEMINI_BASE_URL=server.google_url, OPENAI_BASE_URL=server.openai_url

The same emulator works in memory: ``httpx2.AsyncClient(transport=app.transport())``.
"""

from __future__ import annotations

from resilient_imagen.emulator import faults
from resilient_imagen.emulator.background_server import BackgroundEmulator
from resilient_imagen.emulator.emulator import Emulator
from resilient_imagen.emulator.fault_script import Script, ScriptError, parse_script
from resilient_imagen.emulator.faults import Fault, Latency
from resilient_imagen.emulator.server import EmulatorServer, serve
from resilient_imagen.emulator.vendor import ReferenceSeen, RequestSeen, Vendor

__all__ = [
    "BackgroundEmulator",
    "Emulator",
    "EmulatorServer",
    "Fault",
    "Latency",
    "ReferenceSeen",
    "RequestSeen",
    "Script",
    "ScriptError",
    "Vendor",
    "faults",
    "parse_script",
    "serve",
]
