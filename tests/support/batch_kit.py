"""Batch test kit: prompt files, batch commands, and readers for the emulator and the journal."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from cli_kit import Ended, cli

from resilient_imagen import ImageClient, Settings
from resilient_imagen.cli.batch import Batch
from resilient_imagen.cli.batch_journal import open_journal
from resilient_imagen.cli.batch_prompts import PromptRow
from resilient_imagen.emulator import BackgroundEmulator, RequestSeen
from resilient_imagen.testing import FakeProvider, run_virtual

QUICK = {"IMAGE_GEN_IPM": "6000", "IMAGE_GEN_RETRY_BASE_DELAY": "0"}
COMMAND = ("generate", "--from", "prompts.jsonl", "-o", "out")


def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, emulator: BackgroundEmulator) -> None:
    """Configure small images, no pacing, and the test's directory for files."""
    monkeypatch.chdir(tmp_path)
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    emulator.app.picture = "tiny"


def write(rows: Iterable[Mapping[str, Any] | str]) -> Path:
    """Write the file of prompts that COMMAND reads."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path = Path("prompts.jsonl")
    path.write_text("\n".join(lines) + "\n")
    return path


def scenes(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"scene {number}", "id": f"s{number}"} for number in range(count)]


def batch(capsys: pytest.CaptureFixture[str], *more: object) -> Ended:
    return cli(capsys, *COMMAND, "--json", *more)


def run_rows(
    rows: Sequence[PromptRow],
    *providers: FakeProvider,
    batch: type[Batch] = Batch,
    **more: Any,
) -> Batch:
    """Run a batch on virtual time over the default models of providers, and return it.

    ``more`` are further settings.
    """
    google, openai = "gemini-3-pro-image", "gpt-image-2.5-flare"
    models = {"google": google, "google_b": google, "openai": openai}
    routes = ",".join(f"{each.name}:{models[each.name]}" for each in providers)

    async def run() -> Batch:
        settings = Settings(**{"routes": routes, "ipm": 6000, **more})
        async with ImageClient(settings, providers=providers) as client:
            with open_journal(Path("out")) as kept:
                work = batch(client, kept)
                await work.run(rows)
        return work

    return run_virtual(run())


def asked(emulator: BackgroundEmulator) -> Counter[str]:
    """Return how often each scene was requested, from both vendors together."""
    sent = [*emulator.google.requests, *emulator.openai.requests]
    return Counter(scene(seen) for seen in sent)


def scene(seen: RequestSeen) -> str:
    """Return the scene in a request's prompt, to which a vendor's prompt hints may be added."""
    (number,) = re.findall(r"[Ss]cene:? (\d+)", seen.prompt)
    return f"scene {number}"


def journal(folder: str = "out") -> list[dict[str, Any]]:
    lines = (Path(folder) / "results.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
