"""An order to eight real processes through a real Redis, given by the real command."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_kit import run
from worker_processes import CALLERS, WorkerGroup, note, worker_group

from resilient_imagen.control.fleet import FleetOrders
from resilient_imagen.distributed import Address

pytestmark = [pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(300)]

WORKERS = 8
LASTS = 20.0


@pytest.fixture(scope="module")
def group() -> Iterator[WorkerGroup]:
    with worker_group(WORKERS) as group:
        yield group


@pytest.mark.parametrize("redis_dies", [False, True])
def test_an_order_is_obeyed_by_all_within_two_seconds_and_ends_by_itself(
    group: WorkerGroup, tmp_path: Path, redis_dies: bool
) -> None:
    """The order is in the log, snapshots and spans of all workers, whose clocks differ by hours."""
    if not group.redis.answers():
        group.redis.start()
    group.open(traced=True)
    group.load(60, callers=CALLERS, pause=0.2, rest=0.5)
    to_epoch = time.time() - time.monotonic()
    done = run("breaker", "open", "google", "--for", "20s", "--redis-url", group.url, cwd=tmp_path)
    obeyed = time.monotonic()
    assert (done.returncode, f": {WORKERS} of {WORKERS} workers obey" in done.stdout) == (0, True)
    (stored,) = asyncio.run(FleetOrders(Address.parse(group.url), None).read())
    assert list(stored.codes.values()) == ["ok"] * WORKERS
    if redis_dies:
        group.redis.kill()
    reports = group.reports()

    delays, durations = [], []
    for report in reports:
        (began, ended) = report["orders"]
        assert (began[1], ended[1]) == ("OrderApplied", "OrderEnded")
        assert [state for _, state in report["changes"]] == ["forced_open", "closed"]
        assert began[0] <= obeyed  # the command had waited for it
        delays.append(began[0] + to_epoch - stored.order.serial / 1e6)
        durations.append(ended[0] - began[0])
        assert report["ended"]["circuit_open"] > 0
        assert report["ended"]["image"] > 0
        assert set(report["spans"]) == {"", "breaker open google"}
        # A call that had started before may be rejected, too.
        assert abs(report["spans"][""] - report["ended"]["image"]) <= CALLERS
        assert report["joined"] is not redis_dies
        assert report["control"] == []
    note(
        f"Redis {'killed' if redis_dies else 'kept'}: obeyed by all {WORKERS} after "
        f"{min(delays) * 1000:.1f} to {max(delays) * 1000:.1f} ms; ended after "
        f"{min(durations):.3f} to {max(durations):.3f} s"
    )
    assert max(delays) < 2.0
    assert min(durations) > LASTS - 1.0
