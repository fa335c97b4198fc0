"""Worker processes with the real SDK (`fleet_worker.py`), an emulated Google and a real Redis."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from paths import SUPPORT
from redis_kit import RedisServer, redis_server

from resilient_imagen.emulator import BackgroundEmulator, Emulator, RequestSeen

HOUR = 3600.0
CALLERS = 2
_numbers = itertools.count()


class WorkerProcess:
    """One worker, whose clock may be an hour off. Its prompt identifies it to Google."""

    def __init__(self, google_url: str, index: int) -> None:
        self.index = index
        self._number = 0
        environment = {
            **os.environ,
            "GOOGLE_GENAI_API_KEY": "k",
            "GOOGLE_GEMINI_BASE_URL": google_url,
            "IMAGE_GEN_ROUTES": "google:gemini-3-pro-image",
            "FLEET_CLOCK_SKEW": str((0.0, HOUR, -HOUR)[index % 3]),
            "FLEET_PROMPT": f"a lighthouse for {index}",
        }
        script = SUPPORT / "fleet_worker.py"
        self._process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def send(self, **command: Any) -> None:
        assert self._process.stdin is not None
        self._number += 1
        self._process.stdin.write(json.dumps({"number": self._number, **command}) + "\n")
        self._process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            answer: dict[str, Any] = json.loads(line)
            if answer["number"] == self._number:  # ignore answers to an earlier test
                return answer
        raise AssertionError(f"worker {self.index} ended")

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill the worker by SIGKILL."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


class WorkerGroup:
    """All workers, with their Google and Redis."""

    def __init__(self, google: BackgroundEmulator, redis: RedisServer, size: int) -> None:
        self.google = google
        self.redis = redis
        self.workers = [WorkerProcess(google.google_url, index) for index in range(size)]

    def open(
        self,
        *,
        url: str | None = None,
        traced: bool = False,
        every_second: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> list[float]:
        """Open a new client in each worker, in a new namespace, with a healthy Google.

        Args:
            url: The URL of Redis, if it is not the group's own.
            every_second: Other settings of every second worker.
            settings: The settings of all workers.

        Return the longest stall of each worker's loop in seconds.
        """
        self.google.heal()
        self.google.google.set_latency(0.05)
        name = f"{url or self.redis.url}?namespace={next(_numbers)}"
        self.url = name
        self._settings = {"ipm": 60_000, "max_retries": 0, "redis_url": name, **settings}
        for worker in self.workers:
            more = every_second if every_second and worker.index % 2 else {}
            worker.send(do="open", settings={**self._settings, **more}, traced=traced)
        opened = self.reports()
        assert all(each["joined"] for each in opened)
        self.google.google.forget()
        return [each["stall"] for each in opened]

    def load(
        self, seconds: float, *, callers: int = CALLERS, pause: float = 0.02, rest: float = 0.0
    ) -> None:
        """Let all workers request images; they wait `rest` seconds after a failed call."""
        for worker in self.workers:
            worker.send(do="load", callers=callers, seconds=seconds, pause=pause, rest=rest)

    def reports(self) -> list[dict[str, Any]]:
        return [worker.receive() for worker in self.workers]

    def close(self) -> None:
        """Close the clients of all workers."""
        for worker in self.workers:
            worker.send(do="close")
        self.reports()

    def replace(self, index: int) -> WorkerProcess:
        """Kill a worker by SIGKILL, and start a new one in its place."""
        self.workers[index].kill()
        return self.start(index)

    def reopen(self, *workers: WorkerProcess) -> None:
        """Open a new client with the same settings in some workers."""
        for worker in workers:
            worker.send(do="open", settings=self._settings)
        assert all(worker.receive()["joined"] for worker in workers)

    def start(self, index: int) -> WorkerProcess:
        """Start a new worker in the place of a killed one, with the same settings."""
        self.workers[index] = WorkerProcess(self.google.google_url, index)
        self.workers[index].send(do="open", settings=self._settings)
        return self.workers[index]

    @property
    def requests(self) -> list[RequestSeen]:
        return sorted(self.google.google.requests, key=lambda request: request.time)

    def sender(self, request: RequestSeen) -> WorkerProcess:
        found = re.search(r"lighthouse for (\d+)", request.prompt)
        assert found is not None
        return self.workers[int(found[1])]


@contextlib.contextmanager
def worker_group(size: int) -> Iterator[WorkerGroup]:
    """Run ``size`` worker processes during the block."""
    with redis_server() as redis, BackgroundEmulator(Emulator(picture="tiny")) as google:
        group = WorkerGroup(google, redis, size)
        try:
            yield group
        finally:
            for worker in group.workers:
                worker.kill()


def note(measured: str) -> None:
    """Print a measurement, which `pytest -s` shows."""
    sys.stdout.write(f"\n{measured}\n")
