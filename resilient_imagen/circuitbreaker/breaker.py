"""A circuit breaker for asyncio: the state machine with a lock, a clock and a timer."""

from __future__ import annotations

import math
import random as _random
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from resilient_imagen.circuitbreaker.calls import UNTRACKED, InFlightCall
from resilient_imagen.circuitbreaker.config import BreakerConfig, BreakerMode
from resilient_imagen.circuitbreaker.context import BreakerContext, default_classifier
from resilient_imagen.circuitbreaker.listeners import ChangeNotifier, EventDispatcher
from resilient_imagen.circuitbreaker.open_period import (
    NO_CAUSE,
    TripCause,
    is_fatal,
    trip_duration,
    valid_hint,
)
from resilient_imagen.circuitbreaker.permit import Permit
from resilient_imagen.circuitbreaker.state_machine import BreakerStateMachine
from resilient_imagen.circuitbreaker.timer import Clock, Timer
from resilient_imagen.circuitbreaker.types import (
    BreakerMetrics,
    BreakerSnapshot,
    BreakerState,
    Hold,
    Rejection,
    Settlement,
    StateChange,
    Transition,
)

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator, Mapping

    from resilient_imagen.circuitbreaker.types import Counted
    from resilient_imagen.reasons import BreakerOutcome

__all__ = ["CircuitBreaker"]

_CLOSED, _OPEN, _HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN

_CHANGES: Final[Mapping[tuple[BreakerState, BreakerState], StateChange]] = {
    (_CLOSED, _OPEN): "closed_to_open",
    (_HALF_OPEN, _OPEN): "half_open_to_open",
    (_HALF_OPEN, _CLOSED): "half_open_to_closed",
}


