"""Recorded against replayed: recordings of applications with settings in code, and of the demo."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from resilient_imagen import ImageClient, Reason, Settings
from resilient_imagen.cli import demo_scenario
from resilient_imagen.effective_settings import variables_of
from resilient_imagen.emulator import Emulator
from resilient_imagen.testing import FakeProvider, run_virtual
from resilient_imagen.tuning import Recorder, Recording, load, what_if
from resilient_imagen.tuning.gather import gather
from resilient_imagen.tuning.import_logs import read_rows
from resilient_imagen.tuning.rows import Configured, Row
from resilient_imagen.tuning.settings_in_effect import settings_in_effect

IN_CODE: dict[str, Any] = {
    "breaker_fail_max": 2,
    "breaker_reset_timeout": 20,
    "max_retries": 0,
    "ipm": 60,
    "per_call_timeout": 25,
}


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """Provide the log file of an application."""
    path, logger = tmp_path / "app.log", logging.getLogger("imagegen")
    handler, level = logging.FileHandler(path), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield path
    logger.setLevel(level)
    logger.removeHandler(handler)
    handler.close()


def serve(calls: int, *sinks: Any, **settings: Any) -> None:
    """Serve calls every ten seconds; Google fails for a quarter of the time."""

    async def main() -> None:
        google, openai = FakeProvider("google", latency=8), FakeProvider("openai", latency=12)
        providers = [google, openai]
        async with (
            ImageClient(Settings(**settings), providers=providers, sinks=sinks) as client,
            asyncio.TaskGroup() as group,
        ):
            for number in range(calls):
                if number == calls // 3:
                    google.fail(Reason.OVERLOADED, status=503)
                if number == calls // 3 + calls // 4:
                    google.heal()
                group.create_task(client.generate(f"scene {number}"))
                await asyncio.sleep(10)

    run_virtual(main())


def test_settings_in_code_are_replayed_as_they_were(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replay of a log gives what was recorded, whatever the tuner's own environment says."""
    serve(120, **IN_CODE)
    monkeypatch.setenv("IMAGE_GEN_BREAKER_RESET_TIMEOUT", "500")
    used = settings_in_effect(load(log), variables_of(Settings()))
    assert used.source == "recording"
    assert (used.settings.breaker_fail_max, used.settings.ipm) == (2, 60)
    found = what_if(used.recording, used.settings, used.settings, draws=2)
    assert found.fidelity.matches
    assert found.recorded.wasted_requests.value > 5
    assert found.replayed.wasted_requests.value == pytest.approx(
        found.recorded.wasted_requests.value, rel=0.3
    )
    assert found.replayed.primary_share.value == pytest.approx(
        found.recorded.primary_share.value, abs=0.03
    )


def test_the_part_under_the_same_settings_is_used() -> None:
    """After a change of the settings, the longer part is replayed, and a note says so."""
    rows: list[Row] = []
    serve(30, Recorder(rows.append, epoch=1.7e9), **{**IN_CODE, "breaker_reset_timeout": 300})
    serve(60, Recorder(rows.append, epoch=1.7e9 + 1000), **IN_CODE)
    used = settings_in_effect(gather(rows), {})
    assert used.settings.breaker_reset_timeout == 20
    assert len(used.recording.asked) == 60
    assert any(
        "IMAGE_GEN_BREAKER_RESET_TIMEOUT" in note and "30 calls" in note for note in used.notes
    )


def test_recorded_settings_of_other_versions_are_left_out_with_a_note() -> None:
    """A recording with a setting that is not known here can be used."""
    rows: list[Row] = []
    serve(5, Recorder(rows.append, epoch=1.7e9), **IN_CODE)
    text = next(row.settings for row in rows if isinstance(row, Configured))
    later = [
        row._replace(settings=f"{text} IMAGE_GEN_LATER=1 IMAGE_GEN_MINE_BREAKER=fail_max=2")
        if isinstance(row, Configured)
        else row
        for row in rows
    ]
    used = settings_in_effect(gather(later), {})
    assert used.settings.breaker_fail_max == 2
    (note,) = used.notes
    assert note.endswith("left out: IMAGE_GEN_LATER, IMAGE_GEN_MINE_BREAKER.")


def test_contradicted_settings_are_named() -> None:
    """Pace, time limit and deadline of a recording without settings are compared with its calls."""
    at, rows = 1.7e9, []
    for number in range(60):
        line = {"call": str(number), "route": "google:gemini-3-pro-image"}
        rows.append({"sent": at + number, **line, "latency": 0.5})
    for number in range(60, 70):
        line = {"call": str(number), "route": "google:gemini-3-pro-image"}
        late = {"reason": "timeout", "given_up": True, "latency": 20.0}
        rows.append({"sent": at + 30 * number, **line, **late})
    for number in range(70, 75):
        line = {"call": str(number), "route": "google:gemini-3-pro-image"}
        late = {"reason": "deadline", "given_up": True, "latency": 15.0}
        rows.append({"sent": at + 30 * number, **line, **late})
    recording: Recording = gather(read_rows(map(json.dumps, rows), Counter()))
    settings = Settings()
    found = what_if(recording, settings, settings, draws=2)
    assert not found.fidelity.matches
    named = {hint.variable: hint.value for hint in found.fidelity.hints}
    assert named["IMAGE_GEN_IPM"] == "60"
    assert named["IMAGE_GEN_PER_CALL_TIMEOUT"] == "20"
    assert "IMAGE_GEN_DEADLINE" in named


@pytest.mark.ci
def test_the_demos_recording_is_replayed_as_it_was(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo's settings are in code, and scaled down; replays under them take as long."""
    from resilient_imagen.cli.client_session import open_client

    settings = {
        **demo_scenario.demo_settings(),
        "per_call_timeout": 1.5,
        "breaker_reset_timeout": 0.5,
        "breaker_reset_max": 0.9,
        "retry_base_delay": 0.02,
    }
    monkeypatch.setattr(
        demo_scenario, "demo_emulator", partial(Emulator, picture="tiny", latency=0.05)
    )
    run = demo_scenario.DemoRun(demo_scenario.demo_emulator())

    async def main() -> None:
        async with open_client(settings, {}, emulator=run.app, sinks=[run]) as client:
            await client.warm_up()
            await run.run(client)

    asyncio.run(main())
    loaded = load(log)
    assert all(isinstance(row, Configured) for row in loaded.settings)
    used = settings_in_effect(loaded, {})
    assert used.settings.breaker_reset_timeout == 0.5
    found = what_if(used.recording, used.settings, used.settings, draws=4)
    assert found.evidence.calls == 32
    assert found.fidelity.matches
