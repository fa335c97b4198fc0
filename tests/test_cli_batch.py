"""``generate --from``: kept at once, gone on with after any interruption, never paid twice."""

from __future__ import annotations

import json
import re
import signal
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from cli_kit import Ended, cli, run, started

from resilient_imagen.cli.guard import CommandError
from resilient_imagen.cli.journal import Journal
from resilient_imagen.cli.order import Order
from resilient_imagen.cli.prompts import read_prompts
from resilient_imagen.emulator import BackgroundEmulator, RequestSeen, faults
from resilient_imagen.images.sniff import sniff_mime
from resilient_imagen.testing import TINY_PNG

pytest_plugins = ["resilient_imagen.emulator.pytest_plugin"]

Capsys = pytest.CaptureFixture[str]
QUICK = {"IMAGE_GEN_IPM": "6000", "IMAGE_GEN_RETRY_BASE_DELAY": "0"}


@pytest.fixture(autouse=True)
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, imagen_emulator: BackgroundEmulator
) -> None:
    """Small pictures, no pacing, files in the test's own directory."""
    monkeypatch.chdir(tmp_path)
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    imagen_emulator.app.picture = "tiny"


def write(rows: Iterable[Mapping[str, Any] | str], name: str = "prompts.jsonl") -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path = Path(name)
    path.write_text("\n".join(lines) + "\n")
    return path


def scenes(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"scene {number}", "id": f"s{number}"} for number in range(count)]


def batch(capsys: Capsys, *more: object) -> Ended:
    return cli(capsys, "generate", "--from", "prompts.jsonl", "-o", "out", "--json", *more)


def asked(emulator: BackgroundEmulator) -> Counter[str]:
    """How often each scene was asked for, at either vendor."""
    sent = [*emulator.google.requests, *emulator.openai.requests]
    return Counter(scene(seen) for seen in sent)


def scene(seen: RequestSeen) -> str:
    """Which one a request is for; vendors are given other words around it."""
    (number,) = re.findall(r"[Ss]cene:? (\d+)", seen.prompt)
    return f"scene {number}"


