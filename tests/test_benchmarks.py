"""The table in the guide is what was measured, with the reasons where we are behind."""

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

FOLDER = ROOT / "benchmarks"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """``benchmarks/__main__.py``; what it imports is forgotten afterwards."""
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
    """A run that is behind in the time of a 4K picture and misses one goal; ahead elsewhere."""
    from resource_probe import LOADS

    picture = {
        "first_s": 2.0, "wall_ms": 40.0, "cpu_ms": 20.0, "stall_ms": 8.0, "process_mb": 190.0,
        "peak_mb": 90.0, "left_mb": 9.0,
    }  # fmt: skip
    ours = {**picture, "wall_ms": 10.0, "cpu_ms": 5.0, "stall_ms": 2.0, "peak_mb": 45.0}
    images = {load: {"bare": picture, "ours": ours} for load in LOADS}
    images["4K google"]["ours"] = {**ours, "wall_ms": 60.0}
    images["hang"] = {
        "guide": {"served": 0.0, "last_s": 15.0},
        "ours": {"served": 12.0, "last_s": 1.5},
    }
    outage = {
        "bare": {"served": 0.36, "mean": 19.0, "wasted": 240.0, "recovery": 0.0},
        "guide": {"served": 1.0, "mean": 61.2, "wasted": 524.0, "recovery": 2.0},
        "ours": {"served": 1.0, "mean": 20.4, "wasted": 13.0, "recovery": 438.0},
    }
    return command.Found(
        middleware={
            "guide": {"ok": 80.0, "fallback": 240.0},
            "ours": {"ok": 60.0, "fallback": 180.0, "scale": 1.5},
        },
        images=images,
        outages={case.title: outage for case in command.CASES},
        imports={"bare": 1.5, "ours": 0.05},
        sizes={"bare": 48.0, "ours": 48.5},
    )


def test_the_quick_mode_writes_the_table_between_the_markers(
    command: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures, ratios, goals and reasons; not a letter of the text around it is touched."""
    readme = tmp_path / "README.md"
    head, tail = "# Name\n\n## Measured\n\nText.\n\n", "\n\n## Next\n\nMore text.\n"
    readme.write_text(
        f"{head}<!-- benchmarks:start -->\nstale figures\n<!-- benchmarks:end -->{tail}"
    )
    monkeypatch.setattr(command, "everything", lambda _peers, *, quick: canned(command))
    drawn: list[Path] = []
    monkeypatch.setattr(command.outage_picture, "draw", drawn.append)
    files = ["--readme", str(readme), "--picture", str(tmp_path / "p.svg")]
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--quick", *files])
    command.main()
    assert drawn == [tmp_path / "p.svg"]
    text = readme.read_text()
    assert text.startswith(f"{head}<!-- benchmarks:start -->\n|")
    assert text.endswith(f"<!-- benchmarks:end -->{tail}")
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if "|" in line}
    head_row = lines["less is better"]
    assert [cell.strip() for cell in head_row.strip("|").split("|")] == [
        "less is better", "bare SDK", "retries, then fallback", "this library", "",
    ]  # fmt: skip
    added = lines["added to a call, µs of CPU"]
    assert added.endswith("|  | 80 (1.33x) | **60** | goal 50: met (40 where it was set) |")
    missed = lines["added to a call that falls back, µs of CPU"]
    assert "**180** | goal 100: missed (120 where it was set); queue" in missed
    ahead = lines["a small picture: CPU, ms a picture"]
    assert ahead.endswith("| 20 (4x) |  | **5** |  |")
    behind = lines["20 MB from Google: time, ms a picture"]
    assert "| 40 (0.67x) |  | **60** | the picture is decoded" in behind
    hanging = next(line for title, line in lines.items() if title.startswith("Google hangs"))
    assert "|  | 0 served | **1.5** |  |" in hanging
    first = command.CASES[0].title
    assert lines[f"{first}: time to an image, s"].endswith(
        "| 36 % served | 61.2 (3x) | **20.4** |  |"
    )
    assert lines[f"{first}: wasted requests"].endswith("| 524 (40.3x) | **13** |  |")
    assert "IMAGE_GEN_BREAKER_RESET_TIMEOUT" in next(
        line for title, line in lines.items() if title.startswith("first image by Google after")
    )
    assert lines["import, s (ours brings the rest with the first call, or `warm_up()`)"].endswith(
        "**0.05** | goal 0.15: met |"
    )
    assert lines["installed, MB (the two chains: without any vendor's SDK)"].endswith("|  |")
    assert "one quick round" in text
    assert "stale figures" not in text


def test_the_guide_has_what_the_command_writes(command: ModuleType) -> None:
    """Its head, every row and the word of who wrote it: a table made by hand would lack some."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(
        r"<!-- benchmarks:start -->\n(.*?)\n<!-- benchmarks:end -->", text, re.DOTALL
    )
    canned_rows = command.rows(canned(command))
    head, under, *lines = block.splitlines()
    shown = [cell.strip() for cell in head.strip("|").split("|")][1:-1]
    from table import DESIGNS

    assert shown == [name for name in DESIGNS.values() if name in shown]
    assert {"bare SDK", "retries, then fallback", "cooldown, simulated", "this library"} <= {*shown}
    assert (head[:17], under[:9]) == ("| less is better ", "|---|---:")
    titles = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("|")]
    assert titles == [row.title for row in canned_rows]
    assert re.search(r"\. Written by `python -m benchmarks(?: --quick)?(?: --peers)?`\.$", block)


