"""How long the tuner takes: a day of 14,400 recorded calls under 200 settings, and its memory.

    python benchmarks/tuning_speed.py [SETTINGS]

The goal is two minutes on two processors of one's own. Processor seconds are printed, too: on a
machine that is shared they say more than the clock. Memory is the largest of any process, beside
what a process takes that has tried one setting: it must not grow with their number.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from itertools import count

from resilient_imagen.reasons import Reason
from resilient_imagen.settings import Settings
from resilient_imagen.tuning import (
    LatencyDistribution,
    Outage,
    Recorder,
    Recording,
    Scenario,
    Service,
    Traffic,
    sweep,
    waves,
)
from resilient_imagen.tuning.recording import Row, gather
from resilient_imagen.tuning.simulation import play
from resilient_imagen.tuning.sweep import try_out
from resilient_imagen.tuning.tunable_settings import TunableSettings

HOUR = 3600.0
SETTINGS = Settings(ipm=20, max_concurrent=16)
A_DAY = Scenario(
    traffic=Traffic(per_minute=10, duration=24 * HOUR, spacing="even"),
    services={
        "google": Service(latency=LatencyDistribution(19.0, 35.0), blips=0.01),
        "openai": Service(latency=LatencyDistribution(21.0, 32.0), cost_usd=0.05),
    },
    troubles=(
        Outage(start=3 * HOUR, duration=2700),
        *waves(Outage(start=10 * HOUR, duration=300), every=HOUR, times=3),
        Outage(start=18 * HOUR, duration=1200, reason=Reason.TIMEOUT),
    ),
)


def recorded() -> Recording:
    rows: list[Row] = []
    play(A_DAY, SETTINGS, sinks=[Recorder(rows.append)])
    return gather(rows)


def megabytes(who: int) -> float:
    return resource.getrusage(who).ru_maxrss / 1024


def processor_seconds() -> float:
    return sum(os.times()[:4])


def main() -> None:
    tried = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    recording = recorded()
    started, used = time.monotonic(), processor_seconds()
    try_out(recording, SETTINGS, TunableSettings.of(SETTINGS))
    alone = megabytes(resource.RUSAGE_SELF)
    print(
        f"one setting: {len(recording.asked)} calls in {time.monotonic() - started:.2f} s,"
        f" {processor_seconds() - used:.2f} s of processor, {alone:.0f} MB"
    )
    started, used = time.monotonic(), processor_seconds()
    shown = count(1)

    def show(done: int, total: int) -> None:
        if next(shown) % 50 == 0:
            print(f"  {done} of {total} after {time.monotonic() - started:.0f} s")

    sweep(recording, SETTINGS, count=tried, progress=show)
    clock, work = time.monotonic() - started, processor_seconds() - used
    plays = tried + 8  # the best and the worst case of today's and of the recommended ones
    print(
        f"{tried} settings: {clock:.0f} s by the clock on {os.cpu_count()} processors,"
        f" {work:.0f} s of processor ({1e6 * work / plays / len(recording.asked):.0f} µs a call),"
        f" {megabytes(resource.RUSAGE_CHILDREN):.0f} MB in the largest worker"
    )


if __name__ == "__main__":
    main()
