"""Time and memory of the tuner: a day of 14,400 recorded calls under 200 settings.

    python benchmarks/tuning_speed.py [SETTINGS]

Other work of the machine slows the clock down, so half of the processor seconds is printed, too:
the time on two idle processors. Memory is the largest of any worker; it must not grow with the
number of settings.
"""

from __future__ import annotations

import os
import resource
import sys
import time

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
from resilient_imagen.tuning.gather import gather
from resilient_imagen.tuning.rows import Row
from resilient_imagen.tuning.simulation import play

HOUR = 3600.0
SETTINGS = Settings(ipm=20, max_concurrent=16)
A_DAY = Scenario(
    traffic=Traffic(per_minute=10, duration=24 * HOUR, spacing="even"),
    services={
        "google": Service(latency=LatencyDistribution(19.0, 35.0), blips=0.01),
        "openai": Service(latency=LatencyDistribution(21.0, 32.0)),
    },
    outages=(
        Outage(start=3 * HOUR, duration=2700),
        *waves(Outage(start=10 * HOUR, duration=300), every=HOUR, times=3),
        Outage(start=18 * HOUR, duration=1200, reason=Reason.TIMEOUT),
    ),
)


def recorded() -> Recording:
    rows: list[Row] = []
    play(A_DAY, SETTINGS, sinks=[Recorder(rows.append)])
    return gather(rows)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    recording = recorded()
    clock, work = time.monotonic(), sum(os.times()[:4])
    replays = 0

    def note(done: int, _total: int) -> None:
        nonlocal replays
        replays = done

    sweep(recording, SETTINGS, count=count, progress=note)
    clock, work = time.monotonic() - clock, sum(os.times()[:4]) - work
    megabytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(
        f"{count} settings, {replays} replays, {len(recording.asked)} calls: {clock:.0f} s on"
        f" {os.cpu_count()} processors, {work / 2:.0f} s on two idle ones"
        f" ({1e6 * work / replays / len(recording.asked):.0f} µs of processor a call),"
        f" {megabytes:.0f} MB in the largest worker"
    )


if __name__ == "__main__":
    main()
