"""What the tuner recommends for outages that were reported, and how that compares to the defaults.

    python benchmarks/tuning_defaults.py [SETTINGS]

The scenario is two days of gemini-3-pro-image with gpt-image-2.5-flare as the fallback, made of
public reports until November 2026. No vendor publishes figures, and none of these is our own:

- 503 for 5 to 110 minutes. Relays report 30 to 120 minutes for the Pro model, 70 % of them at most
  an hour, and 5 to 15 minutes for Flash. The 23 hours of 20 April would outweigh everything else.
- Half of the requests failing for a while after that, as on 27 March.
- Responses five times as slow, as Flash's on 14 May; once a day, none at all.
- 429 with a hint, when a minute's quota is used up.
- 16 to 23 seconds an image, 60 to 100 under load (openclaw#70423, apiyi's log of 66 calls); one
  request in a hundred fails independently. Of gpt-image-2.5-flare no latency is known: 23 seconds
  lie between its neighbours'. Prices are those of the model table.

It is recorded with the breaker in shadow mode, so that most outcomes are known. The recommended
settings are then simulated in four other scenarios of the same kind. Six calls a minute.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from tuning_kit import HOUR, HUNG, bad, record

from resilient_imagen.effective_settings import settings_from
from resilient_imagen.reasons import Reason
from resilient_imagen.tuning import (
    LatencyDistribution,
    Measures,
    Objective,
    Outage,
    Scenario,
    Service,
    Traffic,
    simulate,
    sweep,
    waves,
)
from resilient_imagen.tuning.recommendation import score
from resilient_imagen.tuning.report_text import advice_line, metric_rows

THROTTLED: dict[str, Any] = {"reason": Reason.RATE_LIMITED, "retry_after": 25.0, "latency": 0.4}
HELD_OUT = (11, 12, 13, 14)
"""Seeds of the scenarios that are not recorded."""


def day(start: float) -> tuple[Outage, ...]:
    """Return the outages of the day that starts at ``start`` hours."""
    return (
        bad(start + 2, 8),
        bad(start + 5, 45),
        bad(start + 9.5, 20, share=0.5),
        bad(start + 11, 110, ramp=600.0),
        bad(start + 12.9, 40, share=0.5),
        bad(start + 15, 40, share=0.0, slower=5.0, ramp=600.0),
        bad(start + 17, 12, **HUNG),
        *waves(bad(start + 19, 1, **THROTTLED), every=600.0, times=6),
        *waves(bad(start + 21, 5), every=1800.0, times=4),
    )


REPORTED = Scenario(
    traffic=Traffic(per_minute=6, duration=48 * HOUR, swing=0.3),
    services={
        "google": Service(latency=LatencyDistribution(19.0, 45.0), blips=0.01),
        "openai": Service(latency=LatencyDistribution(23.0, 40.0)),
    },
    outages=(*day(0.0), *day(24.6)),
)
USUAL = settings_from({})


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    shadow = USUAL.model_copy(update={"breaker_mode": "shadow"})
    found = sweep(record(REPORTED, shadow, seed=1), shadow, count=count, progress=note)
    advised = {str(each): advice.metrics for each, advice in found.advice.items()}
    measures = {
        "recorded": found.recorded,
        "replayed": found.replayed,
        "defaults": found.present,
        **advised,
    }
    print(f"\n{'':20}" + "".join(f"{name:>28}" for name in measures))
    for title, *values in metric_rows(measures):
        print(f"{title:20}" + "".join(f"{value:>28}" for value in values))
    openings = {"defaults": found.today, **{str(o): a.trial for o, a in found.advice.items()}}
    for name, trial in openings.items():
        print(f"{name}: {trial.whole.false_openings} openings outside all incidents")
    before = [simulate(REPORTED, USUAL, seed=seed) for seed in HELD_OUT]
    for objective, advice in found.advice.items():
        print(f"\n{objective}: {advice_line(advice)}")
        print("\n".join(advice.trial.knobs.env_lines(found.today.knobs)))
        settings = advice.trial.knobs.applied(USUAL)
        after = [simulate(REPORTED, settings, seed=seed) for seed in HELD_OUT]
        print(f"  in {len(HELD_OUT)} other scenarios: {change(before, after, objective)}")


def note(done: int, total: int) -> None:
    """Print how many replays are completed."""
    if done % 20 == 0:
        print(f"{done} of {total} replays", file=sys.stderr)


def change(before: Sequence[Measures], after: Sequence[Measures], objective: Objective) -> str:
    """Return how the score differs from the defaults' in scenarios that were not recorded."""
    old, new = ([score(each, objective) for each in some] for some in (before, after))
    better = sum(one < other for one, other in zip(new, old, strict=True))
    return f"{fmean(new) / fmean(old) - 1:+.1%}, better in {better} of {len(old)}"


if __name__ == "__main__":
    main()
