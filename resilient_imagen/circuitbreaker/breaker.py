"""An asyncio-correct breaker around one route's circuit breaker."""

from __future__ import annotations

import math
import random as _random
import threading
from typing import TYPE_CHECKING, Final

from resilient_imagen.circuitbreaker.calls import UNTRACKED, InFlightCall
from resilient_imagen.circuitbreaker.config import BreakerConfig, BreakerMode
from resilient_imagen.circuitbreaker.context import BreakerContext, default_classifier
from resilient_imagen.circuitbreaker.listeners import ChangeNotifier, EventDispatcher
from resilient_imagen.circuitbreaker.permit import Permit
from resilient_imagen.circuitbreaker.reports import BreakerReports
from resilient_imagen.circuitbreaker.state_machine import BreakerStateMachine, TripCause
from resilient_imagen.circuitbreaker.timer import Clock, Timer, running_loop
from resilient_imagen.circuitbreaker.types import (
    BreakerMetrics,
    BreakerState,
    Counted,
    Rejection,
    Settlement,
    StateChange,
    Transition,
)
from resilient_imagen.circuitbreaker.window import trip_duration, valid_hint

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

    from resilient_imagen.reasons import BreakerOutcome
    from resilient_imagen.snapshots import BreakerSnapshot

__all__ = ["CircuitBreaker"]

_CLOSED, _OPEN, _HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN

_CHANGES: Final[Mapping[tuple[BreakerState, BreakerState], StateChange]] = {
    (_CLOSED, _OPEN): "closed_to_open",
    (_HALF_OPEN, _OPEN): "half_open_to_open",
    (_HALF_OPEN, _CLOSED): "half_open_to_closed",
}


