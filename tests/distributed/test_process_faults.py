"""Real processes under faults: the next outage is shared, and the rate limit is kept.

Eight processes with the real SDK share one Redis and 60 images a minute, and each has more callers
than the limit serves.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fleet_proxy import Proxy
from redis_kit import redis_server
from worker_processes import WorkerGroup, note, worker_group

from resilient_imagen.emulator import faults

pytestmark = [pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(600)]

WORKERS = 8
PER_MINUTE = 60
WINDOW = 15.0
AT_MOST = 1.2 * PER_MINUTE / 60 * WINDOW
OUTAGE = 8.0


@pytest.fixture(scope="module")
def group() -> Iterator[WorkerGroup]:
    with worker_group(WORKERS) as group:
        yield group


@pytest.fixture
def proxy(group: WorkerGroup) -> Iterator[Proxy]:
    with Proxy(group.redis.port) as proxy:
        yield proxy


def open_and_load(group: WorkerGroup, proxy: Proxy, seconds: float, **settings: Any) -> float:
    """Open the clients and start requests; return the start time."""
    chosen = {"ipm": PER_MINUTE, "breaker_reset_timeout": 1.5, **settings}
    group.open(url=proxy.url.removesuffix("/0") + "/0", **chosen)
    group.load(seconds, callers=4, pause=0.2, rest=0.2)
    time.sleep(5)
    return time.monotonic()


def outage(group: WorkerGroup) -> float:
    """Let Google fail for some seconds; return the start time."""
    began = time.monotonic()
    group.google.google.set(faults.overload())
    time.sleep(OUTAGE)
    group.google.heal()
    group.google.google.set_latency(0.05)
    return began


def most(group: WorkerGroup) -> int:
    """Return the highest number of requests in any window."""
    times = [request.time for request in group.requests]
    return max(sum(t <= u < t + WINDOW for u in times) for t in times)


def check(group: WorkerGroup, name: str, *outages: float) -> None:
    """Check that all workers shared the outages and kept the limit together."""
    reports = group.reports()
    group.close()
    for began in outages:
        failed = [r for r in group.requests if r.status == 503 and began <= r.time < began + OUTAGE]
        opened = [
            min((when for when, state in report["changes"] if state == "open" and when > began))
            for report in reports
        ]
        assert max(opened) - min(opened) < 1.5
        note(f"{name}: {len(failed)} failed, open within {max(opened) - min(opened):.3f} s")
        assert len(failed) < 2 * WORKERS  # fewer than without sharing
    note(f"{name}: {most(group)} requests at most in {WINDOW:.0f} s")
    assert most(group) <= AT_MOST
    assert all(report["joined"] for report in reports)
    assert all(report["state"] == "closed" for report in reports)


def test_a_restart_from_an_old_snapshot(group: WorkerGroup, proxy: Proxy) -> None:
    """Redis is killed and restarts with data from before an outage; the next outage is shared."""
    open_and_load(group, proxy, 55)
    group.redis.ask("SAVE")
    first = outage(group)
    time.sleep(5)
    group.redis.kill()
    group.redis.start()
    time.sleep(5)
    second = outage(group)
    check(group, "restart from a snapshot", first, second)


def test_a_promoted_replica_that_was_behind(group: WorkerGroup, proxy: Proxy) -> None:
    """A replica that lacks the last outage replaces the primary; the next outage is shared."""
    with redis_server("--replicaof", "127.0.0.1", str(group.redis.port)) as replica:
        open_and_load(group, proxy, 55)
        replica.ask("REPLICAOF", "NO", "ONE")
        first = outage(group)
        time.sleep(5)
        proxy.target = replica.port
        proxy.disconnect(0.05)
        time.sleep(5)
        second = outage(group)
        check(group, "replica that was behind", first, second)


def test_five_short_disconnects(group: WorkerGroup, proxy: Proxy) -> None:
    """All connections break five times, and Redis cannot be reached for 50 ms each time."""
    open_and_load(group, proxy, 45)
    for _ in range(5):
        proxy.disconnect(0.05)
        time.sleep(2)
    time.sleep(5)
    check(group, "five disconnects", outage(group))


def test_ten_seconds_without_redis(group: WorkerGroup, proxy: Proxy) -> None:
    """The workers divide the limit while Redis is down."""
    open_and_load(group, proxy, 50)
    group.redis.kill()
    gone = time.monotonic()
    time.sleep(10)
    sent = sum(gone <= request.time < gone + 10 for request in group.requests)
    group.redis.start()
    time.sleep(7)
    note(f"without Redis: {sent} requests in 10 s")
    assert sent >= 5
    check(group, "ten seconds without Redis", outage(group))


def test_a_flushed_redis(group: WorkerGroup, proxy: Proxy) -> None:
    """After two FLUSHALL the next outage is shared, and the limit is kept."""
    open_and_load(group, proxy, 40)
    for _ in range(2):
        group.redis.ask("FLUSHALL")
        time.sleep(5)
    check(group, "FLUSHALL", outage(group))


def test_a_worker_that_was_stopped(group: WorkerGroup, proxy: Proxy) -> None:
    """One worker is stopped for 14 seconds; the others use its share of the limit."""
    open_and_load(group, proxy, 50)
    group.workers[0].signal(signal.SIGSTOP)
    stopped = time.monotonic()
    time.sleep(14)
    group.workers[0].signal(signal.SIGCONT)
    time.sleep(5)
    sent = sum(stopped <= request.time < stopped + 14 for request in group.requests)
    note(f"one worker stopped: {sent} requests of the others in 14 s")
    assert sent >= 9
    check(group, "stopped for 14 s", outage(group))


@pytest.mark.parametrize(
    "every_second",
    [{"breaker_half_open_calls": 3}, {"breaker_fail_max": 5}, {"ipm": 90, "burst": 1}],
)
def test_mixed_settings(group: WorkerGroup, proxy: Proxy, every_second: dict[str, Any]) -> None:
    """Every second worker has other settings, as during a rolling deployment: no worker sends
    commands in a loop.
    """
    open_and_load(group, proxy, 45, every_second=every_second)
    group.redis.ask("CONFIG", "RESETSTAT")
    began = outage(group)
    time.sleep(10)
    seconds = time.monotonic() - began
    stats = group.redis.ask("INFO", "commandstats").decode()
    calls = int(stats.partition("cmdstat_evalsha:calls=")[2].partition(",")[0])
    note(f"mixed {every_second}: {calls / seconds:.0f} EVALSHA a second")
    assert calls / seconds < 200
    check(group, f"mixed {every_second}", began)


@pytest.mark.parametrize("per_minute", [10, PER_MINUTE])
def test_new_workers_after_all_others_were_killed(
    group: WorkerGroup, proxy: Proxy, per_minute: int
) -> None:
    """Six workers with full queues are killed; two new ones send within five seconds.

    At ten images a minute that is a second less than one interval.
    """
    group.open(url=proxy.url, ipm=per_minute)
    *old, first, second = group.workers
    for worker in (first, second):
        worker.send(do="close")
        worker.receive()
    for worker in old:
        worker.send(do="load", callers=8, seconds=60, pause=0.02, rest=0)
    time.sleep(20)
    for worker in old:
        worker.kill()
    killed = time.monotonic()
    group.reopen(first, second)
    for worker in (first, second):
        worker.send(do="load", callers=4, seconds=12, pause=0.02, rest=0)
    reports = [worker.receive() for worker in (first, second)]
    sent = next(request.time for request in group.requests if request.time > killed + 0.1)
    note(f"killed, {per_minute} a minute: first image {sent - killed:.2f} s later")
    assert sent - killed < 5.0
    assert all(set(report["ended"]) == {"image"} for report in reports)
    assert most(group) <= max(1.2 * per_minute / 60 * WINDOW, 3)
    for index in range(len(old)):
        group.start(index).receive()
    group.close()
