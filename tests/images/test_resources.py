"""Memory and CPU time of a call are bounded for all images of callers and providers.

The bounds are those of images/limits.py. They apply to CPU time, so a busy machine does not affect
them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from paths import SUPPORT

METER = SUPPORT / "images_meter.py"

pytestmark = [
    pytest.mark.ci,
    pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for what was used"),
]


def measured(group: str) -> dict[str, dict[str, Any]]:
    """Return the figures of each case of a group, measured in a separate process."""
    done = subprocess.run(
        [sys.executable, str(METER), group], capture_output=True, text=True, timeout=900, check=True
    )
    figures = [json.loads(line) for line in done.stdout.splitlines()]
    assert figures
    return {each["case"]: each for each in figures}


def beyond(figures: dict[str, dict[str, Any]], cpu: float, megabytes: float) -> list[Any]:
    """Return the cases that exceed the bound."""
    return [each for each in figures.values() if each["cpu"] > cpu or each["megabytes"] > megabytes]


def test_the_cost_of_a_hostile_reference_is_bounded() -> None:
    """A hostile reference is rejected by its structure, and the call continues without it."""
    figures = measured("refused")

    assert beyond(figures, cpu=1.5, megabytes=100) == []
    assert all(each["outcome"].startswith("0 sent, ['") for each in figures.values()), figures


def test_the_cost_of_hostile_metadata_is_bounded() -> None:
    """An image is used without its hostile metadata, with one copy at most."""
    figures = measured("harmless")

    assert beyond(figures, cpu=3, megabytes=250) == []
    assert all(each["outcome"].startswith("1 sent, [], ") for each in figures.values()), figures


def test_a_reference_at_the_limits_keeps_to_its_bounds() -> None:
    """Decoding a reference of the maximum pixels or bytes stays within its bounds."""
    figures = measured("at limits")

    assert beyond(figures, cpu=20, megabytes=1500) == []
    assert all(each["outcome"].startswith("1 sent, [], (") for each in figures.values()), figures


def test_a_result_at_the_limits_keeps_to_its_bounds() -> None:
    """Cropping a result of the maximum size stays within its bounds."""
    figures = measured("results")

    assert beyond(figures, cpu=20, megabytes=1500) == []
    assert all("cropped" in each["outcome"] for each in figures.values()), figures


def test_many_references_and_a_long_prompt_keep_to_the_same_bounds() -> None:
    """The maximum number of rotated photos and a million characters stay within bounds."""
    figures = measured("many")

    assert beyond(figures, cpu=20, megabytes=1500) == []
    assert [each["outcome"][:8] for each in figures.values()] == ["14 sent,", "0 sent, "]
