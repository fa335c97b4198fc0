"""Real processes with the real SDK, one emulated Google and one real Redis."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from fleet_proxy import Proxy
from worker_processes import CALLERS, WorkerGroup, note, worker_group

from resilient_imagen.emulator import faults

pytestmark = [pytest.mark.ci, pytest.mark.redis, pytest.mark.timeout(300)]

WORKERS = 8
STALL = 0.05
"""Seconds: the longest that a loop may be busy with itself."""


@pytest.fixture(scope="module")
def group() -> Iterator[WorkerGroup]:
    with worker_group(WORKERS) as group:
        yield group


def test_an_outage_costs_fail_max_requests_and_recovery_one_probe(group: WorkerGroup) -> None:
    """In an outage the fleet sends `fail_max` requests and those in flight, and recovers by one
    probe.

    The numbers are exact: all callers have sent a request when the first failures arrive, and a
    caller that failed waits before its next request until its worker must have received the open
    state. The worker clocks differ by hours. All breakers close within 2 s of the probe's success.
    """
    group.open(breaker_reset_timeout=3.5)
    group.google.google.fail(faults.overload().after(1.0), times=3)
    group.google.google.set(faults.overload().after(2.5))
    group.load(7, rest=0.8)
    time.sleep(4)  # long enough for a second request of a caller whose worker is not informed
    group.google.heal()
    healed = time.monotonic()
    reports = group.reports()

    requests = group.requests
    failed = [request for request in requests if request.status == 503]
    third = sorted(request.ended or 0.0 for request in failed)[2]
    in_flight = [r for r in requests if r.time <= third < (r.ended or 0.0)]
    note(f"failed {len(failed)}, in flight at the third failure {len(in_flight)}")
    assert len(failed) <= 3 + len(in_flight) <= 3 + WORKERS * CALLERS

    later = [request for request in requests if request.time > healed]
    probe = later[0]
    assert probe.ended is not None
    assert [r for r in later[1:] if r.time < probe.ended] == []
    opened, closed = (
        [when for report in reports for when, state in report["changes"] if state == wanted]
        for wanted in ("open", "closed")
    )
    assert len(opened) == len(closed) == WORKERS
    note(f"all open {max(opened) - third:.3f} s after the third failure")
    note(f"everybody back {max(closed) - probe.ended:.3f} s after the probe's success")
    assert max(opened) - third < 0.8
    assert max(closed) - probe.ended < 2
    assert all(
        set(report["ended"]) <= {"image", "overloaded", "circuit_open"} for report in reports
    )
    assert all(report["state"] == "closed" for report in reports)


def test_eight_processes_keep_the_limit_together(group: WorkerGroup) -> None:
    """Eight workers whose clocks are hours apart send 120 images a minute together, in equal
    shares.
    """
    group.open(ipm=120)
    group.load(11, callers=1, pause=0)
    reports = group.reports()
    times = [request.time for request in group.requests]
    most = max(sum(begin <= t < begin + 10 for t in times) for begin in times)
    note(f"{len(times)} images in {times[-1] - times[0]:.1f} s, at most {most} in 10 s")
    assert most <= 21 + 2
    assert len(times) >= 2 * 10
    shares = [report["ended"].get("image", 0) for report in reports]
    assert max(shares) - min(shares) <= 3


def test_killed_servers_workers_and_lost_bytes_fail_no_call(group: WorkerGroup) -> None:
    """Redis and workers are killed, and a proxy drops bytes, at random moments for 10 s.

    No call fails, no loop stalls, and afterwards all workers are connected. Creating the client and
    connecting do not stall either: most workers must report so, since threads that ended meanwhile
    cannot report how long they waited for the interpreter's lock.
    """
    rng = random.Random(7)
    with Proxy(group.redis.port) as proxy:
        opening = sorted(group.open(url=proxy.url))
        note(f"opening: stalls of {', '.join(f'{each * 1000:.0f}' for each in opening)} ms")
        assert opening[WORKERS // 2] < STALL
        group.load(13)
        end = time.monotonic() + 10
        killed: list[int] = []
        while time.monotonic() < end:
            time.sleep(rng.uniform(0.5, 2.0))
            match rng.randrange(3):
                case 0:
                    group.redis.kill()
                    time.sleep(rng.uniform(0.1, 1.5))
                    group.redis.start()
                case 1:
                    proxy.swallows = True
                    time.sleep(rng.uniform(0.1, 1.5))
                    proxy.swallows = False
                case _ if len(killed) < 3:
                    index = rng.choice([n for n in range(WORKERS) if n not in killed])
                    killed.append(index)
                    group.replace(index)
                case _:
                    pass
        reports = [worker.receive() for worker in group.workers if worker.index not in killed]
        ended: Counter[str] = Counter()
        for report in reports:
            ended.update(report["ended"])
        stall, slowest = (max(report[name] for report in reports) for name in ("stall", "slowest"))
        note(f"{dict(ended)}, stall {stall * 1000:.1f} ms, slowest call {slowest:.2f} s")
        assert set(ended) == {"image"}
        assert stall < STALL
        for worker in group.workers:
            if worker.index in killed:
                worker.receive()
        group.load(2.5)
        reports = group.reports()
        assert all(set(report["ended"]) == {"image"} for report in reports)
        assert all(report["joined"] for report in reports)


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])  # only a stopped one continues
def test_a_lost_prober_delays_recovery_by_the_lease_deadline(
    group: WorkerGroup, how: signal.Signals
) -> None:
    """The prober is killed, or stopped for a while: the next probe is sent once its lease has
    expired.

    A prober that continues afterwards changes nothing.
    """
    deadline = 3.0  # the timeout of the attempt plus one second
    group.open(breaker_reset_timeout=1.0, per_call_timeout=deadline - 1)
    group.google.google.set(faults.overload())
    group.load(7)
    group.google.wait_until(lambda: len(group.requests) >= 3)
    time.sleep(0.5)  # all requests in flight have ended, and the open period has not
    group.google.google.forget()
    group.google.google.set_latency(1.9)
    group.google.heal()
    group.google.wait_until(lambda: len(group.requests) == 1)
    holder = group.sender(group.requests[0])
    holder.signal(how)
    group.google.google.set_latency(0.05)
    group.google.wait_until(lambda: len(group.requests) > 1)
    first, second = group.requests[:2]
    if how is signal.SIGSTOP:
        holder.signal(signal.SIGCONT)
    note(f"the next probe came {second.time - first.time:.2f} s after the first")
    assert group.sender(second) is not holder
    assert deadline - 0.5 < second.time - first.time < deadline + 1.5
    others = [worker for worker in group.workers if worker is not holder]
    for report in [worker.receive() for worker in others]:
        assert report["state"] == "closed"
        assert [state for _, state in report["changes"]][-3:] == ["open", "half_open", "closed"]
        assert report["changes"][-1][0] - second.time < 2
    if how is signal.SIGSTOP:
        assert holder.receive()["state"] == "closed"
