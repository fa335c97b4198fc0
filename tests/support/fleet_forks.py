"""Fork test: a client that is created and used before the process forks, as in preloading servers.

Run it with a Redis URL. It prints one line of JSON, a list with the results of each child process.
The children have an outage together, and call again at the same time.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import sys
from typing import Any

from loop_kit import PATIENCE, LoopScenario, until

CHILDREN = 3
PROBE = 1.0
"""Seconds of a successful request."""


def live(scenario: LoopScenario, number: int, together: Any, results: Any) -> None:
    """Run one child process."""

    async def main() -> None:
        async def meet() -> None:
            await asyncio.to_thread(together.wait, PATIENCE)

        async with scenario.client:
            await scenario.client.warm_up()
            await meet()
            if number == 0:
                await scenario.open_breaker()
            await until(lambda: scenario.state == "open")
            scenario.google.latency = PROBE
            scenario.google.sent.clear()
            await asyncio.sleep(1.2)  # until the open period is over
            await meet()
            await scenario.ask()
            coordinator = scenario.client.snapshot()["fleet"]
            assert coordinator is not None
            results.put({**coordinator, "sent": [each.at for each in scenario.google.sent]})

    asyncio.run(main())


if __name__ == "__main__":
    scenario = LoopScenario(sys.argv[1], breaker_reset_timeout=1.0)
    asyncio.run(scenario.ask())
    fork = multiprocessing.get_context("fork")
    together, results = fork.Barrier(CHILDREN), fork.Queue()
    children = [
        fork.Process(target=live, args=(scenario, number, together, results))
        for number in range(CHILDREN)
    ]
    for child in children:
        child.start()
    sys.stdout.write(json.dumps([results.get(timeout=2 * PATIENCE) for _ in children]) + "\n")
    for child in children:
        child.join()
