"""Sharing through Redis costs little, and fleets of any size agree on an outage."""

from __future__ import annotations

import asyncio

import pytest
from fleet_agreement import agree
from redis_kit import redis_server
from redis_ops import per_image

from resilient_imagen.testing import run_virtual

pytestmark = pytest.mark.no_cover


@pytest.mark.parametrize("size", [8, pytest.param(16, marks=pytest.mark.ci)])
def test_an_outage_costs_three_requests_and_those_in_flight(size: int) -> None:
    """For any size, no later request is sent, all workers know within 5 ms, and one probe ends the
    outage.
    """
    found = run_virtual(agree(size, deaf=False))
    assert found.failed == 3 + found.under_way
    assert 0 < found.under_way < size
    assert (found.later, found.probes) == (0, 1)
    assert found.opened_s < 0.005
    assert found.closed_s < 0.01
    assert found.messages <= 2 * size
    assert found.idle_steps <= 3.2 * size
    assert found.idle_trips <= 2.3 * size


def test_heartbeats_share_an_outage_without_messages() -> None:
    """If every message is lost, all workers open after a heartbeat and few further requests."""
    found = run_virtual(agree(8, deaf=True))
    assert found.opened_s < 1.2
    assert found.later <= 2


@pytest.mark.redis
def test_an_image_costs_two_commands_and_waits_for_one() -> None:
    """Callers wait for the command that takes a place in the queue, and not for the report of the
    outcome.
    """
    with redis_server() as server:
        cost = asyncio.run(per_image(server.url, 100))
    # The counts include heartbeats, of which a slow machine sends more.
    assert 2.0 <= cost.steps < 2.5
    assert 1.0 <= cost.trips < 2.5
