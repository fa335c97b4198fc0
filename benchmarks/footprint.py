"""What a package and all that it needs take on the disk, and what importing it takes.

    python benchmarks/footprint.py openai google-genai      # megabytes, as JSON

Needs nothing but pip, so that the interpreter of any environment can run it.
"""

import json
import re
import subprocess
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from statistics import median

TIMED = "import time; began = time.perf_counter(); {}; print(time.perf_counter() - began)"


def needed(names: list[str]) -> dict[str, Distribution]:
    """These distributions and, without extras, all that they require here."""
    from pip._vendor.packaging.requirements import Requirement

    found: dict[str, Distribution] = {}
    todo = list(names)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue
        for line in found[name].requires or ():
            required = Requirement(line)
            if required.marker is None or required.marker.evaluate({"extra": ""}):
                todo.append(required.name)
    return found


def megabytes(names: list[str]) -> float:
    """What is installed for these names; bytecode left out, which depends on what was run."""
    total = 0
    for found in needed(names).values():
        total += sum(_size(Path(str(file.locate()))) for file in found.files or ())
    return total / 1e6


def _size(file: Path) -> int:
    return file.stat().st_size if file.suffix != ".pyc" and file.is_file() else 0


def import_seconds(statement: str, python: str = sys.executable, runs: int = 5) -> float:
    """Seconds that a statement takes in a fresh interpreter; the median, the first run left out."""
    command = [python, "-c", TIMED.format(statement)]
    times = [
        float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(runs + 1)
    ]
    return median(times[1:])


if __name__ == "__main__":
    print(json.dumps(megabytes(sys.argv[1:])))
