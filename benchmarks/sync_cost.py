"""The cost of a synchronous call: the same call through `resilient_imagen.sync` and awaited.

Run ``python benchmarks/sync_cost.py [calls]``. The provider answers at once, so that the library's
own time is measured, in microseconds of wall-clock and of processor time. Both ways take turns in
one process, and each figure is the best stretch of calls, as other work of the machine can only add
to it. The ratio compares both ways of the same run.

- awaited: `ImageClient.generate` in a coroutine.
- sync: `sync.ImageClient.generate` in the main thread, which waits for the shared loop each time.
- sync, on_start: the same with a callback, which is one more hop.
- sync, 8 threads: eight threads call at the same time; time per call, all threads together.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from overhead import Instant

from resilient_imagen import ImageClient, Settings, sync

ROUNDS = 15
THREADS = 8


def settings() -> Settings:
    return Settings(
        routes="google:gemini-3-pro-image", ipm=1_000_000, burst=1_000_000, max_concurrent=64
    )


def per_call(calls: int, stretch: Callable[[], object]) -> tuple[float, float]:
    """Seconds of wall-clock and processor time for one call of a stretch."""
    wall, cpu = time.perf_counter(), time.process_time()
    stretch()
    return (time.perf_counter() - wall) / calls, (time.process_time() - cpu) / calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("calls", nargs="?", type=int, default=400, help="in each stretch")
    calls: int = parser.parse_args().calls
    awaited = ImageClient(settings(), providers=[Instant()])
    images = sync.ImageClient(settings(), providers=[Instant()])

    async def await_all() -> None:
        for _ in range(calls):
            await awaited.generate("a lighthouse")

    def call_all(count: int = calls) -> None:
        for _ in range(count):
            images.generate("a lighthouse")

    def call_with_callback() -> None:
        for _ in range(calls):
            images.generate("a lighthouse", on_start=int)

    with images, asyncio.Runner() as runner, ThreadPoolExecutor(THREADS) as threads:
        ways: dict[str, Callable[[], object]] = {
            "awaited": lambda: runner.run(await_all()),
            "sync": call_all,
            "sync, on_start": call_with_callback,
            f"sync, {THREADS} threads": lambda: list(
                threads.map(call_all, [calls // THREADS] * THREADS)
            ),
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, stretch in ways.items():
                found[name].append(per_call(calls, stretch))
        runner.run(awaited.aclose())
    best = {
        name: [min(column) * 1e6 for column in zip(*each, strict=True)]
        for name, each in found.items()
    }
    print(f"{'':16} {'wall µs':>8} {'ratio':>6} {'CPU µs':>8} {'ratio':>6}")
    for name, (wall, cpu) in best.items():
        base_wall, base_cpu = best["awaited"]
        print(f"{name:16} {wall:8.0f} {wall / base_wall:6.2f} {cpu:8.0f} {cpu / base_cpu:6.2f}")


if __name__ == "__main__":
    main()
