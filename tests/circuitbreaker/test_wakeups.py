"""A freed place of a probe wakes as many callers as there are places, and no wake-up is lost."""

from __future__ import annotations

import asyncio
from typing import Literal, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_imagen.circuitbreaker import BreakerConfig, CircuitBreaker, Permit, Rejection
from resilient_imagen.reasons import BreakerOutcome
from resilient_imagen.virtualtime import VirtualTimeLoop, run_virtual

Kind = Literal["takes", "looks", "takes another", "leaves", "leaves when woken"]
Way = Literal["await", "wait", "wait_for", "task"]


async def due(places: int = 1) -> CircuitBreaker:
    """Return a breaker that is due for its first probe."""
    breaker = CircuitBreaker(
        "google:pro", BreakerConfig(half_open_calls=places, reset_max=600.0), random=lambda: 0.0
    )
    breaker.force_trip(cause="quota_exhausted")
    await asyncio.sleep(600.0)
    return breaker


def probes(breaker: CircuitBreaker, count: int) -> list[Permit]:
    found = [breaker.try_acquire_early() for _ in range(count)]
    assert all(isinstance(each, Permit) for each in found)
    return [each for each in found if isinstance(each, Permit)]


async def run_ready_callbacks() -> None:
    """Run all callbacks that need no time."""
    await asyncio.sleep(0.001)


class Caller:
    """One caller that waits for a place of `breaker`, and may also watch `other`."""

    def __init__(
        self, breaker: CircuitBreaker, other: CircuitBreaker, kind: Kind, way: Way
    ) -> None:
        self.breaker, self.other, self.kind, self.way = breaker, other, kind, way
        self.woken = 0
        self.permit: Permit | None = None
        self.task = asyncio.ensure_future(self.run())
        self.waiting: asyncio.Future[None] | None = None

    async def run(self) -> None:
        while isinstance(answer := self.ask(), Rejection):
            await self.wait()
            self.woken += 1
            if self.kind == "takes another":
                break
        if isinstance(answer, Permit):
            self.permit = answer

    def ask(self) -> Permit | Rejection | None:
        if self.kind != "looks":
            return self.breaker.try_acquire_early()
        rejection = self.breaker.try_acquire_early() if not self.breaker.allows_calls() else None
        return rejection or Rejection(
            "", self.breaker.metrics().state, None, True, None, None, None, self.breaker.metrics()
        )

    async def wait(self) -> None:
        self.waiting = self.breaker.wait_for_change()
        if self.kind == "leaves when woken":
            self.waiting.add_done_callback(lambda _: self.task.cancel())
        if self.way == "await":
            await self.waiting
        elif self.way == "wait_for":
            await asyncio.wait_for(self.waiting, 1e6)
        elif self.way == "task":
            await asyncio.ensure_future(asyncio.wait([self.waiting], timeout=1e6))
        else:
            watched = {self.waiting, self.other.wait_for_change()}
            await asyncio.wait(watched, timeout=1e6, return_when=asyncio.FIRST_COMPLETED)
            for each in watched:
                each.cancel()


def test_cancelled_probes_wake_one_caller_each() -> None:
    """Of 2000 waiting callers, 50 cancelled probes wake 50, in order of arrival."""

    async def scenario() -> list[int]:
        errors: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, error: errors.append(error))
        breaker = await due()
        (probe,) = probes(breaker, 1)
        callers = [Caller(breaker, breaker, "takes", "await") for _ in range(2000)]
        await run_ready_callbacks()
        for number in range(50):
            probe.settle(BreakerOutcome.NEUTRAL)
            await run_ready_callbacks()
            taken = callers[number].permit
            assert taken is not None
            probe = taken
        woken = [caller.woken for caller in callers]
        probe.settle(BreakerOutcome.SUCCESS)
        await run_ready_callbacks()
        assert all(caller.task.done() for caller in callers), "a verdict concerns all"
        assert errors == []
        return woken

    assert run_virtual(scenario()) == [1] * 50 + [0] * 1950


@pytest.mark.parametrize("way", get_args(Way))
def test_a_woken_caller_has_time_to_take_its_place(way: Way) -> None:
    """The next caller is not woken while the first one resumes, however many tasks that takes."""

    async def scenario() -> None:
        breaker, other = await due(), await due()
        (probe,) = probes(breaker, 1)
        probes(other, 1)
        callers = [Caller(breaker, other, "takes", way) for _ in range(3)]
        await run_ready_callbacks()
        probe.settle(BreakerOutcome.NEUTRAL)
        await run_ready_callbacks()
        assert [caller.woken for caller in callers] == [1, 0, 0]
        assert callers[0].permit is not None
        for caller in callers:
            caller.task.cancel()

    run_virtual(scenario())