class CircuitBreaker:
    """Decides who may ask a service, from what became of those who did.

    No method awaits, so on its loop each one is atomic; a lock makes them safe to call from other
    threads too. Time is the running loop's: a breaker belongs to one running loop at a time, loops
    may follow one another, and a loop in another thread should have its own breaker.

    Args:
        name: Says which service, in rejections and transitions: `provider:model`.
        config: The numbers.
        random: Returns 0 to 1 for the jitter.
        clock: Seconds, read instead of the running loop's time (simulations, code without a loop).
    """

    def __init__(
        self,
        name: str,
        config: BreakerConfig,
        *,
        random: Callable[[], float] = _random.random,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.name = name
        self._random = random
        self._clock = Clock(clock, self._loop_left)
        self._lock = threading.RLock()
        self._listeners = EventDispatcher()
        self._waiters = ChangeNotifier(self._lock)
        self._timer = Timer(self._on_timer)
        self._machine = self._new_machine(config)
        self._reports = BreakerReports(name, self._machine, self._clock)
        self._forced = False
        self._state = _CLOSED
        """What callers meet: the circuit's own state, unless the mode or force lies over it."""
        self._since = self._clock.now()
        self._would_reject = 0

    def try_acquire_early(self) -> Permit | Rejection | None:
        """Ask before queueing.

        Returns:
            None when callers are simply let through (closed, off, shadow): queue, then ask
            `acquire`.
            A probe's permit when open and due, or half-open with room: carry it through the queue.
            Else a rejection.

        Raises:
            RuntimeError: No loop is running, and no clock was given.
        """
        if self._is_calm and running_loop() is not None:
            return None
        with self._lock:
            self._catch_up(strict=True)
            answer = None if self._state is _CLOSED else self._answer()
        self._listeners.deliver()
        return answer

    def acquire(self) -> Permit | Rejection:
        """Ask after queueing, with the request ready to be sent.

        Raises:
            RuntimeError: No loop is running, and no clock was given.
        """
        with self._lock:
            self._catch_up(strict=True)
            answer = self._answer()
        self._listeners.deliver()
        return answer

    def protect(
        self, classify: Callable[[Exception], BreakerOutcome] = default_classifier
    ) -> BreakerContext:
        """BreakerContext anybody's coroutine, no images needed.

        ::

            breaker = CircuitBreaker("thumbnails", BreakerConfig(fail_max=5))
            async with breaker.guard():
                await fetch_thumbnail()

        Args:
            classify: What an exception says about the service. Cancellation, and whatever else is
                no Exception, is neutral and does not come here.

        Raises:
            CircuitOpenError: On entry, when rejected; its `retry_after` says when to come back.
        """
        return BreakerContext(self, classify)

    def allows_calls(self) -> bool:
        """Whether `try_acquire_early` would let a caller through right now. Takes nothing."""
        return self.blocked_until() is None

    def blocked_until(self) -> float | None:
        """Loop time until which callers are rejected; None: they are not; inf: until told so.

        While probes take every place, it is when the first of them will be decided at the latest.
        """
        if self._is_calm:
            return None
        with self._lock:
            self._catch_up()
            until = self._reports.blocked_until(self._state)
        self._listeners.deliver()
        return until if until is None else self._clock.loop_time(until)

    def wait_for_change(self) -> asyncio.Future[None]:
        """A future, resolved when callers next meet another state or a probe's place is free again.

        A change of state resolves all such futures; a free place, those of as many callers as there
        are places, the longest waiting first, and the next ones if those do not take it.

        Await it, cancel it or drop it; ask again afterwards. An opening that ends with a probe
        resolves nothing by lasting its time: wait for that with `blocked_until`.
        """
        with self._lock:
            future = self._waiters.new()
            self._set_timer()  # on this loop, should the last one have ended
            return future

    def force_trip(
        self,
        *,
        cause: str | None,
        brief: str | None = None,
        retry_after: float | None = None,
        origin: object | None = None,
    ) -> None:
        """Open now, for `reset_max` or a longer hint: what a sibling route learned holds here too.

        Open already, it stays open for the longer of both. Does nothing in mode off.
        """
        with self._lock:
            self._catch_up()
            if self._machine.config.mode is not BreakerMode.OFF:
                seconds = trip_duration(self._machine.config, valid_hint(retry_after), self._random)
                self._machine.open(seconds, TripCause(cause, brief, origin))
            self._set_timer()
        self._listeners.deliver()

    def open_for(
        self, seconds: float, *, cause: str | None, brief: str | None, origin: object | None = None
    ) -> None:
        """Open now for exactly so many seconds; open already, for the longer of both.

        Args:
            seconds: From now.
            cause: Reason word, kept.
            brief: Short text, kept likewise.
            origin: What rejections point to, or None.
        """
        with self._lock:
            self._catch_up()
            if self._machine.config.mode is not BreakerMode.OFF:
                self._machine.open(seconds, TripCause(cause, brief, origin))
            self._set_timer()
        self._listeners.deliver()

    @property
    def force_open(self) -> bool:
        """Reject everybody, whatever the mode, until set to False.

        Requests in flight are still counted, so that it comes back in the state that is true then.
        """
        return self._forced

    @force_open.setter
    def force_open(self, forced: bool) -> None:
        with self._lock:
            self._catch_up()
            self._forced = forced
            self._announce()
        self._listeners.deliver()

    def reconfigure(self, config: BreakerConfig) -> None:
        """Take other numbers; state, counts, window and the present opening stay.

        The trip rules look at them at the next failure. Requests sent before `slow_call` was set
        are judged when they end. Switching off ends the votes of requests in flight.
        """
        with self._lock:
            self._catch_up()
            self._machine.reconfigure(config)
            if config.mode is BreakerMode.OFF:
                self._machine.drop_in_flight()
            self._announce()
            self._waiters.wake()  # there may be more places now
            self._set_timer()
        self._listeners.deliver()

    def subscribe(
        self, listener: Callable[[Transition], None], *, inline: bool = False
    ) -> Callable[[], None]:
        """Tell `listener` every transition from now on; call the result to stop.

        It is told in order, once the state is consistent, from a thread of its own: however long it
        takes, no call waits for it. What it raises is logged and goes no further.

        Args:
            listener: An ordinary function.
            inline: Tell it before the call that caused the transition goes on. It must be quick.

        Raises:
            TypeError: The listener is a coroutine function, which nobody would await.
        """
        return self._listeners.subscribe(listener, inline=inline)

    def metrics(self) -> BreakerMetrics:
        """The numbers right now."""
        with self._lock:
            self._catch_up()
            numbers = self._reports.numbers(self._state)
        self._listeners.deliver()
        return numbers

    def snapshot(self) -> BreakerSnapshot:
        """Everything an operator wants to see, ready for JSON; times in seconds."""
        with self._lock:
            self._catch_up()
            snapshot = self._reports.snapshot(
                self._state, since=self._since, would_reject=self._would_reject
            )
        self._listeners.deliver()
        return snapshot

    # What permits call

    def _begin(self, flight: InFlightCall, origin: object | None) -> None:
        with self._lock:
            self._catch_up()
            if flight.settlement is None:
                flight.origin = origin
                self._machine.send(flight)
                self._set_timer()
        self._listeners.deliver()

    def _answered(self, flight: InFlightCall) -> None:
        if not self._machine.in_flight.any_watched:
            flight.answered = True
            return
        with self._lock:
            self._catch_up()
            self._machine.answered(flight)
            self._set_timer()
        self._listeners.deliver()

    def _is_stale(self, flight: InFlightCall) -> bool:
        with self._lock:
            self._catch_up()
            stale = flight.generation != UNTRACKED and self._machine.is_stale(flight)
        self._listeners.deliver()
        return stale

    def _settle(self, flight: InFlightCall, verdict: BreakerOutcome, why: TripCause) -> Settlement:
        with self._lock:
            if flight.settlement is not None:
                return flight.settlement
            self._catch_up()
            before = self._state
            counted = self._count(flight, verdict, why)
            after = self._state
            change = None if before is after else _CHANGES.get((before, after))
            settlement = Settlement(counted, change, self._reports.numbers(after))
            flight.settlement = settlement
            self._set_timer()
        self._listeners.deliver()
        return settlement

    def _count(self, flight: InFlightCall, verdict: BreakerOutcome, why: TripCause) -> Counted:
        if self._machine.config.mode is BreakerMode.OFF or flight.generation == UNTRACKED:
            return "ignored"
        return self._machine.count(flight, verdict, why)

    def _new_machine(self, config: BreakerConfig) -> BreakerStateMachine:
        return BreakerStateMachine(config, self._random, self._on_state_change, self._place_freed)

    @property
    def _is_calm(self) -> bool:
        """Whether it is closed, with nothing on its way that time could decide about."""
        return self._state is _CLOSED and self._machine.due == math.inf

    # With the lock held

    def _answer(self) -> Permit | Rejection:
        if self._forced:
            return self._reports.rejection(self._state)
        mode = self._machine.config.mode
        flight = None if mode is BreakerMode.OFF else self._machine.admit()
        self._set_timer()
        if flight is None:
            if mode is BreakerMode.ON:
                return self._reports.rejection(self._state)
            self._would_reject += mode is BreakerMode.SHADOW
            flight = InFlightCall(UNTRACKED)
        probe = flight.probe and mode is BreakerMode.ON
        return Permit(
            self, flight, probe=probe, generation=self._machine.generation, state=self._state
        )

    def _loop_left(self, loop: asyncio.AbstractEventLoop) -> None:
        """Another loop asks now. What a closed one left behind would wait for ever."""
        self._waiters.drop_closed_loops()
        if loop.is_closed():
            self._machine.abandon()

    def _place_freed(self) -> None:
        self._waiters.wake_for(lambda: self._machine.free_places)

    def _catch_up(self, *, strict: bool = False) -> None:
        self._machine.catch_up(self._clock.now(strict=strict))

    def _set_timer(self) -> None:
        self._timer.set(self._machine.due, self._clock)

    def _on_timer(self) -> None:
        with self._lock:
            self._catch_up()
            self._set_timer()
        self._listeners.deliver()

    # Telling

    def _on_state_change(self, old: BreakerState, new: BreakerState) -> None:
        if self._machine.config.mode is BreakerMode.SHADOW:
            self._listeners.put(self._reports.transition(old, new, shadow_of=self._state))
        self._announce()

    def _announce(self) -> None:
        old, new = self._state, self._visible_state()
        if new is not old:
            self._state, self._since = new, self._machine.now
            self._listeners.put(self._reports.transition(old, new, shadow_of=None))
            self._waiters.wake()

    def _visible_state(self) -> BreakerState:
        if self._forced:
            return BreakerState.FORCED_OPEN
        return self._machine.state if self._machine.config.mode is BreakerMode.ON else _CLOSED
