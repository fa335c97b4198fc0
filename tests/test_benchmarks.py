"""The benchmarks measure and write the figures of their guide, and mark the rows that the library
loses.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tuning_defaults
import tuning_speed
from paths import ROOT
from tuning_kit import bad, world

from resilient_imagen.testing import TINY_PNG
from resilient_imagen.tuning import Objective

FOLDER = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def command() -> ModuleType:
    """Provide ``benchmarks/__main__.py``."""
    spec = importlib.util.spec_from_file_location("benchmarks_command", FOLDER / "__main__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def script(*arguments: str) -> Any:
    """Run a benchmark, and return the JSON that it prints."""
    program, *rest = arguments
    command = [sys.executable, str(FOLDER / program), *rest]
    return json.loads(subprocess.check_output(command, timeout=100))


def test_the_table_has_ratios_and_marks_the_rows_where_another_design_is_ahead(
    command: ModuleType,
) -> None:
    """A figure that is more than 5 % lower is ahead; words and an empty cell are not."""
    table = command.markdown(
        {
            "ahead": {"bare": 150.0, "ours": 60.0, "litellm": "36% served"},
            "behind": {"bare": 0.0, "ours": 40.0},
            "equal": {"ours": 100.0, "litellm": 96.0},
        }
    )
    assert table.splitlines() == [
        "| less is better | bare SDK | this library | litellm Router |",
        "|---|---:|---:|---:|",
        "| ahead | 150 (2.5x) | **60** | 36% served |",
        "| *behind:* behind | 0 (0x) | **40** |  |",
        "| equal |  | **100** | 96 (0.96x) |",
    ]


def test_the_quick_mode_writes_the_tables_between_the_markers(
    command: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text around the tables stays as it is, and the picture is drawn."""
    guide, drawn = tmp_path / "README.md", list[bool]()
    head = "# Benchmarks\n\n<!-- benchmarks:start -->\n"
    tail = "\n<!-- benchmarks:end -->\n\nText.\n"
    guide.write_text(f"{head}old{tail}")
    monkeypatch.setattr(command, "GUIDE", guide)
    monkeypatch.setattr(command.outage_picture, "draw", lambda: drawn.append(True))
    rows = {"time, s": {"ours": 1.0}}
    monkeypatch.setattr(command, "measure", lambda _peers, *, quick: {"Calls": rows})
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--quick", "--write"])
    command.main()
    written = guide.read_text()
    assert written.startswith(f"{head}### Calls\n\n| less is better | this library |\n")
    assert written.endswith(f"; one quick round; outages are one run on virtual time.{tail}")
    assert drawn

    guide.write_text("# Benchmarks\n")
    with pytest.raises(SystemExit, match=r"benchmarks:start and benchmarks:end"):
        command.main()


def test_the_guide_has_the_output_of_the_command(
    command: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guide's tables have every row of the command, in order."""
    figures = {*command.call_cost.TITLES, *command.images.FIGURES, "served", "mean", "wasted"}
    found = dict.fromkeys([*figures, "recovery"], 1.0)
    names = ("plain", "observed", "sync", "ours")
    for module in (command.call_cost, command.images):
        monkeypatch.setattr(module, "medians", lambda *_: dict.fromkeys(names, found))
    monkeypatch.setattr(command.images, "emulator", lambda: contextlib.nullcontext([]))
    monkeypatch.setattr(command.outage, "means", lambda *_: found)
    tables = command.measure(None, quick=True)
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"^### (.*)$|^\| (?:\*behind:\* )?([^|]*?) \| ", text, re.MULTILINE)
    titles = [heading or title for heading, title in shown]
    expected = []
    for heading, rows in tables.items():
        expected += [heading, "less is better", *rows]
    assert [title for title in titles if title in expected] == expected


