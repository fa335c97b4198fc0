"""The command line in a process of its own, as people run it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(
    *arguments: str, cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``resilient-imagen`` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "resilient_imagen.cli", *arguments],
        cwd=cwd,
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def start(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start ``resilient-imagen``; both outputs can be read."""
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "resilient_imagen.cli", *arguments],
        cwd=cwd,
        env=environment(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def environment(more: dict[str, str] | None = None) -> dict[str, str]:
    """This process' environment (which tests keep clean), the package within reach."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120", **(more or {})}
