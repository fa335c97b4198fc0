"""The Lua commands that report the state of a local breaker to the shared record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from resilient_imagen.circuitbreaker.open_period import NO_CAUSE
from resilient_imagen.distributed.scripts import (
    LEASE,
    LEAVE,
    OPEN,
    RELEASE,
    SETTLE,
    SHORTEN,
    VOTE,
    LuaScript,
    ScriptCall,
    microseconds,
)
from resilient_imagen.reasons import Reason

if TYPE_CHECKING:
    from resilient_imagen.circuitbreaker.open_period import TripCause
    from resilient_imagen.circuitbreaker.state_machine import BreakerStateMachine
    from resilient_imagen.distributed.breaker_record import BreakerRecord
    from resilient_imagen.distributed.coordinator import RedisCoordinator

__all__ = ["SharedBreakerCommands", "answered"]

_ANSWERS: Final = frozenset(
    {Reason.OVERLOADED, Reason.RATE_LIMITED, Reason.QUOTA_EXHAUSTED, Reason.SERVER_ERROR}
)


def answered(why: TripCause) -> bool:
    """Return whether the service itself reported the failure, about itself or the account.

    Any other failure may be local to one worker: its network, its proxy or its key.
    """
    return why.cause in _ANSWERS


class SharedBreakerCommands:
    """Builds the Lua commands for a shared breaker; does not send them.

    Args:
        coordinator: Provides the worker's name, the address and the channel.
        topic: The route's resource name.
    """

    __slots__ = ("_coordinator", "_keys", "_topic")

    def __init__(self, coordinator: RedisCoordinator, topic: str) -> None:
        kinds = ("circuit", "leases", "workers", "seen")
        self._keys = tuple(coordinator.address.key(kind, topic) for kind in kinds)
        self._coordinator = coordinator
        self._topic = topic

    def alive(self, record: BreakerRecord, circuit: BreakerStateMachine) -> ScriptCall:
        """Return the heartbeat, with the calls and failures that this worker has counted."""
        return self._vote(record, circuit, "", 0, 0, 0, 0.0, NO_CAUSE)

    def succeeded(self, record: BreakerRecord, circuit: BreakerStateMachine) -> ScriptCall:
        """Return the report of a success in the closed state."""
        return self._vote(record, circuit, "success", 0, 0, 1, 0.0, NO_CAUSE)

    def failed(
        self,
        record: BreakerRecord,
        circuit: BreakerStateMachine,
        why: TripCause,
        *,
        weight: int,
        in_window: bool,
        pause: float,
    ) -> ScriptCall:
        """Return the report of a failure in the closed state.

        If it opens the shared breaker, the open period is `pause` seconds.
        """
        seen = int(answered(why))
        return self._vote(record, circuit, "failure", weight, seen, int(in_window), pause, why)

    def opened(
        self, record: BreakerRecord, circuit: BreakerStateMachine, basis: str, *, token: str = ""
    ) -> ScriptCall:
        """Return the command that opens the shared breaker like the local one.

        Args:
            record: The shared record.
            circuit: The local breaker, which is open.
            basis: `seen`: local outcomes in the record's state opened it; `told`: a server's hint
                or a fatal failure did; `late`: the same, for a request of an earlier state, so it
                may only extend an open period; `memory`: a restored record.
            token: The lease of the probe whose failure opened it.
        """
        opening = circuit.open_period
        why = NO_CAUSE if opening is None else opening.cause
        left = 0.0 if opening is None else max(opening.until - circuit.now, 0.0)
        return self._fenced(
            OPEN,
            record,
            microseconds(left),
            str(why.cause or ""),
            str(why.summary or ""),
            int(answered(why)),
            basis,
            circuit.consecutive_openings,
            token,
            int(opening is not None and opening.closes),
        )

    def shortened(self, record: BreakerRecord, longest: float) -> ScriptCall:
        """Return the command that limits an impossibly long open period to `longest` seconds."""
        return self._fenced(SHORTEN, record, microseconds(longest))

    def settled(
        self, record: BreakerRecord, circuit: BreakerStateMachine, token: str, successes: int
    ) -> ScriptCall:
        """Return the report of `successes` successful probes."""
        needed = circuit.config.half_open_calls
        return self._fenced(SETTLE, record, token, successes, needed)

    def wanted(self, circuit: BreakerStateMachine, token: str) -> ScriptCall:
        """Return the command that requests or renews a probe's lease."""
        deadline = microseconds(circuit.config.probe_deadline)
        return self._step(LEASE, token, deadline, circuit.config.half_open_calls)

    def released(self, token: str) -> ScriptCall:
        """Return the command that releases a probe's lease."""
        return self._step(RELEASE, token)

    def left(self) -> ScriptCall:
        """Return the command that removes this worker."""
        return self._step(LEAVE)

    def _vote(
        self,
        record: BreakerRecord,
        circuit: BreakerStateMachine,
        vote: str,
        weight: int,
        seen: int,
        in_window: int,
        pause: float,
        why: TripCause,
    ) -> ScriptCall:
        config, window = circuit.config, circuit.rule.window
        window.roll(circuit.now)
        return self._fenced(
            VOTE,
            record,
            vote,
            weight,
            seen,
            in_window,
            window.calls,
            window.failures,
            microseconds(pause),
            str(why.cause or ""),
            str(why.summary or ""),
            config.fail_max,
            config.failure_rate,
            config.min_calls,
        )

    def _fenced(
        self, script: LuaScript, record: BreakerRecord, *arguments: str | float
    ) -> ScriptCall:
        return self._step(script, record.epoch, record.generation, *arguments)

    def _step(self, script: LuaScript, *arguments: str | float) -> ScriptCall:
        coordinator = (
            self._coordinator
        )  # the worker's name is read each time, because a forked process is a new worker
        fixed = (coordinator.worker, coordinator.address.channel, self._topic)
        return ScriptCall(script, self._keys, (*fixed, *arguments))