def journal(folder: str = "out") -> list[dict[str, Any]]:
    lines = (Path(folder) / "results.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_every_row_becomes_a_picture(capsys: Capsys, imagen_emulator: BackgroundEmulator) -> None:
    """With the ratio, size and references of its row, under its id, and a line in the journal."""
    Path("refs").mkdir()
    Path("refs/fox.png").write_bytes(TINY_PNG)
    write(
        [
            {"prompt": "scene 0", "id": "first", "aspect_ratio": "16:9", "resolution": "4K"},
            {"prompt": "scene 1", "id": 2, "references": ["refs/fox.png"]},
            "",
            {"prompt": "Scene: 2!"},
        ]
    )
    ended = batch(capsys, "--aspect", "1:1", "--resolution", "1K")
    assert ended.code == 0, ended.err
    first, second, third = sorted(imagen_emulator.google.requests, key=scene)
    assert (first.aspect_ratio, first.resolution) == ("16:9", "4K")
    assert (second.aspect_ratio, second.resolution) == ("1:1", "1K")
    assert [len(seen.references) for seen in (first, second, third)] == [0, 1, 0]
    names = {entry["file"] for entry in journal()}
    assert {name.rpartition("-")[0] for name in names} == {"", "scene-2"}
    assert names > {"first.jpg", "2.jpg"}
    for name in names:
        assert sniff_mime((Path("out") / name).read_bytes()) == "image/jpeg"
    summary = json.loads(ended.out)
    assert (summary["rows"], summary["made"], summary["kept"], summary["left"]) == (3, 3, 0, 0)
    assert summary["providers"]["google"]["images"] == 3
    assert summary["cost_usd"] == pytest.approx(0.134 * 2 + 0.24)


def test_a_second_run_asks_for_nothing(capsys: Capsys, imagen_emulator: BackgroundEmulator) -> None:
    """What is there stays there, wherever its row now stands and wherever one starts from."""
    rows = [{"prompt": "scene 1"}, {"prompt": "scene 1"}, {"prompt": "scene 2"}]
    write(rows)
    assert batch(capsys).code == 0
    assert asked(imagen_emulator) == {"scene 1": 2, "scene 2": 1}
    write([{"prompt": "scene 3"}, *reversed(rows)])
    assert json.loads(batch(capsys).out)["kept"] == 3
    assert asked(imagen_emulator) == {"scene 1": 2, "scene 2": 1, "scene 3": 1}


def test_what_changed_is_made_again(capsys: Capsys, imagen_emulator: BackgroundEmulator) -> None:
    """A row that asks for something else, and a picture that somebody deleted."""
    write(scenes(3))
    batch(capsys)
    Path("out/s0.jpg").unlink()
    write([*scenes(2), {"prompt": "scene 2", "id": "s2", "aspect_ratio": "1:1"}])
    summary = json.loads(batch(capsys).out)
    assert (summary["made"], summary["kept"]) == (2, 1)
    assert asked(imagen_emulator) == {"scene 0": 2, "scene 1": 1, "scene 2": 2}


def test_failures_are_told_and_tried_again(
    capsys: Capsys, imagen_emulator: BackgroundEmulator
) -> None:
    """Unless the request itself was refused: asking the same again would only cost again."""
    write(scenes(2))
    imagen_emulator.google.fail(faults.blocked(), times=1)
    imagen_emulator.google.set(faults.status(400))
    ended = batch(capsys)
    assert ended.code == 1
    summary = json.loads(ended.out)
    reasons = {each["id"]: each["reason"] for each in summary["failed"]}
    assert sorted(reasons.values()) == ["content_blocked", "invalid_request"]
    assert {each["line"] for each in summary["failed"]} == {1, 2}
    imagen_emulator.heal()
    summary = json.loads(batch(capsys).out)
    assert (summary["made"], summary["left"]) == (1, 0)
    assert [each["reason"] for each in summary["failed"]] == ["content_blocked"]
    blocked = next(row["prompt"] for row in scenes(2) if reasons[row["id"]] == "content_blocked")
    assert asked(imagen_emulator)[blocked] == 1


def test_a_hopeless_case_stops_the_rest(
    capsys: Capsys, imagen_emulator: BackgroundEmulator
) -> None:
    """With every key wrong the other rows are left for a run after somebody acted."""
    imagen_emulator.google.set(faults.status(401))
    imagen_emulator.openai.set(faults.status(401))
    write(scenes(30))
    ended = batch(capsys)
    assert ended.code == 1
    summary = json.loads(ended.out)
    assert summary["left"] >= 14
    assert "401" in summary["stopped"]
    imagen_emulator.heal()
    assert batch(capsys).code == 0
    assert {path.stem for path in Path("out").glob("*.jpg")} == {row["id"] for row in scenes(30)}


def test_an_outage_is_fallen_back_from(capsys: Capsys, imagen_emulator: BackgroundEmulator) -> None:
    """All rows are served, and the summary says by whom and why."""
    imagen_emulator.google.set(faults.overload())
    write(scenes(8))
    ended = cli(capsys, "generate", "--from", "prompts.jsonl", "-o", "out")
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert lines[0].split() == ["provider", "images", "median", "s", "longest", "s", "cost"]
    assert lines[1].split()[:2] == ["openai", "8"]
    assert any("by fallback: overloaded" in line for line in lines)
    assert lines[-1] == "out: 8 made, 0 there before, 0 failed, 0 left"
    assert len(ended.err.splitlines()) == 8


def test_failures_are_listed_for_people(
    capsys: Capsys, imagen_emulator: BackgroundEmulator
) -> None:
    """One by one with line and cause, but no more than a screen of them."""
    imagen_emulator.google.set(faults.blocked())
    write(scenes(25))
    ended = cli(capsys, "generate", "--from", "prompts.jsonl", "-o", "out")
    assert ended.code == 1
    listed = [line for line in ended.out.splitlines() if line.startswith("no image for s")]
    assert len(listed) == 20
    assert listed[0].endswith("google gemini-3-pro-image: blocked by safety filters")
    assert "and 5 more: see results.jsonl" in ended.out


def test_ctrl_c_waits_for_what_was_sent(
    tmp_path: Path, imagen_emulator: BackgroundEmulator
) -> None:
    """What was sent is kept, nothing else is begun, and the next run does only the rest."""
    write(scenes(10))
    imagen_emulator.google.set_latency(1.5)
    command = ("generate", "--from", "prompts.jsonl", "-o", "out")
    with started(*command, cwd=tmp_path, env=QUICK) as process:
        imagen_emulator.wait_until(lambda: len(imagen_emulator.google.requests) == 4, timeout=60)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
    assert "Ctrl-C again drops it" in err
    assert "Traceback" not in err
    assert len(imagen_emulator.google.requests) == len(journal()) == 4
    assert out.endswith(
        "out: 4 made, 0 there before, 0 failed, 6 left\nstopped: Ctrl-C; run it again to go on\n"
    )
    imagen_emulator.google.set_latency(0)
    again = run(*command, cwd=tmp_path, env=QUICK)
    assert again.returncode == 0
    assert asked(imagen_emulator) == {row["prompt"]: 1 for row in scenes(10)}


def test_a_second_ctrl_c_waits_for_nothing(
    tmp_path: Path, imagen_emulator: BackgroundEmulator
) -> None:
    """It ends at once, cleanly, with nothing half written."""
    write(scenes(10))
    imagen_emulator.google.set(faults.hang())
    command = ("generate", "--from", "prompts.jsonl", "-o", "out")
    with started(*command, cwd=tmp_path, env=QUICK) as process:
        imagen_emulator.wait_until(lambda: imagen_emulator.google.in_flight == 4, timeout=60)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert "Ctrl-C again" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (130, "")
    assert "10 left" in out
    imagen_emulator.wait_until(lambda: imagen_emulator.open_connections == 0)
    assert [path.name for path in Path("out").iterdir()] == ["results.jsonl"]


def test_a_killed_run_is_gone_on_with(tmp_path: Path, imagen_emulator: BackgroundEmulator) -> None:
    """Only what was in flight when the process died is asked for again."""
    write(scenes(12))
    imagen_emulator.google.set_latency(0.3)
    command = ("generate", "--from", "prompts.jsonl", "-o", "out")
    with started(*command, cwd=tmp_path, env=QUICK) as process:
        imagen_emulator.wait_until(lambda: len(imagen_emulator.google.requests) >= 7, timeout=60)
        process.kill()
        process.communicate(timeout=60)
    finished = {entry["id"] for entry in journal()}
    assert len(finished) >= 3
    again = run(*command, cwd=tmp_path, env=QUICK)
    assert again.returncode == 0, again.stderr
    assert {path.stem for path in Path("out").glob("*.jpg")} == {row["id"] for row in scenes(12)}
    often = {name for name, times in asked(imagen_emulator).items() if times > 1}
    assert len(often) <= 4
    assert not often & {f"scene {name[1:]}" for name in finished}


def test_a_terminal_gets_a_bar(
    capsys: Capsys, monkeypatch: pytest.MonkeyPatch, imagen_emulator: BackgroundEmulator
) -> None:
    """It counts every row; a failure stands above it as soon as it happens."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # how a terminal is pretended to be
    imagen_emulator.google.fail(faults.blocked())
    write(scenes(3))
    told = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", batch(capsys).err)
    assert "3/3" in told
    assert len(re.findall(r"s\d: google gemini-3-pro-image: blocked", told)) == 1


# -- the journal ------------------------------------------------------------------------------


def rows(tmp_path: Path, count: int = 1) -> list[Any]:
    return list(read_prompts(write(scenes(count)), Order("", "9:16", "2K")))


def test_a_line_without_its_picture_is_completed(tmp_path: Path) -> None:
    """The process died between the line and the picture's name: the picture gets its name."""
    (row,) = rows(tmp_path)
    with Journal(tmp_path / "out") as kept:
        kept.done(row, "s0.png", TINY_PNG, {})
    (tmp_path / "out/s0.png").rename(tmp_path / "out/.s0.png.part")
    with Journal(tmp_path / "out") as kept:
        assert kept.settled(row) is not None
    assert (tmp_path / "out/s0.png").read_bytes() == TINY_PNG


def test_half_a_picture_is_never_taken_for_one(tmp_path: Path) -> None:
    """The process died while it wrote: what it left is neither named nor believed."""
    (row,) = rows(tmp_path)
    with Journal(tmp_path / "out") as kept:
        kept.done(row, "s0.png", TINY_PNG, {})
    (tmp_path / "out/s0.png").unlink()
    (tmp_path / "out/.s0.png.part").write_bytes(TINY_PNG[:30])
    with Journal(tmp_path / "out") as kept:
        assert kept.settled(row) is None
    assert not (tmp_path / "out/s0.png").exists()


@pytest.mark.parametrize("damage", ['{"id": "s0", "sta', "[]", '{"id": 7}', '{"id": "s0"}', "\x00"])
def test_a_damaged_line_costs_only_itself(damage: str, tmp_path: Path, capsys: Capsys) -> None:
    """The process died in the middle of a line: it is named, and the next one stands on its own."""
    first, second = rows(tmp_path, 2)
    with Journal(tmp_path / "out") as kept:
        kept.done(first, "s0.png", TINY_PNG, {})
    with (tmp_path / "out/results.jsonl").open("a") as file:
        file.write(damage)
    with Journal(tmp_path / "out") as kept:
        assert kept.settled(first) is not None
        kept.done(second, "s1.png", TINY_PNG, {})
    assert "line 2 is damaged" in capsys.readouterr().err
    with Journal(tmp_path / "out") as kept:
        assert kept.settled(first) is not None
        assert kept.settled(second) is not None


def test_one_run_at_a_time(tmp_path: Path) -> None:
    """Two at once in one directory would pay for everything twice."""
    with (
        Journal(tmp_path / "out"),
        pytest.raises(CommandError, match="another run is at work here"),
        Journal(tmp_path / "out"),
    ):
        pass
    with Journal(tmp_path / "out"):
        pass
