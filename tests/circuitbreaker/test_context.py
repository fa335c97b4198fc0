"""`protect` around an application's coroutine: every outcome votes, and no outcome is changed."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from breaker_kit import half_open, make_breaker, opened, refused

from resilient_imagen.circuitbreaker import BreakerConfig, BreakerState, CircuitBreaker
from resilient_imagen.errors import (
    CircuitOpenError,
    ContentBlockedError,
    ProviderOverloadedError,
    QuotaExhaustedError,
    RateLimitedError,
)
from resilient_imagen.reasons import BreakerOutcome, Reason
from resilient_imagen.virtualtime import run_virtual

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator


class ThingError(Exception):
    """An exception of an application's service."""


class Stop(BaseException):
    """A BaseException that ends a program."""


async def call(breaker: CircuitBreaker, error: BaseException | None = None, **options: Any) -> str:
    async with breaker.protect(**options):
        await asyncio.sleep(0)
        if error is not None:
            raise error
    return "done"


def test_the_example_of_the_documentation() -> None:
    """After three failures in a row the fourth call is not made."""

    async def scenario() -> None:
        breaker = CircuitBreaker("thumbnails", BreakerConfig(fail_max=3), random=lambda: 0.0)
        made = []

        async def fetch_thumbnail() -> None:
            made.append(1)
            raise ThingError

        for _ in range(3):
            with pytest.raises(ThingError):
                async with breaker.protect():
                    await fetch_thumbnail()
        with pytest.raises(CircuitOpenError) as caught:
            async with breaker.protect():
                await fetch_thumbnail()
        assert len(made) == 3
        assert caught.value.retry_after == 60.0
        assert caught.value.reason is Reason.CIRCUIT_OPEN
        assert str(caught.value) == "thumbnails: skipped after earlier failures"

    run_virtual(scenario())


def test_a_call_that_returns_is_a_success() -> None:
    """A call that returns closes a half-open breaker."""
    breaker, clock = opened()
    clock.advance(60.0)

    assert run_virtual(call(breaker)) == "done"
    assert breaker.metrics().state is BreakerState.CLOSED


