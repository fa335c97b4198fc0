"""The address of a Jaeger that ``tune`` and ``cost`` read from, in their errors."""

from __future__ import annotations

import pytest
from cli_kit import cli
from ports import free_port

Capsys = pytest.CaptureFixture[str]


@pytest.mark.parametrize("command", ["tune", "cost"])
def test_a_password_is_not_shown(command: str, capsys: Capsys) -> None:
    """A Jaeger that cannot be reached is named without user and password."""
    place = f"127.0.0.1:{free_port()}"
    ended = cli(capsys, command, "--jaeger", f"http://me:sesame@{place}", "--service", "x")
    assert ended.code == 2
    assert ended.complaint.startswith(f"http://{place}: Jaeger cannot be asked: ")


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("me:sesame@host:1", "must be an address such as https://host"),
        ("http://me:sesame/sesame@host", "must be an address such as https://host"),
        ("http://me:1/sesame@host", "must not contain an @ after the host"),
    ],
)
def test_an_address_that_is_not_valid_is_not_shown(address: str, why: str, capsys: Capsys) -> None:
    """The error names the option, as the place of the password is not known."""
    ended = cli(capsys, "tune", "--jaeger", address, "--service", "x")
    assert (ended.code, ended.out) == (2, "")
    assert ended.complaint.startswith(f"--jaeger {why}")
    assert "sesame" not in ended.complaint
