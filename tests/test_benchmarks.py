"""The table that README shows is what was measured, with the reasons where we are behind."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


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
    picture = {"first_s": 2.0, "wall_ms": 40.0, "cpu_ms": 20.0, "stall_ms": 8.0, "peak_mb": 90.0}
    ours = {"first_s": 2.0, "wall_ms": 10.0, "cpu_ms": 5.0, "stall_ms": 2.0, "peak_mb": 45.0}
    hang = {"guide": {"served": 0.0, "last_s": 15.0}, "ours": {"served": 12.0, "last_s": 1.5}}
    outage = {"guide": {"mean": 61.2, "doomed": 524.0}, "ours": {"mean": 20.4, "doomed": 13.0}}
    return command.Found(
        middleware={
            "guide": {"ok": 80.0, "fallback": 240.0},
            "ours": {"ok": 60.0, "fallback": 160.0, "scale": 1.5},
        },
        images={
            "small": {"bare": picture, "ours": ours},
            "4K": {"bare": picture, "ours": {**ours, "wall_ms": 60.0}},
            "references": {"bare": picture, "ours": ours},
            "hang": hang,
        },
        outages={"an outage": outage},
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
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--quick", "--readme", str(readme)])
    command.main()
    text = readme.read_text()
    assert text.startswith(f"{head}<!-- benchmarks:start -->\n|")
    assert text.endswith(f"<!-- benchmarks:end -->{tail}")
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if "|" in line}
    head_row = lines["less is better"]
    assert [cell.strip() for cell in head_row.strip("|").split("|")] == [
        "less is better", "bare SDK", "retries, then fallback", "this library", "",
    ]  # fmt: skip
    added = lines["added to a call, µs of CPU"]
    assert added.endswith("|  | 80 (1.33x) | **60** | goal 50, 75 on this machine: met |")
    missed = lines["added to a call that falls back, µs of CPU"]
    assert "**160** | goal 100, 150 on this machine: missed; queue" in missed
    ahead = lines["a small picture: CPU, ms"]
    assert ahead.endswith("| 20 (4x) |  | **5** |  |")
    behind = lines["a 4K picture of 20 MB: time, ms"]
    assert "| 40 (0.67x) |  | **60** | the picture is decoded" in behind
    hanging = next(line for title, line in lines.items() if title.startswith("Google hangs"))
    assert "| 0 served | **1.5** |  |" in hanging
    assert lines["an outage: requests in vain"].endswith("524 (40.3x) | **13** |  |")
    assert lines["installed, MB (the two chains: without any vendor's SDK)"].endswith("|  |")
    assert "one quick round" in text
    assert "stale figures" not in text


def test_wherever_we_are_behind_the_row_has_a_reason(command: ModuleType) -> None:
    """Were every figure of the others a tenth of ours, every row would still have to say why."""
    for row in command.rows(canned(command)):
        own = row.cells["ours"]
        assert isinstance(own, float)
        beaten = command.Row(row.title, {"bare": own / 10, "ours": own}, row.why)
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
