"""The samples and tables of the circuit breaker's guide agree with the code."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from readme_kit import executed, guide_of

from resilient_imagen.circuitbreaker import BreakerConfig, BreakerState
from resilient_imagen.testing import run_virtual

GUIDE = guide_of("circuitbreaker")


@pytest.fixture
def samples() -> dict[str, Any]:
    """Run all samples in one module, and return its names."""
    return executed("\n".join(GUIDE.samples()))


async def broken(url: str = "") -> None:
    raise OSError(url)


def test_the_first_sample_rejects_after_five_failures(samples: dict[str, Any]) -> None:
    """The sixth call is rejected with the time until the next attempt."""

    async def scene() -> str:
        samples["breaker"].reconfigure(BreakerConfig(fail_max=5, reset_timeout=30))
        for _ in range(5):
            with pytest.raises(OSError, match="a"):
                await samples["thumbnail"]("a", broken)
        return str(await samples["thumbnail"]("a", broken))

    assert re.fullmatch(r"try again in 3[0-3] s", run_virtual(scene()))


def test_the_classifier_counts_the_callers_mistakes_as_successes(samples: dict[str, Any]) -> None:
    """A ValueError resets the consecutive failures; another error counts as one."""
    breaker = samples["breaker"]

    async def mistaken(url: str) -> None:
        raise ValueError(url)

    async def scene() -> list[int]:
        counts = []
        for fetch in (broken, mistaken):
            with pytest.raises((OSError, ValueError)):
                await samples["checked"]("a", fetch)
            counts.append(breaker.metrics().consecutive)
        return counts

    assert run_virtual(scene()) == [1, 0]


def test_the_permit_sample_passes_the_servers_hint_on(samples: dict[str, Any]) -> None:
    """A hint opens the breaker for exactly that long; a failure counts and is raised."""
    breaker = samples["breaker"]

    async def served() -> tuple[int, None]:
        return 200, None

    async def limited() -> tuple[int, float]:
        return 429, 20.0

    async def scene() -> None:
        assert await samples["throttled"](served) == 200
        with pytest.raises(OSError, match=r"^$"):
            await samples["throttled"](broken)
        assert breaker.metrics().consecutive == 1
        assert await samples["throttled"](limited) == 429
        assert await samples["throttled"](served) == 20.0
        assert breaker.metrics().state is BreakerState.OPEN

    run_virtual(scene())


def test_the_last_sample_leaves_other_settings(samples: dict[str, Any]) -> None:
    """It observes the breaker, forces it open and closed, and reconfigures it."""
    assert samples["breaker"].snapshot()["state"] == "closed"
    assert samples["breaker"].snapshot()["fail_max"] == 10


def test_the_defaults_are_those_of_the_code() -> None:
    """The table lists each field of `BreakerConfig` with its default."""
    rows = GUIDE.section("Defaults").split("---|\n")[1]
    listed = dict(re.findall(r"^\| `(\w+)` \| `?([\w.]+)`? \|", rows, re.MULTILINE))
    assert listed == {field.name: str(field.default) for field in dataclasses.fields(BreakerConfig)}


def test_the_files_exist() -> None:
    """Each file of the table is in the folder, and each module of the folder is in the table."""
    modules = {path.name for path in GUIDE.path.parent.glob("*.py")}
    listed = re.findall(r"`(\w+\.py)`", GUIDE.section("Where to look"))
    assert set(listed) == modules - {
        "__init__.py",
        "config.py",
        "types.py",
    }