def test_a_missing_extra_is_reported_in_one_line() -> None:
    """The command names the package and how to install it, without a traceback."""
    done = subprocess.run(
        [sys.executable, "-S", "-m", "benchmarks"],
        cwd=FOLDER.parent, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(r"benchmarks: \w+ is not installed; pip install -e '\.\[dev\]' .*", line)


def test_designs_meet_the_same_outage(command: ModuleType) -> None:
    """The library wastes the fewest requests in an overload; only the bare SDK loses images."""
    outage = command.outage
    found = {
        name: outage.figures(outage.PLAIN, run(outage.PLAIN, 5), 5)
        for name, run in outage.DESIGNS.items()
    }
    assert list(found) == ["bare", "retries", "cooldown", "ours"]
    assert {name: each["served"] for name, each in found.items()} == {
        "bare": 0.0, "retries": 1.0, "cooldown": 1.0, "ours": 1.0,
    }  # fmt: skip
    assert found["ours"]["wasted"] * 2 < found["cooldown"]["wasted"]
    assert found["cooldown"]["wasted"] * 5 < found["retries"]["wasted"]
    assert found["ours"]["mean"] + 10 < found["retries"]["mean"]
    assert found["retries"]["recovery"] < found["cooldown"]["recovery"]
    assert found["ours"]["recovery"] < 75.0, "an open period with jitter, and the next caller"


def test_other_libraries_are_measured_in_the_same_outage(command: ModuleType) -> None:
    """A breaker of pybreaker wastes few of the 180 requests, and opens again on virtual time."""
    found = script("peers.py", "outage", "tenacity", "1")
    assert found["served"] == 1.0
    assert 15 <= found["wasted"] <= 60
    assert 0 <= found["recovery"] < 75.0


@pytest.mark.ci
@pytest.mark.parametrize(
    "arguments",
    [("call_cost.py", kind) for kind in ("plain", "observed", "sync")]
    + [("peers.py", "cost", "tenacity")],
)
def test_the_cost_of_a_call_is_measured(arguments: tuple[str, ...]) -> None:
    """Every kind of call prints its figures as JSON; a library costs something."""
    assert min(script(*arguments, "3").values()) > 0


@pytest.mark.ci
def test_images_of_both_designs_are_measured(
    command: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small image from the emulator gives every figure of the table for both designs."""
    monkeypatch.setattr(command.images, "noisy", lambda *_: TINY_PNG)  # 20 MB take long
    with command.images.emulator() as given:
        for design in command.images.DESIGNS:
            found = script("images.py", design, "small", *given)
            assert set(found) == set(command.images.FIGURES)
            assert found["wall_ms"] > 0


SHORT = world(bad(0.5, 20), bad(1.5, 10), hours=2, spacing="even")


@pytest.mark.ci
def test_the_speed_of_the_tuner_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Settings, calls, time and memory are printed, here for two hours instead of a day."""
    monkeypatch.setattr(tuning_speed, "A_DAY", SHORT)
    monkeypatch.setattr(sys, "argv", ["tuning_speed.py", "2"])
    tuning_speed.main()
    printed = capsys.readouterr().out
    assert re.match(r"2 settings, \d+ replays, 960 calls: .*, \d+ MB in the largest pro", printed)


@pytest.mark.ci
def test_the_defaults_are_compared_with_recommendations(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each objective gets its measures and its result in other scenarios, here of two hours."""
    monkeypatch.setattr(tuning_defaults, "REPORTED", SHORT)
    monkeypatch.setattr(sys, "argv", ["tuning_defaults.py", "2"])
    tuning_defaults.main()
    printed = capsys.readouterr().out
    head = "recorded", "replayed", "defaults", *map(str, Objective)
    assert tuple(printed.split("\n")[1].split()) == head
    assert printed.count("in 4 other scenarios: ") == len(Objective)


def test_the_picture_equals_the_output_of_the_code(command: ModuleType, tmp_path: Path) -> None:
    """README's picture has a column per design, with the figures of the present code."""
    command.outage_picture.draw(tmp_path / "new.svg")
    drawn = (tmp_path / "new.svg").read_text()
    shown = (ROOT / ".github" / "outage.svg").read_text()
    for svg in (drawn, shown):
        for vendor, colour in command.outage_picture.VENDORS.items():
            assert len(re.findall(f'<use[^>]*"fill: {colour};', svg)) > 300, vendor
            assert vendor in svg
        for label in command.outage_picture.LABELS.values():
            assert label in svg
        assert svg.count(" wasted requests<") == len(command.outage_picture.LABELS)
    figures = re.compile(r"(\d+) (?:s an image while|wasted requests<)")
    assert figures.findall(shown) == figures.findall(drawn)
