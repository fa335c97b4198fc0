"""A circuit on which other processes act too: their openings and closings, and their probes.

It counts and decides as any circuit does, for this process. What the fleet decided is laid over
that by `adopt`; what happens here is told to a `Peer`.
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
"""Seconds: how an opening is written down that has lasted its time already."""


class ReplicationObserver(Protocol):
    """Replicates a circuit to other processes. Called with the breaker's lock held; never waits."""

    def wants_lease(self, probe: InFlightCall) -> bool:
        """A probe is to be sent. True: not before the others agree."""
        ...

    def sent(self, call: InFlightCall) -> None:
        """A probe is on its way."""
        ...

    def counted(
        self, call: InFlightCall, counted: Counted, verdict: BreakerOutcome, why: TripCause
    ) -> None:
        """A request has ended, or time has decided about it."""
        ...


class ReplicatedStateMachine(BreakerStateMachine):
    """A circuit that follows the fleet's.

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
        """Until when probes of other processes take every place; inf: they do not."""
        self._barred: set[InFlightCall] = set()
        """Probes that may not be sent: the others have not agreed, or time has run out."""

    # -- what the fleet does to it ----------------------------------------------------------------

    def adopt(
        self, record: BreakerRecord, before: BreakerRecord, *, same_state: bool, holds_lease: bool
    ) -> None:
        """Become what the fleet is.

        Args:
            record: The news.
            before: The record as it was known. If it was not closed, the fleet may end our
                opening. One that only we know of lasts.
            same_state: Both are about the same state. Having probed and failed in the fleet's
                round, we stay open, while others go on probing.
            holds_lease: We are among those who take the probes' places.
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
        """Other processes' probes take every place for so long; 0: there is room."""
        was, self._elsewhere = self._elsewhere, self.now + seconds if seconds > 0 else math.inf
        if was < math.inf == self._elsewhere:
            self._on_place_freed()

    def agree(self, probe: InFlightCall) -> None:
        """It may be sent."""
        self._barred.discard(probe)

    def refuse(self, probe: InFlightCall, seconds: float) -> None:
        """Another process sends one: this one may not, and its place is taken for so long."""
        if probe.generation == self.generation:
            self.in_flight.end(probe)
            self.probe_elsewhere(seconds)
            self._on_wait_changed()  # whoever carries it has to hear of it

    def abandon(self) -> None:
        """Forget the requests in flight, and give back the leases of probes among them."""
        probes = list(self.in_flight.probes)
        super().abandon()
        for probe in probes:
            self._barred.discard(probe)
            self._observer.counted(probe, "ignored", BreakerOutcome.NEUTRAL, NO_CAUSE)

    def _adopt_opening(self, record: BreakerRecord, *, follows: bool) -> None:
        why = TripCause(record.cause, record.brief)
        seconds = max(record.left, _OVERDUE)
        if self.state is _OPEN and not follows:
            self.open(seconds, why, closes=record.closes)  # ours lasts, if it is the longer one
            self._on_wait_changed()
        elif self.state is _OPEN:
            since = self.open_period.since if self.open_period is not None else self.now
            self._set_open_period(OpenPeriod(since, self.now + seconds, why, record.closes))
            self._on_wait_changed()  # it may end sooner than those who wait expect
        else:
            # A round of our own, which the others know nothing of, ends by a probe of ours.
            closes = record.closes and (follows or self.state is _CLOSED)
            self._start(OpenPeriod(self.now, self.now + seconds, why, closes))
        self.consecutive_openings = record.openings

    def _outlasts(self, before: BreakerRecord) -> bool:
        """Whether our opening goes on when that of the fleet, a mere hint, is over."""
        return before.closes and self.open_period is not None and not self.open_period.closes

    def _adopt_round(self, record: BreakerRecord) -> None:
        if self.state is _HALF_OPEN:
            return
        if self.state is _CLOSED:
            self._set_open_period(
                OpenPeriod(self.now, self.now, TripCause(record.cause, record.brief))
            )
        self.consecutive_openings = record.openings
        self._pybreaker.half_open()

    # -- what it does otherwise than a circuit that is alone --------------------------------------

    @property
    def due(self) -> float:
        """When time decides something next; inf: never."""
        return min(super().due, self._elsewhere)

    def catch_up(self, now: float) -> None:
        """Make up for what time alone has decided up to `now`."""
        super().catch_up(now)
        if self._elsewhere <= now:
            self.probe_elsewhere(0.0)

    def admit(self) -> InFlightCall | None:
        """Admit one request, or None. A probe needs the others' leave too, which comes later."""
        call = super().admit()
        if call is not None and call.probe and self._observer.wants_lease(call):
            self._barred.add(call)
        return call

    def blocked_until(self) -> float | None:
        """Until when nobody is admitted, or None."""
        until = super().blocked_until()
        return self.due if self.state is _HALF_OPEN and until is not None else until

    def is_stale(self, call: InFlightCall) -> bool:
        """Whether its outcome cannot count, now or any more."""
        return call in self._barred or super().is_stale(call)

    def send(self, call: InFlightCall) -> None:
        """The request leaves now."""
        super().send(call)
        if call.probe and call.sent:
            self._observer.sent(call)

    def count(self, call: InFlightCall, verdict: BreakerOutcome, why: TripCause) -> Counted:
        """Count the outcome of a request, and tell it."""
        self._barred.discard(call)
        told = call.counted is not None
        counted = super().count(call, verdict, why)
        self._observer.counted(call, "stale" if told else counted, verdict, why)
        return counted

    @property
    def free_places(self) -> int:
        """Probes that may be admitted right now; 0 or less: none."""
        return super().free_places if self._elsewhere == math.inf else 0

    def _on_call_due(self, call: InFlightCall, slow: bool) -> None:  # noqa: FBT001 - as the base has it
        super()._on_call_due(call, slow)
        if call.sent:
            why = TripCause(cause=Reason.TIMEOUT, summary="timed out")
            self._observer.counted(call, call.counted or "failure", BreakerOutcome.FAILURE, why)
        else:
            self._barred.add(call)
            self._observer.counted(call, "ignored", BreakerOutcome.NEUTRAL, NO_CAUSE)
            self._on_wait_changed()  # whoever carries it has to hear of it

    def _on_state_change(self, state: BreakerState) -> None:
        self._elsewhere = math.inf
        self._barred.clear()
        super()._on_state_change(state)
