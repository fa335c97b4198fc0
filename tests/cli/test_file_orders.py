"""``breaker`` and ``settings`` with a control file, and processes that answer."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_kit import Ended, cli, environment
from order_cases import REFUSALS

from resilient_imagen import Settings, sync
from resilient_imagen.control import Order, control_file
from resilient_imagen.control.file_answers import read_answers
from resilient_imagen.telemetry.events import OperatorWarning, OrderApplied
from resilient_imagen.testing import FakeProvider, RecordingSink

PATIENCE = 60.0
SECRET = "a secret of the operators"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.json"


@pytest.fixture
def command(path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[str], Ended]:
    return lambda line: cli(capsys, *line.split(), "--control-file", path)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the file a hundred times a second."""
    monkeypatch.setattr(control_file, "PERIOD", 0.01)


def until(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


@contextlib.contextmanager
def worker(
    path: Path, *, answers: bool = True, **settings: Any
) -> Iterator[tuple[sync.ImageClient, RecordingSink]]:
    """Run a client on the shared loop's thread, while commands run in this one."""
    sink = RecordingSink()
    providers = [FakeProvider("google", latency=0.0), FakeProvider("openai", latency=0.0)]
    made = Settings(control_file=str(path), **settings)
    with sync.ImageClient(made, providers=providers, sinks=[sink]) as client:
        before = len(read_answers(path))
        client.warm_up()
        if answers:
            until(lambda: len(read_answers(path)) > before)
        yield client, sink


def test_a_command_waits_until_all_processes_have_answered(
    path: Path, command: Callable[[str], Ended]
) -> None:
    """It prints how many obey, and does not count a client that was closed."""
    with worker(path) as (first, _), worker(path) as (second, _):
        done = command("breaker open google")
        assert (done.code, done.err) == (0, "")
        assert done.out.endswith(f": written to {path}; 2 of 2 workers obey\n")
        states = [each.snapshot()["routes"][0]["breaker"]["state"] for each in (first, second)]
        assert states == ["forced_open", "forced_open"]
        second.close()
        until(lambda: len(read_answers(path)) == 1)
        assert command("breaker reset google").out.endswith("1 of 1 worker obeys\n")
    until(lambda: not list(path.with_name("control.json.answers").iterdir()))


@pytest.mark.parametrize(("line", "answer"), REFUSALS)
def test_refusals_are_explained(
    line: str, answer: str, path: Path, command: Callable[[str], Ended]
) -> None:
    """The exit code says that not all processes obey."""
    with worker(path, force_open="openai"):
        done = command(line)
        assert (done.code, f"written to {path}; " in done.complaint) == (1, True)
        assert answer in done.complaint


def test_an_order_without_the_secret_is_refused(
    path: Path, command: Callable[[str], Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator's tool signs with the variable of the processes."""
    with worker(path, control_secret=SECRET):
        assert "1 not: it is not signed with" in command("breaker open google").complaint
        monkeypatch.setenv("IMAGE_GEN_CONTROL_SECRET", SECRET)
        assert command("breaker open google").out.endswith("1 of 1 worker obeys\n")


@pytest.mark.parametrize("control", [None, "off"])
def test_the_command_reports_missing_answers(
    control: str | None, path: Path, command: Callable[[str], Ended]
) -> None:
    """The order is in the file, for processes that are started later."""
    with contextlib.ExitStack() as stack:
        if control is not None:
            stack.enter_context(worker(path, answers=False, control=control))
        done = command("breaker open google")
    assert (done.code, "; no process has answered: one that reads it" in done.out) == (0, True)
    assert path.exists()


def test_a_process_that_cannot_answer_obeys_and_warns_once(
    path: Path, command: Callable[[str], Ended]
) -> None:
    """A file is where the folder of the answers would be."""
    path.with_name("control.json.answers").write_text("")
    with worker(path, answers=False) as (_, sink):
        for number, action in enumerate(("open", "reset"), 1):
            assert "no process has answered" in command(f"breaker {action} google").out
            while len(sink.of(OrderApplied)) < number:
                time.sleep(0.01)
        (warned,) = [each.message for each in sink.of(OperatorWarning)]
        assert "answers cannot be written to" in warned


def test_a_removed_or_damaged_answer_is_written_again(
    path: Path, command: Callable[[str], Ended]
) -> None:
    """An operator may clean up the folder while processes run."""
    folder = path.with_name("control.json.answers")
    with worker(path):
        for each in folder.iterdir():
            each.unlink()
        folder.rmdir()
        until(lambda: read_answers(path))
        assert command("breaker open google").out.endswith("1 of 1 worker obeys\n")
        left = folder / "host-17-0a1b2c"
        left.write_text("{}")
        assert command("breaker open google").out.endswith("1 of 1 worker obeys\n")
        assert not left.exists()


def test_an_order_of_the_future_does_not_count_as_the_latest(
    path: Path, command: Callable[[str], Ended]
) -> None:
    """A wrong clock wrote it; the command still waits until its own order was read."""
    serial = time.time_ns() // 1000 + 3_600_000_000
    future = Order(action="open", target="openai", ttl=60, by="ops", serial=serial)
    path.write_text(json.dumps({"orders": [future.to_dict()]}))
    with worker(path) as (_, sink):
        until(lambda: sink.of(OperatorWarning))
        assert command("breaker open google").out.endswith("1 of 1 worker obeys\n")


FORKING = """
import asyncio, os, sys
from pathlib import Path
from resilient_imagen import ImageClient, Settings
from resilient_imagen.testing import FakeProvider

async def main():
    client = ImageClient(Settings(control_file="control.json"), providers=[FakeProvider("google")])
    await client.warm_up()
    while not any(answer.stat().st_size for answer in Path("control.json.answers").glob("*")):
        await asyncio.sleep(0.01)
    child = os.fork()
    if not child:
        sys.stdin.read()  # never uses the client
        os._exit(0)
    print(child, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_process_is_not_waited_for(path: Path, command: Callable[[str], Ended]) -> None:
    """Nor is its forked child, which does not use the client."""
    running = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", FORKING],
        cwd=path.parent, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with running:
        try:
            assert running.stdout is not None
            child = int(running.stdout.readline())
            assert command("breaker open google").out.endswith("1 of 1 worker obeys\n")
            running.kill()
            running.wait()
            assert "no process has answered" in command("breaker open google").out
        finally:
            running.kill()
        os.kill(child, signal.SIGKILL)


def test_answers_do_not_contain_orders(path: Path, command: Callable[[str], Ended]) -> None:
    """Serials and codes are enough, so that other users of the machine read no reason."""
    with worker(path):
        command("breaker open google --why confidential")
        (answer,) = path.with_name("control.json.answers").iterdir()
        found = json.loads(answer.read_text())
    assert list(found["orders"].values()) == ["ok"]
    assert found["known"] == int(*found["orders"])
