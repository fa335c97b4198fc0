"""Eight real processes with the real SDK, one emulated Google, one real Redis."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from redis_kit import RedisServer, redis_server

from resilient_imagen.emulator import BackgroundEmulator, Emulator, Latency, RequestSeen, faults

pytestmark = [pytest.mark.redis, pytest.mark.timeout(300)]

T = TypeVar("T")

WORKERS = 8
CALLERS = 2
HOUR = 3600.0


class WorkerProcess:
    """One of them."""

    def __init__(self, google_url: str, index: int) -> None:
        self.index = index
        self._number = 0
        environment = {
            **os.environ,
            "GOOGLE_GENAI_API_KEY": "k",
            "GOOGLE_GEMINI_BASE_URL": google_url,
            "IMAGE_GEN_ROUTES": "google:gemini-3-pro-image",
            "FLEET_CLOCK_SKEW": str((0.0, HOUR, -HOUR)[index % 3]),
        }
        script = Path(__file__).with_name("fleet_worker.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def say(self, **command: Any) -> None:
        assert self._process.stdin is not None
        self._number += 1
        self._process.stdin.write(json.dumps({"number": self._number, **command}) + "\n")
        self._process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            answer: dict[str, Any] = json.loads(line)
            if answer["number"] == self._number:  # not what an earlier test left behind
                return answer
        raise AssertionError(f"worker {self.index} ended")

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


class Crew:
    """All of them, and what they talk to."""

    def __init__(self, google: BackgroundEmulator, redis: RedisServer) -> None:
        self.google = google
        self.redis = redis
        self.workers = [WorkerProcess(google.google_url, index) for index in range(WORKERS)]

    def open(self, *, url: str | None = None, **settings: Any) -> None:
        """A fresh client each, in a namespace of its own."""
        name = f"{url or self.redis.url}?namespace={next(_numbers)}"
        numbers = {"ipm": 60_000, "max_retries": 0, "redis_url": name, **settings}
        self._settings = numbers
        for worker in self.workers:
            worker.say(do="open", settings=numbers)
        for worker in self.workers:
            assert worker.hear()["joined"]
        self.google.google.forget()

    def load(self, seconds: float, *, callers: int = CALLERS, pause: float = 0.02) -> None:
        for worker in self.workers:
            worker.say(do="load", callers=callers, seconds=seconds, pause=pause)

    def reports(self) -> list[dict[str, Any]]:
        return [worker.hear() for worker in self.workers]

    def replace(self, index: int) -> WorkerProcess:
        """SIGKILL, and a new one in its place."""
        self.workers[index].kill()
        self.workers[index] = WorkerProcess(self.google.google_url, index)
        self.workers[index].say(do="open", settings=self._settings)
        return self.workers[index]

    @property
    def requests(self) -> list[RequestSeen]:
        return sorted(self.google.google.requests, key=lambda request: request.time)


def note(measured: str) -> None:
    """Shown with `pytest -s`: what was measured, beside what is asserted."""
    sys.stdout.write(f"\n{measured}\n")


_numbers = itertools.count()


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    with redis_server() as redis, BackgroundEmulator(Emulator(picture="tiny")) as google:
        google.google.set_latency(0.05)
        crew = Crew(google, redis)
        try:
            yield crew
        finally:
            for worker in crew.workers:
                worker.kill()


def test_an_outage_costs_fail_max_requests_and_recovery_one_probe(crew: Crew) -> None:
    """Clocks differ by hours. Google fails: the fleet sends 3 requests and what was in flight.

    Google is well again: exactly one probe, and everybody is back within 2 s of its success.
    """
    crew.google.heal()
    crew.open(breaker_reset_timeout=5.0)
    crew.load(14)
    time.sleep(3)
    crew.google.google.set(faults.overload().after(Latency(0.05)))
    time.sleep(4)
    crew.google.heal()
    healed = time.monotonic()
    reports = crew.reports()

    requests = crew.requests
    failed = [request for request in requests if request.status == 503]
    third = sorted(request.ended or 0.0 for request in failed)[2]
    in_flight = [r for r in requests if r.time <= third <= (r.ended or 0.0)]
    after = [r for r in failed if r.time > third]
    # The news take a moment to go round; the third answer has to reach its worker first.
    on_their_way = [request for request in after if request.time < third + 1.0]
    assert len(failed) <= 3 + WORKERS * CALLERS
    assert after == on_their_way
    note(f"failed {len(failed)}, in flight {len(in_flight)}, on their way {len(on_their_way)}")

    later = [request for request in requests if request.time > healed]
    probe = later[0]
    assert probe.ended is not None
    assert [r for r in later[1:] if r.time < probe.ended] == []
    closed = [when for report in reports for when, state in report["changes"] if state == "closed"]
    assert len(closed) == WORKERS
    note(f"everybody back {max(closed) - probe.ended:.3f} s after the probe's success")
    assert max(closed) - probe.ended < 2
    assert all(
        set(report["ended"]) <= {"image", "overloaded", "circuit_open"} for report in reports
    )
    assert all(report["state"] == "closed" for report in reports)


def test_120_images_a_minute_are_120_for_all_eight_together(crew: Crew) -> None:
    """Eight workers with more callers than the pace can serve, their clocks hours apart."""
    crew.google.heal()
    crew.open(ipm=120)
    crew.load(15, pause=0)
    reports = crew.reports()
    times = [request.time for request in crew.requests]
    most = max(sum(begin <= t < begin + 10 for t in times) for begin in times)
    note(f"{len(times)} images in {times[-1] - times[0]:.1f} s, at most {most} in 10 s")
    assert most <= 21 + 2
    assert len(times) >= 2 * 13
    shares = [report["ended"].get("image", 0) for report in reports]
    assert max(shares) - min(shares) <= 3


class Swallower:
    """A proxy in front of Redis that at times takes bytes and passes none on."""

    def __init__(self, port: int) -> None:
        self.swallows = False
        self._target = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = self._on_loop(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def _on_loop(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
            ways = (
                asyncio.ensure_future(self._pass(reader, far_writer)),
                asyncio.ensure_future(self._pass(far_reader, writer)),
            )
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                far_writer.close()
        writer.close()

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                if not self.swallows:
                    target.write(data)

    def close(self) -> None:
        async def end() -> None:
            self._server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0.05)  # transports close a moment later

        self._on_loop(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def test_kills_and_swallowed_bytes_cost_no_image(crew: Crew) -> None:
    """Redis and workers are killed, and a proxy swallows bytes, at random moments, for 20 s.

    No call fails, no loop stalls, and afterwards all have joined again.
    """
    chance = random.Random(7)
    crew.google.heal()
    proxy = Swallower(crew.redis.port)
    try:
        crew.open(url=f"redis://127.0.0.1:{proxy.port}/0")
        crew.load(20)
        end = time.monotonic() + 15
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
        assert stall < 0.25
        for worker in crew.workers:
            if worker.index in killed:
                worker.hear()
        crew.load(3)
        reports = crew.reports()
        assert all(set(report["ended"]) == {"image"} for report in reports)
        assert all(report["joined"] for report in reports)
    finally:
        proxy.close()
