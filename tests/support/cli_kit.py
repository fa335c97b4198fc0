"""Command line test kit: run commands in a separate process or in this process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from paths import ROOT


def run(
    *arguments: str, cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``resilient-imagen`` until it exits."""
    return python("-m", "resilient_imagen", *arguments, cwd=cwd, env=env)


def python(
    *arguments: str, cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a separate interpreter until it exits."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@contextmanager
def started(
    *arguments: str, cwd: Path, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Start ``resilient-imagen`` with both outputs piped, and end it after the block."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "resilient_imagen", *arguments],
        cwd=cwd,
        env=environment(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def environment(more: dict[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment, with the package on the path."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120", **(more or {})}


@dataclass(frozen=True)
class Ended:
    """The result of a command."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """Return the single line on standard error."""
        (line,) = self.err.splitlines()
        return line.removeprefix("resilient-imagen: ")


def cli(capsys: pytest.CaptureFixture[str], *arguments: object) -> Ended:
    """Run a command in this process."""
    from resilient_imagen.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["resilient-imagen", *map(str, arguments)])
        patch.setenv("COLUMNS", "120")
        patch.setenv("NO_PROXY", "")  # restored in any case
        patch.setenv("no_proxy", "")
        with pytest.raises(SystemExit) as ended:
            main()
    output = capsys.readouterr()
    code = ended.value.code
    return Ended(
        code if isinstance(code, int) else 0 if code is None else 1, output.out, output.err
    )
