"""The telemetry guide: its names agree with the code, and its samples write log lines."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from cli_kit import python
from opentelemetry.metrics import NoOpMeter, NoOpMeterProvider
from readme_kit import guide_of

from resilient_imagen.telemetry import names
from resilient_imagen.telemetry.metrics import MetricSink

GUIDE = guide_of("telemetry")


def test_traces_are_drawn_with_attributes_that_exist() -> None:
    """Every attribute in a drawn trace is one of telemetry's, with or without the prefix."""
    known = {value for value in vars(names).values() if isinstance(value, str)}
    for line in re.findall(
        r"^(?:imagegen|[├└]).*$", GUIDE.section("What a trace looks like"), re.MULTILINE
    ):
        for name in re.findall(r"([a-z_.]+)=", line):
            assert name in known or f"imagegen.{name}" in known, name


def test_every_metric_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table has the name and kind of each instrument that is created."""
    made: dict[str, str] = {}

    class Meter(NoOpMeter):
        """Records the instruments that it is asked to create."""

    for kind in ("histogram", "counter", "observable_gauge"):

        def note(_: NoOpMeter, name: str, *rest: Any, kind: str = kind, **more: Any) -> None:
            del rest, more
            made[name] = kind.removeprefix("observable_")

        monkeypatch.setattr(Meter, f"create_{kind}", note)
    MetricSink(UnsetMeterProvider(Meter("test")))
    assert (
        dict(re.findall(r"^\| `([a-z_.]+)` \| (\w+)", GUIDE.section("Metrics"), re.MULTILINE))
        == made
    )


class UnsetMeterProvider(NoOpMeterProvider):
    """Returns the same meter for every name."""

    def __init__(self, meter: NoOpMeter) -> None:
        self._meter = meter

    def get_meter(self, *_: Any, **__: Any) -> NoOpMeter:
        """Return the meter."""
        return self._meter


def test_the_logging_samples(tmp_path: Path) -> None:
    """Both samples write a sentence for a call that succeeds."""
    plain, as_json = GUIDE.samples(heading="Log lines")
    sentence = "image from mine after 1.0 s and 1 request"
    done = python("-c", plain + LOGGED_CALL, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("", "")
    assert f'summary="{sentence}"' in (tmp_path / "images.log").read_text()
    done = python("-c", as_json + LOGGED_CALL, cwd=tmp_path)
    assert f'"summary": "{sentence}"' in done.stdout, done.stderr


LOGGED_CALL = """
from resilient_imagen import ImageClient, Settings
from resilient_imagen.testing import FakeProvider, run_virtual

async def main():
    async with ImageClient(Settings(routes="mine:m"), providers=[FakeProvider("mine")]) as client:
        await client.generate("a lighthouse")

run_virtual(main())
"""
