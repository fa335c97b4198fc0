"""A breaker that the whole fleet shares: one opening, one probe, one recovery for all processes.

Asking it does no I/O. The breaker is a mirror of the route's record in Redis, kept fresh by the
fleet's background task: every change is told to all at once, and a check-in each second makes up
for news that got lost. What happens here is told in the other direction, fenced by the generation
of the state it was seen in.

Who opens what:

- What this process sees counts in its own circuit, by its own rules. That opens for itself, at
  once, whatever the others say (`BreakerStateMachine`).
- It also counts in the fleet's record, with the quorum rule of `fleet/lua/vote.lua`. That opens for
  everybody. What may be one worker's own trouble needs a second worker, for as long as there is
  one, busy or not: until another one asks, and fails, who sees it stays away by itself.
- A hint of the server or a used-up quota concerns the account: it opens for everybody at once.
- While the fleet's record is open or half-open, a probe needs its lease. `try_acquire_early` gives
the permit
  right away and asks for the lease meanwhile; until it is there the permit is `stale`, so it is
  not sent. The place in the limiter's queue is asked for after it and on the same connection, so
  the answer is always there in time.

Without Redis it is an ordinary breaker. What it learned alone about the account or about the
fleet's
opening (a hint, a used-up quota, how a probe ended), it tells when it is back; that requests failed
in a row stays its own.

A store that loses its memory, or whose clock jumps ahead, ends leases before their time: while a
probe is on its way one more may then be sent, and a newcomer that asks before the first check-in
has told the new store of an opening sends one request.
"""

from __future__ import annotations

import random as _random
from typing import TYPE_CHECKING, Any

from resilient_imagen.circuitbreaker.breaker import CircuitBreaker
from resilient_imagen.circuitbreaker.config import BreakerMode
from resilient_imagen.circuitbreaker.open_period import (
    TripCause,
    longest_duration,
    open_duration,
    valid_hint,
)
from resilient_imagen.circuitbreaker.permit import Permit
from resilient_imagen.circuitbreaker.types import BreakerState
from resilient_imagen.circuitbreaker.window import trips_at_once
from resilient_imagen.distributed.breaker_commands import SharedBreakerCommands, answered
from resilient_imagen.distributed.breaker_record import UNKNOWN_RECORD, BreakerRecord
from resilient_imagen.distributed.participant import PendingCommand
from resilient_imagen.distributed.replicated_state_machine import ReplicatedStateMachine
from resilient_imagen.reasons import BreakerOutcome, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from resilient_imagen.circuitbreaker.calls import InFlightCall
    from resilient_imagen.circuitbreaker.config import BreakerConfig
    from resilient_imagen.circuitbreaker.state_machine import BreakerStateMachine
    from resilient_imagen.circuitbreaker.types import BreakerSnapshot, Counted, Rejection
    from resilient_imagen.distributed.coordinator import RedisCoordinator
    from resilient_imagen.distributed.scripts import ScriptCall

__all__ = ["RedisCircuitBreaker"]

_CLOSED, _OPEN = BreakerState.CLOSED, BreakerState.OPEN


