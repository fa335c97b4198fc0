"""Files of prompts, batches over them, and what the emulator and the journal then know."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from cli_kit import Ended, cli

from resilient_imagen.emulator import BackgroundEmulator, RequestSeen

QUICK = {"IMAGE_GEN_IPM": "6000", "IMAGE_GEN_RETRY_BASE_DELAY": "0"}
COMMAND = ("generate", "--from", "prompts.jsonl", "-o", "out")


def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, emulator: BackgroundEmulator) -> None:
    """Small pictures, no pacing, files in the test's own directory."""
    monkeypatch.chdir(tmp_path)
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    emulator.app.picture = "tiny"


def write(rows: Iterable[Mapping[str, Any] | str]) -> Path:
    """The file of prompts that COMMAND reads."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path = Path("prompts.jsonl")
    path.write_text("\n".join(lines) + "\n")
    return path


def scenes(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"scene {number}", "id": f"s{number}"} for number in range(count)]


def batch(capsys: pytest.CaptureFixture[str], *more: object) -> Ended:
    return cli(capsys, *COMMAND, "--json", *more)


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
