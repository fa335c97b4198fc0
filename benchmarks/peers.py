"""Other wrappers, each in an environment of its own below ~/.cache/resilient-imagen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
FOLDER = CACHE / "resilient-imagen" / "benchmarks"
PEERS = {
    "litellm": ("litellm", "1.109.1", "from litellm import Router"),
    "langchain": ("langchain-core", "1.7.2", "import langchain_core.runnables"),
    "pydantic_ai": ("pydantic-ai-slim", "2.68.0", "import pydantic_ai.models.fallback"),
}
"""Package, version, and what an application imports."""


def installed() -> dict[str, Path]:
    """The interpreter of each peer that pip could install; says which it could not."""
    # litellm asks the network for prices when it is imported, unless told not to.
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    found = {}
    for peer, (package, version, _) in PEERS.items():
        folder = FOLDER / f"{package}-{version}"
        if _install(folder, f"{package}=={version}"):
            found[peer] = folder / "bin" / "python"
    return found


def _install(folder: Path, requirement: str) -> bool:
    python, done = folder / "bin" / "python", folder / "installed"
    if done.exists():
        return True
    print(f"installing {requirement} in {folder}", file=sys.stderr)
    commands = (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", requirement],
    )
    for command in commands:
        ended = subprocess.run(command, check=False, capture_output=True, text=True)
        if ended.returncode:
            why = ended.stderr.strip().splitlines()[-1:] or ["no reason given"]
            print(f"SKIPPED {requirement}: it cannot be installed here: {why[0]}", file=sys.stderr)
            return False
    done.touch()
    return True
