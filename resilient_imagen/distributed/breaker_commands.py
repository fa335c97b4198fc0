"""The Lua commands that report the state of a local breaker to the shared record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from resilient_imagen.circuitbreaker.config import BreakerMode
from resilient_imagen.circuitbreaker.open_period import NO_CAUSE
from resilient_imagen.distributed.fleet_settings import breaker_settings
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
        resource: The route's resource name.
    """

    __slots__ = ("_coordinator", "_keys", "_resource")

    def __init__(self, coordinator: RedisCoordinator, resource: str) -> None:
        kinds = ("circuit", "leases", "workers", "seen")
        self._keys = tuple(coordinator.address.key(kind, resource) for kind in kinds)
        self._coordinator = coordinator
        self._resource = resource

    def alive(self, record: BreakerRecord, circuit: BreakerStateMachine) -> ScriptCall:
        """Return the heartbeat, with the calls and failures that this worker has counted."""
        return self._vote(record, circuit, "")

    def succeeded(self, record: BreakerRecord, circuit: BreakerStateMachine) -> ScriptCall:
        """Return the report of a success in the closed state."""
        return self._vote(record, circuit, "success", share=True)

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
        return self._vote(
            record, circuit, "failure", weight=weight, share=in_window, pause=pause, why=why
        )

    def opened(
        self, record: BreakerRecord, circuit: BreakerStateMachine, basis: str, *, token: str = ""
    ) -> ScriptCall:
        """Return the command that opens the shared breaker like the local one.

        Args:
            record: The shared record.
            circuit: The local breaker, which is open.
            basis: `seen`: local outcomes in the record's state opened it; `hinted`: a server's hint
                or a fatal failure did; `late`: the same, for a request of an earlier state, so it
                may only extend an open period; `memory`: a restored record.
            token: The lease of the probe whose failure opened it.
        """
        opening = circuit.open_period
        why = NO_CAUSE if opening is None else opening.cause
        left = 0.0 if opening is None else max(opening.until - circuit.now, 0.0)
        return self._call(
            OPEN,
            record,
            circuit,
            **_cause(why, left),
            basis=basis,
            openings=circuit.consecutive_openings,
            token=token,
            closes=opening is not None and opening.closes,
        )

    def shortened(
        self, record: BreakerRecord, circuit: BreakerStateMachine, longest: float
    ) -> ScriptCall:
        """Return the command that limits an impossibly long open period to `longest` seconds."""
        return self._call(SHORTEN, record, circuit, longest=microseconds(longest))

    def settled(
        self, record: BreakerRecord, circuit: BreakerStateMachine, token: str, successes: int
    ) -> ScriptCall:
        """Return the report of `successes` successful probes."""
        needed = circuit.config.half_open_calls
        return self._call(SETTLE, record, circuit, token=token, successes=successes, needed=needed)

    def wanted(self, record: BreakerRecord, circuit: BreakerStateMachine, token: str) -> ScriptCall:
        """Return the command that requests or renews a probe's lease."""
        config = circuit.config
        deadline = microseconds(config.probe_deadline)
        places = config.half_open_calls
        return self._call(LEASE, record, circuit, token=token, deadline=deadline, places=places)

    def released(
        self, record: BreakerRecord, circuit: BreakerStateMachine, token: str
    ) -> ScriptCall:
        """Return the command that releases a probe's lease."""
        return self._call(RELEASE, record, circuit, token=token)

    def left(self, record: BreakerRecord, circuit: BreakerStateMachine) -> ScriptCall:
        """Return the command that removes this worker."""
        return self._call(LEAVE, record, circuit)

    def _vote(
        self,
        record: BreakerRecord,
        circuit: BreakerStateMachine,
        vote: str,
        *,
        weight: int = 0,
        share: bool = False,
        pause: float = 0.0,
        why: TripCause = NO_CAUSE,
    ) -> ScriptCall:
        config, window = circuit.config, circuit.rule.window
        window.roll(circuit.now)
        counts = config.mode is BreakerMode.ON  # otherwise its decisions must not affect others
        return self._call(
            VOTE,
            record,
            circuit,
            **_cause(why, pause),
            vote=vote,
            weight=weight,
            share=share,
            calls=window.calls if counts else 0,
            failures=window.failures if counts else 0,
            fail_max=config.fail_max,
            failure_rate=config.failure_rate,
            min_calls=config.min_calls,
        )

    def _call(
        self,
        script: LuaScript,
        record: BreakerRecord,
        circuit: BreakerStateMachine,
        **arguments: Any,
    ) -> ScriptCall:
        coordinator = self._coordinator
        common = {
            "worker": coordinator.worker,  # read each time: a forked process is a new worker
            "channel": coordinator.address.channel,
            "route": self._resource,
            "settings": breaker_settings(circuit.config),
            "epoch": record.epoch,
            "version": record.version,
            "generation": record.generation,
        }
        return ScriptCall(script, self._keys, common | arguments)


def _cause(why: TripCause, pause: float) -> dict[str, Any]:
    return {
        "pause": microseconds(pause),
        "cause": str(why.cause or ""),
        "summary": str(why.summary or ""),
        "answered": answered(why),
    }
