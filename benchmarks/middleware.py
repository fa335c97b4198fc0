"""What each design adds to a call that is answered at once: microseconds of processor time.

python benchmarks/middleware.py guide [calls]     # in this process, as JSON
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable
from pathlib import Path
from statistics import median

import overhead
from baseline_previous import GuideClient
from peer import microseconds

Costs = dict[str, float]


def ours(calls: int) -> Costs:
    """This library, telemetry's SDK not installed, over providers that are ready at once."""
    settings = (*overhead.YARDSTICKS, "bare", "nothing", *overhead.FALLBACK)
    found = overhead.figures(calls * 5, 1, settings, median)  # as the others are summed up
    return {
        "scale": overhead.slower(found),
        "ok": found["nothing"] - found["bare"],
        "fallback": found["fallback"] - found["bare fallback"],
    }


async def guide(calls: int) -> Costs:
    """Threads and three tries, without their pauses."""
    design = GuideClient(ipm=1e12, pause=0.0)

    def answer() -> str:
        return "x"

    def fail() -> str:
        raise ConnectionError("503 UNAVAILABLE")

    def ok() -> Awaitable[object]:
        return design.image(answer, answer)

    def fallback() -> Awaitable[object]:
        return design.image(fail, answer)

    return {"ok": await microseconds(ok, calls), "fallback": await microseconds(fallback, calls)}


def measure(rounds: int, calls: int, peers: dict[str, list[str]]) -> dict[str, Costs]:
    """Medians; the designs take turns. ``peers`` are commands that print their costs as JSON."""
    commands = {"guide": [sys.executable, str(Path(__file__)), "guide"], **peers}
    runs: dict[str, list[Costs]] = {name: [] for name in ("ours", *commands)}
    for _ in range(rounds):
        runs["ours"].append(ours(calls))
        for name, command in commands.items():
            done = subprocess.run(
                [*command, str(calls)], check=True, capture_output=True, text=True, timeout=600
            )
            runs[name].append(json.loads(done.stdout.splitlines()[-1]))
    return {
        name: {way: median(run[way] for run in each) for way in each[0]}
        for name, each in runs.items()
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(guide(int(sys.argv[2]) if len(sys.argv) > 2 else 500))))
