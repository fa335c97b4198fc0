"""A rejected key: the message has its variable and the vendor's explanation."""

from __future__ import annotations

import json
import os

import pytest
from cli_kit import cli

from resilient_imagen.emulator import BackgroundEmulator, faults

pytest_plugins = ["resilient_imagen.emulator.pytest_plugin"]

Capsys = pytest.CaptureFixture[str]


@pytest.mark.parametrize("variable", ["GOOGLE_GENAI_API_KEY", "GEMINI_API_KEY"])
def test_a_wrong_key_is_named_by_its_variable(
    variable: str,
    capsys: Capsys,
    monkeypatch: pytest.MonkeyPatch,
    imagen_emulator: BackgroundEmulator,
) -> None:
    """The line ends with the variable that is set, after the vendor's message; JSON has both."""
    monkeypatch.setenv(variable, os.environ["GOOGLE_GENAI_API_KEY"])
    if variable != "GOOGLE_GENAI_API_KEY":
        monkeypatch.delenv("GOOGLE_GENAI_API_KEY")
    monkeypatch.setenv("IMAGE_GEN_ROUTES", "google:gemini-3-pro-image")
    imagen_emulator.google.set(faults.status(401))
    ended = cli(capsys, "generate", "a fox", "--json")
    assert ended.code == 1
    assert ended.complaint == (
        "google gemini-3-pro-image: 401 UNAUTHENTICATED (unauthenticated, 1 request sent); "
        f'google says "Request had invalid authentication credentials."; check {variable}'
    )
    printed = json.loads(ended.out)
    assert printed["check"] == [variable]
    assert printed["vendor_message"] == "Request had invalid authentication credentials."


def test_several_wrong_keys_are_all_named(
    capsys: Capsys, imagen_emulator: BackgroundEmulator
) -> None:
    """Each refused key is named; a vendor that failed for another reason is not."""
    imagen_emulator.google.set(faults.status(403))
    imagen_emulator.openai.set(faults.status(401))
    complaint = cli(capsys, "generate", "a fox").complaint
    assert complaint.endswith("; check GOOGLE_GENAI_API_KEY and OPENAI_API_KEY")
    assert 'openai says "Incorrect API key provided."' in complaint
    imagen_emulator.google.set(faults.quota_exhausted())
    complaint = cli(capsys, "generate", "a fox").complaint
    assert complaint.endswith("; check OPENAI_API_KEY")
    assert "google says" not in complaint
