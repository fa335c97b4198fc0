"""The benchmarks measure and write the figures of their guide, with reasons for rows that the
library loses.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from paths import ROOT

from resilient_imagen.testing import TINY_PNG

FOLDER = ROOT / "benchmarks"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Provide ``benchmarks/__main__.py``; the modules that it imports are removed afterwards."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    spec = importlib.util.spec_from_file_location("benchmarks_command", FOLDER / "__main__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(FOLDER)):
            del sys.modules[name]


def canned(command: ModuleType) -> Any:
    """Return figures with one row that the library loses, that of a 20 MB image."""
    bare = {
        "first_s": 2.0, "wall_ms": 40.0, "cpu_ms": 20.0, "stall_ms": 8.0, "peak_mb": 90.0,
        "left_mb": 9.0,
    }  # fmt: skip
    ours = {name: value / 4 for name, value in bare.items()}
    images = {load: {"bare": bare, "ours": ours} for load in command.images.LOADS}
    images["4K google"]["ours"] = {**ours, "wall_ms": 60.0}
    outage = {
        "bare": {"served": 0.36, "mean": 19.0, "wasted": 240.0, "recovery": 0.0},
        "retries": {"served": 1.0, "mean": 61.2, "wasted": 524.0, "recovery": 2.0},
        "cooldown": {"served": 1.0, "mean": 22.4, "wasted": 84.0, "recovery": 33.0},
        "ours": {"served": 1.0, "mean": 20.4, "wasted": 13.0, "recovery": 438.0},
    }
    return command.Found(
        calls={
            "ours": {"ok": 60.0, "fallback": 180.0, "observed": 300.0, "hop": 90.0},
            "langchain": {"ok": 80.0, "fallback": 90.0},
        },
        images=images,
        outages={case.title: outage for case in command.CASES},
    )


def test_the_quick_mode_writes_the_table_between_the_markers(
    command: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table has figures, ratios and reasons; the text around it stays as it is."""
    guide = tmp_path / "README.md"
    head, tail = "# Benchmarks\n\nText.\n\n", "\n\n## Next\n\nMore text.\n"
    guide.write_text(f"{head}<!-- benchmarks:start -->\nold\n<!-- benchmarks:end -->{tail}")
    monkeypatch.setattr(command, "measure_all", lambda _peers, *, quick: canned(command))
    drawn: list[Path] = []
    monkeypatch.setattr(command.outage_picture, "draw", drawn.append)
    files = ["--guide", str(guide), "--picture", str(tmp_path / "p.svg")]
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--quick", *files])
    command.main()
    assert drawn == [tmp_path / "p.svg"]
    text = guide.read_text()
    assert text.startswith(f"{head}<!-- benchmarks:start -->\n| less is better | bare SDK |")
    assert text.endswith(f"<!-- benchmarks:end -->{tail}")
    assert "one quick round" in text
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if "|" in line}
    assert lines["added to a call, µs of CPU"].endswith("| **60** | 80 (1.33x) |  |")
    behind = lines["added to a call that falls back, µs of CPU"]
    assert "| **180** | 90 (0.5x) | queue, pacing" in behind
    assert "| 40 (0.67x) |  |  | **60** |" in lines["20 MB from Google: time, ms an image"]
    first = command.CASES[0].title
    assert "| 36 % served | 61.2 (3x) |" in lines[f"{first}: time to an image, s"]
    assert "| 84 (6.46x) | **13** |  |  |" in lines[f"{first}: wasted requests"]


def test_a_file_without_markers_is_refused(command: ModuleType) -> None:
    """The error names the two lines that are missing."""
    with pytest.raises(ValueError, match=r"benchmarks:start.*benchmarks:end"):
        command.put("# Benchmarks\n", "| table |")


