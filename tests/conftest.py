"""Shared fixtures: a clean environment for every test, emulated vendors and Redis on request."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import certifi
import pytest
from hypothesis import is_hypothesis_test, settings
from redis_kit import RedisServer, redis_server

if TYPE_CHECKING:
    from resilient_imagen.emulator import BackgroundEmulator

OURS = ("IMAGE_GEN_", "GOOGLE_", "GEMINI_", "VERTEX_", "OPENAI_", "AZURE_", "OTEL_")

# Without deadlines, because the machine may be busy. A change is judged by the same examples on
# every machine (derandomize); they depend on the constants in all imported modules, too.
# --hypothesis-profile chooses another profile: .ci/slow takes "thorough", which looks for new
# examples, and .ci/run takes "brief" on other Pythons.
settings.register_profile("unhurried", deadline=None, derandomize=True)
settings.register_profile("brief", deadline=None, derandomize=True, max_examples=20)
settings.register_profile("thorough", deadline=None, max_examples=3000)
settings.load_profile("unhurried")

# Each of the workers and of some hundred commands would compile all modules again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Run a single test or file in this process; otherwise xdist chooses the number of workers."""
    single = len(config.args) == 1 and not Path(config.args[0]).is_dir()
    return 0 if single else None


def pytest_collection_finish() -> None:
    """Exempt modules and tests, some 500,000 objects, from garbage collection.

    Otherwise each ``gc.collect()`` and ``gc.get_objects()`` of a test takes a third of a second.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Run property tests and tests with the marker no_cover untraced.

    Tracing doubles the CPU time of all code, also of other libraries. In a worker of xdist,
    pytest-cov has two nested measurements, and pausing the inner one resumes the outer one.
    """
    if not (item.get_closest_marker("no_cover") or is_hypothesis_test(getattr(item, "obj", None))):
        return (yield)
    tracer, of_threads = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(tracer)
        threading.settrace(of_threads)


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """Let commands that tests start receive SIGINT.

    A shell lets background jobs ignore it, which child processes inherit.
    """
    usual = signal.getsignal(signal.SIGINT)
    if usual is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual)


@pytest.fixture(scope="session", autouse=True)
def single_certificate_authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let SDKs and commands trust one certificate authority; tests connect to loopback only.

    For each client, google-genai reads the trusted certificates twice: 35 ms with all of certifi's.
    """
    first, end, _ = Path(certifi.where()).read_text("utf-8").partition("-----END CERTIFICATE-----")
    path = tmp_path_factory.mktemp("trust") / "authority.pem"
    path.write_text(first + end + "\n", "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(path))
        yield


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove keys, settings, proxies and unbuffered output from the environment of a test."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # it hides errors of the last flush
    for name in list(os.environ):
        if name.startswith(OURS) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def unconfigured_structlog() -> Iterator[None]:
    """Reset structlog's configuration after a test, because it is process-wide."""
    yield
    structlog = sys.modules.get("structlog")
    if structlog is not None and structlog.is_configured():
        structlog.reset_defaults()


@pytest.fixture
def vendors(monkeypatch: pytest.MonkeyPatch) -> Iterator[BackgroundEmulator]:
    """Direct both SDKs to emulated vendors on loopback, with small images and no long waits."""
    from resilient_imagen.emulator import BackgroundEmulator, Emulator

    with BackgroundEmulator(Emulator(picture="tiny")) as emulator:
        for name, value in {
            "GOOGLE_GENAI_API_KEY": "AIzaSyFAKEFAKEFAKEFAKEFAKEFAKEFAKEFAKE",
            "OPENAI_API_KEY": "sk-fake-fake-fake-fake-fake",
            "GOOGLE_GEMINI_BASE_URL": emulator.google_url,
            "OPENAI_BASE_URL": emulator.openai_url,
            "IMAGE_GEN_IPM": "60000",
            "IMAGE_GEN_RETRY_BASE_DELAY": "0.01",
        }.items():
            monkeypatch.setenv(name, value)
        yield emulator


@pytest.fixture(scope="module")
def shared_server() -> Iterator[RedisServer]:
    """Start one Redis for the tests of a file; it is not emptied between them."""
    with redis_server() as running:
        yield running


@pytest.fixture
def server(shared_server: RedisServer) -> RedisServer:
    """Return the Redis server of the file, emptied."""
    shared_server.ask("FLUSHALL")
    return shared_server
