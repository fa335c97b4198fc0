"""Trying many settings: what is tried, how it is ranked, and when nothing is recommended."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tuning_kit import ROOMY, TIGHT, bad, record, world

from resilient_imagen import Settings
from resilient_imagen.tuning import (
    Evaluation,
    Measures,
    Objective,
    Recording,
    TunableSettings,
    sweep,
    waves,
)
from resilient_imagen.tuning.recommendation import MISSED, advise, choose, front, score
from resilient_imagen.tuning.report_text import advice_line, labels, rest_line
from resilient_imagen.tuning.sweep import defaults
from resilient_imagen.tuning.tunable_settings import GRID, neighbours, sample

USUAL = defaults()


def measures(**rest: Any) -> Measures:
    given: dict[str, Any] = {
        "calls": 100, "images": 100, "mean_s": 20.0, "p50_s": 18.0, "p95_s": 40.0, "p99_s": 60.0,
        "lost_s": 0.0, "share": {"google:m": 0.9, "openai:m": 0.1}, "requests": 110, "doomed": 5,
        "unused": 0, "doomed_s": 50.0, "doomed_usd": 0.5, "cost_usd": 14.0, "troubles": 1,
        "detected": 1, "detect_s": 10.0, "recover_s": 30.0, "false_openings": 0, "unseen": 0.0,
    }  # fmt: skip
    return Measures(**{**given, **rest})


def trial(
    knobs: TunableSettings = USUAL, first: Any = None, second: Any = None, **whole: Any
) -> Evaluation:
    every = measures(**whole)
    halves = (
        replace(every, **(first or {})),
        replace(every, **(second or {})),
    )
    return Evaluation(knobs, every, halves)


OTHER, FAR = replace(USUAL, fail_max=5), replace(USUAL, fail_max=5, retries=0, window=600.0)


# -- knobs ----------------------------------------------------------------------------------------


def test_the_defaults_are_the_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment says, the defaults are those of Settings' fields."""
    plain = TunableSettings.of(Settings())
    monkeypatch.setenv("IMAGE_GEN_BREAKER_FAIL_MAX", "9")
    assert defaults() == plain
    assert TunableSettings.of(Settings()).fail_max == 9


def test_knobs_are_written_as_an_environment_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pasted and read again they give the same settings; what is unchanged is left out."""
    knobs = sample(1, seed=4)[0]
    for line in knobs.env_lines():
        name, _, value = line.partition("=")
        monkeypatch.setenv(name, value)
    assert TunableSettings.of(Settings()) == knobs
    assert TunableSettings.of(knobs.applied(Settings())) == knobs
    assert OTHER.env_lines(USUAL) == ["IMAGE_GEN_BREAKER_FAIL_MAX=5"]
    assert FAR.changed_from(USUAL) == 3


def test_breaker_settings_can_be_tried_beside_live_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shadow line is one that an environment reads, with the breaker's differences only."""
    line = FAR.shadow_line(USUAL)
    assert line == "IMAGE_GEN_SHADOW=fail_max=5,window=600"
    name, _, value = line.partition("=")
    monkeypatch.setenv(name, value)
    assert Settings().shadow == {"fail_max": 5, "window": 600.0}
    assert replace(USUAL, retries=0).shadow_line(USUAL) is None


def test_samples_and_neighbours_are_allowed_settings() -> None:
    """No setting twice, none that Settings would refuse; neighbours are one step away."""
    some = sample(300)
    assert len(set(some)) == 300
    assert sample(300) == some
    for knobs in some[:50]:
        assert knobs.reset_max >= knobs.reset_timeout
        for near in neighbours(knobs):
            assert near.changed_from(knobs) == 1
            assert near.reset_max >= near.reset_timeout
    assert all(len(values) >= 2 for values in GRID.values())


# -- ranking --------------------------------------------------------------------------------------


def test_each_leaning_chooses_what_it_wants() -> None:
    """Faster, cheaper and more loyal settings are told apart."""
    today = trial()
    fast = trial(replace(USUAL, fail_max=1), mean_s=15.0, cost_usd=15.0)
    cheap = trial(replace(USUAL, fail_max=2), cost_usd=13.0, mean_s=21.0)
    loyal = trial(
        replace(USUAL, fail_max=8), share={"google:m": 0.98, "openai:m": 0.02}, mean_s=22.0
    )
    every = [today, fast, cheap, loyal]
    assert choose(every, Objective.FAST, today) is fast
    assert choose(every, Objective.CHEAP, today) is cheap
    assert choose(every, Objective.STAY, today) is loyal
    beaten = trial(FAR, mean_s=25.0, cost_usd=16.0)
    assert front([*every, beaten]) == every


def test_a_call_without_an_image_is_never_a_bargain() -> None:
    """It counts as very slow, and a setting that fails more than today's is not considered."""
    failing = trial(OTHER, images=90, mean_s=5.0, cost_usd=1.0)
    assert score(failing.whole, Objective.FAST) == pytest.approx((5 * 90 + MISSED * 10) / 100)
    for leaning in Objective:
        assert choose([trial(), failing], leaning, trial()).knobs == USUAL


def test_as_good_as_the_best_means_nearest_to_today() -> None:
    """A tiny difference is not worth turning a knob for; a small one not worth turning three."""
    today = trial()
    assert choose([today, trial(OTHER, mean_s=19.99)], Objective.FAST, today) is today
    near, far = trial(OTHER, mean_s=15.0), trial(FAR, mean_s=14.99)
    assert choose([today, far, near], Objective.FAST, today) is near


