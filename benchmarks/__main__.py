"""Measure this library beside its alternatives, in one run, and print the tables of the guide.

    python -m benchmarks [--quick] [--peers PYTHON] [--write]

Everything runs on this machine, against the emulator or on virtual time. The designs take turns, so
that other work of the machine affects all of them; compare the ratios.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # the scripts beside this one import each other by name

try:
    import call_cost
    import images
    import outage
    import outage_picture
    from table import Rows, markdown, result_rows
except ModuleNotFoundError as missing:
    sys.exit(f"benchmarks: {missing.name} is not installed; pip install -e '.[dev]' brings all")

GUIDE = HERE / "README.md"
PEERS = ("tenacity", "pydantic_ai", "litellm")
PACKAGES = ("google-genai", "openai", "Pillow")
BLOCK = re.compile(r"(<!-- benchmarks:start -->\n).*(\n<!-- benchmarks:end -->)", re.DOTALL)


def measure(peers: str | None, *, quick: bool) -> dict[str, Rows]:
    """Return the rows of each table; progress goes to stderr."""
    rounds, calls, variants = (1, 100, 1) if quick else (5, 400, len(outage.SEEDS))

    def others(kind: str, count: int) -> dict[str, list[str]]:
        script = str(HERE / "peers.py")
        return {peer: [peers, script, kind, peer, str(count)] for peer in PEERS} if peers else {}

    def report(what: str) -> None:
        print(f"measuring {what} ...", file=sys.stderr)

    report("calls")
    costs = call_cost.measure(rounds, calls, others("cost", calls))
    report("images")
    loads = images.measure(rounds)
    report("outages, on virtual time")
    cases = outage.measure(variants, others("outage", variants))
    return {"Calls": result_rows(costs, call_cost.TITLES), "Images": loads, "Outages": cases}


def description(peers: str | None, *, quick: bool) -> str:
    """Return the machine, the versions and the size of the run."""
    packages = [f"{name} {version(name)}" for name in PACKAGES]
    if peers:
        packages += (HERE / "peers.txt").read_text().replace("==", " ").splitlines()
    size = "one quick round" if quick else "medians of five rounds, in turn"
    runs = "one run" if quick else f"means of {len(outage.SEEDS)} runs"
    return (
        f"Python {platform.python_version()}, {', '.join(packages)}; {platform.system()} "
        f"{platform.machine()}, {os.cpu_count()} cores; {size}; outages are {runs} on virtual time."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--peers", metavar="PYTHON", help="measure peers.txt by this interpreter")
    parser.add_argument("--write", action="store_true", help="update README.md and the picture")
    options = parser.parse_args()
    tables = measure(options.peers, quick=options.quick)
    parts = [f"### {heading}\n\n{markdown(rows)}" for heading, rows in tables.items()]
    text = "\n\n".join([*parts, description(options.peers, quick=options.quick)])
    print(text)
    if options.write:
        guide, found = BLOCK.subn(
            lambda block: f"{block[1]}{text}{block[2]}", GUIDE.read_text(encoding="utf-8")
        )
        if not found:
            sys.exit(f"benchmarks: {GUIDE} lacks the lines benchmarks:start and benchmarks:end")
        GUIDE.write_text(guide, encoding="utf-8")
        outage_picture.draw()


if __name__ == "__main__":
    main()
