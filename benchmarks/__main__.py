"""Measure this library beside its alternatives, in one run, and write the table of the guide.

    python -m benchmarks [--quick] [--peers] [--guide FILE] [--picture FILE] [--print]

Everything runs on this machine, against the emulator or on virtual time; only ``--peers`` uses the
network, once, to install other libraries in environments of their own. The designs take turns, so
that other work of the machine affects all of them; compare the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import venv
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
GUIDE = HERE / "README.md"
NEEDED = ("h11", "opentelemetry.sdk", "structlog", "vl_convert", "resilient_imagen")
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
PEERS = {
    "litellm": "litellm==1.109.1",
    "langchain": "langchain-core==1.7.2",
    "pydantic_ai": "pydantic-ai-slim==2.68.0",
}


def missing_package() -> str | None:
    """Return the first package that is not installed here, or None."""
    for name in NEEDED:
        try:
            if find_spec(name) is None:
                return name
        except ModuleNotFoundError:
            return name
    return None


if (missing := missing_package()) is not None:
    sys.exit(f"benchmarks: {missing} is not installed; pip install -e '.[dev]' brings all")

sys.path.insert(0, str(HERE))  # the scripts beside this one import each other by name

import call_cost  # noqa: E402 - after the path is set
import images  # noqa: E402
import outage  # noqa: E402
import outage_picture  # noqa: E402
from outage_scenarios import CASES, SEEDS  # noqa: E402
from results import ByDesign, Found, Row, put, render, rows  # noqa: E402

__all__ = ["CASES", "Found", "Row", "main", "measure_all", "put", "render", "rows"]


def installed() -> dict[str, Path]:
    """Return the interpreter of each peer that pip can install; report the others on stderr."""
    # litellm loads prices from the network when it is imported, unless this is set.
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    found = {}
    for peer, requirement in PEERS.items():
        folder = CACHE / "resilient-imagen/benchmarks" / requirement.replace("==", "-")
        python, done = folder / "bin" / "python", folder / "installed"
        if not done.exists():
            print(f"installing {requirement} in {folder}", file=sys.stderr)
            try:
                venv.create(folder, with_pip=True, clear=True)
                subprocess.run([python, "-m", "pip", "install", "-q", requirement], check=True)
            except subprocess.CalledProcessError:
                print(f"skipped {requirement}: pip cannot install it here", file=sys.stderr)
                continue
            done.touch()
        found[peer] = python
    return found


def outages(peers: dict[str, list[str]], variants: int) -> dict[str, ByDesign]:
    """Return the figures of each outage by design; peers run at the same time, on virtual time."""
    others = {
        peer: subprocess.Popen(
            [*command, "outages", peer, str(variants)], stdout=subprocess.PIPE, text=True
        )
        for peer, command in peers.items()
    }
    found: dict[str, ByDesign] = {
        case.title: {
            name: asdict(each) for name, each in outage.measure(case, SEEDS[:variants]).items()
        }
        for case in CASES
    }
    for peer, process in others.items():
        printed, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"benchmarks: the outages of {peer} failed")
        for title, figures in json.loads(printed).items():
            found[title][peer] = figures
    return found


def measure_all(pythons: dict[str, Path], *, quick: bool) -> Found:
    """Return all figures; progress goes to stderr."""
    rounds = 1 if quick else 5
    peers = {peer: [str(python), str(HERE / "peers.py")] for peer, python in pythons.items()}

    def report(what: str) -> None:
        print(f"measuring {what} ...", file=sys.stderr)

    report("calls")
    costs = {peer: [*command, "cost", peer] for peer, command in peers.items()}
    calls = call_cost.measure(rounds, 100 if quick else 400, costs)
    report("images")
    pictures = images.measure(rounds)
    report("outages, on virtual time")
    return Found(calls, pictures, outages(peers, 1 if quick else len(SEEDS)))


def where(peers: dict[str, Path], *, quick: bool) -> str:
    """Return the machine, the versions and the size of the run."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("google-genai", "openai", "Pillow"))
    others = "".join(f", {PEERS[peer].replace('==', ' ')}" for peer in peers)
    taken = "one quick round" if quick else "medians of five rounds, in turn"
    runs = "one run" if quick else f"means of {len(SEEDS)} runs"
    return (
        f"Python {platform.python_version()}, {packages}{others}; {platform.system()} "
        f"{platform.machine()}, {os.cpu_count()} cores; {taken}; outages are {runs} on virtual "
        f"time. Written by `python -m benchmarks{' --quick' if quick else ''}"
        f"{' --peers' if peers else ''}`."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="one round: some minutes")
    parser.add_argument("--peers", action="store_true", help="other libraries, too (pip installs)")
    parser.add_argument("--guide", type=Path, default=GUIDE, help="the file with the markers")
    parser.add_argument(
        "--picture", type=Path, default=outage_picture.PICTURE, help="where the outage is drawn"
    )
    parser.add_argument("--print", action="store_true", help="write no file")
    options = parser.parse_args()
    peers = installed() if options.peers else {}
    table = render(rows(measure_all(peers, quick=options.quick)), where(peers, quick=options.quick))
    print(table)
    if not options.print:
        text = put(options.guide.read_text(encoding="utf-8"), table)
        options.guide.write_text(text, encoding="utf-8")
        outage_picture.draw(options.picture)


if __name__ == "__main__":
    main()
