"""Measurements that take turns, so that other work of the machine affects all of them alike.

Only Python is needed, so that any environment can import this.
"""

import json
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from statistics import median

Figures = dict[str, float]
STRETCHES = 9


async def best(
    calls: int,
    clock: Callable[[], float] = time.process_time,
    **ways: Callable[[], Awaitable[object]],
) -> Figures:
    """Return the microseconds of a call each way: the best of several stretches of calls.

    Other work of the machine can only add to a stretch.
    """
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(STRETCHES):
        for name, once in ways.items():
            began = clock()
            for _ in range(calls):
                await once()
            taken[name].append((clock() - began) / calls * 1e6)
    return {name: min(each) for name, each in taken.items()}


def medians(commands: Mapping[str, Sequence[str]], rounds: int) -> dict[str, Figures]:
    """Run commands, each of which prints figures as JSON, round by round; return the medians."""
    runs: dict[str, list[Figures]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            printed = subprocess.check_output(command, text=True, timeout=1800)
            runs[name].append(json.loads(printed.splitlines()[-1]))
    return {
        name: {key: median(run[key] for run in each) for key in each[0]}
        for name, each in runs.items()
    }