def test_what_rests_on_the_unseen_is_not_recommended() -> None:
    """More than a quarter assumed is too much, however good it looks."""
    today = trial()
    assert choose([today, trial(OTHER, mean_s=9.0, unseen=0.4)], Objective.FAST, today) is today
    assert choose([today, trial(OTHER, mean_s=9.0, unseen=0.2)], Objective.FAST, today) is not today


def test_nobody_waits_much_longer_for_money() -> None:
    """A p95 that is more than a quarter longer is out, unless speed itself is wanted."""
    today, slow = trial(), trial(OTHER, cost_usd=5.0, mean_s=10.0, p95_s=60.0)
    assert choose([today, slow], Objective.CHEAP, today) is today
    assert choose([today, slow], Objective.FAST, today) is slow


def test_what_does_not_hold_on_the_other_half_is_said_not_to() -> None:
    """Better on one half by luck, worse on the other: keep today's settings, says the report."""
    today = trial()
    lucky = trial(OTHER, {"mean_s": 10.0}, {"mean_s": 40.0}, mean_s=18.0)
    advice = advise([today, lucky], Objective.FAST, today)
    assert advice.trial is lucky
    assert advice.gain == pytest.approx(0.1)
    assert advice.held_out < 0
    assert not advice.generalizes
    assert advice_line(advice).startswith("keep today's settings")


def test_what_holds_says_by_how_much() -> None:
    """Better on both halves: the line names both gains."""
    today = trial()
    solid = trial(OTHER, {"mean_s": 15.0}, {"mean_s": 16.0}, mean_s=15.5)
    advice = advise([today, solid], Objective.FAST, today)
    assert advice.generalizes
    assert advice.held_out == pytest.approx((0.2 + 0.25) / 2)
    assert advice_line(advice) == (
        "-22.5% seconds a call; -22.5% on the halves of the recording that it was not chosen by."
    )


# -- sweeping -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flapping() -> Recording:
    scenario = world(*waves(bad(0.1, 5), every=900, times=2), hours=0.5)
    return record(scenario, Settings(**ROOMY))


def test_a_sweep_tries_as_many_as_asked(flapping: Recording) -> None:
    """Today's and the defaults among them, none twice, progress told after each."""
    told: list[tuple[int, int]] = []
    today = Settings(**ROOMY, breaker_fail_max=4)
    found = sweep(
        flapping,
        today,
        count=12,
        workers=1,
        progress=lambda done, total: told.append((done, total)),
    )
    assert len({each.knobs for each in found.trials}) == 12
    assert {TunableSettings.of(today), USUAL} <= {each.knobs for each in found.trials}
    assert found.today.knobs == TunableSettings.of(today)
    assert told[:12] == [(done, 12) for done in range(1, 13)]
    assert set(told[12:]) == {(12, 12)}  # what rests on the unseen is played last
    assert found.usual.knobs == USUAL
    assert set(found.advice) == set(Objective)
    assert found.front
    for leaning in Objective:
        assert "rest on what was not seen" in rest_line(found, leaning)


@pytest.mark.no_cover
def test_what_is_tried_has_the_breaker_on(flapping: Recording) -> None:
    """Off or in shadow mode today, and with a provider forced open: that is no way to compare."""
    today = Settings(**ROOMY, breaker_mode="shadow", force_open="google")
    found = sweep(flapping, today, count=5, workers=1)
    assert found.today.knobs.mode == "shadow"
    assert {each.knobs.mode for each in found.trials if each is not found.today} == {"on"}
    assert found.today.whole.first_share > 0.5
    assert found.today.whole.detected == 0
    assert found.usual.whole.detected > 0
    tried = replace(USUAL, fail_max=5).env_lines(found.today.knobs)
    assert tried == ["IMAGE_GEN_BREAKER_FAIL_MAX=5", "IMAGE_GEN_BREAKER_MODE=on"]


def test_routes_have_short_names() -> None:
    """The provider's is enough, unless it has several models in the chain."""
    assert labels(["google:a", "openai:b"]) == ["google", "openai"]
    assert labels(["google:a", "google:c", "openai:b"]) == ["a", "c", "openai"]


@pytest.mark.no_cover
def test_processes_find_what_one_finds(flapping: Recording) -> None:
    """The same trials, the same advice, whoever does the work."""
    today = Settings(**ROOMY, google_api_key="never-sent")
    alone = sweep(flapping, today, count=6, workers=1)
    together = sweep(flapping, today, count=6, workers=2)
    assert together == alone


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_recommendations_hold_on_a_day_they_were_not_made_from() -> None:
    """Loyalty: chosen from one recording, judged by directly playing other days of its kind."""
    from resilient_imagen.tuning import simulate

    usual = Settings(**TIGHT)
    kind = waves(bad(0.4, 12), every=3600, times=8)
    scenario = world(*kind, hours=8, per_minute=7)
    found = sweep(record(scenario, usual), usual, count=80, workers=2)
    advice = found.advice[Objective.STAY]
    assert advice.generalizes
    for seed in (11, 12, 13):
        before = simulate(scenario, usual, seed=seed)
        after = simulate(scenario, advice.trial.knobs.applied(usual), seed=seed)
        assert score(after, Objective.STAY) < score(before, Objective.STAY)


@pytest.mark.no_cover
def test_a_quiet_recording_changes_nothing() -> None:
    """Where nothing ever failed there is nothing to tune, and every leaning says so."""
    quiet = world(hours=0.3)
    calm = replace(
        quiet, services={name: replace(each, blips=0.0) for name, each in quiet.services.items()}
    )
    found = sweep(record(calm, Settings(**ROOMY)), Settings(**ROOMY), count=6, workers=1)
    assert not any(advice.generalizes for advice in found.advice.values())
    assert {advice_line(each) for each in found.advice.values()} == {
        "keep today's settings; none that was tried is better."
    }
