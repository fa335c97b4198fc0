"""Seconds that ``import resilient_imagen`` takes in a fresh interpreter; the goal is below 0.15.

    python benchmarks/import_time.py

The first run fills caches and is left out. With a stub of aiohttp within reach the measurement is
made again: google-genai looks for it, and we must not.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

RUNS = 15
CODE = """
import time
started = time.perf_counter()
import resilient_imagen
print(time.perf_counter() - started)
"""


def measure(extra_path: str = "") -> list[float]:
    """Seconds of each run, in fresh interpreters."""
    root = Path(__file__).parent.parent
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(root), extra_path)))}
    command = [sys.executable, "-c", CODE]
    seconds = [
        float(subprocess.run(command, env=env, capture_output=True, check=True, text=True).stdout)
        for _ in range(RUNS + 1)
    ]
    return seconds[1:]


def main() -> None:
    """Print medians."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "aiohttp"
        package.mkdir()
        (package / "__init__.py").write_text("raise SystemExit('aiohttp was imported')\n")
        for name, path in (("as installed", ""), ("with aiohttp within reach", folder)):
            seconds = measure(path)
            print(f"{name}: median {median(seconds):.4f} s, slowest {max(seconds):.4f} s")


if __name__ == "__main__":
    main()
