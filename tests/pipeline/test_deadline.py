"""Deadlines: remaining time, the reserve for later routes, and the end of a request."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest

from resilient_imagen.pipeline.deadline import MIN_USEFUL_SECONDS, Deadline

NEVER = Deadline(math.inf)


@dataclass
class LaterRoute:
    """The attributes of a later route that determine the share of the deadline."""

    timeout: float
    blocked_until: float = 0.0

    def rejects_at(self, when: float) -> bool:
        """Return whether the circuit is still open at ``when``."""
        return self.blocked_until > when


def share(deadline: Deadline, *later_routes: Any, now: float = 100.0) -> float:
    """Return the loop time by which the first route must be done."""
    return deadline.share(now, later_routes).at


def test_a_deadline_is_counted_from_now() -> None:
    """Infinite seconds mean no limit, and no timer."""
    deadline = Deadline.after(30.0, now=100.0)
    assert (deadline.at, deadline.timer_at, deadline.remaining(110.0)) == (130.0, 130.0, 20.0)
    assert Deadline.after(math.inf, now=100.0) == NEVER
    assert NEVER.timer_at is None
    assert not NEVER.has_passed(1e12)


def test_a_timer_may_fire_slightly_before_its_deadline() -> None:
    """A deadline counts as passed from the clock tolerance before it."""
    deadline = Deadline(130.0)
    assert not deadline.has_passed(129.9)
    assert deadline.has_passed(129.9995)


@pytest.mark.parametrize(("latency", "latest"), [(None, 30.0), (0.0, 30.0), (8.0, 22.0)])
def test_a_request_must_have_useful_time_left(latency: float | None, latest: float) -> None:
    """A request is not sent when less than its expected latency and a minimum is left."""
    deadline = Deadline(30.0)
    assert deadline.latest_start(latency) == latest - MIN_USEFUL_SECONDS
    assert deadline.is_worth_starting(latest - 0.01, latency)
    assert not deadline.is_worth_starting(deadline.latest_start(latency), latency)
    assert NEVER.is_worth_starting(latest, latency)


def test_the_reserve_is_the_next_timeout_but_at_most_half_of_the_remaining_time() -> None:
    """Of 100 seconds a later route gets its limit of 20 per request, or 50 of a limit of 90."""
    deadline = Deadline(200.0)
    assert share(deadline, LaterRoute(20.0)) == 180.0
    assert share(deadline, LaterRoute(90.0)) == 150.0
    assert share(deadline) == 200.0
    assert share(NEVER, LaterRoute(20.0)) == math.inf


def test_time_is_reserved_only_for_a_route_that_can_use_it() -> None:
    """No time is reserved for a route whose breaker stays open until the fallback."""
    deadline = Deadline(200.0)
    assert share(deadline, LaterRoute(20.0, blocked_until=190.0), LaterRoute(30.0)) == 170.0
    assert share(deadline, LaterRoute(20.0, blocked_until=180.0), LaterRoute(30.0)) == 180.0
    assert share(deadline, LaterRoute(20.0, blocked_until=math.inf)) == 200.0


@pytest.mark.parametrize(
    ("route", "call", "ends_at"),
    [
        (math.inf, math.inf, 60.0),
        (60.0, 60.0, 60.0),
        (40.0, 80.0, 40.0),
        (40.0, 40.0, None),
    ],
)
def test_a_request_ends_at_the_earliest_of_three_limits(
    route: float, call: float, ends_at: float | None
) -> None:
    """A request ends at its timeout, its route's share or the deadline, which has its own timer."""
    deadline = Deadline(route)
    assert deadline.attempt_timer_at(60.0, Deadline(call)) == ends_at
    assert deadline.cuts_short(60.0) == (ends_at != 60.0)
