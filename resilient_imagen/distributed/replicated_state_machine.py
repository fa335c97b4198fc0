"""A state machine that is replicated between processes.

It counts and decides for this process as any `BreakerStateMachine`. `adopt` applies the shared
record to it, and a `ReplicationObserver` receives the local events.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

from resilient_imagen.circuitbreaker.open_period import NO_CAUSE, OpenPeriod, TripCause
from resilient_imagen.circuitbreaker.state_machine import BreakerStateMachine
from resilient_imagen.circuitbreaker.types import BreakerState
from resilient_imagen.reasons import BreakerOutcome, Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_imagen.circuitbreaker.calls import InFlightCall
    from resilient_imagen.circuitbreaker.config import BreakerConfig
    from resilient_imagen.circuitbreaker.types import Counted
    from resilient_imagen.distributed.breaker_record import BreakerRecord

__all__ = ["ReplicatedStateMachine", "ReplicationObserver"]

_CLOSED, _OPEN, _HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN
_OVERDUE = 1e-6
"""Seconds: length of an open period that has ended already."""


class ReplicationObserver(Protocol):
    """Replicates local events to other processes.

    Its methods are called with the breaker's lock held and must not block.
    """

    def wants_lease(self, probe: InFlightCall) -> bool:
        """Return whether a new probe has to wait for a lease."""
        ...

    def sent(self, call: InFlightCall) -> None:
        """Record that a probe was sent."""
        ...

    def counted(
        self, call: InFlightCall, counted: Counted, verdict: BreakerOutcome, why: TripCause
    ) -> None:
        """Record that a call was settled or timed out."""
        ...


class ReplicatedStateMachine(BreakerStateMachine):
    """A state machine that follows the shared record.

    Args:
        config: The breaker's settings.
        random: Returns 0 to 1 for the jitter.
        on_state_change: Called after each transition, with the old state and the new one.
        on_place_freed: Called when a probe's place may be free again without a vote.
        on_wait_changed: Called when waiting callers must check the breaker for another reason.
        observer: Replicates local events to the other processes.
    """

    def __init__(
        self,
        config: BreakerConfig,
        random: Callable[[], float],
        on_state_change: Callable[[BreakerState, BreakerState], None],
        on_place_freed: Callable[[], None],
        on_wait_changed: Callable[[], None],
        observer: ReplicationObserver,
    ) -> None:
        super().__init__(config, random, on_state_change, on_place_freed)
        self._on_wait_changed = on_wait_changed
        self._observer = observer
        self._elsewhere = math.inf
        """Time until which probes of other processes take all places; infinity if they do not."""
        self._barred: set[InFlightCall] = set()
        """Probes that must not be sent: the lease is not granted, or they have timed out."""

    # Changes by other processes

    def adopt(
        self, record: BreakerRecord, before: BreakerRecord, *, same_state: bool, holds_lease: bool
    ) -> None:
        """Apply the shared record.

        Args:
            record: The new record.
            before: The previous record. Unless it was closed, the new one may end the local open
                period. An open period that only this process knows continues.
            same_state: Whether both records describe the same state. After a failed probe of its
                own, this process stays open while others continue to probe.
            holds_lease: Whether this process holds the lease of a probe.
        """
        follows = before.state is not _CLOSED
        if record.state is _OPEN:
            self._adopt_opening(record, follows=follows)
        elif record.state is _HALF_OPEN:
            if not same_state:
                self._adopt_round(record)
            self.probe_elsewhere(0.0 if holds_lease else record.lease)
        elif follows and self.state is not _CLOSED and not self._outlasts(before):
            self._pybreaker.close()

    def probe_elsewhere(self, seconds: float) -> None:
        """Block all places for `seconds`, for probes of other processes; 0 frees them."""
        was, self._elsewhere = self._elsewhere, self.now + seconds if seconds > 0 else math.inf
        if was < math.inf == self._elsewhere:
            self._on_place_freed()

    def agree(self, probe: InFlightCall) -> None:
        """Allow a probe to be sent."""
        self._barred.discard(probe)

    def refuse(self, probe: InFlightCall, seconds: float) -> None:
        """Withdraw a probe: another process sends one, which takes the place for `seconds`."""
        if probe.generation == self.generation:
            self.in_flight.end(probe)
            self.probe_elsewhere(seconds)
            self._on_wait_changed()  # its caller must check it again

    def abandon(self) -> None:
        """Forget the calls in flight and return the leases of probes."""
        probes = list(self.in_flight.probes)
        super().abandon()
        for probe in probes:
            self._barred.discard(probe)
            self._observer.counted(probe, "ignored", BreakerOutcome.NEUTRAL, NO_CAUSE)

    def _adopt_opening(self, record: BreakerRecord, *, follows: bool) -> None:
        why = TripCause(record.cause, record.summary)
        seconds = max(record.left, _OVERDUE)
        if self.state is _OPEN and not follows:
            self.open(
                seconds, why, closes=record.closes
            )  # the local period continues if it ends later
            self._on_wait_changed()
        elif self.state is _OPEN:
            since = self.open_period.since if self.open_period is not None else self.now
            self._set_open_period(OpenPeriod(since, self.now + seconds, why, record.closes))
            self._on_wait_changed()  # it may end earlier than waiting callers expect
        else:
            # A half-open state that only this process knows ends with a local probe.
            closes = record.closes and (follows or self.state is _CLOSED)
            self._start(OpenPeriod(self.now, self.now + seconds, why, closes))
        self.consecutive_openings: int = record.openings

    def _outlasts(self, before: BreakerRecord) -> bool:
        """Return whether the local open period continues after a shared one that was a hint."""
        return before.closes and self.open_period is not None and not self.open_period.closes

    def _adopt_round(self, record: BreakerRecord) -> None:
        if self.state is _HALF_OPEN:
            return
        if self.state is _CLOSED:
            self._set_open_period(
                OpenPeriod(self.now, self.now, TripCause(record.cause, record.summary))
            )
        self.consecutive_openings = record.openings
        self._pybreaker.half_open()

    # Differences from a local state machine

    @property
    def due(self) -> float:
        """Time of the next time-out, or infinity."""
        return min(super().due, self._elsewhere)

    def catch_up(self, now: float) -> None:
        """Process all time-outs up to `now`."""
        super().catch_up(now)
        if self._elsewhere <= now:
            self.probe_elsewhere(0.0)

    def admit(self) -> InFlightCall | None:
        """Admit a call, or return None. A probe is sent only after its lease is granted."""
        call = super().admit()
        if call is not None and call.probe and self._observer.wants_lease(call):
            self._barred.add(call)
        return call

    def blocked_until(self) -> float | None:
        """Return the time until which no call is admitted, or None."""
        until = super().blocked_until()
        return self.due if self.state is _HALF_OPEN and until is not None else until

    def is_stale(self, call: InFlightCall) -> bool:
        """Return whether a call can no longer vote, or may not be sent yet."""
        return call in self._barred or super().is_stale(call)

    def send(self, call: InFlightCall) -> None:
        """Start timing a call, and report a probe."""
        super().send(call)
        if call.probe and call.sent_at is not None:
            self._observer.sent(call)

    def count(self, call: InFlightCall, verdict: BreakerOutcome, why: TripCause) -> Counted:
        """Count the outcome of a call, and report it."""
        self._barred.discard(call)
        was_counted = call.counted is not None
        counted = super().count(call, verdict, why)
        self._observer.counted(call, "stale" if was_counted else counted, verdict, why)
        return counted

    @property
    def free_places(self) -> int:
        """Number of probes that may be admitted now; 0 or less if there is no place."""
        return super().free_places if self._elsewhere == math.inf else 0

    def _on_call_due(self, call: InFlightCall, slow: bool) -> None:  # noqa: FBT001 - see the base class
        super()._on_call_due(call, slow)
        if call.sent_at is not None:
            why = TripCause(cause=Reason.TIMEOUT, summary="timed out")
            self._observer.counted(call, call.counted or "failure", BreakerOutcome.FAILURE, why)
        else:
            self._barred.add(call)
            self._observer.counted(call, "ignored", BreakerOutcome.NEUTRAL, NO_CAUSE)
            self._on_wait_changed()  # its caller must check it again

    def _on_state_change(self, state: BreakerState) -> None:
        self._elsewhere = math.inf
        self._barred.clear()
        super()._on_state_change(state)
