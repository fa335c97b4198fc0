"""Tuning test kit: seeded scenarios with known outages, and recordings of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from resilient_imagen import Reason, Settings
from resilient_imagen.tuning import (
    LatencyDistribution,
    Outage,
    Recorder,
    Recording,
    Scenario,
    Service,
    Traffic,
    waves,
)
from resilient_imagen.tuning.gather import gather
from resilient_imagen.tuning.import_logs import read_rows
from resilient_imagen.tuning.rows import Row
from resilient_imagen.tuning.simulation import play

HOUR = 3600.0
ROOMY: dict[str, Any] = {"ipm": 20, "max_concurrent": 16}
"""Limits that tests do not reach."""
TIGHT: dict[str, Any] = {"ipm": 10, "max_concurrent": 4}
"""The default limits."""

_SERVICES = {
    "google": Service(latency=LatencyDistribution(19.0, 35.0), blips=0.01),
    "openai": Service(latency=LatencyDistribution(21.0, 32.0)),
}


def world(*outages: Outage, hours: float = 4, per_minute: float = 8, **rest: Any) -> Scenario:
    """Return a scenario with two services and these outages."""
    traffic = Traffic(per_minute=per_minute, duration=hours * HOUR, **rest)
    return Scenario(traffic=traffic, services=_SERVICES, outages=outages)


def bad(start: float, duration: float, **rest: Any) -> Outage:
    """Return an outage; ``start`` is in hours, ``duration`` in minutes."""
    return Outage(start=start * HOUR, duration=duration * 60.0, **rest)


def healthy_but(services: dict[str, Service], **rest: Any) -> Scenario:
    """Return a scenario with these services and no outages."""
    return replace(world(**rest), services={**_SERVICES, **services})


HUNG: dict[str, Any] = {"reason": Reason.TIMEOUT}
THROTTLED: dict[str, Any] = {"reason": Reason.RATE_LIMITED, "retry_after": 25.0, "latency": 0.3}
SLOW: dict[str, Any] = {"share": 0.0}

SCENARIOS: dict[str, Scenario] = {
    "quiet": world(),
    "blips": healthy_but({"google": Service(latency=LatencyDistribution(19.0, 35.0), blips=0.05)}),
    "outage of 10 minutes": world(bad(1.5, 10)),
    "outage of 30 minutes": world(bad(1.5, 30)),
    "outage of 2 hours": world(bad(1, 120)),
    "outage at the very start": world(bad(0, 20)),
    "outage to the very end": world(bad(3.5, 30)),
    "two outages": world(bad(1, 20), bad(2.5, 40)),
    "flapping, 2 minutes of 10": world(*waves(bad(0.3, 2), every=600, times=20)),
    "flapping, 5 minutes of 30": world(*waves(bad(0.3, 5), every=1800, times=7)),
    "flapping, 1 minute of 5": world(*waves(bad(0.3, 1), every=300, times=40)),
    "half of the requests fail": world(bad(1, 60, share=0.5)),
    "every fifth request fails": world(bad(1, 90, share=0.2)),
    "overload that grows": world(bad(1, 60, ramp=3000)),
    "slow, twice": world(bad(1, 60, slower=2.0, **SLOW)),
    "slow, four times, slowly": world(bad(1, 90, slower=4.0, ramp=2400, **SLOW)),
    "hang of 10 minutes": world(bad(1.5, 10, **HUNG)),
    "hang of 30 minutes": world(bad(1.5, 30, **HUNG)),
    "half hangs": world(bad(1, 40, share=0.5, **HUNG)),
    "throttling": world(*waves(bad(0.3, 1, **THROTTLED), every=900, times=15)),
    "throttling for long": world(bad(1, 30, share=0.6, **THROTTLED)),
    "slow failures": world(bad(1, 40, latency=20.0)),
    "a day with its night": world(
        bad(9, 30), bad(14, 10, **HUNG), hours=24, per_minute=5, swing=0.8
    ),
    "storyboards": world(bad(1.5, 30), per_minute=6, batch=6),
    "thin traffic": world(bad(3, 60), bad(8, 10), hours=12, per_minute=1),
    "the other vendor, too": world(bad(1.5, 30), bad(1.7, 10, provider="openai")),
}


def record(scenario: Scenario, settings: Settings, seed: int = 3) -> Recording:
    """Return a recording of the scenario with these settings."""
    rows: list[Row] = []
    play(scenario, settings, seed=seed, sinks=[Recorder(rows.append, epoch=1.75e9)])
    return gather(rows)


TOLD = world(bad(0.1, 4), bad(0.3, 3, reason=Reason.RATE_LIMITED, retry_after=20.0), hours=0.5)


def recorded_by(*sinks: Any) -> Recording:
    """Run a scenario with these sinks and a recorder, and return its recording."""
    rows: list[Row] = []
    recorder = Recorder(rows.append, epoch=0.0)
    play(TOLD, Settings(**ROOMY), seed=1, sinks=[*sinks, recorder])
    return gather(rows)


def read(text: str, **options: Any) -> tuple[list[Row], Counter[str]]:
    """Return the rows in a str, and the counts of skipped data."""
    notes: Counter[str] = Counter()
    return list(read_rows(text.splitlines(), notes, **options)), notes


def same(one: Recording, other: Recording) -> None:
    """Check that two recordings are equal, to a tenth of a second."""
    import pytest  # not at the top: a benchmark measures the memory of a process with this kit

    assert one.duration == pytest.approx(other.duration, abs=0.1)
    assert len(one.asked) == len(other.asked)
    assert list(one.asked) == pytest.approx(list(other.asked), abs=0.1)
    assert list(one.routes) == list(other.routes)
    for name, log in one.routes.items():
        twin = other.routes[name]
        assert list(log.at) == pytest.approx(list(twin.at), abs=0.1)
        assert list(log.latency) == pytest.approx(list(twin.latency), abs=0.01)
        assert list(log.reason) == list(twin.reason)
        assert list(log.given_up) == list(twin.given_up)
        assert list(log.hint) == pytest.approx(list(twin.hint), nan_ok=True)
        assert list(log.cost) == pytest.approx(list(twin.cost), nan_ok=True)
        assert len(log.rejected) == len(twin.rejected)
