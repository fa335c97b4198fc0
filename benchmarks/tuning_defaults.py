"""What the tuner recommends for the kind of outages that have been reported, and what it is worth.

    python benchmarks/tuning_defaults.py [SETTINGS]

The profile is two days of gemini-3-pro-image with gpt-image-2.5-flare behind it, made of what was
reported in public until November 2026; nobody publishes figures, and none of these is our own:

- 503 for 5 to 110 minutes. Relays' rule of thumb for the Pro model is 30 to 120 minutes, 70 % of
  them within the hour; 5 to 15 minutes for Flash. The one of 23 hours (20 April) is left out, as it
  would outweigh everything else.
- Half of the requests failing for a while after that, as on 27 March.
- Five times as slow instead of failing, as Flash was on 14 May; and, once a day, never answered.
- 429 with a hint, where a minute's quota is spent.
- 16 to 23 seconds a picture, 60 to 100 under load (openclaw#70423, apiyi's log of 66 calls); one
  request in a hundred fails by itself. For gpt-image-2.5-flare no figures are known: 23 seconds and
  0.15 dollars lie between its neighbours'. Google's price is its own.

It is recorded with the breaker in shadow mode, so that little remains unseen, and what is
recommended is then played directly in four other worlds of the same kind. Six calls a minute.
"""

from __future__ import annotations

import sys
from statistics import fmean

from resilient_imagen.reasons import Reason
from resilient_imagen.settings import Settings
from resilient_imagen.tuning import (
    LatencyDistribution,
    Objective,
    Outage,
    Recorder,
    Scenario,
    Service,
    Traffic,
    TunableSettings,
    simulate,
    sweep,
    waves,
)
from resilient_imagen.tuning.recommendation import score
from resilient_imagen.tuning.recording import Row, gather
from resilient_imagen.tuning.report_text import advice_line, cells, columns
from resilient_imagen.tuning.simulation import play
from resilient_imagen.tuning.sweep import defaults

HOUR, MINUTE = 3600.0, 60.0
HELD_OUT = (11, 12, 13, 14)


def day(shift: float) -> tuple[Outage, ...]:
    """Troubles of one day; ``shift`` hours later on the next."""
    at = shift * HOUR
    return (
        Outage(start=at + 2 * HOUR, duration=8 * MINUTE),
        Outage(start=at + 5 * HOUR, duration=45 * MINUTE),
        Outage(start=at + 9.5 * HOUR, duration=20 * MINUTE, share=0.5),
        Outage(start=at + 11 * HOUR, duration=110 * MINUTE, ramp=10 * MINUTE),
        Outage(start=at + 12.9 * HOUR, duration=40 * MINUTE, share=0.5),
        Outage(start=at + 15 * HOUR, duration=40 * MINUTE, share=0.0, slower=5.0, ramp=600.0),
        Outage(start=at + 17 * HOUR, duration=12 * MINUTE, reason=Reason.TIMEOUT),
        *waves(
            Outage(
                start=at + 19 * HOUR,
                duration=MINUTE,
                reason=Reason.RATE_LIMITED,
                retry_after=25.0,
                latency=0.4,
            ),
            every=600.0,
            times=6,
        ),
        *waves(Outage(start=at + 21 * HOUR, duration=5 * MINUTE), every=1800.0, times=4),
    )


PROFILE = Scenario(
    traffic=Traffic(per_minute=6, duration=48 * HOUR, swing=0.3),
    services={
        "google": Service(latency=LatencyDistribution(19.0, 45.0), blips=0.01),
        "openai": Service(latency=LatencyDistribution(23.0, 40.0), cost_usd=0.15),
    },
    troubles=(*day(0.0), *day(24.6)),
)


def main() -> None:
    tried = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    usual = defaults().applied(Settings())
    rows: list[Row] = []
    watching = usual.model_copy(update={"breaker_mode": "shadow"})
    play(PROFILE, watching, seed=1, sinks=[Recorder(rows.append)])
    found = sweep(gather(rows), usual, count=tried)
    print(f"{'':10}" + "".join(f"{name:>16}" for name in columns(usual.routes)))
    print(f"{'defaults':10}" + "".join(f"{cell:>16}" for cell in cells(found.today.whole)))
    for leaning, advice in found.advice.items():
        row = "".join(f"{cell:>16}" for cell in cells(advice.trial.whole))
        print(f"{leaning:10}{row}")
    for leaning, advice in found.advice.items():
        print(f"\n{leaning}: {advice_line(advice)}")
        print("\n".join(advice.trial.knobs.env_lines(found.today.knobs)))
        print(f"  in {len(HELD_OUT)} other worlds: {gain(advice.trial.knobs, leaning)}")


def gain(knobs: TunableSettings, leaning: Objective) -> str:
    """How much better than the defaults in worlds that were not recorded."""
    usual = defaults().applied(Settings())
    before = [score(simulate(PROFILE, usual, seed=seed), leaning) for seed in HELD_OUT]
    chosen = knobs.applied(usual)
    after = [score(simulate(PROFILE, chosen, seed=seed), leaning) for seed in HELD_OUT]
    better = sum(new < old for new, old in zip(after, before, strict=True))
    return f"{fmean(after) / fmean(before) - 1:+.1%}, better in {better} of {len(before)}"


if __name__ == "__main__":
    main()
