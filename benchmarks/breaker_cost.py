"""What a guarded call costs, and that memory does not grow over ten million of them.

    python benchmarks/breaker_cost.py            # CALLS=10000000 by default, about two minutes

Times are the best of several rounds on the event loop, per call: admit, begin and settle of a
success; the same as `async with ours.guard()`; a rejection; and the same with slow calls watched.
Beside them, what pybreaker's own synchronous `call` costs, which is inside ours.
"""

from __future__ import annotations

import asyncio
import os
import resource
import time
import tracemalloc
from typing import TYPE_CHECKING

import pybreaker

from resilient_imagen.circuitbreaker import BreakerConfig, CircuitBreaker, Permit
from resilient_imagen.reasons import BreakerOutcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ROUND = 20_000
ROUNDS = 7
CALLS = int(os.environ.get("CALLS", "10000000"))


def guarded(ours: CircuitBreaker, verdict: BreakerOutcome = BreakerOutcome.SUCCESS) -> None:
    permit = ours.acquire()
    if isinstance(permit, Permit):
        permit.begin()
        permit.settle(verdict)


async def permits(ours: CircuitBreaker) -> None:
    for _ in range(ROUND):
        guarded(ours)


async def guards(ours: CircuitBreaker) -> None:
    for _ in range(ROUND):
        async with ours.protect():
            pass


async def nothing(ours: CircuitBreaker) -> None:
    del ours
    breaker = pybreaker.CircuitBreaker()
    for _ in range(ROUND):
        breaker.call(int)


async def best(work: Callable[[CircuitBreaker], Awaitable[None]], ours: CircuitBreaker) -> float:
    """Microseconds a call."""
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        await work(ours)
        times.append(time.perf_counter() - began)
    return min(times) / ROUND * 1e6


async def costs() -> dict[str, float]:
    rejecting = CircuitBreaker("service", BreakerConfig())
    rejecting.force_open = True
    watching = CircuitBreaker("service", BreakerConfig(slow_call=30.0))
    return {
        "admit + begin + settle": await best(permits, CircuitBreaker("service", BreakerConfig())),
        "async with ours.guard()": await best(guards, CircuitBreaker("service", BreakerConfig())),
        "... with slow calls watched": await best(permits, watching),
        "a rejection": await best(permits, rejecting),
        "pybreaker's synchronous call alone": await best(nothing, rejecting),
    }


async def memory() -> tuple[int, int]:
    """Bytes that Python holds after a tenth of the calls, and after all of them."""
    config = BreakerConfig(fail_max=3, reset_timeout=1.0, reset_max=1.0, slow_call=0.5)
    now = 0.0
    ours = CircuitBreaker("service", config, clock=lambda: now)
    ours.subscribe(lambda _transition: None)
    held = []
    for number in range(CALLS):
        now += 0.01
        guarded(ours, BreakerOutcome.FAILURE if number % 11 < 4 else BreakerOutcome.SUCCESS)
        if number % 1000 == 0:
            ours.wait_for_change().cancel()
            await asyncio.sleep(0)
        if number in {CALLS // 10, CALLS - 1}:
            held.append(tracemalloc.get_traced_memory()[0])
    return held[0], held[1]


def main() -> int:
    for name, cost in asyncio.run(costs()).items():
        print(f"{name:40} {cost:6.2f} us")
    tracemalloc.start()
    before, after = asyncio.run(memory())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{CALLS:,} calls through closed, open and half-open: {before:,} B held after a tenth,")
    print(f"{after:,} B at the end; resident at most {peak / 1024:.0f} MiB")
    return 0 if after < before + 20_000 else 1


if __name__ == "__main__":
    raise SystemExit(main())
