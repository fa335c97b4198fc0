"""Slow calls: a call counts as a failure at the threshold, exactly once."""

from __future__ import annotations

import asyncio

import pytest
from breaker_kit import changes, fail, half_open, make_breaker, outcome, refused, send_call

from resilient_imagen.circuitbreaker import (
    BreakerConfig,
    BreakerMode,
    BreakerState,
    CircuitBreaker,
    Permit,
)
from resilient_imagen.reasons import BreakerOutcome
from resilient_imagen.virtualtime import run_virtual


def test_slow_calls_in_flight_open_it_before_they_end() -> None:
    """Three calls in flight for 20 s open the breaker at that moment."""
    breaker, clock = make_breaker(slow_call=20.0)
    calls = [send_call(breaker) for _ in range(3)]
    clock.advance(19.999)
    assert breaker.metrics().consecutive == 0
    clock.now = 20.0
    rejection = refused(breaker)

    assert rejection.retry_after == 60.0
    assert (rejection.cause, rejection.summary) == ("timeout", "timed out")
    assert [each.settle(BreakerOutcome.SUCCESS).counted for each in calls] == ["slow"] * 3


def test_slow_calls_found_late_count_at_their_own_moments_in_order() -> None:
    """The opening has the time when the third call became slow, even if it is detected later."""
    breaker, clock = make_breaker(slow_call=20.0)
    for _ in range(3):
        send_call(breaker)
        clock.advance(1.0)
    clock.now = 60.0

    assert breaker.blocked_until() == 2.0 + 20.0 + 60.0


@pytest.mark.parametrize(
    ("verdict", "counted"),
    [(each, "slow") for each in BreakerOutcome if each is not BreakerOutcome.TRIP],
)
def test_a_slow_call_counts_once(verdict: BreakerOutcome, counted: str) -> None:
    """The later outcome of a slow call changes no count."""
    breaker, clock = make_breaker(slow_call=20.0, fail_max=100)
    call = send_call(breaker)
    clock.advance(25.0)
    assert breaker.metrics().consecutive == 1
    settlement = call.settle(verdict)
    clock.advance(25.0)

    assert settlement.counted == counted
    assert (breaker.metrics().consecutive, breaker.metrics().window_calls) == (1, 1)


@pytest.mark.parametrize(
    "verdict", [BreakerOutcome.SUCCESS, BreakerOutcome.FAILURE, BreakerOutcome.NEUTRAL]
)
def test_a_call_that_ends_at_the_threshold_is_slow(verdict: BreakerOutcome) -> None:
    """Every outcome exactly at the threshold is slow."""
    breaker, clock = make_breaker(slow_call=20.0, fail_max=100)
    call = send_call(breaker)
    clock.advance(20.0)

    assert call.settle(verdict).counted == "slow"
    assert breaker.metrics().consecutive == 1


def test_a_call_that_ends_in_time_leaves_nothing_behind() -> None:
    """A settled call does not become slow later."""
    breaker, clock = make_breaker(slow_call=20.0, fail_max=1)
    outcome(breaker, BreakerOutcome.SUCCESS)
    outcome(breaker, BreakerOutcome.NEUTRAL)
    clock.advance(1000.0)

    assert breaker.metrics().state is BreakerState.CLOSED


def test_a_cancelled_call_is_slow_only_when_it_was_sent() -> None:
    """A call that was queued for long and then cancelled does not count as slow."""
    breaker, clock = make_breaker(slow_call=20.0, fail_max=1)
    waiting = breaker.acquire()
    assert isinstance(waiting, Permit)
    clock.advance(1000.0)

    assert waiting.settle(BreakerOutcome.NEUTRAL).counted == "ignored"


def test_beginning_again_counts_from_then() -> None:
    """A call that is sent again is timed from its last sending."""
    breaker, clock = make_breaker(slow_call=20.0, fail_max=100)
    first, second = send_call(breaker), send_call(breaker)
    clock.advance(15.0)
    first.begin()
    clock.advance(10.0)
    assert breaker.metrics().consecutive == 1, "the second"
    assert first.settle(BreakerOutcome.SUCCESS).counted == "success"
    assert second.settle(BreakerOutcome.SUCCESS).counted == "slow"


