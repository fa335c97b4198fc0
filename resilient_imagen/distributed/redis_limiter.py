"""Pacing for all processes together: images per minute from Redis, requests in flight from here.

A place is taken in Redis only for a caller who has a slot in flight waiting for it, so a process
stands in the fleet's queue with at most `max_concurrent` callers, however many it has: whoever
asks first is served first, and no process can crowd out the others. Places are asked for in one
round trip for all who need one; a caller never needs more than one. A place that nobody uses goes
to the next caller here, or back.

While Redis is away this is the ordinary `RateLimiter`, which has kept count all along.

Why not a limiter library: `limits` (5.8) counts windows by the caller's clock, `pyrate-limiter`
(4.5) too; `throttled-py` (3.5) has the same algorithm as we, right and by the server's clock. But
each of them only answers yes, or no with a time to ask again: with callers waiting, that is a
round trip each time, served in the order of luck. None of them hands out the future place, takes
one back, or says when to go on without Redis, and that is all that there is to do here.
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
    """Loop time."""
    name: str
    """By which Redis knows it."""


class RedisRateLimiter(RateLimiter):
    """The queue in front of one provider, paced together with all other processes.

    Args:
        name: The provider, the same in every process.
        fleet: The connection to the others.
        max_concurrent: Requests in flight, in this process.
        per_minute: Images per minute, in all processes.
        burst: Places that may be taken at once after a quiet time.
        max_queue: Callers that may wait, in this process; None for any number.
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
        """Places for callers here, the first one first."""
        self._granted: dict[Slot, _Place] = {}
        self._asked = 0
        """Places that were asked for and not yet answered."""
        self._era = 0
        """Grows when answers that are still to come are not waited for any more."""
        self._next = 0.0
        """Loop time at which the next place was due, when we last heard."""
        coordinator.add(self)

    def _place_wait(self, now: float, ahead: int) -> float:
        """Return the seconds until the pace of all allows a caller with ``ahead`` before it."""
        if not self._coordinator.joined:
            return super()._place_wait(now, ahead)
        spare = len(self._held) - ahead
        if spare > 0:
            return max(0.0, self._held[-spare].due - now)
        return max(0.0, self._next - now) + -spare * self._interval / 1e6

    def snapshot(self) -> QueueSnapshot:
        """As `RateLimiter.snapshot`, and whether the pace is shared at present."""
        return {**super().snapshot(), "shared": self._coordinator.joined}

    # -- member of the fleet ----------------------------------------------------------------------

    def heartbeat(self) -> PendingCommand:
        """Ask how long the queue is, and take nothing."""
        return PendingCommand(self._take(0), self._heard_back)

    def on_update(self, record: BreakerRecord) -> None:
        """Records are about routes."""

    def on_connected(self) -> None:
        """From now on places come from Redis."""
        self._serve()

    def on_disconnected(self) -> None:
        """From now on they come from here; those that are held are still good."""
        self._asked = 0
        self._era += 1
        self._serve()

    def release_commands(self) -> Iterable[ScriptCall]:
        """Give back what is held."""
        held, self._held = self._held, []
        return [self._give_back(held)] if held else []

    # -- the queue --------------------------------------------------------------------------------

    def _release(self, ticket: Slot) -> None:
        place = self._granted.pop(ticket, None)
        if place is not None and not ticket.consumed:
            self._held.insert(0, place)
        super()._release(ticket)

    def _waiting(self) -> int:
        # Whose place is being asked for does not wait yet, if we last heard that one was due.
        now = asyncio.get_running_loop().time()
        on_their_way = self._asked if self._next <= now else 0
        return len(self._queue) - on_their_way

    def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        now = self._now(loop)
        while self._queue and self._held and self._held[0].due - now <= CLOCK_TOLERANCE:
            if self.in_flight == self._max_concurrent:
                break
            ticket = self._grant_first(loop, now)
            if ticket is not None:
                self._granted[ticket] = self._held.pop(0)
        if self._coordinator.joined:
            self._balance()
        else:
            super()._serve()
        # Without a caller, or without a slot, a place that is due would wake the loop for ever.
        if self._held and self._queue and self.in_flight < self._max_concurrent:
            self._schedule_wakeup(loop, self._held[0].due)

    def _reset_clock(self) -> None:
        super()._reset_clock()
        self._held, self._asked, self._next = [], 0, 0.0

    def _balance(self) -> None:
        """Hold, or have asked for, a place for each caller that has a slot; no more."""
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
