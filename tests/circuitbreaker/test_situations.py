"""Eight situations in which other circuit breakers for asyncio fail.

They run on the loop, with real tasks and real cancellations.
"""

from __future__ import annotations

import asyncio

import pytest

from resilient_imagen.circuitbreaker import BreakerConfig, BreakerState, CircuitBreaker
from resilient_imagen.errors import CircuitOpenError, InvalidRequestError
from resilient_imagen.reasons import BreakerOutcome
from resilient_imagen.virtualtime import run_virtual

RESET = 30.0


class DownError(Exception):
    """The service is down."""


async def call(
    breaker: CircuitBreaker, seconds: float = 0.0, error: Exception | None = None
) -> None:
    async with breaker.protect():
        await asyncio.sleep(seconds)
        if error is not None:
            raise error


async def cancelled(breaker: CircuitBreaker) -> None:
    """Cancel a call while it is in flight."""
    task = asyncio.ensure_future(call(breaker, 5.0))
    await asyncio.sleep(1.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def opened() -> CircuitBreaker:
    breaker = CircuitBreaker(
        "service",
        BreakerConfig(fail_max=3, reset_timeout=RESET, probe_deadline=20.0),
        random=lambda: 0.0,
    )
    for _ in range(3):
        with pytest.raises(DownError):
            await call(breaker, error=DownError())
    assert breaker.metrics().state is BreakerState.OPEN
    return breaker


def test_1_clients_that_cancel_do_not_open_it() -> None:
    """Five cancelled callers leave the breaker closed, and each gets its own cancellation."""

    async def scenario() -> CircuitBreaker:
        breaker = CircuitBreaker("service", BreakerConfig(fail_max=3))
        for _ in range(5):
            await cancelled(breaker)
        return breaker

    assert run_virtual(scenario()).metrics().state is BreakerState.CLOSED


def test_2_a_cancellation_is_neither_failure_nor_success() -> None:
    """A cancelled call between the second and third failure changes nothing."""

    async def scenario() -> None:
        breaker = CircuitBreaker("service", BreakerConfig(fail_max=3))
        for _ in range(2):
            with pytest.raises(DownError):
                await call(breaker, error=DownError())
        await cancelled(breaker)
        assert breaker.metrics().consecutive == 2
        assert breaker.metrics().window_calls == 2
        with pytest.raises(DownError):
            await call(breaker, error=DownError())
        assert breaker.metrics().state is BreakerState.OPEN

    run_virtual(scenario())


def test_3_of_200_callers_one_enters_half_open() -> None:
    """Of 200 callers at the end of the open period, one is admitted."""

    async def scenario() -> list[BaseException | None]:
        breaker = await opened()
        await asyncio.sleep(RESET)
        return await asyncio.gather(
            *(call(breaker, 1.0) for _ in range(200)), return_exceptions=True
        )

    ends = run_virtual(scenario())

    assert ends.count(None) == 1
    assert sum(isinstance(each, CircuitOpenError) for each in ends) == 199


def test_4_a_late_failure_does_not_delay_recovery() -> None:
    """A late failure of a call from before the outage does not delay the probe."""

    async def scenario() -> None:
        breaker = CircuitBreaker(
            "service", BreakerConfig(fail_max=3, reset_timeout=RESET), random=lambda: 0.0
        )
        late = asyncio.ensure_future(call(breaker, 20.0, DownError()))
        await asyncio.sleep(0)
        for _ in range(3):
            with pytest.raises(DownError):
                await call(breaker, error=DownError())
        due = breaker.blocked_until()
        with pytest.raises(DownError):
            await late
        assert breaker.blocked_until() == due == pytest.approx(RESET)

    run_virtual(scenario())


def test_5_a_late_success_does_not_close_it_while_a_probe_is_in_flight() -> None:
    """A late success is ignored: only the outcome of the probe closes the breaker."""

    async def scenario() -> None:
        breaker = CircuitBreaker(
            "service", BreakerConfig(fail_max=3, reset_timeout=RESET), random=lambda: 0.0
        )
        late = asyncio.ensure_future(call(breaker, RESET + 5.0))
        await asyncio.sleep(0)
        for _ in range(3):
            with pytest.raises(DownError):
                await call(breaker, error=DownError())
        await asyncio.sleep(RESET)
        probe = asyncio.ensure_future(call(breaker, 10.0, DownError()))
        await late
        assert breaker.metrics().state is BreakerState.HALF_OPEN
        with pytest.raises(DownError):
            await probe
        assert breaker.metrics().state is BreakerState.OPEN

    run_virtual(scenario())


def test_6_a_cancelled_probe_leaves_it_half_open() -> None:
    """After a cancelled probe the breaker is half-open, and the next caller probes."""

    async def scenario() -> None:
        breaker = await opened()
        await asyncio.sleep(RESET)
        await cancelled(breaker)
        assert breaker.metrics().state is BreakerState.HALF_OPEN
        await call(breaker)
        assert breaker.metrics().state is BreakerState.CLOSED

    run_virtual(scenario())


def test_7_a_neutral_error_does_not_close_it() -> None:
    """A probe that ends in a neutral error leaves the breaker half-open."""

    async def scenario() -> None:
        breaker = await opened()
        await asyncio.sleep(RESET)
        with pytest.raises(InvalidRequestError):
            async with breaker.protect(classify=lambda _: BreakerOutcome.NEUTRAL):
                raise InvalidRequestError
        assert breaker.metrics().state is BreakerState.HALF_OPEN
        assert breaker.allows_calls()

    run_virtual(scenario())


def test_8_a_hanging_probe_does_not_block_recovery() -> None:
    """A hanging probe opens the breaker at its deadline, and a later probe closes it."""

    async def scenario() -> None:
        breaker = await opened()
        await asyncio.sleep(RESET)
        hung = asyncio.ensure_future(call(breaker, 1e9))
        await asyncio.sleep(20.0)
        await asyncio.sleep(0)
        assert breaker.metrics().state is BreakerState.OPEN
        await asyncio.sleep(5 * 20.0)
        await call(breaker)
        assert breaker.metrics().state is BreakerState.CLOSED
        hung.cancel()

    run_virtual(scenario())
