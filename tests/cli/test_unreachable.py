"""A vendor that cannot be reached: the message has the system's cause, and what to check."""

from __future__ import annotations

import pytest
from cli_kit import cli
from ports import free_port

from resilient_imagen.emulator import BackgroundEmulator, faults

pytest_plugins = ["resilient_imagen.emulator.pytest_plugin"]

Capsys = pytest.CaptureFixture[str]


@pytest.mark.parametrize("proxy", ["", "HTTP_PROXY", "http_proxy"])
def test_a_refused_connection_is_named_with_the_variables_that_direct_it(
    proxy: str, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line ends with the system's description, and names address and proxy if they are set."""
    nowhere = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("GOOGLE_GENAI_API_KEY", "made-up")
    routes = "google:gemini-3-pro-image,google:gemini-3.1-flash-image"
    monkeypatch.setenv("IMAGE_GEN_ROUTES", routes)
    monkeypatch.setenv("IMAGE_GEN_MAX_RETRIES", "0")
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "http://google.example" if proxy else nowhere)
    if proxy:
        monkeypatch.setenv(proxy, nowhere)
    ended = cli(capsys, "generate", "a fox")
    assert ended.code == 1
    assert ended.complaint.startswith(
        "google gemini-3-pro-image: network failure; google gemini-3.1-flash-image: network "
        "failure (connection, 2 requests sent"
    )
    assert ended.complaint.count("; google: [Errno ") == 1
    checked = [proxy, "GOOGLE_GEMINI_BASE_URL"] if proxy else ["GOOGLE_GEMINI_BASE_URL"]
    assert ended.complaint.endswith(f"; check the network and {' and '.join(checked)}")


def test_a_connection_that_breaks_later_is_not_a_matter_of_the_network(
    capsys: Capsys, monkeypatch: pytest.MonkeyPatch, imagen_emulator: BackgroundEmulator
) -> None:
    """A vendor that was reached and then closed the connection leads to no advice."""
    monkeypatch.setenv("IMAGE_GEN_ROUTES", "google:gemini-3-pro-image")
    monkeypatch.setenv("IMAGE_GEN_MAX_RETRIES", "0")
    imagen_emulator.google.set(faults.reset())
    ended = cli(capsys, "generate", "a fox")
    assert "network failure (connection, 1 request sent" in ended.complaint
    assert "check" not in ended.complaint
