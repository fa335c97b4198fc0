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

Without Redis it works as a local breaker. Information about the account or the shared open period
(a hint, an exhausted quota, the result of a probe) is sent when the connection returns; consecutive
failures stay local.

If Redis loses its data or its clock jumps ahead, leases end early: one more probe may be sent while
another is in flight, and a new process sends one request if it acquires a permit before the first
heartbeat has restored an open period.
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
from resilient_imagen.distributed.breaker_record import (
    UNKNOWN_RECORD,
    BreakerRecord,
    NewerProtocolError,
)
from resilient_imagen.distributed.fleet_settings import breaker_differences, breaker_settings
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
            if self._votes:
                self._report(
                    "failure", BreakerOutcome.TRIP, TripCause(cause, summary, origin, retry_after)
                )

    def close(self, *, even_if_fatal: bool = False) -> bool:
        """Close now, as `CircuitBreaker.close`, and in the other processes, too."""
        closed = super().close(even_if_fatal=even_if_fatal)
        with self._lock:
            if closed and self._votes and self._record.state is not _CLOSED:
                needed = self._machine.config.half_open_calls
                self._claim(self._commands.settled(self._record, self._machine, "", needed))
        return closed

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

    @property
    def _votes(self) -> bool:
        """Whether its outcomes count for other processes; in shadow mode they do not."""
        return self._machine.config.mode is BreakerMode.ON

    # Participant

    @property
    def settings(self) -> str:
        """The settings that should be the same in every process."""
        return breaker_settings(self._machine.config)

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
            if self._votes and record.state is not _CLOSED and circuit.state is not _CLOSED:
                # Restore the record in case Redis has lost its data.
                return PendingCommand(
                    self._commands.opened(record, circuit, "memory"), self._on_answer
                )
            return PendingCommand(self._commands.alive(record, circuit), self._on_answer)

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
            state = self._record, self._machine
            released = [self._commands.released(*state, token) for token in self._leases.values()]
            return [*released, self._commands.left(*state)]

    def _limited(self, record: BreakerRecord) -> BreakerRecord:
        """Return the record, treating an impossibly long open period as ended.

        Redis ends it too, so that the next probe gets its lease.
        """
        longest = longest_duration(self._machine.config, record.cause)
        if record.state is not _OPEN or record.left <= longest:
            return record
        shortened = self._commands.shortened(record, self._machine, longest)
        self._coordinator.post(shortened, self._on_answer)
        return record._replace(left=0.0)

    def _claimed(self, answer: Any) -> None:
        if (record := self._parse(answer)) is not None:
            self._knows_better = False
            self._adopt(record)

    def _on_answer(self, answer: Any) -> None:
        if (record := self._parse(answer)) is not None:
            self._adopt(record)

    def _parse(self, answer: Any) -> BreakerRecord | None:
        """Return the record of an answer; None without one, or if it cannot be used."""
        if answer is None:
            return None
        try:
            record = BreakerRecord.parse(answer)
        except NewerProtocolError as error:
            self._work_alone()
            self._coordinator.warn_newer_protocol(error.protocol)
            return None
        except ValueError:
            return None  # damaged or forged
        differences = breaker_differences(self.settings, record.settings)
        self._coordinator.warn_different_settings(self.resource, differences)
        return record

    def _work_alone(self) -> None:
        """Continue as a local breaker, beside a fleet that uses a newer protocol."""
        with self._update():
            self._record = UNKNOWN_RECORD
            self._machine.probe_elsewhere(0.0)

    def _adopt(self, record: BreakerRecord, *, again: bool = False) -> None:
        with self._lock:
            self._coordinator.workers = max(record.workers, 1)
            before = self._record
            same_epoch = record.epoch == before.epoch
            if same_epoch and record.version < before.version + (not again):
                return
            self._catch_up()
            record = self._limited(record)
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
                self._commands.alive(self._record, self._machine), self._on_answer
            )

    # ReplicationObserver, called with the lock held

    def wants_lease(self, probe: InFlightCall) -> bool:
        """Request a lease if the shared record is not closed and Redis is reachable."""
        if self._record.state is _CLOSED or not self._votes:
            return False
        self._tokens += 1
        token = f"{self._coordinator.worker}:{self._tokens}"
        asked = self._coordinator.post(
            self._commands.wanted(self._record, self._machine, token),
            lambda answer: self._lease_answered(probe, answer),
        )
        if asked:
            self._leases[probe] = token
        return asked

    def sent(self, call: InFlightCall) -> None:
        """Renew the lease: it lasts for a probe's deadline, from the sending on."""
        if call in self._leases:
            renewal = self._commands.wanted(self._record, self._machine, self._leases[call])
            self._coordinator.post(renewal, self._on_answer)

    def counted(
        self, call: InFlightCall, counted: Counted, verdict: BreakerOutcome, why: TripCause
    ) -> None:
        """Report the outcome to the other processes."""
        token = self._leases.pop(call, None)
        if not self._votes:
            return
        if counted not in {"stale", "ignored"}:
            if self._record.state is _CLOSED:
                self._report(counted, verdict, why)
            elif call.probe:
                self._conclude(token or "", at_once=trips_at_once(verdict, why.retry_after))
                return
        if token is not None:
            released = self._commands.released(self._record, self._machine, token)
            self._coordinator.post(released, self._on_answer)
        opening = self._machine.open_period
        if counted == "stale" and opening is not None and opening.cause is why:
            # It has lengthened the local open period, so it may lengthen the shared one.
            self._knows_better |= self._record.state is _OPEN
            late = self._commands.opened(self._record, self._machine, "late")
            self._coordinator.post(late, self._claimed)

    def _lease_answered(self, probe: InFlightCall, answer: Any) -> None:
        record = self._parse(answer)
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
            basis = "hinted" if at_once else "seen"
            self._claim(commands.opened(record, circuit, basis, token=token))
        elif circuit.state is _CLOSED:
            needed = circuit.config.half_open_calls
            self._claim(commands.settled(record, circuit, token, needed))
        else:
            self._coordinator.post(commands.settled(record, circuit, token, 1), self._on_answer)

    def _report(self, counted: Counted, verdict: BreakerOutcome, why: TripCause) -> None:
        """Report an outcome while the shared record is closed."""
        record, circuit, hint = self._record, self._machine, valid_hint(why.retry_after)
        at_once = trips_at_once(verdict, why.retry_after)
        if counted == "success":
            self._coordinator.post(self._commands.succeeded(record, circuit), self._on_answer)
        elif at_once and (verdict is BreakerOutcome.THROTTLED or answered(why)):
            self._claim(self._commands.opened(record, circuit, "hinted"))
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
            self._coordinator.post(step, self._on_answer)

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
