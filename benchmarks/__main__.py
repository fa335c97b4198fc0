"""Measures this library beside its alternatives, all in one run, and writes the table of the guide.

    python -m benchmarks [--quick] [--peers] [--readme FILE] [--picture FILE] [--print]

Everything runs on this machine, against the emulator or on virtual time; nothing leaves it but
what --peers installs, once, in environments of its own. The designs take turns, so that a slow
moment of the machine hits all of them; what counts are the ratios.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import distribution, version
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
README = HERE / "README.md"
BARE = ["google-genai", "openai"]
NEEDED = ("h11", "opentelemetry.sdk", "structlog", "vl_convert", "resilient_imagen")
ALONE = (
    "breaker_battery", "breaker_cost", "outage", "overhead", "redis_ops", "tuning_defaults",
    "tuning_speed",
)  # fmt: skip
"""Scripts that look closer at one thing."""


def lacking() -> str | None:
    """The first package that is not installed here."""
    for name in NEEDED:
        try:
            if find_spec(name) is None:
                return name
        except ModuleNotFoundError:
            return name
    return None


if (lacks := lacking()) is not None:
    sys.exit(f"benchmarks: {lacks} is not installed; pip install -e '.[dev]' brings all they need")

sys.path.insert(0, str(HERE))  # the scripts beside this one import each other by name

import footprint  # noqa: E402 - after the path is set
import images  # noqa: E402
import middleware  # noqa: E402
import outage  # noqa: E402
import outage_picture  # noqa: E402
from outage_scenarios import CASES, SEEDS  # noqa: E402
from peers import PEERS, installed  # noqa: E402
from result_rows import ByDesign, Found, rows  # noqa: E402
from table import ResultRow, put, render  # noqa: E402

__all__ = ["ALONE", "CASES", "Found", "ResultRow", "everything", "main", "put", "render", "rows"]


def outages(peers: dict[str, Path], seeds: int) -> dict[str, ByDesign]:
    """Per outage and design: time to an image, wasted requests and more.

    On virtual time nobody is slowed down by others at work, so the peers run beside us.
    """
    script = str(HERE / "peer_outages.py")
    others = {
        peer: subprocess.Popen(
            [str(python), script, peer, str(seeds)], stdout=subprocess.PIPE, text=True
        )
        for peer, python in peers.items()
    }
    found: dict[str, ByDesign] = {}
    for case in CASES:
        measured = outage.measure(case, SEEDS[:seeds])
        found[case.title] = {name: asdict(each) for name, each in measured.items()}
    for peer, process in others.items():
        told, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"benchmarks: {peer} did not get through the outages")
        for title, figures in json.loads(told).items():
            found[title][peer] = figures
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
        command = [str(python), str(HERE / "footprint.py"), PEERS[peer][0]]
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
    costs = middleware.measure(rounds, 100 if quick else 400, calls)
    told("pictures")
    commands = images.own_commands()
    if "litellm" in peers:  # the two others make no pictures by themselves
        commands["litellm"] = [str(peers["litellm"]), str(HERE / "peer_images.py")]
    pictures = images.measure(rounds, commands)
    told("imports and sizes")
    taken, large = imports(peers, 2 if quick else 9), sizes(peers)
    told("outages, on virtual time")
    return Found(costs, pictures, outages(peers, 1 if quick else len(SEEDS)), taken, large)


def where(peers: dict[str, Path], *, quick: bool) -> str:
    """The machine and the versions, and how to read the table."""
    packages = ", ".join(f"{name} {version(name)}" for name in (*BARE, "Pillow"))
    others = "".join(f", {PEERS[peer][0]} {PEERS[peer][1]}" for peer in peers)
    taken = "one quick round" if quick else "medians of five rounds, in turn"
    return (
        f"Python {platform.python_version()}, {packages}{others}; {platform.system()} "
        f"{platform.machine()}, {os.cpu_count()} cores; {taken}. In brackets: times our figure. "
        "The goals for CPU were set on another machine, of which it is known how long a span, a "
        "metric's record and a log line take there; the one for import holds on any. Outages are "
        f"{'one run' if quick else f'means of {len(SEEDS)} runs'} on virtual time, with 10 images "
        "a minute (8 within the default limits), by the production code and by the libraries "
        "themselves; a cooldown that somebody switched on is simulated. All give a request to "
        "Google 60 s, but the bare SDK, which waits. Wasted requests brought their caller nothing. "
        f"Written by `python -m benchmarks{' --quick' if quick else ''}"
        f"{' --peers' if peers else ''}`."
    )


def alone() -> str:
    """The scripts that run by themselves, a line each."""
    lines = ["These look closer at one thing, by themselves (python benchmarks/NAME.py):", ""]
    for name in ALONE:
        text = ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text("utf-8"))) or ""
        lines.append(f"  {name:16} {text.splitlines()[0]}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=alone(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="one round: some minutes")
    parser.add_argument("--peers", action="store_true", help="other wrappers, too (pip installs)")
    parser.add_argument("--readme", type=Path, default=README, help="the file with the markers")
    parser.add_argument(
        "--picture", type=Path, default=outage_picture.PICTURE, help="where the outage is drawn"
    )
    parser.add_argument("--print", action="store_true", help="write no file")
    options = parser.parse_args()
    peers = installed() if options.peers else {}
    found = everything(peers, quick=options.quick)
    table = render(rows(found), where(peers, quick=options.quick))
    print(table)
    if not options.print:
        text = put(options.readme.read_text(encoding="utf-8"), table)
        options.readme.write_text(text, encoding="utf-8")
        outage_picture.draw(options.picture)


if __name__ == "__main__":
    main()
