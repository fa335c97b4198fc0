"""Signals during ``generate --from``: sent requests are awaited, the other rows are left."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from batch_kit import COMMAND, QUICK, asked, journal, prepare, scenes, write
from cli_kit import run, started

from resilient_imagen.emulator import BackgroundEmulator, faults

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
def test_a_signal_waits_for_what_was_sent(
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
    assert "finishing what was sent, as it is paid for" in err
    assert "Traceback" not in err
    assert len(imagen_emulator.google.requests) == len(journal()) == 4
    *_, counts, cause = out.splitlines()
    assert counts == "out: 4 made, 0 made before, 0 failed, 6 left; see results.jsonl"
    assert cause == f"stopped: {number.name}; run it again to continue"
    imagen_emulator.google.set_latency(0)
    again = run(*COMMAND, cwd=tmp_path, env=QUICK)
    assert again.returncode == 0
    assert asked(imagen_emulator) == {row["prompt"]: 1 for row in scenes(10)}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_signal_again_drops_what_was_sent(
    number: signal.Signals, code: int, tmp_path: Path, imagen_emulator: BackgroundEmulator
) -> None:
    """The second signal ends the run at once and leaves no partial file."""
    write(scenes(10))
    imagen_emulator.google.set(faults.hang())
    with started(*COMMAND, cwd=tmp_path, env=QUICK) as process:
        imagen_emulator.wait_until(lambda: imagen_emulator.google.in_flight == 4, timeout=60)
        process.send_signal(number)
        assert process.stderr is not None
        assert "Ctrl-C or SIGTERM now drops it" in process.stderr.readline()
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (code, "")
    assert "10 left" in out
    imagen_emulator.wait_until(lambda: imagen_emulator.open_connections == 0)
    assert [path.name for path in Path("out").iterdir()] == ["results.jsonl"]


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
        assert "finishing what was sent" in process.stderr.readline()
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
