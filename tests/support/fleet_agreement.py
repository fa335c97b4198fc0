"""Fleet agreement: an outage and a recovery of a fleet of any size, on virtual time.

Each worker is 1 ms from Redis, whose Lua scripts are the real ones. It makes an image of 10 s and
pauses for 10 s, until the vendor fails.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from fake_redis import FakeRedisCluster
from fleet_kit import Worker

from resilient_imagen.circuitbreaker import Permit
from resilient_imagen.distributed import SharedOrders
from resilient_imagen.reasons import BreakerOutcome, Reason

TURN = 10.0
"""Seconds that an image takes, and then a rest."""


@dataclass
class Agreement:
    """One fleet's outage and recovery."""

    failed: int
    under_way: int
    """Failed requests that were in flight at the third failure."""
    later: int
    """Failed requests that were sent after the third failure."""
    probes: int
    opened_s: float
    """Seconds from the third failure until all workers know."""
    closed_s: float
    """Seconds from the probe's success until all workers know."""
    messages: int
    """Messages that were delivered for the opening."""
    idle_steps: float
    """Commands per second of all workers, without calls."""
    idle_trips: float


async def agree(size: int, *, deaf: bool) -> Agreement:
    """Simulate an outage, and a recovery that one worker probes; ``deaf`` loses all messages."""
    now, chance = asyncio.get_running_loop().time, random.Random(5)
    cluster, down, failed = FakeRedisCluster(), asyncio.Event(), list[tuple[float, float]]()
    workers = [Worker(cluster, per_minute=60_000_000) for _ in range(size)]
    orders = [SharedOrders(worker.coordinator, lambda *_: None, dict) for worker in workers]

    async def caller(worker: Worker) -> None:
        """Send requests, and record start and end of those that fail."""
        await asyncio.sleep(chance.uniform(0, 2 * TURN))
        while True:
            answer = await worker.admit()
            if isinstance(answer, Permit):
                sent = now()
                await asyncio.sleep(chance.uniform(0.8, 1.2) * TURN)
                if down.is_set():
                    failed.append((sent, now()))
                    answer.settle(BreakerOutcome.FAILURE, cause=Reason.OVERLOADED, summary="503")
                else:
                    answer.settle(BreakerOutcome.SUCCESS)
            await asyncio.sleep(chance.uniform(0.8, 1.2) * TURN)

    await asyncio.gather(*(worker.coordinator.ready() for worker in workers))
    await asyncio.sleep(25)  # until heartbeats are spread
    steps, trips = cluster.store.steps, cluster.trips
    await asyncio.sleep(20)
    idle_steps, idle_trips = (cluster.store.steps - steps) / 20, (cluster.trips - trips) / 20
    for worker in workers if deaf else ():
        worker.connection.drops_messages = True

    callers = [asyncio.ensure_future(caller(worker)) for worker in workers]
    await asyncio.sleep(6 * TURN)
    down.set()
    messages = cluster.deliveries
    opened = await agreed(workers, "open")
    messages = cluster.deliveries - messages
    await asyncio.sleep(2 * TURN)  # until all requests have ended
    for each in callers:
        each.cancel()
    third = sorted(end for _, end in failed)[2]

    await asyncio.sleep(61)
    asked = await asyncio.gather(*(worker.admit() for worker in workers))
    probes = [answer for answer in asked if isinstance(answer, Permit)]
    well = now()
    for probe in probes:
        probe.settle(BreakerOutcome.SUCCESS)
    closed = await agreed(workers, "closed")
    await asyncio.gather(*(worker.coordinator.aclose() for worker in workers))
    assert len(orders) == size  # the coordinator itself keeps weak references only
    return Agreement(
        failed=len(failed),
        under_way=sum(sent <= third < end for sent, end in failed),
        later=sum(sent > third for sent, _ in failed),
        probes=len(probes),
        opened_s=opened - third,
        closed_s=closed - well,
        messages=messages,
        idle_steps=idle_steps,
        idle_trips=idle_trips,
    )


async def agreed(workers: list[Worker], state: str) -> float:
    """Return the time at which the last worker is in a state."""
    for worker in workers:
        while worker.state != state:
            await worker.breaker.wait_for_change()
    return asyncio.get_running_loop().time()