class RedisCircuitBreaker(CircuitBreaker):
    """A `CircuitBreaker` that the fleet's news move, and that tells the fleet what it sees.

    Args:
        name: `provider:model`, the same in every process.
        config: The numbers; they should be the same in every process.
        fleet: The connection to the others.
        random: Returns 0 to 1 for the jitter.
    """

    _machine: ReplicatedStateMachine

    def __init__(
        self,
        name: str,
        config: BreakerConfig,
        *,
        coordinator: RedisCoordinator,
        random: Callable[[], float] = _random.random,
    ) -> None:
        self._coordinator = coordinator
        self._record = UNKNOWN_RECORD
        self._leases: dict[InFlightCall, str] = {}
        """Probes and the tokens that were asked for, or are held, for them."""
        self._tokens = 0
        self._knows_better = False
        """What the circuit learned about the record's present state has not reached it yet."""
        self.resource = coordinator.resource_name(name)
        self._commands = SharedBreakerCommands(coordinator, self.resource)
        super().__init__(name, config, random=random)
        coordinator.add(self)

    def acquire(self) -> Permit | Rejection:
        """Acquire a permit just before sending.

        Probes that need a Redis lease must be acquired through `try_acquire_early`.
        """
        answer = super().acquire()
        if not isinstance(answer, Permit) or not (answer.probe and answer.stale):
            return answer
        answer.settle(BreakerOutcome.NEUTRAL)
        with self._lock:
            return self._rejection()

    def force_trip(
        self,
        *,
        cause: str | None,
        brief: str | None = None,
        retry_after: float | None = None,
        origin: object | None = None,
    ) -> None:
        """Open now: what a sibling route learned holds here too; the others hear of it."""
        super().force_trip(cause=cause, brief=brief, retry_after=retry_after, origin=origin)
        with self._lock:
            if self._machine.config.mode is not BreakerMode.OFF:
                self._tell(
                    "failure", BreakerOutcome.TRIP, TripCause(cause, brief, origin, retry_after)
                )

    def snapshot(self) -> BreakerSnapshot:
        """As `CircuitBreaker.snapshot`, with the fleet's record as far as it is known."""
        record = self._record
        return {
            **super().snapshot(),
            "fleet": {
                "joined": self._coordinator.joined,
                "state": record.state.value,
                "openings_in_a_row": record.openings,
                "why": record.cause,
            },
        }

    # -- member of the fleet ----------------------------------------------------------------------

    def heartbeat(self) -> PendingCommand:
        """What the record does not know yet; else just a sign of life."""
        with self._lock:
            self._catch_up()
            record, circuit = self._record, self._machine
            if self._knows_better and circuit.state is _CLOSED:
                needed = circuit.config.half_open_calls
                return PendingCommand(
                    self._commands.settled(record, circuit, "", needed), self._claimed
                )
            if self._knows_better and circuit.state is _OPEN:
                return PendingCommand(self._commands.opened(record, circuit, "seen"), self._claimed)
            if record.state is not _CLOSED and circuit.state is not _CLOSED:
                # Should the store have lost its memory, here is ours.
                return PendingCommand(
                    self._commands.opened(record, circuit, "memory"), self._heard_back
                )
            return PendingCommand(self._commands.alive(record, circuit), self._heard_back)

    def on_update(self, record: BreakerRecord) -> None:
        """A change of the record was told to all."""
        if record.epoch == self._record.epoch:  # else the next check-in says what became of it
            self._adopt(record)

    def on_connected(self) -> None:
        """Nothing to do: the check-in was answered."""

    def on_disconnected(self) -> None:
        """Nobody's probe is waited for any more."""
        with self._update():
            self._machine.probe_elsewhere(0.0)

    def release_commands(self) -> Iterable[ScriptCall]:
        """Give back what is held."""
        with self._lock:
            released = [self._commands.released(token) for token in self._leases.values()]
        return [*released, self._commands.left()]

    def _believed(self, record: BreakerRecord) -> BreakerRecord:
        """The record; with an opening that no worker can have meant, one that is over.

        The store is told to end it, too, so that the next probe gets its lease.
        """
        longest = longest_duration(self._machine.config, record.cause)
        if record.state is not _OPEN or record.left <= longest:
            return record
        self._coordinator.post(self._commands.shortened(record, longest), self._heard_back)
        return record._replace(left=0.0)

    def _claimed(self, answer: Any) -> None:
        if answer is not None:
            self._knows_better = False
            self._adopt(BreakerRecord.parse(answer))

    def _heard_back(self, answer: Any) -> None:
        if answer is not None:
            self._adopt(BreakerRecord.parse(answer))

    def _adopt(self, record: BreakerRecord, *, again: bool = False) -> None:
        with self._lock:
            self._coordinator.workers = max(record.workers, 1)
            before = self._record
            same_epoch = record.epoch == before.epoch
            if same_epoch and record.version < before.version + (not again):
                return
            self._catch_up()
            record = self._believed(record)
            self._record = record
            same_state = same_epoch and record.generation == before.generation
            if not same_state:
                self._knows_better = False
            self._machine.adopt(
                record, before, same_state=same_state, holds_lease=bool(self._leases)
            )
            self._set_timer()
        self._listeners.deliver()

    def _on_state_change(self, old: BreakerState, new: BreakerState) -> None:
        super()._on_state_change(old, new)
        if old is _OPEN and new is _CLOSED and self._record.state is _OPEN:
            # A hint is over: the record closes at the first step that finds it so.
            self._coordinator.post(
                self._commands.alive(self._record, self._machine), self._heard_back
            )

    # -- peer of the circuit (with the lock held) -------------------------------------------------

    def wants_lease(self, probe: InFlightCall) -> bool:
        """Ask for the lease, if the opening is the fleet's and the fleet is in reach."""
        if self._record.state is _CLOSED:
            return False
        self._tokens += 1
        token = f"{self._coordinator.worker}:{self._tokens}"
        asked = self._coordinator.post(
            self._commands.wanted(self._machine, token),
            lambda answer: self._lease_answered(probe, answer),
        )
        if asked:
            self._leases[probe] = token
        return asked

    def sent(self, call: InFlightCall) -> None:
        """The lease lasts as long as a probe may take, from its sending."""
        if call in self._leases:
            self._coordinator.post(self._commands.wanted(self._machine, self._leases[call]))

    def counted(
        self, call: InFlightCall, counted: Counted, verdict: BreakerOutcome, why: TripCause
    ) -> None:
        """Tell what it means for everybody."""
        token = self._leases.pop(call, None)
        if counted not in {"stale", "ignored"}:
            if self._record.state is _CLOSED:
                self._tell(counted, verdict, why)
            elif call.probe:
                self._conclude(token or "", at_once=trips_at_once(verdict, why.retry_after))
                return
        if token is not None:
            self._coordinator.post(self._commands.released(token), self._heard_back)
        opening = self._machine.open_period
        if counted == "stale" and opening is not None and opening.cause is why:
            # It has lengthened our opening, and so it may lengthen the fleet's.
            self._knows_better |= self._record.state is _OPEN
            late = self._commands.opened(self._record, self._machine, "late")
            self._coordinator.post(late, self._claimed)

    def _lease_answered(self, probe: InFlightCall, answer: Any) -> None:
        record = None if answer is None else BreakerRecord.parse(answer)
        if record is not None:
            self._adopt(record, again=not record.granted)
        with self._update():
            if record is None:
                self._leases.pop(probe, None)
                self._machine.agree(probe)  # without Redis, a probe needs no lease
            elif record.granted:
                self._machine.agree(probe)
            else:
                self._leases.pop(probe, None)
                self._machine.refuse(probe, record.lease)

    def _conclude(self, token: str, *, at_once: bool) -> None:
        """A probe's outcome, in the fleet's half-open round."""
        record, circuit, phrases = self._record, self._machine, self._commands
        if circuit.state is _OPEN:
            basis = "told" if at_once else "seen"
            self._claim(phrases.opened(record, circuit, basis, token=token))
        elif circuit.state is _CLOSED:
            needed = circuit.config.half_open_calls
            self._claim(phrases.settled(record, circuit, token, needed))
        else:
            self._coordinator.post(phrases.settled(record, circuit, token, 1), self._heard_back)

    def _tell(self, counted: Counted, verdict: BreakerOutcome, why: TripCause) -> None:
        """An outcome, in the fleet's closed state."""
        record, circuit, hint = self._record, self._machine, valid_hint(why.retry_after)
        at_once = trips_at_once(verdict, why.retry_after)
        if counted == "success":
            self._coordinator.post(self._commands.succeeded(record, circuit), self._heard_back)
        elif at_once and (verdict is BreakerOutcome.THROTTLED or answered(why)):
            self._claim(self._commands.opened(record, circuit, "told"))
        else:
            if circuit.state is _OPEN and circuit.open_period is not None:
                seconds = circuit.open_period.until - circuit.now
            else:
                seconds = open_duration(circuit.config, 1, hint, self._random)
            step = self._commands.failed(
                record,
                circuit,
                TripCause(Reason.TIMEOUT, "timed out") if counted == "slow" else why,
                weight=circuit.config.fail_max if at_once else 1,
                in_window=counted != "throttled",
                pause=seconds,
            )
            self._coordinator.post(step, self._heard_back)

    def _claim(self, step: ScriptCall) -> None:
        """Something that must reach the record: if it does not now, it does on joining again."""
        self._knows_better = True
        self._coordinator.post(step, self._claimed)

    def _new_machine(self, config: BreakerConfig) -> BreakerStateMachine:
        return ReplicatedStateMachine(
            config,
            self._random,
            self._on_state_change,
            self._on_place_freed,
            self._waiters.wake,
            self,
        )
