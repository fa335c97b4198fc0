"""Signals during ``generate --from``: sent requests are awaited, the other rows are left."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from batch_kit import COMMAND, QUICK, asked, journal, prepare, run_rows, scenes, write
from cli_kit import run, started

from resilient_imagen.cli.batch import Batch
from resilient_imagen.cli.batch_prompts import PromptRow, read_prompts
from resilient_imagen.cli.image_spec import ImageSpec
from resilient_imagen.emulator import BackgroundEmulator, faults
from resilient_imagen.reasons import Reason
from resilient_imagen.request import RequestOptions
from resilient_imagen.testing import FakeProvider

pytest_plugins = ["resilient_imagen.emulator.pytest_plugin"]


@pytest.fixture(autouse=True)
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, imagen_emulator: BackgroundEmulator
) -> Iterator[None]:
    """Restore SIGHUP's default, which child processes inherit, if the tests run under nohup."""
    prepare(tmp_path, monkeypatch, imagen_emulator)
    usual = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, usual)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.ci),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.ci),
    ],
)
def test_a_signal_waits_for_sent_requests(
    number: signal.Signals, code: int, tmp_path: Path, imagen_emulator: BackgroundEmulator
) -> None:
    """Images of sent requests are saved, no more are sent, and the next run requests the rest."""
    write(scenes(10))
    imagen_emulator.google.set_latency(1.5)
    with started(*COMMAND, cwd=tmp_path, env=QUICK) as process:
        imagen_emulator.wait_until(lambda: len(imagen_emulator.google.requests) == 4, timeout=60)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == code, err
    assert f"stopping: {number.name}; finishing sent calls: 4; Ctrl-C or SIGTERM" in err
    assert "Traceback" not in err
    assert len(imagen_emulator.google.requests) == len(journal()) == 4
    assert out.splitlines()[-1] == "out: 4 made, 0 kept, 0 failed, 6 left; see results.jsonl"
    imagen_emulator.google.set_latency(0)
    again = run(*COMMAND, cwd=tmp_path, env=QUICK)
    assert again.returncode == 0
    assert asked(imagen_emulator) == {row["prompt"]: 1 for row in scenes(10)}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_drops_sent_requests(
    number: signal.Signals, code: int, tmp_path: Path, imagen_emulator: BackgroundEmulator
) -> None:
    """The second signal ends the run at once and leaves no partial file."""
    write(scenes(10))
    imagen_emulator.google.set(faults.hang())
    with started(*COMMAND, cwd=tmp_path, env=QUICK) as process:
        imagen_emulator.wait_until(lambda: imagen_emulator.google.in_flight == 4, timeout=60)
        process.send_signal(number)
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "finishing sent calls: 4; Ctrl-C or SIGTERM drops them" in line
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (code, "")
    assert "10 left" in out
    imagen_emulator.wait_until(lambda: imagen_emulator.open_connections == 0)
    assert [path.name for path in Path("out").iterdir()] == ["results.jsonl"]


def stopped(
    first: FakeProvider,
    second: FakeProvider,
    after: float,
    *,
    options: RequestOptions | None = None,
    why: str = "SIGINT",
    **more: Any,
) -> Batch:
    """Run two rows on virtual time, with a SIGINT after these seconds.

    ``why`` begins the cause of the stop; ``more`` are further settings.
    """

    class Stopped(Batch):
        async def run(self, rows: Sequence[PromptRow]) -> None:
            # A real signal would come in real time.
            asyncio.get_running_loop().call_later(after, self._on_signal, "SIGINT")
            await super().run(rows)

    rows = read_prompts(write(scenes(2)), ImageSpec("", "9:16", "2K", options=options or {}))
    more = {"retry_base_delay": 4.0, "max_retries": 3, **more}
    run = run_rows(rows, first, second, batch=Stopped, **more)
    assert (run.stopped or "").startswith(why)
    return run


def test_a_row_in_the_queue_is_left() -> None:
    """A row that waits for a slot of the provider sends no request after the signal."""
    google, openai = FakeProvider("google", latency=2), FakeProvider("openai")
    run = stopped(google, openai, 1, max_concurrent=1)
    assert (len(google.sent), len(openai.sent)) == (1, 0)
    assert [entry["id"] for entry in run.entries] == ["s0"]


def test_a_back_off_ends_without_a_retry() -> None:
    """A row that waits for its retry fails at once; the next run repeats it."""
    google, openai = FakeProvider("google"), FakeProvider("openai")
    google.fail(Reason.OVERLOADED, times=2, latency=0.1)
    run = stopped(google, openai, 0.2)
    assert (len(google.sent), len(openai.sent)) == (2, 0)
    assert [entry["reason"] for entry in run.entries] == ["overloaded"] * 2


@pytest.mark.parametrize("reason", [Reason.OVERLOADED, Reason.QUOTA_EXHAUSTED])
def test_a_failure_after_the_signal_causes_no_request(reason: Reason) -> None:
    """A request in flight that fails is neither retried nor sent to the next vendor."""
    google, openai = FakeProvider("google"), FakeProvider("openai")
    google.fail(reason, times=1, latency=2)
    run = stopped(google, openai, 1)
    assert (len(google.sent), len(openai.sent)) == (2, 0)
    assert [entry["status"] for entry in run.entries] == ["done", "failed"]


