"""Keys, quotas and models that end ``generate --from``, because every further row would fail."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from batch_kit import run_rows, scenes, write

from resilient_imagen.cli.batch import Batch
from resilient_imagen.cli.batch_prompts import read_prompts
from resilient_imagen.cli.image_spec import ImageSpec
from resilient_imagen.reasons import Reason
from resilient_imagen.testing import FakeProvider


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the test's own directory."""
    monkeypatch.chdir(tmp_path)


def make(google: FakeProvider, openai: FakeProvider) -> Batch:
    """Make twelve images, one after the other, each with one request to a provider."""
    rows = read_prompts(write(scenes(12)), ImageSpec("", "9:16", "2K"))
    one_by_one = partial(run_rows, max_concurrent=1, max_retries=0, when_all_open="wait")
    return one_by_one(rows, google, openai)


def test_a_run_goes_on_while_the_fallback_serves() -> None:
    """Failures of a usable fallback do not end a run whose first account has no quota left."""
    google = FakeProvider("google").fail(Reason.QUOTA_EXHAUSTED, status=429)
    openai = FakeProvider("openai").fail(Reason.INVALID_RESPONSE, times=2)
    run = make(google, openai)
    assert run.stopped is None
    assert [entry["status"] for entry in run.entries] == ["failed"] * 2 + ["done"] * 10


def test_a_run_ends_when_no_account_is_usable() -> None:
    """A circuit that is open because of a key counts like a request that the key failed."""
    google = FakeProvider("google").fail(Reason.UNAUTHENTICATED, status=401)
    openai = FakeProvider("openai").fail(Reason.INVALID_RESPONSE, times=1)
    openai.fail(Reason.QUOTA_EXHAUSTED, status=429)
    run = make(google, openai)
    assert run.stopped is not None
    assert "google gemini-3-pro-image: skipped after 401" in run.stopped
    assert len(run.entries) == 2
    assert (len(google.sent), len(openai.sent)) == (1, 2)


def test_an_open_circuit_after_overload_ends_no_run() -> None:
    """A provider that was overloaded serves again later, also when the other one has no quota."""
    google = FakeProvider("google").fail(Reason.QUOTA_EXHAUSTED, status=429)
    openai = FakeProvider("openai").fail(Reason.OVERLOADED, times=5)
    run = make(google, openai)
    assert run.stopped is None
    assert [entry["status"] for entry in run.entries].count("done") >= 6