def test_help_names_what_else_can_be_run(
    command: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each script that stands alone, with its first line; README has their names."""
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--help"])
    with pytest.raises(SystemExit):
        command.main()
    told = capsys.readouterr().out
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert ", ".join(f"`{name}`" for name in command.ALONE) in readme
    for name in command.ALONE:
        assert (FOLDER / f"{name}.py").exists()
        assert re.search(rf"^  {name} +[A-Z].+\.$", told, re.MULTILINE), name


def test_without_the_extra_one_line_says_what_is_missing() -> None:
    """No traceback: which package, and what brings it."""
    done = subprocess.run(
        [sys.executable, "-S", "-m", "benchmarks"],
        cwd=FOLDER.parent, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(r"benchmarks: \w+ is not installed; pip install -e '\.\[dev\]' .*", line)


def test_designs_meet_the_same_outage(command: ModuleType) -> None:
    """Fewer requests in half an hour of overload waste less; only the bare SDK loses images."""
    found = command.outage.measure(command.CASES[0], (5,))
    assert list(found) == ["bare", "guide", "cooldown", "ours"]
    assert found["bare"].served == 0.0
    assert {found[name].served for name in ("guide", "cooldown", "ours")} == {1.0}
    assert found["ours"].wasted * 2 < found["cooldown"].wasted
    assert found["cooldown"].wasted * 5 < found["guide"].wasted
    assert found["ours"].added * 10 < found["guide"].added
    assert found["guide"].recovery < min(found["cooldown"].recovery, found["ours"].recovery)
    assert found["ours"].recovery < 75.0, "an open period with jitter, and the next caller"


def test_an_outage_of_mixed_errors_has_all_of_them(command: ModuleType) -> None:
    """Failed requests of this case take as long as a 429, a 499 and a 504 do."""
    case = next(case for case in command.CASES if case.by_turns)
    wasted = command.outage.run_outage(case, command.outage.DESIGNS["bare"], 1).wasted

    assert {round(seconds, 3) for _, seconds in wasted} == {0.4, 10.0, 40.0}


PLAIN = """
import json, peer_outages, outage_scenarios

def plain(world):
    def build(ask):
        async def chain(call):
            try:
                await ask(call, outage_scenarios.GOOGLE)
            except ConnectionError:
                await ask(call, outage_scenarios.OPENAI)
        return chain
    return peer_outages.Peer(world, build, ConnectionError)

peer_outages.PEERS["plain"] = plain
print(json.dumps(peer_outages.measure("plain", outage_scenarios.CASES[0], (5,))))
"""


def test_other_libraries_meet_it_without_ours_being_installed() -> None:
    """A chain that asks Google once per call wastes one request for each; no package is needed."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", PLAIN],
        cwd=FOLDER, capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["served"] == 1.0
    assert found["wasted"] == pytest.approx(300, abs=3)
    assert found["added"] == pytest.approx(1.0, abs=0.05)


def test_the_picture_shows_three_designs(command: ModuleType, tmp_path: Path) -> None:
    """A new picture and README's have a column per design, with images of both vendors."""
    pytest.importorskip("vl_convert")
    command.outage_picture.draw(tmp_path / "new.svg")
    drawn = (tmp_path / "new.svg").read_text()
    shown = (FOLDER.parent / ".github" / "outage.svg").read_text()
    for svg in (drawn, shown):
        for vendor, colour in command.outage_picture.VENDORS.items():
            assert len(re.findall(rf'<circle[^>]* fill="{colour}"', svg)) > 300, vendor
            assert vendor in svg
        for label in command.outage_picture.LABELS.values():
            assert label in svg
        assert svg.count(" wasted requests<") == len(command.outage_picture.LABELS)
        assert svg.count(">wasted a minute<") == 1


def test_the_picture_equals_what_the_code_draws(command: ModuleType, tmp_path: Path) -> None:
    """README's picture shows the behaviour of the present code."""
    pytest.importorskip("vl_convert")
    command.outage_picture.draw(tmp_path / "new.svg")
    figures = re.compile(r"(\d+) (?:s an image while|wasted requests<)")
    shown = (FOLDER.parent / ".github" / "outage.svg").read_text()
    assert figures.findall(shown) == figures.findall((tmp_path / "new.svg").read_text())


def test_wherever_we_are_behind_the_row_has_a_reason(command: ModuleType) -> None:
    """Were every figure of the others a tenth of ours, every row would still have to say why."""
    for row in command.rows(canned(command)):
        own = row.cells["ours"]
        assert isinstance(own, float)
        beaten = command.ResultRow(row.title, {"bare": own / 10, "ours": own}, row.why)
        assert not beaten.ahead
        assert beaten.why, row.title


def test_markers_are_added_at_the_end_of_the_section(command: ModuleType) -> None:
    """Once: the second time the table is replaced. Without the section, one is made."""
    text = "# Name\n\n## Measured\n\nText.\n\n## Next\n\nMore.\n"
    once = command.put(text, "| one |")
    assert once == (
        "# Name\n\n## Measured\n\nText.\n\n<!-- benchmarks:start -->\n| one |\n"
        "<!-- benchmarks:end -->\n\n## Next\n\nMore.\n"
    )
    assert command.put(once, "| two |") == once.replace("one", "two")
    assert command.put("# Name\n", "| one |").startswith("# Name\n\n## Measured\n\n<!-- bench")