def test_a_failure_after_the_signal_causes_no_request_of_another_account() -> None:
    """The second account of a step is not asked in place of the first one."""
    first, second = FakeProvider("google"), FakeProvider("google_b")
    first.fail(Reason.OVERLOADED, latency=2)
    second.fail(Reason.OVERLOADED, latency=2)
    run = stopped(first, second, 1, routes="google+google_b:gemini-3-pro-image")
    assert (len(first.sent), len(second.sent)) == (1, 1)
    assert [entry["status"] for entry in run.entries] == ["failed"] * 2


@pytest.mark.parametrize("on_timeout", ["keep", "abandon"])
def test_a_hanging_request_ends(on_timeout: str) -> None:
    """The next vendor is not asked in its place, and the run ends."""
    google, openai = FakeProvider("google").hang(), FakeProvider("openai")
    run = stopped(google, openai, 1, on_timeout=on_timeout)
    assert (len(google.sent), len(openai.sent)) == (2, 0)
    assert [entry["reason"] for entry in run.entries] == ["timeout"] * 2


def test_a_slow_request_is_not_hedged() -> None:
    """No request is sent beside one in flight after the signal."""
    google, openai = FakeProvider("google", latency=9), FakeProvider("openai")
    run = stopped(google, openai, 1, hedge_after=3, hedge_budget=1)
    assert (len(google.sent), len(openai.sent)) == (2, 0)
    assert [entry["status"] for entry in run.entries] == ["done"] * 2


def test_a_blocked_prompt_is_recorded_after_the_signal() -> None:
    """The call ends with this failure, so the next run does not repeat the prompt."""
    google, openai = FakeProvider("google"), FakeProvider("openai")
    google.fail(Reason.CONTENT_BLOCKED, latency=2)
    run = stopped(google, openai, 1)
    assert [entry["reason"] for entry in run.entries] == ["content_blocked"] * 2
    assert openai.sent == []


def test_a_row_of_several_images_is_completed() -> None:
    """The further images are requested after the signal; the row would lack them otherwise."""
    google, openai = FakeProvider("google", latency=2), FakeProvider("openai")
    run = stopped(google, openai, 1, options={"n": 3})
    assert [len(entry["files"]) for entry in run.entries] == [3, 3]


def test_a_signal_after_a_failure_drops_what_was_sent(capsys: pytest.CaptureFixture[str]) -> None:
    """The stop itself is announced once, so one signal is enough."""
    google, openai = FakeProvider("google", latency=9), FakeProvider("openai")
    google.fail(Reason.UNAUTHENTICATED, times=1)
    openai.fail(Reason.UNAUTHENTICATED)
    run = stopped(google, openai, 1, why="google gemini-3-pro-image: ")
    assert [entry["status"] for entry in run.entries] == ["failed"]
    assert capsys.readouterr().err.count("stopping: ") == 1


@pytest.mark.ci
def test_a_terminal_that_closes_drops_nothing(
    tmp_path: Path, imagen_emulator: BackgroundEmulator
) -> None:
    """A closing terminal sends SIGHUP twice and breaks the pipe; sent requests are still saved."""
    write(scenes(6))
    imagen_emulator.google.set_latency(1.5)
    with started(*COMMAND, cwd=tmp_path, env=QUICK) as process:
        imagen_emulator.wait_until(lambda: len(imagen_emulator.google.requests) == 4, timeout=60)
        process.send_signal(signal.SIGHUP)
        assert process.stderr is not None
        assert "stopping: SIGHUP; " in process.stderr.readline()
        process.stderr.close()
        process.send_signal(signal.SIGHUP)
        process.wait(timeout=60)
    assert [entry["status"] for entry in journal()] == ["done"] * 4


@pytest.mark.ci
def test_nohup_is_respected(tmp_path: Path, imagen_emulator: BackgroundEmulator) -> None:
    """A SIGHUP that the process ignored from the start does not stop the run."""
    write(scenes(5))
    imagen_emulator.google.set_latency(0.5)
    usual = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as its child inherits it
    try:
        with started(*COMMAND, cwd=tmp_path, env=QUICK) as process:
            imagen_emulator.wait_until(lambda: imagen_emulator.google.in_flight > 0, timeout=60)
            process.send_signal(signal.SIGHUP)
            out, err = process.communicate(timeout=60)
    finally:
        signal.signal(signal.SIGHUP, usual)
    assert process.returncode == 0, err
    assert "out: 5 made" in out


@pytest.mark.ci
def test_a_broken_pipe_stops_nothing(tmp_path: Path, imagen_emulator: BackgroundEmulator) -> None:
    """A run whose standard error is closed, as by ``2>&1 | head``, still saves all images."""
    write(scenes(6))
    imagen_emulator.google.fail(faults.blocked(), times=2)
    with started(*COMMAND, cwd=tmp_path, env=QUICK) as process:
        assert process.stderr is not None
        process.stderr.close()
        process.wait(timeout=60)
    assert sorted(entry["status"] for entry in journal()) == ["done"] * 4 + ["failed"] * 2