class CircuitBreaker:
    """Admits or rejects calls to one service, depending on the outcomes of earlier calls.

    No method awaits, so each method is atomic on its event loop; a lock makes the methods safe to
    call from other threads. Time is the time of the running loop: a breaker belongs to one running
    loop at a time. Loops may follow one another; a loop in another thread needs its own breaker.

    Args:
        name: Name of the service in rejections and transitions, such as `provider:model`.
        config: The settings.
        random: Returns 0 to 1 for the jitter.
        clock: Replaces the loop's time, in seconds (for simulations and code without a loop).
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
        self._clock = Clock(clock, self._on_loop_change)
        self._lock = threading.RLock()
        self._listeners = EventDispatcher()
        self._waiters = ChangeNotifier(self._lock)
        self._timer = Timer(self._on_timer)
        self._machine = self._new_machine(config)
        self._forced = False
        self._hold: Hold | None = None
        self._hold_ends = math.inf
        self._state = _CLOSED
        """The state that callers see. The mode, `force_open` and `hold` override the machine's."""
        self._since = self._clock.now()
        self._would_reject = 0

    def _new_machine(self, config: BreakerConfig) -> BreakerStateMachine:
        return BreakerStateMachine(
            config, self._random, self._on_state_change, self._on_place_freed
        )

    # Admission

    def try_acquire_early(self) -> Permit | Rejection | None:
        """Try to acquire a permit before queueing.

        Returns:
            None if calls are admitted (closed, off, shadow): queue, then call `acquire`.
            A probe's permit if a probe may be sent: carry it through the queue.
            Otherwise a rejection.

        Raises:
            RuntimeError: No loop is running, and there is no clock.
        """
        if self._is_idle and self._clock.is_readable:
            return None
        with self._lock:
            self._catch_up(strict=True)
            answer = None if self._state is _CLOSED else self._admit()
        self._listeners.deliver()
        return answer

    def acquire(self) -> Permit | Rejection:
        """Acquire a permit after queueing, just before the request is sent.

        Raises:
            RuntimeError: No loop is running, and there is no clock.
        """
        # Most calls find it closed, and need no lock. Should another thread open it now, the state
        # changes before the generation: the permit is stale then, as if it were acquired before.
        machine, generation = self._machine, self._machine.generation
        is_closed = machine.state is _CLOSED and self._mode is BreakerMode.ON and self._is_idle
        if is_closed and self._clock.is_readable:
            call = InFlightCall(generation)
            return Permit(self, call, probe=False, generation=generation, state=_CLOSED)
        with self._lock:
            self._catch_up(strict=True)
            answer = self._admit()
        self._listeners.deliver()
        return answer

    def protect(
        self, classify: Callable[[Exception], BreakerOutcome] = default_classifier
    ) -> BreakerContext:
        """Return a context manager that protects one call of any kind.

        ::

            breaker = CircuitBreaker("thumbnails", BreakerConfig(fail_max=5))
            async with breaker.protect():
                await fetch_thumbnail()

        Args:
            classify: Returns the verdict for an exception of the call. A cancellation, like all
                that is not an `Exception`, is neutral and is not passed to it.

        Raises:
            CircuitOpenError: On entry, if the call is rejected; `retry_after` is the time to wait.
        """
        return BreakerContext(self.name, self.acquire, classify)

    def allows_calls(self) -> bool:
        """Return whether `try_acquire_early` would admit a call now. Reserves nothing."""
        return self.blocked_until() is None

    def blocked_until(self) -> float | None:
        """Return the loop time until which calls are rejected.

        None means that calls are admitted, and infinity that there is no known time. While probes
        take all places, it is the latest time at which the first of them is decided.
        """
        if self._is_idle:
            return None
        with self._lock:
            self._catch_up()
            until = self._blocked_until(self._state)
        self._listeners.deliver()
        return until if until is None else self._clock.loop_time(until)

    def wait_for_change(self) -> asyncio.Future[None]:
        """Return a future that resolves at the next change of state or when a place is free.

        A change of state resolves all such futures. A free place resolves one future, the longest
        waiting first, and then the next ones if that caller does not take the place.

        The future may be awaited, cancelled or dropped; call this method again afterwards. The end
        of an open period that is followed by a probe resolves nothing: use `blocked_until`.
        """
        with self._lock:
            future = self._waiters.new()
            self._set_timer()  # on this loop, in case the previous one has ended
            return future

    # Control

    def force_trip(
        self,
        *,
        cause: str | None,
        summary: str | None = None,
        retry_after: float | None = None,
        origin: object | None = None,
    ) -> None:
        """Open now, for `reset_max` or a longer hint, as after a fatal failure.

        If it is open already, it stays open until the later of both ends. In mode off, nothing
        happens.
        """
        with self._update():
            config = self._machine.config
            if config.mode is not BreakerMode.OFF:
                seconds = trip_duration(config, valid_hint(retry_after), self._random)
                self._machine.open(seconds, TripCause(cause, summary, origin))

    def open_for(
        self,
        seconds: float,
        *,
        cause: str | None,
        summary: str | None,
        origin: object | None = None,
    ) -> None:
        """Open now for exactly `seconds`; if it is open already, until the later of both ends.

        Args:
            seconds: Length of the open period.
            cause: Reason that rejections report.
            summary: Short text that rejections report.
            origin: Object that rejections report, or None.
        """
        with self._update():
            if self._machine.config.mode is not BreakerMode.OFF:
                self._machine.open(seconds, TripCause(cause, summary, origin))

    @property
    def force_open(self) -> bool:
        """Reject all calls in any mode until this is set to False.

        Calls in flight are still counted, so the breaker returns to the state that is then correct.
        """
        return self._forced

    @force_open.setter
    def force_open(self, forced: bool) -> None:
        with self._update():
            self._forced = forced

    def hold(self, hold: Hold | None) -> None:
        """Keep the breaker open or closed for its callers, until this is called with None.

        Outcomes are still counted, so the breaker returns to the state that is then correct.
        `force_open` has precedence. Held closed, it works like mode shadow. In mode off it cannot
        be held closed, because it never opens.
        """
        with self._update():
            self._hold = hold
            self._hold_ends = math.inf if hold is None else self._clock.breaker_time(hold.until)

    @property
    def held(self) -> Hold | None:
        """The hold of an operator that is in force, or None."""
        return self._hold

    def close(self, *, even_if_fatal: bool = False) -> bool:
        """Close now, whatever opened the breaker; it may trip again.

        Args:
            even_if_fatal: Close it also after a fatal failure, such as a used-up quota.

        Returns:
            False if it stays open because of a fatal failure.
        """
        with self._update():
            if self._tripped_fatally and not even_if_fatal:
                return False
            self._machine.close()
        return True

    @property
    def config(self) -> BreakerConfig:
        """The settings in use."""
        return self._machine.config

    def reconfigure(self, config: BreakerConfig) -> None:
        """Apply other settings; state, counts, window and the current open period stay.

        The trip rules use them from the next failure on. Requests that were sent before `slow_call`
        was set are judged when they end. Mode off revokes the votes of requests in flight.
        """
        with self._update():
            self._machine.reconfigure(config)
            if config.mode is BreakerMode.OFF:
                self._machine.drop_in_flight()
            self._waiters.wake()  # there may be more places now

    # Observation

    def subscribe(
        self, listener: Callable[[Transition], None], *, inline: bool = False
    ) -> Callable[[], None]:
        """Call `listener` with every later transition. The returned function unsubscribes it.

        Listeners are called in order, after the state is consistent, in a separate thread: a slow
        listener delays no call. Exceptions of a listener are logged and not propagated.

        Args:
            listener: A function that is not a coroutine function.
            inline: Call it before the call that caused the transition continues. It must be quick.

        Raises:
            TypeError: The listener is a coroutine function.
        """
        return self._listeners.subscribe(listener, inline=inline)

    def metrics(self) -> BreakerMetrics:
        """Return the current metrics."""
        with self._lock:
            self._catch_up()
            metrics = self._metrics(self._state)
        self._listeners.deliver()
        return metrics

    def snapshot(self) -> BreakerSnapshot:
        """Return the breaker's condition for operators, ready for JSON; times in seconds."""
        with self._lock:
            self._catch_up()
            snapshot = self._snapshot()
        self._listeners.deliver()
        return snapshot

    # CallTracker

    def _begin(self, call: InFlightCall, origin: object | None) -> None:
        if not call.probe and self._machine.config.slow_call is None:  # nothing depends on it now
            call.origin, call.since = origin, self._clock.now()
            call.sent_at = call.since
            return
        with self._lock:
            self._catch_up()
            if call.settlement is None:
                call.origin = origin
                self._machine.send(call)
                self._set_timer()
        self._listeners.deliver()

    def _answered(self, call: InFlightCall) -> None:
        if not self._machine.in_flight.any_watched:
            call.answered = True
            return
        with self._update():
            self._machine.answered(call)

    def _is_stale(self, call: InFlightCall) -> bool:
        with self._lock:
            self._catch_up()
            stale = call.generation != UNTRACKED and self._machine.is_stale(call)
        self._listeners.deliver()
        return stale

    def _settle(self, call: InFlightCall, verdict: BreakerOutcome, cause: TripCause) -> Settlement:
        with self._lock:
            if call.settlement is not None:
                return call.settlement
            self._catch_up()
            before = self._state
            if self._machine.config.mode is BreakerMode.OFF or call.generation == UNTRACKED:
                counted: Counted = "ignored"
            else:
                counted = self._machine.count(call, verdict, cause)
            after = self._state
            change = None if before is after else _CHANGES.get((before, after))
            settlement = Settlement(counted, change, self._metrics(after))
            call.settlement = settlement
            if self._hold is not None:
                self._publish_state()  # the cause of an open period may have become fatal
            self._set_timer()
        self._listeners.deliver()
        return settlement

    # Callbacks of the state machine, the clock and the timer

    def _on_state_change(self, old: BreakerState, new: BreakerState) -> None:
        if self._mode is BreakerMode.SHADOW:
            self._listeners.put(self._transition(old, new, shadow=True))
        self._publish_state()

    def _on_place_freed(self) -> None:
        self._waiters.wake_for(lambda: self._machine.free_places)

    def _on_loop_change(self, previous: asyncio.AbstractEventLoop) -> None:
        """Forget the callers and calls of a loop that was closed: they never continue."""
        self._waiters.drop_closed_loops()
        if previous.is_closed():
            self._machine.abandon()

    def _on_timer(self) -> None:
        with self._update():
            pass

    # The methods below require the lock.

    @contextmanager
    def _update(self) -> Iterator[None]:
        """Take the lock for a change at the current time; then set the timer and deliver events.

        The methods that run on each call do the same without the cost of a generator.
        """
        with self._lock:
            self._catch_up()
            yield
            self._publish_state()
            self._set_timer()
        self._listeners.deliver()

    def _catch_up(self, *, strict: bool = False) -> None:
        self._machine.catch_up(self._clock.now(strict=strict))

    def _set_timer(self) -> None:
        self._timer.set(self._machine.due, self._clock)

    @property
    def _is_idle(self) -> bool:
        """Whether it is closed and no time-out is pending."""
        return self._state is _CLOSED and self._machine.due == math.inf

    @property
    def _is_forced_open(self) -> bool:
        return self._forced or (self._hold is not None and self._hold.opens)

    @property
    def _tripped_fatally(self) -> bool:
        period = self._machine.open_period
        return period is not None and is_fatal(period.cause.cause)

    @property
    def _mode(self) -> BreakerMode:
        """The mode, which is shadow while the breaker is held closed."""
        mode, hold = self._machine.config.mode, self._hold
        if mode is not BreakerMode.ON or hold is None or hold.opens:
            return mode
        held = hold.even_if_fatal or not self._tripped_fatally
        return BreakerMode.SHADOW if held else mode

    @property
    def _effective_state(self) -> BreakerState:
        if self._is_forced_open:
            return BreakerState.FORCED_OPEN
        return self._machine.state if self._mode is BreakerMode.ON else _CLOSED

    def _admit(self) -> Permit | Rejection:
        if self._is_forced_open:
            return self._rejection()
        mode = self._mode
        call = None if mode is BreakerMode.OFF else self._machine.admit()
        self._set_timer()
        if call is None:
            if mode is BreakerMode.ON:
                return self._rejection()
            self._would_reject += mode is BreakerMode.SHADOW
            call = InFlightCall(UNTRACKED)
        probe = call.probe and mode is BreakerMode.ON
        return Permit(
            self, call, probe=probe, generation=self._machine.generation, state=self._state
        )

    def _publish_state(self) -> None:
        """Update the state that callers see, and notify listeners and waiters of a change."""
        old, new = self._state, self._effective_state
        if new is not old:
            self._state, self._since = new, self._machine.now
            self._listeners.put(self._transition(old, new, shadow=False))
            self._waiters.wake()

    # Value types, built from the state machine

    def _blocked_until(self, state: BreakerState) -> float | None:
        if state is _CLOSED:
            return None
        if state is not BreakerState.FORCED_OPEN:
            return self._machine.blocked_until()
        return math.inf if self._forced else max(self._hold_ends, self._machine.now)

    def _metrics(self, state: BreakerState) -> BreakerMetrics:
        machine, rule, period = self._machine, self._machine.rule, self._machine.open_period
        rule.window.roll(machine.now)
        until = self._blocked_until(state)
        return BreakerMetrics(
            state,
            rule.window.failure_rate,
            rule.window.calls,
            rule.consecutive,
            machine.config.fail_max,
            period.until - period.since if period and state is _OPEN else None,
            None if until is None or until == math.inf else until - machine.now,
            machine.config.failure_rate,
        )

    def _cause(self, state: BreakerState) -> TripCause:
        period = self._machine.open_period
        return NO_CAUSE if period is None or state is BreakerState.FORCED_OPEN else period.cause

    def _rejection(self) -> Rejection:
        cause, metrics = self._cause(self._state), self._metrics(self._state)
        return Rejection(
            name=self.name,
            state=self._state,
            retry_after=metrics.retry_after,
            probing=self._state is _HALF_OPEN,
            cause=cause.cause,
            summary=cause.summary,
            origin=cause.origin,
            metrics=metrics,
        )

    def _transition(self, old: BreakerState, new: BreakerState, *, shadow: bool) -> Transition:
        machine, period, cause = self._machine, self._machine.open_period, self._cause(new)
        return Transition(
            name=self.name,
            from_state=old,
            to_state=new,
            at=self._clock.loop_time(machine.now),
            cause=cause.cause,
            summary=cause.summary,
            retry_after=period.until - machine.now if period and new is _OPEN else None,
            metrics=self._metrics(self._state if shadow else new),
            origin=cause.origin,
            shadow=shadow,
        )

    def _snapshot(self) -> BreakerSnapshot:
        machine, window, metrics = (
            self._machine,
            self._machine.rule.window,
            self._metrics(self._state),
        )
        shadowed = self._mode is BreakerMode.SHADOW
        found: BreakerSnapshot = {
            "name": self.name,
            "state": self._state.value,
            "mode": machine.config.mode.value,
            "since_s": machine.now - self._since,
            "why": machine.open_period.cause.cause if machine.open_period else None,
            "retry_after": metrics.retry_after,
            "window": {
                "calls": window.calls,
                "failures": window.failures,
                "failure_rate": metrics.failure_rate,
                "seconds": window.seconds,
            },
            "consecutive": metrics.consecutive,
            "fail_max": metrics.failure_threshold,
            "probes_in_flight": len(machine.in_flight.probes),
            "openings_in_a_row": machine.consecutive_openings,
            "shadow": {
                "state": machine.state.value if shadowed else None,
                "would_reject": self._would_reject,
            },
        }
        if self._hold is not None:
            found["held"] = "open" if self._hold.opens else "closed"
        return found
