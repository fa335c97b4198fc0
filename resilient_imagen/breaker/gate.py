"""An asyncio-correct gate around one route's circuit breaker."""

from __future__ import annotations

import math
import random as _random
import threading
from typing import TYPE_CHECKING, Final

from resilient_imagen.breaker.circuit import Circuit, Why
from resilient_imagen.breaker.config import BreakerConfig, BreakerMode
from resilient_imagen.breaker.flights import NO_VOTE, Flight
from resilient_imagen.breaker.guard import Guard, verdict_of
from resilient_imagen.breaker.notify import Listeners, Waiters
from resilient_imagen.breaker.permit import Permit
from resilient_imagen.breaker.reports import Reports
from resilient_imagen.breaker.timing import Alarm, Clock, running_loop
from resilient_imagen.breaker.trip import believable, tripped_pause
from resilient_imagen.breaker.views import (
    BreakerNumbers,
    BreakerState,
    Counted,
    Rejection,
    Settlement,
    StateChange,
    Transition,
)

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

    from resilient_imagen.reasons import BreakerOutcome
    from resilient_imagen.snapshots import BreakerSnapshot

__all__ = ["Gate"]

_CLOSED, _OPEN, _HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN

_CHANGES: Final[Mapping[tuple[BreakerState, BreakerState], StateChange]] = {
    (_CLOSED, _OPEN): "closed_to_open",
    (_HALF_OPEN, _OPEN): "half_open_to_open",
    (_HALF_OPEN, _CLOSED): "half_open_to_closed",
}