def test_places_that_are_freed_together_wake_as_many() -> None:
    """Three places, of which two probes leave at once: two callers are woken."""

    async def scenario() -> None:
        breaker = await due(3)
        first, second, _ = probes(breaker, 3)
        callers = [Caller(breaker, breaker, "takes", "wait") for _ in range(10)]
        await run_ready_callbacks()
        first.settle(BreakerOutcome.NEUTRAL)
        second.settle(BreakerOutcome.REFUSED)
        await run_ready_callbacks()
        assert sum(caller.permit is not None for caller in callers) == 2
        assert sum(caller.woken for caller in callers) <= 3
        for caller in callers:
            caller.task.cancel()

    run_virtual(scenario())


def test_a_woken_caller_that_does_not_take_its_place_hands_it_on_once() -> None:
    """Callers that do not take the free place are woken once each, without a busy loop."""

    async def scenario() -> None:
        breaker = await due()
        (probe,) = probes(breaker, 1)
        checking = [Caller(breaker, breaker, "looks", "await") for _ in range(100)]
        await run_ready_callbacks()
        probe.settle(BreakerOutcome.NEUTRAL)
        await run_ready_callbacks()
        assert [caller.woken for caller in checking] == [1] * 100
        await asyncio.sleep(10.0)
        assert [caller.woken for caller in checking] == [1] * 100
        for caller in checking:
            caller.task.cancel()

    run_virtual(scenario())


KINDS = st.sampled_from(["takes", "takes", "looks", "takes another", "leaves", "leaves when woken"])
WAYS = st.sampled_from(["await", "wait", "wait_for", "task"])
ENDINGS = st.sampled_from([BreakerOutcome.NEUTRAL, BreakerOutcome.NEUTRAL, BreakerOutcome.REFUSED])


@settings(max_examples=200, deadline=None)
@given(
    places=st.integers(1, 3),
    planned_callers=st.lists(st.tuples(KINDS, WAYS), min_size=1, max_size=12),
    endings=st.lists(st.lists(ENDINGS, min_size=1, max_size=3), min_size=1, max_size=12),
)
def test_no_place_is_free_while_a_caller_waits_for_one(
    places: int, planned_callers: list[tuple[Kind, Way]], endings: list[list[BreakerOutcome]]
) -> None:
    """No wake-up is lost when woken callers are cancelled, only check, or fall back."""

    async def scenario() -> None:
        breaker, other = await due(places), await due()
        held = probes(breaker, places)
        probes(other, 1)
        callers = [Caller(breaker, other, kind, way) for kind, way in planned_callers]
        await run_ready_callbacks()
        for round_ in endings:
            for verdict in round_:
                for caller in callers:
                    if caller.kind == "leaves" and caller.waiting is not None:
                        caller.task.cancel()
                if held:
                    held.pop(0).settle(verdict)
            await run_ready_callbacks()
            for caller in callers:
                if caller.permit is not None:
                    held.append(caller.permit)
                    caller.permit = None
            waiting = [
                caller for caller in callers if caller.kind == "takes" and not caller.task.done()
            ]
            assert not waiting or len(held) == places
        for caller in callers:
            caller.task.cancel()

    run_virtual(scenario())


def test_a_waiter_of_a_stopped_loop_does_not_consume_a_wake_up() -> None:
    """A waiter on a stopped loop does not prevent the running loop's caller from waking."""
    breaker = CircuitBreaker("google:pro", BreakerConfig(), random=lambda: 0.0)
    idle, busy = VirtualTimeLoop(), VirtualTimeLoop()

    async def wait() -> asyncio.Future[None]:
        breaker.force_trip(cause="overloaded")
        return breaker.wait_for_change()

    async def probe_and_leave() -> None:
        breaker.force_open = False
        until = breaker.blocked_until()
        assert until is not None
        await asyncio.sleep(until - asyncio.get_running_loop().time())
        (probe,) = probes(breaker, 1)
        caller = Caller(breaker, breaker, "takes", "await")
        await run_ready_callbacks()
        probe.settle(BreakerOutcome.NEUTRAL)
        await run_ready_callbacks()
        assert caller.permit is not None

    try:
        left = idle.run_until_complete(wait())
        busy.run_until_complete(probe_and_leave())
        assert not left.done(), "its loop has not run"
        idle.run_until_complete(asyncio.wait_for(left, 1))
    finally:
        idle.close()
        busy.close()


def test_a_place_freed_outside_any_loop_wakes_all() -> None:
    """A permit settled in a thread without a loop wakes all waiting callers."""

    async def scenario() -> None:
        breaker = await due()
        (probe,) = probes(breaker, 1)
        kinds: tuple[Kind, ...] = ("looks", "takes", "takes")
        callers = [Caller(breaker, breaker, kind, "await") for kind in kinds]
        await run_ready_callbacks()
        await asyncio.to_thread(probe.settle, BreakerOutcome.NEUTRAL)
        await run_ready_callbacks()
        assert [caller.woken for caller in callers] == [1, 1, 1]
        assert callers[1].permit is not None
        for caller in callers:
            caller.task.cancel()

    run_virtual(scenario())
