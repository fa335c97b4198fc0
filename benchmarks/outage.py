"""What an outage of Google costs each image, under several designs; on virtual time.

    python benchmarks/outage.py

"Ours" is this library with its defaults: the production pipeline itself, over stand-in providers.
The others are in ``designs``, the outages in ``worlds``. "Added" is the time to the image, less
the time that the request which brought it took: what queueing, back-off, wasted requests and
waiting for them cost. OpenAI's own slowness is not in it. Each figure is a mean of nine worlds.
"Wasted" requests brought their caller nothing: they failed, were cancelled because another route
delivered first, or their image came too late. "Mean" and "p95" are about calls that start during an
outage, "all" about all calls; "$" is for 100 images.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from baselines import DESIGNS
from outage_scenarios import (
    CASES,
    DEFAULT,
    SEEDS,
    Case,
    Image,
    Outcome,
    Sums,
    mean,
    run_outage,
    sums,
)

from resilient_imagen.settings import Settings
from resilient_imagen.tuning.engine import run_simulation

HEAD = (
    f"{'':10}{'served':>9}{'mean':>9}{'p95':>9}{'added':>9}{'all':>9}{'wasted':>9}{'seconds':>9}"
    f"{'by':>9}{'asked':>10}{'$ per':>9}\n"
    f"{'design':10}{'':9}{'s':>9}{'s':>9}{'s/image':>9}{'s':>9}{'requests':>9}{'on them':>9}"
    f"{'Google':>9}{'again, s':>10}{'100':>9}"
)


SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"deadline": 90},
    {"deadline": 105},
    {"per_call_timeout": 50},
    {"per_call_timeout": 45},
    {"per_call_timeout": 48, "breaker_fail_max": 2},
    {"breaker_reset_factor": 4},
    {"breaker_reset_factor": 3},
    {"hedge_after": "p95"},
    {"hedge_probe_after": 0.5},
    {"hedge_probe_after": None},
    {"on_timeout": "abandon"},
)
"""What else the overload and the hang are measured with."""


def ours(case: Case, seed: int, changes: dict[str, Any] | None = None) -> Outcome:
    """Send the case's callers through the production pipeline, with its defaults or changes."""
    case = case.of(seed)
    settings = Settings(**{"max_concurrent": case.slots, "ipm": case.per_minute, **(changes or {})})
    played = run_simulation(settings, case.truth, case.scenario.traffic.arrivals(seed), seed=seed)
    outcome, making = Outcome(), {}
    for sent in played.sent:
        outcome.usd += sent.cost_usd
        if sent.reason is None and sent.route == played.served[sent.call]:
            making[sent.call] = sent.seconds
        else:
            outcome.wasted.append((sent.at, sent.seconds))
    for call, route in enumerate(played.served):
        if route < 0:
            outcome.lost.append(played.started[call])
        else:
            seconds = played.seconds[call]
            outcome.images.append(Image(played.started[call], seconds, route, making[call]))
    return outcome


def outcomes(case: Case, seed: int) -> dict[str, Outcome]:
    """Every design in the same world."""
    played = {name: run_outage(case, design, seed) for name, design in DESIGNS.items()}
    return {**played, "ours": ours(case, seed)}


def measure(case: Case, seeds: tuple[int, ...] = SEEDS) -> dict[str, Sums]:
    """Every design's figures, the means of several worlds: no single probe's luck decides."""
    played = [outcomes(case, seed) for seed in seeds]
    return {
        name: mean([sums(case, each[name], seed) for each, seed in zip(played, seeds, strict=True)])
        for name in played[0]
    }


def report(case: Case) -> None:
    """Print one case's table."""
    print(f"\n{case.title}\n{HEAD}")
    found = measure(case)
    for name, row in found.items():
        print(_line(name, row))
    guide, own = found["guide"], found["ours"]
    print(
        f"the guide adds {guide.added / max(own.added, 1e-9):.0f} times as much to an image and"
        f" wastes {guide.wasted / max(own.wasted, 1):.0f} times as many requests as we do"
    )


def report_settings(case: Case) -> None:
    """Print the case's figures with other settings: deadlines, and defaults that could change."""
    print(f"\n{case.title}, other settings\n{HEAD}")
    for changes in SETTINGS:
        row = mean([sums(case, ours(case, seed, changes), seed) for seed in SEEDS])
        print(", ".join(f"{name}={value}" for name, value in changes.items()) or "defaults")
        print(_line("", row))


def _line(name: str, row: Sums) -> str:
    return (
        f"{name:10}{row.served:9.1%}{row.mean:9.2f}{row.p95:9.1f}{row.added:9.2f}"
        f"{row.total_mean:9.2f}{row.wasted:9.1f}{row.wasted_seconds:9.0f}{row.google:9.1%}"
        f"{row.recovery:10.1f}{row.usd:9.2f}"
    )


def at_the_edge() -> list[Case]:
    """The long outage and the waves again, as near to the default limits as one can be."""
    long, waved = CASES[0], CASES[3]
    traffic = replace(waved.scenario.traffic, per_minute=8.0)
    slower = replace(waved, scenario=replace(waved.scenario, traffic=traffic))
    return [
        replace(
            case,
            title=f"{case.title}, {case.scenario.traffic.per_minute:.0f} images a minute, "
            "default limits",
            slots=DEFAULT.slots,
            per_minute=DEFAULT.per_minute,
        )
        for case in (slower, long, waved)
    ]


if __name__ == "__main__":
    for each in (*CASES, *at_the_edge()):
        report(each)
    for each in (CASES[0], CASES[-1]):
        report_settings(each)