@pytest.mark.parametrize(
    ("error", "calls", "failures", "consecutive"),
    [
        (ThingError(), 1, 1, 1),
        (TimeoutError(), 1, 1, 1),
        (ProviderOverloadedError(), 1, 1, 1),
        (ContentBlockedError(), 1, 0, 0),
        (RateLimitedError(), 0, 0, 1),
        (asyncio.CancelledError(), 0, 0, 0),
        (Stop(), 0, 0, 0),
        (GeneratorExit(), 0, 0, 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_every_exception_votes_by_its_type_and_is_raised_unchanged(
    error: BaseException, calls: int, failures: int, consecutive: int
) -> None:
    """The same exception object reaches the caller, and votes by its type."""
    breaker, _ = make_breaker()

    async def scenario() -> BaseException | None:
        try:
            await call(breaker, error)
        except BaseException as caught:  # noqa: BLE001 - cancellation is what is looked at here
            return caught
        return None

    caught = run_virtual(scenario())
    window = breaker.snapshot()["window"]

    assert caught is error
    assert caught.__context__ is None
    assert (window["calls"], window["failures"]) == (calls, failures)
    assert breaker.metrics().consecutive == consecutive


def test_errors_of_the_library_provide_cause_summary_and_hint() -> None:
    """Cause, summary and hint of an error appear in later rejections."""
    breaker, _ = make_breaker(fail_max=1)
    error = RateLimitedError(retry_after=42.0, status=429, status_word="RESOURCE_EXHAUSTED")

    async def scenario() -> None:
        with pytest.raises(RateLimitedError):
            await call(breaker, error)

    run_virtual(scenario())
    rejection = refused(breaker)

    assert rejection.retry_after == 42.0
    assert rejection.cause == "rate_limited"
    assert rejection.summary == "429 RESOURCE_EXHAUSTED"


def test_an_exhausted_quota_opens_at_once() -> None:
    """One quota_exhausted error trips the breaker for reset_max."""
    breaker, _ = make_breaker()

    async def scenario() -> None:
        with pytest.raises(QuotaExhaustedError):
            await call(breaker, QuotaExhaustedError())

    run_virtual(scenario())

    assert refused(breaker).retry_after == 600.0


def test_the_caller_may_classify() -> None:
    """An exception that `classify` declares a success counts as one."""
    breaker, _ = make_breaker(fail_max=1)

    missing, seen = KeyError("not there"), []

    def classify(error: Exception) -> BreakerOutcome:
        seen.append(error)
        return BreakerOutcome.SUCCESS

    async def scenario() -> None:
        with pytest.raises(KeyError):
            await call(breaker, missing, classify=classify)

    run_virtual(scenario())

    assert seen == [missing]
    assert breaker.metrics().window_calls == 1
    assert breaker.metrics().state is BreakerState.CLOSED


def test_classify_never_sees_a_cancellation() -> None:
    """A cancellation is neutral, and `classify` is not called."""
    breaker, _ = make_breaker(fail_max=1)

    async def scenario() -> None:
        with pytest.raises(asyncio.CancelledError):
            await call(breaker, asyncio.CancelledError(), classify=lambda _: BreakerOutcome.FAILURE)

    run_virtual(scenario())

    assert breaker.metrics().window_calls == 0


def test_a_classify_that_raises_does_not_hide_the_error(caplog: pytest.LogCaptureFixture) -> None:
    """If `classify` raises, the call's error propagates, and the place is freed without a vote."""
    breaker, clock = opened()
    clock.advance(60.0)

    def broken(_error: Exception) -> BreakerOutcome:
        raise ZeroDivisionError("secret")

    async def scenario() -> None:
        with pytest.raises(ThingError):
            await call(breaker, ThingError(), classify=broken)

    with caplog.at_level(logging.WARNING, logger="resilient_imagen"):
        run_virtual(scenario())

    assert breaker.allows_calls()
    assert breaker.metrics().state is BreakerState.HALF_OPEN
    assert [record.getMessage() for record in caplog.records] == [
        "classify of breaker google:pro failed with ZeroDivisionError"
    ]


def test_a_rejected_call_settles_nothing() -> None:
    """A caller rejected in half-open does not affect the probe's round."""
    breaker, _, probe = half_open()

    async def scenario() -> None:
        with pytest.raises(CircuitOpenError):
            await call(breaker)

    run_virtual(scenario())

    assert probe.settle(BreakerOutcome.SUCCESS).transition == "half_open_to_closed"


def test_protect_blocks_of_one_task_may_nest() -> None:
    """Two breakers around one call each record its outcome."""
    outer, _ = make_breaker(fail_max=1)
    inner, _ = make_breaker(fail_max=1)

    async def scenario() -> None:
        async with outer.protect():
            with pytest.raises(ThingError):
                async with inner.protect():
                    raise ThingError

    run_virtual(scenario())

    assert outer.metrics().state is BreakerState.CLOSED
    assert inner.metrics().state is BreakerState.OPEN


async def hang_for_three_seconds(breaker: CircuitBreaker) -> None:
    async with asyncio.timeout(3.0), breaker.protect():
        await asyncio.sleep(60.0)


def test_a_timeout_around_protect_stays_a_timeout() -> None:
    """asyncio.timeout around `protect` raises TimeoutError to the caller."""

    async def scenario() -> CircuitBreaker:
        breaker = CircuitBreaker("google:pro", BreakerConfig(fail_max=1))
        for _ in range(5):
            with pytest.raises(TimeoutError):
                await hang_for_three_seconds(breaker)
        return breaker

    breaker = run_virtual(scenario())

    assert breaker.metrics().window_calls == 0
    assert breaker.metrics().state is BreakerState.CLOSED


def test_a_timeout_around_protect_is_slow_past_the_threshold() -> None:
    """A slow threshold below the timeout counts the hanging call as a failure."""

    async def scenario() -> CircuitBreaker:
        breaker = CircuitBreaker("google:pro", BreakerConfig(fail_max=2, slow_call=2.0))
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await hang_for_three_seconds(breaker)
        return breaker

    assert run_virtual(scenario()).metrics().state is BreakerState.OPEN


# Cancellation at every await


async def waits(steps: list[str]) -> None:
    """Run six kinds of awaits, some in a `finally` block."""
    steps.append("begin")
    await asyncio.sleep(0)
    await asyncio.sleep(1.0)
    try:
        await asyncio.gather(asyncio.sleep(1.0), asyncio.sleep(2.0))
    finally:
        await asyncio.sleep(0)
    async with asyncio.timeout(50.0):
        await asyncio.sleep(1.0)
    await asyncio.sleep(0)
    steps.append("end")


async def wait_and_call(breaker: CircuitBreaker, steps: list[str]) -> None:
    """Wait for a probe's outcome if necessary, then call."""
    while True:
        try:
            async with breaker.protect():
                await waits(steps)
        except CircuitOpenError:
            steps.append("waiting")
            await breaker.wait_for_change()
        else:
            return


class CancelledAt:
    """Awaits `work` in the running task, and cancels that task at the n-th suspension."""

    def __init__(self, work: Coroutine[Any, Any, None], step: int) -> None:
        self._work = work
        self._step = step
        self.suspensions = 0

    def __await__(self) -> Generator[Any, Any, None]:
        go_on: Callable[[], Any] = partial(self._work.send, None)
        while True:
            try:
                suspended_on = go_on()
            except StopIteration:
                return
            self.suspensions += 1
            if self.suspensions == self._step:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            try:
                yield suspended_on
            except BaseException as error:  # noqa: BLE001 - handed to the work, as a task does
                go_on = partial(self._work.throw, error)
            else:
                go_on = partial(self._work.send, None)


async def cancel_at(work: Coroutine[Any, Any, None], step: int) -> bool:
    """Return whether the work was cancelled, False once it has fewer suspensions than `step`."""
    driven = CancelledAt(work, step)

    async def run() -> None:
        await driven

    task = asyncio.ensure_future(run())
    await asyncio.wait([task])
    assert task.cancelled() == (driven.suspensions >= step)
    return task.cancelled()


async def every_step(prepare: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Cancel a new run at each suspension in turn; return the number of suspensions."""
    step = 1
    while await cancel_at(prepare(), step):
        step += 1
    return step - 1


def test_cancelling_a_call_at_every_await_changes_nothing() -> None:
    """Cancelling a call of a closed breaker at any await changes no count."""

    async def scenario() -> int:
        breaker = CircuitBreaker("google:pro", BreakerConfig())
        breaker_steps: list[str] = []
        count = await every_step(lambda: wait_and_call(breaker, breaker_steps))
        assert breaker.metrics().window_calls == 1, "only the run that was not cancelled"
        assert breaker.metrics().consecutive == 0
        assert breaker_steps.count("end") >= 1
        return count

    assert run_virtual(scenario()) >= 6


def test_cancelling_a_probe_at_every_await_frees_its_place() -> None:
    """After a probe is cancelled at any await, the next caller sends the probe."""

    async def scenario() -> int:
        breaker = CircuitBreaker("google:pro", BreakerConfig(), random=lambda: 0.0)
        breaker.force_trip(cause="overloaded")
        await asyncio.sleep(600.0)
        step = 1
        while await cancel_at(wait_and_call(breaker, []), step):
            assert breaker.metrics().state is BreakerState.HALF_OPEN
            assert breaker.allows_calls()
            assert breaker.snapshot()["probes_in_flight"] == 0
            step += 1
        assert breaker.metrics().state is BreakerState.CLOSED
        return step - 1

    assert run_virtual(scenario()) >= 6


def test_cancelling_a_waiter_at_every_await_leaves_nothing_behind() -> None:
    """A caller that waits for a probe may be cancelled at any await; the probe continues."""

    async def scenario() -> int:
        step = 1
        while True:
            breaker = CircuitBreaker("google:pro", BreakerConfig(), random=lambda: 0.0)
            breaker.force_trip(cause="overloaded")
            await asyncio.sleep(600.0)
            probe = asyncio.ensure_future(wait_and_call(breaker, []))
            await asyncio.sleep(0)
            steps: list[str] = []
            cancelled = await cancel_at(wait_and_call(breaker, steps), step)
            assert steps[0] == "waiting"
            await probe
            assert breaker.metrics().state is BreakerState.CLOSED
            assert breaker.metrics().window_calls == int(not cancelled)
            assert len(breaker._waiters) == 0
            if not cancelled:
                return step - 1
            step += 1

    assert run_virtual(scenario()) >= 7


def test_cancelling_the_probe_while_others_wait_hands_the_place_on() -> None:
    """If the probe is cancelled at any await, a waiting caller takes its place."""

    async def scenario() -> None:
        for step in range(1, 7):
            breaker = CircuitBreaker("google:pro", BreakerConfig(), random=lambda: 0.0)
            breaker.force_trip(cause="overloaded")
            await asyncio.sleep(600.0)
            first = asyncio.ensure_future(cancel_at(wait_and_call(breaker, []), step))
            await asyncio.sleep(0)
            others = [asyncio.ensure_future(wait_and_call(breaker, [])) for _ in range(20)]
            assert await first
            await asyncio.gather(*others)
            assert breaker.metrics().state is BreakerState.CLOSED

    run_virtual(scenario())


def test_one_context_protects_one_call_at_a_time() -> None:
    """Concurrent use of one context raises an error; reuse is allowed."""

    async def scenario() -> None:
        breaker = CircuitBreaker("thumbnails", BreakerConfig(), random=lambda: 0.0)
        guard = breaker.protect()
        async with guard:
            with pytest.raises(RuntimeError, match=r"^a context protects one call at a time"):
                async with guard:
                    pass
        async with guard:
            pass
        assert breaker.metrics().window_calls == 2

    run_virtual(scenario())