def test_the_guide_has_what_the_command_writes(command: ModuleType) -> None:
    """The guide's table has every row of the command, in order, and the command's signature."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(
        r"<!-- benchmarks:start -->\n(.*?)\n<!-- benchmarks:end -->", text, re.DOTALL
    )
    _, _, *lines = block.splitlines()
    titles = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("|")]
    assert titles == [row.title for row in command.rows(canned(command))]
    assert re.search(r"\. Written by `python -m benchmarks(?: --quick)?(?: --peers)?`\.$", block)


def test_without_the_extra_one_line_says_what_is_missing() -> None:
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
    found = command.outage.measure(command.CASES[0], (5,))
    assert list(found) == ["bare", "retries", "cooldown", "ours"]
    assert found["bare"].served == 0.0
    assert {found[name].served for name in ("retries", "cooldown", "ours")} == {1.0}
    assert found["ours"].wasted * 2 < found["cooldown"].wasted
    assert found["cooldown"].wasted * 5 < found["retries"].wasted
    assert found["ours"].added * 10 < found["retries"].added
    assert found["retries"].recovery < min(found["cooldown"].recovery, found["ours"].recovery)
    assert found["ours"].recovery < 75.0, "an open period with jitter, and the next caller"


def test_an_outage_of_mixed_errors_has_all_of_them(command: ModuleType) -> None:
    """Failed requests of this case take as long as a 429, a 499 and a 504 do."""
    case = next(case for case in command.CASES if case.mixed_errors)
    wasted = command.outage.DESIGNS["bare"](case, 1).wasted
    assert {round(seconds, 3) for _, seconds in wasted} == {0.4, 10.0, 40.0}


PLAIN = """
import json, dataclasses, peers, outage_scenarios

def build(google, openai):
    async def chain(call):
        try:
            await google(call)
        except ConnectionError:
            await openai(call)
    return google, chain

plain = peers.Library(build, ConnectionError)
case = outage_scenarios.CASES[0]
run = lambda case, seed: peers.outage(plain, case, seed)
print(json.dumps(dataclasses.asdict(outage_scenarios.means(case, run, (5,)))))
"""


def test_other_libraries_are_measured_without_ours_being_installed() -> None:
    """A chain that asks Google once per call wastes one request for each; no package is needed."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", PLAIN],
        cwd=FOLDER, capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["served"] == 1.0
    assert found["wasted"] == pytest.approx(300, abs=3)
    assert found["added"] == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("kind", ["plain", "observed", "sync"])
def test_the_cost_of_a_call_is_measured(kind: str) -> None:
    """Every kind of call prints its figures as JSON; the library costs something."""
    printed = subprocess.check_output(
        [sys.executable, str(FOLDER / "call_cost.py"), kind, "3"], timeout=100
    )
    assert min(json.loads(printed).values()) > 0


def test_images_of_both_designs_are_measured(
    command: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small image from the emulator gives every figure of the table for both designs."""
    monkeypatch.setattr(command.images, "four_k", lambda: TINY_PNG)  # both take long to draw
    monkeypatch.setattr(command.images, "references", list)
    with command.images.emulator() as given:
        for design in command.images.DESIGNS:
            program = [sys.executable, str(FOLDER / "images.py"), design, "small", *given]
            found = json.loads(subprocess.check_output(program, timeout=100))
            assert set(found) == {"first_s", "wall_ms", "cpu_ms", "stall_ms", "peak_mb", "left_mb"}
            assert found["wall_ms"] > 0


def test_the_picture_equals_what_the_code_draws(command: ModuleType, tmp_path: Path) -> None:
    """README's picture has a column per design, with the figures of the present code."""
    pytest.importorskip("vl_convert")
    command.outage_picture.draw(tmp_path / "new.svg")
    drawn = (tmp_path / "new.svg").read_text()
    shown = (ROOT / ".github" / "outage.svg").read_text()
    for svg in (drawn, shown):
        for vendor, colour in command.outage_picture.VENDORS.items():
            assert len(re.findall(rf'<circle[^>]* fill="{colour}"', svg)) > 300, vendor
            assert vendor in svg
        for label in command.outage_picture.LABELS.values():
            assert label in svg
        assert svg.count(" wasted requests<") == len(command.outage_picture.LABELS)
    figures = re.compile(r"(\d+) (?:s an image while|wasted requests<)")
    assert figures.findall(shown) == figures.findall(drawn)


def test_every_lost_row_has_a_reason(command: ModuleType) -> None:
    """Every row has a reason that is shown if another design's figure is clearly lower."""
    for row in command.rows(canned(command)):
        own = row.cells["ours"]
        assert isinstance(own, float)
        beaten = command.Row(row.title, {"bare": own / 10, "ours": own}, row.why)
        assert not beaten.ahead
        assert beaten.why, row.title
