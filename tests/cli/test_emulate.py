"""``emulate``: the variables it prints, its script of faults, and its errors."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from pathlib import Path

import pytest
from cli_kit import cli, started

from resilient_imagen import ImageDict, generate_image, reset_default_client
from resilient_imagen.emulator import parse_script

Capsys = pytest.CaptureFixture[str]


def test_its_variables_direct_an_application_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script's fault occurs, the fallback serves, and Ctrl-C ends it with code 0."""
    (tmp_path / "faults.json").write_text(
        json.dumps({"google": {"always": [{"fault": {"kind": "status", "code": 503}}]}})
    )
    monkeypatch.setenv("IMAGE_GEN_MAX_RETRIES", "0")

    async def ask() -> ImageDict:
        try:
            return await generate_image("a fox")
        finally:
            await reset_default_client()

    with started("emulate", "--port", "0", "--script", "faults.json", cwd=tmp_path) as process:
        assert process.stdout is not None
        for _ in range(5):
            words = process.stdout.readline().split()
            assert words[0] == "export"
            for word in words[1:]:
                name, _, value = word.partition("=")
                monkeypatch.setenv(name, value)
        image = asyncio.run(ask())
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "")
        assert err == "serving; Ctrl-C ends it\nstopped\n"
    assert (image["provider"], image["fallback_reason"]) == ("openai", "overloaded")


def test_the_example_is_a_script(capsys: Capsys) -> None:
    """The output of --example is a valid script."""
    ended = cli(capsys, "emulate", "--example")
    assert ended.code == 0
    assert parse_script(ended.out).seed == 7


def test_a_used_port_is_reported_in_one_line(capsys: Capsys) -> None:
    """The line has the port and the system's description."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = cli(capsys, "emulate", "--port", port)
    assert ended.code == 2
    assert ended.complaint.startswith(f"port {port} cannot be used: ")


def test_a_wrong_script_is_reported_in_one_line(capsys: Capsys, tmp_path: Path) -> None:
    """The line has the place in the script and the allowed values."""
    path = tmp_path / "faults.json"
    path.write_text('{"google": {"always": [{"fault": "gremlins"}]}}')
    ended = cli(capsys, "emulate", "--script", path)
    assert ended.code == 2
    assert "google.always.0.fault: a fault's kind is one of answer, bad_base64," in ended.complaint
