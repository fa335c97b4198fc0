"""What any test may rely on: an environment that says nothing about us, and a Redis if it asks."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from redis_kit import RedisServer, redis_server

OURS = ("IMAGE_GEN_", "GOOGLE_", "GEMINI_", "OPENAI_", "OTEL_")

# A busy machine is no failure. .ci/slow chooses "thorough", and .ci/run "brief" on other Pythons,
# by --hypothesis-profile.
settings.register_profile("unhurried", deadline=None)
settings.register_profile("brief", deadline=None, max_examples=20)
settings.register_profile("thorough", deadline=None, max_examples=3000)
settings.load_profile("unhurried")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Run a single test or file in this process; leave the number of workers to xdist otherwise."""
    single = len(config.args) == 1 and not Path(config.args[0]).is_dir()
    return 0 if single else None


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """Commands that tests start hear Ctrl-C, also where a shell began these in the background.

    It has them ignore it, which children inherit.
    """
    usual = signal.getsignal(signal.SIGINT)
    if usual is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, setting, proxy or unbuffered output of the developer's machine reaches a test."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # it hides errors of the last flush
    for name in list(os.environ):
        if name.startswith(OURS) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def unconfigured_structlog() -> Iterator[None]:
    """Undo what a test configured of structlog: it is the process's, and other tests' too."""
    yield
    structlog = sys.modules.get("structlog")
    if structlog is not None and structlog.is_configured():
        structlog.reset_defaults()


@pytest.fixture(scope="module")
def shared_server() -> Iterator[RedisServer]:
    """One Redis for the tests of a file, with whatever the last of them left in it."""
    with redis_server() as running:
        yield running


@pytest.fixture
def server(shared_server: RedisServer) -> RedisServer:
    """The same, empty."""
    shared_server.ask("FLUSHALL")
    return shared_server
