"""Measures this library beside its alternatives, all in one run, and writes README's table.

    python -m benchmarks [--quick] [--peers] [--readme FILE] [--print]

Everything runs on this machine, against the emulator or on virtual time; nothing leaves it but
what --peers installs, once, in environments of its own. The designs take turns, so that a slow
moment of the machine hits all of them; what counts are the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import distribution, version
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # the scripts beside this one import each other by name

import footprint  # noqa: E402 - after the path is set
import images  # noqa: E402
import middleware  # noqa: E402
import outage  # noqa: E402
from peers import PEERS, installed  # noqa: E402
from rows import ByDesign, Found, rows  # noqa: E402
from table import Row, put, render  # noqa: E402

__all__ = ["Found", "Row", "everything", "main", "put", "rows"]

README = HERE.parent / "README.md"
BARE = ["google-genai", "openai"]
WORLDS = {
    "an outage of 30 minutes, simulated, default limits": 1,
    "12 outages of 5 minutes, simulated, limits out of the way": 3,
}
"""Cases of ``outage``, by their place."""
DESIGN_NAMES = {"guide": "guide", "cooldown": "litellm", "ours": "ours"}


def outages() -> dict[str, ByDesign]:
    """Time to image and doomed requests: means of several worlds, so that no probe's luck decides.

    A router's cooldown, switched on, is in its column.
    """
    found: dict[str, ByDesign] = {}
    for world, place in WORLDS.items():
        case = outage.cases()[place]
        played = [outage.outcomes(case, seed) for seed in outage.SEEDS]
        found[world] = {}
        for name, column in DESIGN_NAMES.items():
            row = outage.mean([outage.measure(name, case, each[name]) for each in played])
            found[world][column] = {"mean": row.mean, "doomed": row.doomed}
    return found


def imports(peers: dict[str, Path], runs: int) -> dict[str, float]:
    """Seconds."""
    sdks = "from google import genai; from google.genai import types; import openai"
    own = {
        "bare": sdks,
        "guide": f"{sdks}; from PIL import Image",
        "ours": "import resilient_imagen",
    }
    found = {name: footprint.import_seconds(line, runs=runs) for name, line in own.items()}
    for peer, python in peers.items():
        found[peer] = footprint.import_seconds(PEERS[peer][2], str(python), runs)
    return found


def sizes(peers: dict[str, Path]) -> dict[str, float]:
    """Megabytes on the disk, dependencies included."""
    own = footprint.megabytes(["resilient-imagen"])
    names = (str(file) for file in distribution("resilient-imagen").files or ())
    if not any(name.startswith("resilient_imagen/") for name in names):  # installed with -e
        folder = HERE.parent / "resilient_imagen"
        own += sum(file.stat().st_size for file in folder.rglob("*.py")) / 1e6
    found = {
        "bare": footprint.megabytes(BARE),
        "guide": footprint.megabytes([*BARE, "Pillow"]),
        "ours": own,
    }
    for peer, python in peers.items():
        command = [str(python), str(HERE / "footprint.py"), "size", PEERS[peer][0]]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[peer] = json.loads(done.stdout)
    return found


def everything(peers: dict[str, Path], *, quick: bool) -> Found:
    """Measure it all; progress goes to stderr."""
    rounds = 1 if quick else 5

    def told(what: str) -> None:
        print(f"measuring {what} ...", file=sys.stderr)

    told("what a call costs")
    calls = {peer: [str(python), str(HERE / "peer.py"), peer] for peer, python in peers.items()}
    costs = middleware.measure(rounds, 200 if quick else 1000, calls)
    told("pictures")
    commands = images.own_commands()
    if "litellm" in peers:
        commands["litellm"] = [str(peers["litellm"]), str(HERE / "peer_images.py")]
    pictures = images.measure(rounds, images.LOADS_ALL, commands)
    told("outages")
    worlds = outages()
    told("imports and sizes")
    return Found(costs, pictures, worlds, imports(peers, 2 if quick else 9), sizes(peers))


def where(peers: dict[str, Path], *, quick: bool) -> str:
    """The machine and the versions, in a sentence or two."""
    packages = ", ".join(f"{name} {version(name)}" for name in (*BARE, "Pillow"))
    others = "".join(f", {PEERS[peer][0]} {PEERS[peer][1]}" for peer in peers)
    taken = "one quick round" if quick else "medians of five rounds, in turn"
    return (
        f"Python {platform.python_version()}, {packages}{others}; {platform.system()} "
        f"{platform.machine()}, {os.cpu_count()} cores; {taken}. In brackets: times our figure. "
        "Goals for CPU are scaled by what a span of OpenTelemetry's SDK takes. "
        "litellm's outages are simulated: its cooldown, switched on. "
        f"Written by `python -m benchmarks{' --quick' if quick else ''}"
        f"{' --peers' if peers else ''}`."
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round: a minute or two")
    parser.add_argument("--peers", action="store_true", help="other wrappers, too (pip installs)")
    parser.add_argument("--readme", type=Path, default=README, help="the file with the markers")
    parser.add_argument("--print", action="store_true", help="write no file")
    options = parser.parse_args()
    peers = installed() if options.peers else {}
    found = everything(peers, quick=options.quick)
    table = render(rows(found), where(peers, quick=options.quick))
    print(table)
    if not options.print:
        text = put(options.readme.read_text(encoding="utf-8"), table)
        options.readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
