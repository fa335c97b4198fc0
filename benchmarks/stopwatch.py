"""A stopwatch for awaitables; only Python is needed, so any environment can import it."""

import time
from collections.abc import Awaitable, Callable

Once = Callable[[], Awaitable[object]]
STRETCHES = 9


async def best(
    calls: int, clock: Callable[[], float] = time.process_time, **ways: Once
) -> dict[str, float]:
    """Return the microseconds of a call each way: the best of several stretches, in turn.

    Other work of the machine can only add to a stretch.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(STRETCHES):
        for name, once in ways.items():
            began = clock()
            for _ in range(calls):
                await once()
            found[name].append((clock() - began) / calls * 1e6)
    return {name: min(each) for name, each in found.items()}
