"""A circuit breaker that all processes share over Redis: one opening, one probe, one recovery.

Acquiring a permit does no I/O. The breaker mirrors the route's record in Redis. The background task
keeps the mirror current: every change is published to all processes, and a heartbeat each second
recovers lost messages. Local outcomes are sent to Redis with the generation of the state in which
they occurred, so that late ones are ignored.

Rules for opening:

- Local outcomes count in the local state machine by its own rules. It opens at once, for this
  process only.
- Local outcomes also count in the shared record, by the quorum rule of `vote.lua`. It opens for all
  processes. A failure that may be local to one worker opens the shared breaker only after a second
  worker confirms it. Until then only the reporting worker's own breaker is open.
- A server's hint or an exhausted quota concerns the account, so it opens for all processes at once.
- While the shared record is open or half-open, a probe needs its lease. `try_acquire_early` returns
  the permit immediately and requests the lease. Until the lease is granted the permit is `stale`,
  so it is not sent. The rate limiter's slot is requested later on the same connection, so the
  answer to the lease always arrives first.

Without Redis it works as a local breaker. Knowledge about the account or the shared opening (a
hint, an exhausted quota, the result of a probe) is sent when the connection returns; consecutive
failures stay local.

If Redis loses its data or its clock jumps ahead, leases end early: one more probe may be sent while
another is in flight, and a new process that asks before the first heartbeat has restored an opening
sends one request.
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
    """A `CircuitBreaker` that replicates its state to and from other processes.

    Args:
        name: `provider:model`, the same in every process.
        config: The settings; they should be the same in every process.
        coordinator: The connection to the other processes.
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
        """The tokens of the leases that probes have requested or hold."""
        self._tokens = 0
        self._knows_better = False
        """Whether Redis has not yet received local knowledge about the current state."""
        self.resource: str = coordinator.resource_name(name)
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
        summary: str | None = None,
        retry_after: float | None = None,
        origin: object | None = None,
    ) -> None:
        """Open now, as `CircuitBreaker.force_trip`, and report it to the other processes."""
        super().force_trip(cause=cause, summary=summary, retry_after=retry_after, origin=origin)
        with self._lock:
            if self._machine.config.mode is not BreakerMode.OFF:
                self._report(
                    "failure", BreakerOutcome.TRIP, TripCause(cause, summary, origin, retry_after)
                )

    def snapshot(self) -> BreakerSnapshot:
        """Return the local snapshot with the last known shared record."""
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

    # Participant

    def heartbeat(self) -> PendingCommand:
        """Return the local state if Redis has not received it yet, otherwise a plain heartbeat."""
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
                # Restore the record in case Redis has lost its data.
                return PendingCommand(
                    self._commands.opened(record, circuit, "memory"), self._heard_back
                )
            return PendingCommand(self._commands.alive(record, circuit), self._heard_back)

    def on_update(self, record: BreakerRecord) -> None:
        """Apply a published change of the record."""
        if record.epoch == self._record.epoch:  # otherwise the next heartbeat returns the record
            self._adopt(record)

    def on_connected(self) -> None:
        """Do nothing: the heartbeat was answered."""

    def on_disconnected(self) -> None:
        """Stop waiting for probes of other processes."""
        with self._update():
            self._machine.probe_elsewhere(0.0)

    def release_commands(self) -> Iterable[ScriptCall]:
        """Return the commands that release all leases."""
        with self._lock:
            released = [self._commands.released(token) for token in self._leases.values()]
        return [*released, self._commands.left()]

    def _believed(self, record: BreakerRecord) -> BreakerRecord:
        """Return the record, treating an impossibly long open period as ended.

        Redis ends it too, so that the next probe gets its lease.
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
            # A hint has ended; the record closes with the next command that is run.
            self._coordinator.post(
                self._commands.alive(self._record, self._machine), self._heard_back
            )

    # ReplicationObserver, called with the lock held

    def wants_lease(self, probe: InFlightCall) -> bool:
        """Request a lease if the shared record is not closed and Redis is reachable."""
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
        """Renew the lease: it lasts for a probe's deadline, from the sending on."""
        if call in self._leases:
            self._coordinator.post(self._commands.wanted(self._machine, self._leases[call]))

    def counted(
        self, call: InFlightCall, counted: Counted, verdict: BreakerOutcome, why: TripCause
    ) -> None:
        """Report the outcome to the other processes."""
        token = self._leases.pop(call, None)
        if counted not in {"stale", "ignored"}:
            if self._record.state is _CLOSED:
                self._report(counted, verdict, why)
            elif call.probe:
                self._conclude(token or "", at_once=trips_at_once(verdict, why.retry_after))
                return
        if token is not None:
            self._coordinator.post(self._commands.released(token), self._heard_back)
        opening = self._machine.open_period
        if counted == "stale" and opening is not None and opening.cause is why:
            # It has lengthened the local open period, so it may lengthen the shared one.
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
        """Report the outcome of a probe."""
        record, circuit, commands = self._record, self._machine, self._commands
        if circuit.state is _OPEN:
            basis = "told" if at_once else "seen"
            self._claim(commands.opened(record, circuit, basis, token=token))
        elif circuit.state is _CLOSED:
            needed = circuit.config.half_open_calls
            self._claim(commands.settled(record, circuit, token, needed))
        else:
            self._coordinator.post(commands.settled(record, circuit, token, 1), self._heard_back)

    def _report(self, counted: Counted, verdict: BreakerOutcome, why: TripCause) -> None:
        """Report an outcome while the shared record is closed."""
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
                seconds = open_duration(circuit.config, 0.0, hint, self._random)
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
        """Send a command that must reach Redis, and repeat it after a reconnect if it is lost."""
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
