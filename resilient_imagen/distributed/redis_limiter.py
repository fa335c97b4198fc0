"""Shared rate limiter: images per minute of all processes in Redis, requests in flight local.

A place is requested from Redis only for a caller with a free concurrency slot. So each process has
at most `max_concurrent` callers in the shared queue, which is served first in, first out, and no
process can crowd out the others. One round trip requests places for all callers that need one. An
unused place goes to the next local caller, or back to Redis.

Without Redis it works as a local `RateLimiter`, which counts all requests in any case.

Why not a limiter library: `limits` (5.8) and `pyrate-limiter` (4.5) count windows by the caller's
clock. `throttled-py` (3.5) has the same algorithm, by the server's clock. But all of them only
accept or reject with a time to retry, so each waiting caller needs a round trip for each try, and
the order is random. None of them reserves a future place, takes one back, or detects that Redis is
unavailable, and this module consists of exactly that.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

from resilient_imagen.distributed.participant import PendingCommand
from resilient_imagen.distributed.scripts import GIVE_BACK, TAKE, ScriptCall, microseconds
from resilient_imagen.ratelimit.limiter import CLOCK_TOLERANCE, RateLimiter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from resilient_imagen.distributed.breaker_record import BreakerRecord
    from resilient_imagen.distributed.coordinator import RedisCoordinator
    from resilient_imagen.ratelimit.limiter import Slot
    from resilient_imagen.snapshots import QueueSnapshot

__all__ = ["RedisRateLimiter"]


class _Place(NamedTuple):
    due: float
    """Loop time from which the place may be used."""
    name: str
    """The name of the place in Redis."""


class RedisRateLimiter(RateLimiter):
    """The limiter of one provider, whose images per minute are shared by all processes.

    Args:
        name: The provider, the same in every process.
        fleet: The connection to the other processes.
        max_concurrent: Maximum of requests in flight in this process.
        per_minute: Images per minute of all processes.
        burst: Places that may be taken at once after a quiet time.
        max_queue: Maximum of waiting callers in this process; None for no maximum.
    """

    def __init__(
        self,
        name: str,
        *,
        coordinator: RedisCoordinator,
        max_concurrent: int,
        per_minute: float,
        burst: int = 1,
        max_queue: int | None = None,
    ) -> None:
        super().__init__(
            max_concurrent=max_concurrent, per_minute=per_minute, burst=burst, max_queue=max_queue
        )
        self.resource: str = coordinator.resource_name(name)
        self._coordinator = coordinator
        self._keys = tuple(
            coordinator.address.key(kind, self.resource) for kind in ("pace", "free")
        )
        self._interval = microseconds(60.0 / per_minute)
        self._slack = (burst - 1) * self._interval
        self._held: list[_Place] = []
        """Places for local callers, in the order of their times."""
        self._granted: dict[Slot, _Place] = {}
        self._asked = 0
        """Number of places that are requested and not yet granted."""
        self._era = 0
        """Increased to ignore outstanding answers."""
        self._next = 0.0
        """Loop time of the next shared place, by the last answer."""
        coordinator.add(self)

    def _place_wait(self, now: float, ahead: int) -> float:
        """Return the seconds until a shared place is free for a caller with ``ahead`` before it."""
        if not self._coordinator.joined:
            return super()._place_wait(now, ahead)
        spare = len(self._held) - ahead
        if spare > 0:
            return max(0.0, self._held[-spare].due - now)
        return max(0.0, self._next - now) + -spare * self._interval / 1e6

    def snapshot(self) -> QueueSnapshot:
        """Return `RateLimiter.snapshot` and whether the limit is shared at present."""
        return {**super().snapshot(), "shared": self._coordinator.joined}

    # -- participant ------------------------------------------------------------------------------

    def heartbeat(self) -> PendingCommand:
        """Return the command that reads the shared queue without taking a place."""
        return PendingCommand(self._take(0), self._heard_back)

    def on_update(self, record: BreakerRecord) -> None:
        """Do nothing: records are about breakers."""

    def on_connected(self) -> None:
        """Begin to take places from Redis."""
        self._serve()

    def on_disconnected(self) -> None:
        """Begin to take local places; places from Redis that are held remain valid."""
        self._asked = 0
        self._era += 1
        self._serve()

    def release_commands(self) -> Iterable[ScriptCall]:
        """Return the commands that give back all held places."""
        held, self._held = self._held, []
        return [self._give_back(held)] if held else []

    # -- the queue --------------------------------------------------------------------------------

    def _release(self, slot: Slot) -> None:
        place = self._granted.pop(slot, None)
        if place is not None and not slot.consumed:
            self._held.insert(0, place)
        super()._release(slot)

    def _waiting(self) -> int:
        # A caller whose place is requested does not count as waiting if a place was due already.
        now = asyncio.get_running_loop().time()
        on_their_way = self._asked if self._next <= now else 0
        return len(self._queue) - on_their_way

    def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        now = self._now(loop)
        while self._queue and self._held and self._held[0].due - now <= CLOCK_TOLERANCE:
            if self.in_flight == self._max_concurrent:
                break
            slot = self._grant_first(loop, now)
            if slot is not None:
                self._granted[slot] = self._held.pop(0)
        if self._coordinator.joined:
            self._balance()
        else:
            super()._serve()
        # Without a caller or a slot, a due place would wake the loop again and again.
        if self._held and self._queue and self.in_flight < self._max_concurrent:
            self._schedule_wakeup(loop, self._held[0].due)

    def _reset_clock(self) -> None:
        super()._reset_clock()
        self._held, self._asked, self._next = [], 0, 0.0

    def _balance(self) -> None:
        """Request or return places so that there is one for each caller that could get a slot."""
        wanted = min(len(self._queue), self._max_concurrent - self.in_flight)
        missing = wanted - len(self._held) - self._asked
        if missing > 0:
            taken = self._coordinator.post(self._take(missing), self._answer_to(missing))
            self._asked += missing if taken else 0
        elif missing < 0 and self._held:
            kept = max(0, len(self._held) + missing)
            surplus, self._held = self._held[kept:], self._held[:kept]
            self._coordinator.post(self._give_back(surplus))
            if surplus:
                self._next = min(self._next, surplus[0].due)

    def _answer_to(self, asked: int) -> Callable[[Any], None]:
        era = self._era

        def answered(answer: Any) -> None:
            if era == self._era:
                self._asked -= asked
                self._heard_back(answer)
                self._serve()

        return answered

    def _heard_back(self, answer: Any) -> None:
        if answer is not None:
            self._note(answer)

    def _note(self, answer: list[Any]) -> None:
        now = asyncio.get_running_loop().time()
        *places, wait = answer
        for place_wait, name in zip(places[::2], places[1::2], strict=True):
            self._held.append(_Place(now + int(place_wait) / 1e6, name.decode()))
        self._held.sort()
        self._next = now + int(wait) / 1e6

    def _take(self, count: int) -> ScriptCall:
        return ScriptCall(TAKE, self._keys, (count, self._interval, self._slack))

    def _give_back(self, places: list[_Place]) -> ScriptCall:
        names = [place.name for place in places]
        return ScriptCall(GIVE_BACK, self._keys, (self._interval, self._slack, *names))