@pytest.mark.parametrize(("hint", "length"), [(None, 600.0), (900.0, 900.0)])
def test_a_slow_call_with_an_exhausted_quota_still_trips(hint: float | None, length: float) -> None:
    """A slow call has used its vote, but an exhausted quota still trips the breaker."""
    breaker, clock = make_breaker(slow_call=20.0, fail_max=100)
    call = send_call(breaker)
    clock.advance(25.0)
    settlement = call.settle(BreakerOutcome.TRIP, retry_after=hint)

    assert (settlement.counted, settlement.transition) == ("slow", "closed_to_open")
    assert settlement.metrics.open_for == length
    assert settlement.metrics.window_calls == 1


def test_a_slow_call_with_a_hint_opens_for_the_hint() -> None:
    """A 429 with a hint after the threshold opens for exactly that long."""
    breaker, clock = make_breaker(slow_call=20.0, fail_max=100)
    call = send_call(breaker)
    clock.advance(25.0)
    settlement = call.settle(BreakerOutcome.THROTTLED, retry_after=40.0)

    assert (settlement.counted, settlement.transition) == ("slow", "closed_to_open")
    assert breaker.blocked_until() == 65.0


def test_a_slow_probe_has_failed() -> None:
    """A probe past the slow threshold opens the breaker before its own deadline."""
    breaker, clock, probe = half_open(slow_call=20.0, probe_deadline=61.0)
    began = clock.now
    clock.advance(20.0)

    assert breaker.blocked_until() == began + 20.0 + 5 * 20.0
    assert probe.settle(BreakerOutcome.SUCCESS).counted == "slow"


def test_a_probe_cancelled_after_the_threshold_has_failed() -> None:
    """A probe that is cancelled after the slow threshold counts as failed."""
    breaker, clock, probe = half_open(slow_call=20.0)
    clock.advance(30.0)
    settlement = probe.settle(BreakerOutcome.NEUTRAL)

    assert settlement.counted == "slow"
    assert breaker.metrics().state is BreakerState.OPEN


def test_a_deadline_shorter_than_the_threshold_decides_first() -> None:
    """A probe fails at the earlier of its deadline and the slow threshold."""
    breaker, clock, probe = half_open(slow_call=50.0, probe_deadline=30.0)
    began = clock.now
    clock.advance(45.0)

    assert breaker.blocked_until() == began + 30.0 + 5 * 30.0
    assert probe.settle(BreakerOutcome.SUCCESS).counted == "failure"


def test_a_slow_call_names_its_origin() -> None:
    """Later rejections have the origin of the slow call."""
    breaker, clock = make_breaker(slow_call=20.0, fail_max=1)
    call = breaker.acquire()
    assert isinstance(call, Permit)
    call.begin(origin="span of the slow one")
    clock.advance(20.0)

    assert refused(breaker).origin == "span of the slow one"


def test_the_threshold_can_be_switched_on_while_calls_are_in_flight() -> None:
    """Calls sent before are judged when they end, with the origin of either moment."""
    breaker, clock = make_breaker(fail_max=2)
    calls = [send_call(breaker) for _ in range(2)]
    breaker.reconfigure(BreakerConfig(fail_max=2, slow_call=20.0))
    clock.advance(20.0)
    assert breaker.metrics().consecutive == 0
    assert calls[0].settle(BreakerOutcome.SUCCESS).counted == "slow"
    assert (breaker.metrics().window_calls, breaker.metrics().failure_rate) == (1, 1.0)
    assert (
        calls[1].settle(BreakerOutcome.NEUTRAL, cause="cancelled", origin="span").counted == "slow"
    )
    rejection = refused(breaker)
    assert (rejection.cause, rejection.origin) == ("timeout", "span")