class Gate:
    """Decides who may ask a service, from what became of those who did.

    No method awaits, so on its loop each one is atomic; a lock makes them safe to call from other
    threads too. Time is the running loop's: a gate belongs to one running loop at a time, loops
    may follow one another, and a loop in another thread should have its own gate.

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
        self._listeners = Listeners()
        self._waiters = Waiters(self._lock)
        self._alarm = Alarm(self._tick)
        self._circuit = self._new_circuit(config)
        self._reports = Reports(name, self._circuit, self._clock)
        self._forced = False
        self._state = _CLOSED
        """What callers meet: the circuit's own state, unless the mode or force lies over it."""
        self._since = self._clock.now()
        self._would_reject = 0

    def reserve(self) -> Permit | Rejection | None:
        """Ask before queueing.

        Returns:
            None when callers are simply let through (closed, off, shadow): queue, then ask `admit`.
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

    def admit(self) -> Permit | Rejection:
        """Ask after queueing, with the request ready to be sent.

        Raises:
            RuntimeError: No loop is running, and no clock was given.
        """
        with self._lock:
            self._catch_up(strict=True)
            answer = self._answer()
        self._listeners.deliver()
        return answer

    def guard(self, classify: Callable[[Exception], BreakerOutcome] = verdict_of) -> Guard:
        """Guard anybody's coroutine, no images needed.

        ::

            gate = Gate("thumbnails", BreakerConfig(fail_max=5))
            async with gate.guard():
                await fetch_thumbnail()

        Args:
            classify: What an exception says about the service. Cancellation, and whatever else is
                no Exception, is neutral and does not come here.

        Raises:
            CircuitOpenError: On entry, when rejected; its `retry_after` says when to come back.
        """
        return Guard(self, classify)

    def usable(self) -> bool:
        """Whether `reserve` would let a caller through right now. Takes nothing."""
        return self.open_until() is None

    def open_until(self) -> float | None:
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

    def changed(self) -> asyncio.Future[None]:
        """A future, resolved when callers next meet another state or a probe's place is free again.

        A change of state resolves all such futures; a free place, those of as many callers as there
        are places, the longest waiting first, and the next ones if those do not take it.

        Await it, cancel it or drop it; ask again afterwards. An opening that ends with a probe
        resolves nothing by lasting its time: wait for that with `open_until`.
        """
        with self._lock:
            future = self._waiters.new()
            self._set_alarm()  # on this loop, should the last one have ended
            return future

    def trip(
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
            if self._circuit.config.mode is not BreakerMode.OFF:
                seconds = tripped_pause(self._circuit.config, believable(retry_after), self._random)
                self._circuit.open(seconds, Why(cause, brief, origin))
            self._set_alarm()
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
            if self._circuit.config.mode is not BreakerMode.OFF:
                self._circuit.open(seconds, Why(cause, brief, origin))
            self._set_alarm()
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
            self._circuit.reconfigure(config)
            if config.mode is BreakerMode.OFF:
                self._circuit.disown()
            self._announce()
            self._waiters.wake()  # there may be more places now
            self._set_alarm()
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

    def numbers(self) -> BreakerNumbers:
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

    def _begin(self, flight: Flight, origin: object | None) -> None:
        with self._lock:
            self._catch_up()
            if flight.settlement is None:
                flight.origin = origin
                self._circuit.send(flight)
                self._set_alarm()
        self._listeners.deliver()

    def _answered(self, flight: Flight) -> None:
        if not self._circuit.flights.any_watched:
            flight.answered = True
            return
        with self._lock:
            self._catch_up()
            self._circuit.answered(flight)
            self._set_alarm()
        self._listeners.deliver()

    def _is_stale(self, flight: Flight) -> bool:
        with self._lock:
            self._catch_up()
            stale = flight.generation != NO_VOTE and self._circuit.is_stale(flight)
        self._listeners.deliver()
        return stale

    def _settle(self, flight: Flight, verdict: BreakerOutcome, why: Why) -> Settlement:
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
            self._set_alarm()
        self._listeners.deliver()
        return settlement

    def _count(self, flight: Flight, verdict: BreakerOutcome, why: Why) -> Counted:
        if self._circuit.config.mode is BreakerMode.OFF or flight.generation == NO_VOTE:
            return "ignored"
        return self._circuit.count(flight, verdict, why)

    def _new_circuit(self, config: BreakerConfig) -> Circuit:
        return Circuit(config, self._random, self._moved, self._place_freed)

    @property
    def _is_calm(self) -> bool:
        """Whether it is closed, with nothing on its way that time could decide about."""
        return self._state is _CLOSED and self._circuit.due == math.inf

    # With the lock held

    def _answer(self) -> Permit | Rejection:
        if self._forced:
            return self._reports.rejection(self._state)
        mode = self._circuit.config.mode
        flight = None if mode is BreakerMode.OFF else self._circuit.ask()
        self._set_alarm()
        if flight is None:
            if mode is BreakerMode.ON:
                return self._reports.rejection(self._state)
            self._would_reject += mode is BreakerMode.SHADOW
            flight = Flight(NO_VOTE)
        probe = flight.probe and mode is BreakerMode.ON
        return Permit(
            self, flight, probe=probe, generation=self._circuit.generation, state=self._state
        )

    def _loop_left(self, loop: asyncio.AbstractEventLoop) -> None:
        """Another loop asks now. What a closed one left behind would wait for ever."""
        self._waiters.drop_closed_loops()
        if loop.is_closed():
            self._circuit.abandon()

    def _place_freed(self) -> None:
        self._waiters.wake_for(lambda: self._circuit.free_places)

    def _catch_up(self, *, strict: bool = False) -> None:
        self._circuit.catch_up(self._clock.now(strict=strict))

    def _set_alarm(self) -> None:
        self._alarm.set(self._circuit.due, self._clock)

    def _tick(self) -> None:
        with self._lock:
            self._catch_up()
            self._set_alarm()
        self._listeners.deliver()

    # Telling

    def _moved(self, old: BreakerState, new: BreakerState) -> None:
        if self._circuit.config.mode is BreakerMode.SHADOW:
            self._listeners.put(self._reports.transition(old, new, shadow_of=self._state))
        self._announce()

    def _announce(self) -> None:
        old, new = self._state, self._met()
        if new is not old:
            self._state, self._since = new, self._circuit.now
            self._listeners.put(self._reports.transition(old, new, shadow_of=None))
            self._waiters.wake()

    def _met(self) -> BreakerState:
        if self._forced:
            return BreakerState.FORCED_OPEN
        return self._circuit.state if self._circuit.config.mode is BreakerMode.ON else _CLOSED
