"""Shared rate limiter: images per minute of all processes in Redis, requests in flight local.

Redis grants a place shortly before its time, to the workers in turn (`take.lua`). A worker requests
places only for callers with a free concurrency slot. The answer contains the time of its turn, at
which it sends the next request. So a place costs one round trip if no other worker waits, a killed
worker delays the others by seconds, and no process can starve the others.

Without Redis the workers divide the limit: each uses its share by the last known number of workers,
beginning at its position among them, so that all together keep the limit.

Why not a limiter library: `limits` (5.8) and `pyrate-limiter` (4.5) count windows by the caller's
clock. `throttled-py` (3.5) has the same algorithm, by the server's clock. But all of them only
accept or reject with a time to retry, so the order among waiting processes is random. None of them
serves processes in turn, returns a place, or detects that Redis is unavailable, which are the tasks
of this module.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, NamedTuple

from resilient_imagen.distributed.breaker_record import NewerProtocolError
from resilient_imagen.distributed.participant import PendingCommand
from resilient_imagen.distributed.scripts import TAKE, ScriptCall, microseconds
from resilient_imagen.ratelimit.limiter import CLOCK_TOLERANCE, RateLimiter, TokenSchedule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from resilient_imagen.distributed.breaker_record import BreakerRecord
    from resilient_imagen.distributed.coordinator import RedisCoordinator
    from resilient_imagen.ratelimit.limiter import Slot
    from resilient_imagen.snapshots import QueueSnapshot

__all__ = ["RedisRateLimiter"]

_OVERDUE = 1.0
"""Seconds after its time at which a place is lost. A process that was stopped must not use all
places of that time at once."""
_SHRINKS_AFTER = 5.0
"""Seconds after which a lower number of workers is accepted: a Redis that lost its data counts the
workers again from one."""
_SAME_INTERVAL = 1.001
"""Ratio up to which two intervals count as equal."""


class _Place(NamedTuple):
    due: float
    """Loop time from which the place may be used."""
    name: str
    """The name of the place in Redis."""


class _Schedule(NamedTuple):
    """The shared schedule by the last answer. Times are loop times."""

    interval: float
    """Seconds between places: the longest interval of all workers."""
    next: float = 0.0
    """Time of the next place, without bursts."""
    known_next: float = 0.0
    """The same, but not later than the true time; reported in case Redis loses its data."""
    others: int = 0
    """Number of other workers that wait for a place."""
    wanted: int = 0
    """Number of callers of these workers."""
    workers: int = 1
    """Number of all workers."""
    position: int = 0
    """Position of this worker among them, from 0."""


class RedisRateLimiter(RateLimiter):
    """The limiter of one provider, whose images per minute are shared by all processes.

    Args:
        name: The provider, the same in every process.
        coordinator: The connection to the other processes.
        max_concurrent: Maximum of requests in flight in this process.
        per_minute: Images per minute of all processes.
        burst: Places that may be taken at once after an idle time.
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
        kinds = ("pace", "queue", "wants", "pacers", "intervals")
        self._keys = tuple(coordinator.address.key(kind, self.resource) for kind in kinds)
        self._per_minute = per_minute
        self._burst = burst
        self._shared = _Schedule(60.0 / per_minute)
        self._counted_at = 0.0
        """Loop time of the last answer that had at least as many workers."""
        self._newer_protocol = False
        """Whether the data in Redis belong to a newer protocol."""
        self._was_sharing = False
        self._held: list[_Place] = []
        """Places for local callers, in the order of their times."""
        self._granted: dict[Slot, _Place] = {}
        self._returned: list[_Place] = []
        """Unused places that Redis has not received yet."""
        self._asking = False
        """Whether a request for places is not answered yet."""
        self._wanted = 0
        """Number of places that Redis knows to be wanted."""
        self._ask_at = 0.0
        """Loop time at which to ask for them again."""
        self._reset_count = 0
        """Increased to ignore outstanding answers."""
        coordinator.add(self)

    def reconfigure(self, *, max_concurrent: int, per_minute: float, burst: int) -> None:
        """Change the limits; see `RateLimiter.reconfigure`. Places that were taken remain valid.

        The limit of all processes changes when Redis has received the change from each of them.
        """
        self._per_minute, self._burst = per_minute, burst
        super().reconfigure(max_concurrent=max_concurrent, per_minute=per_minute, burst=burst)
        if not self._sharing:
            self._shared = self._shared._replace(interval=60.0 / per_minute)
            self._set_local_schedule(self._last_seen)
            self._serve()

    def _place_wait(self, now: float, ahead: int) -> float:
        """Return the seconds until a shared place is free for a caller with ``ahead`` before it."""
        if not self._sharing:
            return super()._place_wait(now, ahead)
        ahead -= len(self._held)
        if ahead < 0:
            return max(0.0, self._held[ahead].due - now)
        shared = self._shared
        turns = ahead + min(shared.wanted, shared.others * (ahead + 1))
        start = max(shared.next, now) + (turns - self._burst + 1) * shared.interval
        return max(0.0, start - now)

    def snapshot(self) -> QueueSnapshot:
        """Return `RateLimiter.snapshot` and whether the limit is shared at present."""
        return {**super().snapshot(), "shared": self._sharing}

    # Participant

    @property
    def settings(self) -> str:
        """The settings that should be the same in every process."""
        return f"per_minute={self._per_minute:g} burst={self._burst}"

    def heartbeat(self) -> PendingCommand:
        """Return the command that reads the shared schedule and takes no place."""
        return PendingCommand(self._take(), self._answer_to(asking=False))

    def on_update(self, record: BreakerRecord) -> None:
        """Do nothing: records are about breakers."""

    def on_connected(self) -> None:
        """Begin to take places from Redis."""
        self._serve()

    def on_disconnected(self) -> None:
        """Begin to take local places; places from Redis that are held remain valid."""
        self._serve()

    def release_commands(self) -> Iterable[ScriptCall]:
        """Return the command that gives back all held places and leaves the queue."""
        self._returned += self._held
        self._held = []
        return [self._take(leaving=True)]

    # The queue

    @property
    def _sharing(self) -> bool:
        return self._coordinator.joined and not self._newer_protocol

    def _release(self, slot: Slot) -> None:
        place = self._granted.pop(slot, None)
        if place is not None and not slot.consumed:
            self._held.insert(0, place)
        super()._release(slot)

    def _waiting(self) -> int:
        # A caller whose place is being requested does not count as waiting if one is free.
        free = self._shared.others == 0 and self._place_wait(self._last_seen, 0) <= CLOCK_TOLERANCE
        return len(self._queue) - (self._usable_places() if self._sharing and free else 0)

    def _usable_places(self) -> int:
        """Return the number of waiting callers for which there is a concurrency slot."""
        return max(0, min(len(self._queue), self._max_concurrent - self.in_flight))

    def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        now = self._now(loop)
        if self._was_sharing != self._sharing:
            self._was_sharing = self._sharing
            self._set_local_schedule(now)
        self._held = [place for place in self._held if now - place.due <= _OVERDUE]
        while self._held and self._held[0].due - now <= CLOCK_TOLERANCE and self._usable_places():
            slot = self._grant_first(loop, now)
            if slot is not None:
                self._granted[slot] = self._held.pop(0)
        if self._sharing:
            self._update_turn(loop, now)
        else:
            super()._serve()
        # Without a caller or a slot, a due place would wake the loop again and again.
        if self._held and self._usable_places():
            self._schedule_wakeup(loop, self._held[0].due)

    def take_free(self) -> None:
        """Return None: every caller queues, because Redis may have to be asked for a place."""

    def _grant_first(self, loop: asyncio.AbstractEventLoop, now: float) -> Slot | None:
        slot = super()._grant_first(loop, now)
        if slot is not None and not self._sharing:
            shared = self._shared
            known_next = max(shared.known_next, now + shared.interval)
            self._shared = shared._replace(known_next=known_next)
        return slot

    def _set_local_schedule(self, now: float) -> None:
        """Without Redis, use this worker's share of the limit, at its position among others."""
        if self._sharing:
            self._schedule = TokenSchedule(self._per_minute, self._burst)
            return
        shared = self._shared
        if shared.workers == 1:
            self._schedule = TokenSchedule(self._per_minute, self._burst, first=shared.next)
            return
        # One interval more than its position, because another worker may have taken a place since
        # the last answer.
        self._schedule = TokenSchedule(
            60.0 / (shared.interval * shared.workers),
            burst=1,
            first=max(shared.next, now) + (shared.position + 1) * shared.interval,
        )

    def _wake(self) -> None:
        now = asyncio.get_running_loop().time()
        if not self._sharing and now - self._timer_at > _OVERDUE:
            self._set_local_schedule(now)  # all workers of a stopped machine wake at once
        super()._wake()

    def _drop_closed_loops(self) -> None:
        super()._drop_closed_loops()
        self._reset_shared()  # another loop runs: outstanding answers belong to the last one

    def _reset_clock(self) -> None:
        super()._reset_clock()
        self._reset_shared()

    def _reset_shared(self) -> None:
        self._held, self._returned = [], []
        self._shared = _Schedule(self._shared.interval)
        self._asking, self._wanted = False, 0
        self._reset_count += 1

    def _update_turn(self, loop: asyncio.AbstractEventLoop, now: float) -> None:
        """Request places if the number of wanted ones has changed or the turn has come."""
        usable = self._usable_places()
        self._returned += self._held[usable:]
        self._held = self._held[:usable]
        if self._asking:
            return
        wanted = usable - len(self._held)
        if self._returned or wanted != self._wanted or (wanted and now >= self._ask_at):
            self._asking = True
            # One command for all callers of this iteration of the loop.
            loop.call_soon(self._ask, self._reset_count)
        elif wanted:
            self._schedule_wakeup(loop, self._ask_at)

    def _ask(self, reset_count: int) -> None:
        if reset_count != self._reset_count:
            return
        wanted = self._usable_places() - len(self._held)
        command = self._take(want=max(wanted, 0))
        self._asking = self._coordinator.post(command, self._answer_to(asking=True))

    def _answer_to(self, *, asking: bool) -> Callable[[Any], None]:
        sent_at = self._now(asyncio.get_running_loop())  # may reset the shared schedule
        reset_count = self._reset_count

        def answered(answer: Any) -> None:
            if reset_count != self._reset_count:
                return
            if asking:
                self._asking = False
            if answer is not None:
                self._note(json.loads(answer), sent_at)
            self._serve()

        return answered

    def _note(self, answer: dict[str, Any], sent_at: float) -> None:
        try:
            NewerProtocolError.check(answer)
        except NewerProtocolError as error:
            self._newer_protocol = True
            self._coordinator.warn_newer_protocol(error.protocol)
            return
        self._newer_protocol = False
        now = asyncio.get_running_loop().time()
        places: Sequence[tuple[int, str]] = answer["places"] or ()
        for wait, name in places:
            # An answer that was not read in time may contain places whose time has passed.
            late = now - sent_at - wait / 1e6 > _OVERDUE
            self._held += [] if late else [_Place(now + wait / 1e6, name)]
        self._held.sort()
        wait = answer["next"] / 1e6
        workers, position = max(answer["workers"], 1), answer["position"]
        if workers < self._shared.workers and now - self._counted_at < _SHRINKS_AFTER:
            workers, position = self._shared.workers, self._shared.position
        else:
            self._counted_at = now
        self._shared = _Schedule(
            answer["interval"] / 1e6,
            now + wait,
            sent_at + wait,
            answer["others"],
            answer["wanted"],
            workers,
            position,
        )
        self._wanted = answer["want"]
        self._ask_at = now + answer["again"] / 1e6
        self._warn_of_other_limits()

    def _warn_of_other_limits(self) -> None:
        own = 60.0 / self._per_minute
        if self._shared.interval > own * _SAME_INTERVAL:
            self._coordinator.warn_different_settings(
                self.resource,
                f"{self._per_minute:g} images per minute here and {60.0 / self._shared.interval:g} "
                "there, and the lower limit applies to all",
            )

    def _take(self, *, want: int | None = None, leaving: bool = False) -> ScriptCall:
        returned, self._returned = self._returned, []
        interval = self._shared.interval
        # Half an interval is tolerance: a delayed command must not push the schedule ahead.
        ahead = self._shared.known_next - asyncio.get_running_loop().time() - interval / 2
        arguments = {
            "worker": self._coordinator.worker,
            "interval": microseconds(60.0 / self._per_minute),
            "burst": self._burst,
            "known": self._shared.next > 0,
            "ahead": microseconds(max(ahead, 0.0)),
            "returned": [place.name for place in returned],
            "leaving": leaving,
        }
        if want is not None:
            arguments["want"] = want
        return ScriptCall(TAKE, self._keys, arguments)