@pytest.mark.parametrize(("given", "reported"), [("span", "span"), (None, "span of begin")])
def test_a_success_that_counts_as_slow_reports_its_origin(given: str | None, reported: str) -> None:
    """It is the origin of the settlement, else that of the sending."""
    breaker, clock = make_breaker(fail_max=1)
    call = send_call(breaker)
    call.begin(origin="span of begin")
    breaker.reconfigure(BreakerConfig(fail_max=1, slow_call=20.0))
    clock.advance(20.0)
    assert call.settle(BreakerOutcome.SUCCESS, origin=given).counted == "slow"
    rejection = refused(breaker)
    assert (rejection.cause, rejection.origin) == ("timeout", reported)


def test_a_trip_after_the_threshold_was_switched_on_is_a_trip() -> None:
    """A call sent before the threshold was set that finds the quota exhausted trips."""
    breaker, clock = make_breaker(fail_max=1)
    call = send_call(breaker)
    breaker.reconfigure(BreakerConfig(fail_max=1, slow_call=20.0))
    clock.advance(25.0)

    assert call.settle(BreakerOutcome.TRIP).counted == "failure"
    assert breaker.metrics().open_for == 600.0


def test_the_threshold_can_be_switched_off_while_calls_are_in_flight() -> None:
    """After the threshold is removed, no call becomes slow."""
    breaker, clock = make_breaker(fail_max=1, slow_call=20.0)
    call = send_call(breaker)
    breaker.reconfigure(BreakerConfig(fail_max=1))
    clock.advance(25.0)

    assert breaker.metrics().state is BreakerState.CLOSED
    assert call.settle(BreakerOutcome.SUCCESS).counted == "success"


def test_a_lower_threshold_counts_calls_in_flight_now_not_in_the_past() -> None:
    """Calls that become slow by a lower threshold count at the time of the change."""
    breaker, clock = make_breaker(fail_max=1, slow_call=50.0)
    send_call(breaker)
    clock.advance(30.0)
    breaker.reconfigure(BreakerConfig(fail_max=1, slow_call=10.0))

    assert breaker.blocked_until() == 90.0


def test_slow_calls_count_in_shadow_too() -> None:
    """Slow calls open a shadow breaker."""
    breaker, clock = make_breaker(mode=BreakerMode.SHADOW, slow_call=20.0)
    for _ in range(3):
        send_call(breaker)
    clock.advance(20.0)

    assert breaker.snapshot()["shadow"]["state"] == "open"


def test_calls_of_an_earlier_state_never_become_slow() -> None:
    """Calls from before the opening cannot fail the half-open round."""
    breaker, clock = make_breaker(slow_call=90.0, reset_timeout=60.0)
    late_call = send_call(breaker)
    fail(breaker, 3)
    clock.advance(60.0)
    probe = send_call(breaker)
    clock.advance(40.0)

    assert breaker.metrics().state is BreakerState.HALF_OPEN
    assert probe.settle(BreakerOutcome.SUCCESS).transition == "half_open_to_closed"
    assert late_call.settle(BreakerOutcome.FAILURE).counted == "stale"


def test_a_timer_detects_slow_calls() -> None:
    """On a loop, listeners receive the opening at the threshold while all calls still hang."""

    async def scenario() -> tuple[list[tuple[str, str]], float]:
        breaker = CircuitBreaker("google:pro", BreakerConfig(slow_call=20.0), random=lambda: 0.0)
        loop = asyncio.get_running_loop()
        seen = changes(breaker)
        received: list[float] = []
        breaker.subscribe(lambda transition: received.append(transition.at), inline=True)
        await asyncio.sleep(100.0)
        for _ in range(3):
            send_call(breaker)
            await asyncio.sleep(1.0)
        await breaker.wait_for_change()
        assert received == [pytest.approx(loop.time())]
        return seen, loop.time()

    seen, now = run_virtual(scenario())

    assert seen == [("closed", "open")]
    assert now == pytest.approx(122.0)


def test_a_call_answered_before_the_threshold_was_set_is_not_slow() -> None:
    """A call answered before the threshold was set is not slow."""
    breaker, clock = make_breaker()
    answered, silent = send_call(breaker), send_call(breaker)
    answered.answered()
    breaker.reconfigure(BreakerConfig(slow_call=20.0))
    clock.advance(30.0)

    assert answered.settle(BreakerOutcome.SUCCESS).counted == "success"
    assert silent.settle(BreakerOutcome.SUCCESS).counted == "slow"
