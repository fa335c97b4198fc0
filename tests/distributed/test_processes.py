"""Real processes with the real SDK, one emulated Google, one real Redis."""

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
def crew() -> Iterator[WorkerGroup]:
    with worker_group(WORKERS) as crew:
        yield crew


def test_an_outage_costs_fail_max_requests_and_recovery_one_probe(crew: WorkerGroup) -> None:
    """Clocks differ by hours. Google fails: the fleet sends 3 requests and what was in flight.

    That is exact here: all callers have asked when the first answers fail, and who failed waits
    before it asks again until it must have heard. Google is well again: exactly one probe, and
    everybody is back within 2 s of its success.
    """
    crew.open(breaker_reset_timeout=3.5)
    crew.google.google.fail(faults.overload().after(1.0), times=3)
    crew.google.google.set(faults.overload().after(2.5))
    crew.load(7, rest=0.8)
    time.sleep(4)  # who had not heard would have asked twice
    crew.google.heal()
    healed = time.monotonic()
    reports = crew.reports()

    requests = crew.requests
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


def test_120_images_a_minute_are_120_for_all_eight_together(crew: WorkerGroup) -> None:
    """Eight workers with more callers than the pace can serve, their clocks hours apart."""
    crew.open(ipm=120)
    crew.load(11, callers=1, pause=0)
    reports = crew.reports()
    times = [request.time for request in crew.requests]
    most = max(sum(begin <= t < begin + 10 for t in times) for begin in times)
    note(f"{len(times)} images in {times[-1] - times[0]:.1f} s, at most {most} in 10 s")
    assert most <= 21 + 2
    assert len(times) >= 2 * 10
    shares = [report["ended"].get("image", 0) for report in reports]
    assert max(shares) - min(shares) <= 3


def test_kills_and_swallowed_bytes_cost_no_image(crew: WorkerGroup) -> None:
    """Redis and workers are killed, and a proxy swallows bytes, at random moments, for 10 s.

    No call fails, no loop stalls, and afterwards all have joined again. Making the client and
    joining stalls none either: threads end meanwhile, and then nobody knows any more how long they
    stood still with the interpreter's lock, so that most workers have to say so.
    """
    chance = random.Random(7)
    with Proxy(crew.redis.port) as proxy:
        opening = sorted(crew.open(url=proxy.url))
        note(f"opening: stalls of {', '.join(f'{each * 1000:.0f}' for each in opening)} ms")
        assert opening[WORKERS // 2] < STALL
        crew.load(13)
        end = time.monotonic() + 10
        killed: list[int] = []
        while time.monotonic() < end:
            time.sleep(chance.uniform(0.5, 2.0))
            match chance.randrange(3):
                case 0:
                    crew.redis.kill()
                    time.sleep(chance.uniform(0.1, 1.5))
                    crew.redis.start()
                case 1:
                    proxy.swallows = True
                    time.sleep(chance.uniform(0.1, 1.5))
                    proxy.swallows = False
                case _ if len(killed) < 3:
                    index = chance.choice([n for n in range(WORKERS) if n not in killed])
                    killed.append(index)
                    crew.replace(index)
                case _:
                    pass
        reports = [worker.hear() for worker in crew.workers if worker.index not in killed]
        ended: Counter[str] = Counter()
        for report in reports:
            ended.update(report["ended"])
        stall, slowest = (max(report[name] for report in reports) for name in ("stall", "slowest"))
        note(f"{dict(ended)}, stall {stall * 1000:.1f} ms, slowest call {slowest:.2f} s")
        assert set(ended) == {"image"}
        assert stall < STALL
        for worker in crew.workers:
            if worker.index in killed:
                worker.hear()
        crew.load(2.5)
        reports = crew.reports()
        assert all(set(report["ended"]) == {"image"} for report in reports)
        assert all(report["joined"] for report in reports)


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])  # the killed one stays dead
def test_who_is_lost_with_the_lease_delays_recovery_by_its_deadline(
    crew: WorkerGroup, how: signal.Signals
) -> None:
    """The prober is killed, or stopped for a while: the next probe is sent once its lease is over.

    Nobody else sends one before; and a prober that goes on afterwards changes nothing.
    """
    deadline = 3.0  # the attempt's timeout and one second
    crew.open(breaker_reset_timeout=1.0, per_call_timeout=deadline - 1)
    crew.google.google.set(faults.overload())
    crew.load(7)
    crew.google.wait_until(lambda: len(crew.requests) >= 3)
    time.sleep(0.5)  # whatever was in flight has ended, and the opening has not
    crew.google.google.forget()
    crew.google.google.set_latency(1.9)
    crew.google.heal()
    crew.google.wait_until(lambda: len(crew.requests) == 1)
    holder = crew.sender(crew.requests[0])
    holder.signal(how)
    crew.google.google.set_latency(0.05)
    crew.google.wait_until(lambda: len(crew.requests) > 1)
    first, second = crew.requests[:2]
    if how is signal.SIGSTOP:
        holder.signal(signal.SIGCONT)
    note(f"the next probe came {second.time - first.time:.2f} s after the first")
    assert crew.sender(second) is not holder
    assert deadline - 0.5 < second.time - first.time < deadline + 1.5
    others = [worker for worker in crew.workers if worker is not holder]
    for report in [worker.hear() for worker in others]:
        assert report["state"] == "closed"
        assert [state for _, state in report["changes"]][-3:] == ["open", "half_open", "closed"]
        assert report["changes"][-1][0] - second.time < 2
    if how is signal.SIGSTOP:
        assert holder.hear()["state"] == "closed"
