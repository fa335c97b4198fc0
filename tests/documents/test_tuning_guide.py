"""The tuning guide: its samples are recorded, read and simulated."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import pytest
from readme_kit import executed, guide_of

from resilient_imagen import ImageClient, Settings
from resilient_imagen.testing import FakeProvider, run_virtual
from resilient_imagen.tuning import load
from resilient_imagen.tuning.gather import gather
from resilient_imagen.tuning.import_logs import read_rows

GUIDE = guide_of("tuning")


def test_the_tuning_example() -> None:
    """The sample tests the cost of an outage, and passes."""
    (code,) = GUIDE.samples(heading="Simulate")
    executed(code)["test_an_outage_of_ten_minutes_costs_few_requests"]()


def test_the_log_that_tuning_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the sample in an application, its log file is a recording."""
    monkeypatch.chdir(tmp_path)
    (written,) = GUIDE.samples(heading="Record")
    logger = logging.getLogger("imagegen")
    level, handlers = logger.level, list(logger.handlers)

    async def main() -> None:
        async with ImageClient(
            Settings(routes="mine:m"), providers=[FakeProvider("mine")]
        ) as client:
            await client.generate("a lighthouse")

    executed(written)
    try:
        run_virtual(main())
    finally:
        logger.setLevel(level)
        for handler in set(logger.handlers) - set(handlers):
            logger.removeHandler(handler)
            handler.close()
    recording = load("app.log")
    assert list(recording.routes) == ["mine:m"]
    assert recording.has_images


def test_the_sample_of_the_recording_format() -> None:
    """The four lines are two calls: one fell back, and the breaker rejected the other one."""
    (lines,) = GUIDE.samples("json")
    recording = gather(read_rows(lines.splitlines(), Counter()))
    assert len(recording.asked) == 2
    google, openai = recording.routes.values()
    assert (len(google), len(google.rejected), len(openai)) == (1, 1, 1)
