"""Time and memory of the tuner: a day of 14,400 recorded calls under 200 settings.

    python benchmarks/tuning_speed.py [SETTINGS]

Other work of the machine slows the clock down, so half of the processor seconds is printed, too:
the time on two idle processors. Memory is that of the largest process; it must not grow with the
number of settings.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from tuning_kit import HOUR, HUNG, ROOMY, bad, record, world

from resilient_imagen.settings import Settings
from resilient_imagen.tuning import sweep, waves

SETTINGS = Settings(**ROOMY)
A_DAY = world(
    bad(3, 45), *waves(bad(10, 5), every=HOUR, times=3), bad(18, 20, **HUNG),
    hours=24, per_minute=10, spacing="even",
)  # fmt: skip


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    recording = record(A_DAY, SETTINGS)
    replays: list[int] = []
    clock, work = time.monotonic(), sum(os.times()[:4])
    sweep(recording, SETTINGS, count=count, progress=lambda done, _total: replays.append(done))
    clock, work = time.monotonic() - clock, sum(os.times()[:4]) - work
    calls = len(recording.asked)
    processes = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    kilobytes = max(resource.getrusage(each).ru_maxrss for each in processes)
    print(
        f"{count} settings, {len(replays)} replays, {calls} calls: {clock:.0f} s on"
        f" {os.cpu_count()} processors, {work / 2:.0f} s on two idle ones"
        f" ({1e6 * work / len(replays) / calls:.0f} µs of processor a call),"
        f" {kilobytes / 1024:.0f} MB in the largest process"
    )


if __name__ == "__main__":
    main()
