"""Trying many settings: what is tried, how it is ranked, and when nothing is recommended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
from tuning_kit import ROOMY, TIGHT, bad, record, same, world

from resilient_imagen import Settings
from resilient_imagen.tuning import (
    Evaluation,
    Measures,
    Metrics,
    Objective,
    Recorder,
    Recording,
    TunableSettings,
    sweep,
    waves,
)
from resilient_imagen.tuning.gather import gather
from resilient_imagen.tuning.headline import headline
from resilient_imagen.tuning.prediction import Estimate
from resilient_imagen.tuning.recommendation import (
    MISSED,
    choose,
    front,
    gain_on_draws,
    held_out_gain,
    judge,
    score,
    too_slow,
)
from resilient_imagen.tuning.report_text import (
    advice_line,
    compared,
    labels,
    rest_line,
)
from resilient_imagen.tuning.rows import Attempted, Row
from resilient_imagen.tuning.settings_in_effect import settings_in_effect
from resilient_imagen.tuning.simulation import play
from resilient_imagen.tuning.sweep import defaults, what_if
from resilient_imagen.tuning.trials import try_out
from resilient_imagen.tuning.tunable_settings import GRID, neighbours, sample

SWEEPING = import_module("resilient_imagen.tuning.sweep")  # whose name the package gives away
USUAL = defaults()


def measures(**rest: Any) -> Measures:
    given: dict[str, Any] = {
        "calls": 100, "images": 100, "mean_s": 20.0, "p50_s": 18.0, "p95_s": 40.0, "p99_s": 60.0,
        "lost_s": 0.0, "share": {"google:m": 0.9, "openai:m": 0.1}, "requests": 110,
        "wasted_requests": 5, "unused": 0, "wasted_s": 50.0, "wasted_usd": 0.5, "cost_usd": 14.0,
        "incidents": 1, "detected": 1, "detect_s": 10.0, "recover_s": 30.0, "false_openings": 0,
        "extrapolated_share": 0.0,
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
    """The defaults are those of the fields of Settings, independent of the environment."""
    plain = replace(TunableSettings.of(Settings()), fallback="")
    monkeypatch.setenv("IMAGE_GEN_BREAKER_FAIL_MAX", "9")
    assert defaults() == plain
    assert TunableSettings.of(Settings()).fail_max == 9


def test_knobs_are_written_as_an_environment_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pasted and read again they give the same settings; what is unchanged is left out."""
    knobs = sample(1, seed=4, base=TunableSettings.of(Settings()))[0]
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


def test_each_objective_chooses_its_best_setting() -> None:
    """Each objective chooses its best: faster, cheaper, or fewer calls that leave Google."""
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
    mean, wasted, dollars = (5 * 90 + MISSED * 10) / 100, 5 / 100, 1.0 / 100
    assert score(failing.whole, Objective.FAST) == pytest.approx(mean + wasted + 30 * dollars)
    for objective in Objective:
        assert choose([trial(), failing], objective, trial()).knobs == USUAL


def test_as_good_as_the_best_means_nearest_to_today() -> None:
    """A tiny difference is not worth one change, and a small one is not worth three."""
    today = trial()
    assert choose([today, trial(OTHER, mean_s=19.99)], Objective.FAST, today) is today
    near, far = trial(OTHER, mean_s=15.0), trial(FAR, mean_s=14.99)
    assert choose([today, far, near], Objective.FAST, today) is near


def test_a_setting_with_many_assumed_outcomes_is_not_recommended() -> None:
    """More than a quarter of assumed outcomes is too much, whatever the result."""
    today = trial()
    for share, chosen in ((0.4, False), (0.2, True)):
        fast = trial(OTHER, mean_s=9.0, extrapolated_share=share)
        assert (choose([today, fast], Objective.FAST, today) is fast) == chosen


def test_nobody_waits_much_longer_for_money() -> None:
    """A p95 that is more than a quarter longer is out, unless speed itself is wanted."""
    today, slow = trial(), trial(OTHER, cost_usd=5.0, mean_s=10.0, p95_s=60.0)
    assert choose([today, slow], Objective.CHEAP, today) is today
    assert choose([today, slow], Objective.FAST, today) is slow


def test_a_gain_by_luck_is_not_recommended() -> None:
    """A setting that is better on one part and worse on the other is refused."""
    today = trial()
    lucky = trial(OTHER, {"mean_s": 10.0}, {"mean_s": 40.0}, mean_s=18.0)
    held_out = held_out_gain([today, lucky], Objective.FAST, today)
    assert held_out < 0
    why = judge(Objective.FAST, Estimate(0.1, 0.05, 0.15), held_out, changed=True)
    assert why.startswith("what looked best was no better on the part of the calls")


def test_a_gain_on_both_parts_is_recommended() -> None:
    """The gain is that of the part on which the setting was not chosen."""
    today = trial()
    solid = trial(OTHER, {"mean_s": 15.0}, {"mean_s": 16.0}, mean_s=15.5)
    held_out = held_out_gain([today, solid], Objective.FAST, today)
    before = score(today.whole, Objective.FAST)
    assert held_out == pytest.approx((5 + 4) / 2 / before)
    gain = gain_on_draws([solid, solid], [today, today], Objective.FAST)
    assert gain == pytest.approx((4.5 / before,) * 3)
    assert judge(Objective.FAST, gain, held_out, changed=True) == ""


@pytest.mark.parametrize(
    ("gain", "says"),
    [
        (Estimate(0.008, 0.007, 0.009), "changes seconds a call by -0.8%, which is not worth"),
        (Estimate(0.05, -0.01, 0.11), "which may be chance (-11.0% to +1.0%)"),
        (Estimate(-0.02, -0.03, -0.01), "none that was tried is better"),
    ],
)
def test_nothing_below_the_noise_is_recommended(gain: Estimate, says: str) -> None:
    """A small gain, and one whose interval contains zero, are refused with their numbers."""
    assert says in judge(Objective.FAST, gain, 0.02, changed=True)


# -- sweeping -------------------------------------------------------------------------------------


FLAPPING = world(*waves(bad(0.3, 5), every=1800, times=3), hours=1.5, per_minute=4)
LATE = Settings(**ROOMY, breaker_reset_timeout=400)


@pytest.fixture(scope="module")
def flapping() -> Recording:
    """Return a recording with three incidents, made with the default breaker."""
    return record(FLAPPING, Settings(**ROOMY))


@pytest.fixture(scope="module")
def late() -> Recording:
    """Return the same, made with a breaker that stays open for too long."""
    return record(FLAPPING, LATE)


@pytest.mark.no_cover
def test_a_sweep_tries_as_many_as_asked(flapping: Recording) -> None:
    """It tries the present settings, the defaults and others, and reports each replay."""
    seen: list[tuple[int, int]] = []
    today = Settings(**ROOMY)
    found = sweep(
        flapping,
        today,
        count=8,
        workers=1,
        progress=lambda done, total: seen.append((done, total)),
    )
    now = TunableSettings.of(today)
    assert len({each.knobs for each in found.trials}) == len(found.trials) >= 8
    assert found.today.knobs == found.usual.knobs == now
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert all(done <= total for done, total in seen)
    assert seen[-1][0] > 8  # draws of the recommended settings are replays, too
    assert set(found.advice) == set(Objective)
    assert found.front
    assert not found.interrupted
    for objective in Objective:
        assert "rest on what was not seen" in rest_line(found, objective)


@pytest.mark.ci
@pytest.mark.no_cover
def test_the_replay_of_the_recorded_settings_gives_what_was_recorded(flapping: Recording) -> None:
    """Both columns agree in every measure, and the evidence is complete."""
    found = sweep(flapping, Settings(**ROOMY), count=3, workers=1)
    assert found.fidelity.matches
    assert (found.evidence.incidents, found.evidence.complete_incidents) == (3, 3)
    assert found.recorded.lost_calls.value == 0
    for name, recorded in found.recorded.items():
        replayed = dict(found.replayed.items())[name]
        assert replayed.value == pytest.approx(recorded.value, rel=0.05, abs=0.01), name


@pytest.mark.ci
@pytest.mark.no_cover
def test_other_settings_than_the_recorded_ones_are_refused_by_name() -> None:
    """The replay does not give what was recorded; the settings that explain it are named."""
    recorded = Settings(**ROOMY, breaker_reset_timeout=15, breaker_reset_factor=0)
    found = sweep(record(FLAPPING, recorded), LATE, count=10, workers=1)
    assert not found.fidelity.matches
    assert not found.recommended
    assert headline(found).startswith("No advice yet: a replay of your settings")
    named = {hint.variable: hint.value for hint in found.fidelity.hints}
    assert named["IMAGE_GEN_BREAKER_RESET_TIMEOUT"] == "15"


@pytest.mark.ci
@pytest.mark.no_cover
def test_a_pace_that_makes_calls_wait_is_mentioned(flapping: Recording) -> None:
    """A doubled limit is not recommended, but its effect is shown where calls wait for it."""
    settings = Settings(**{**TIGHT, "ipm": 5})
    waiting = sweep(record(FLAPPING, settings), settings, count=3, workers=1)
    assert [(each.variable, each.value) for each in waiting.limits] == [("IMAGE_GEN_IPM", "10")]
    assert sweep(flapping, Settings(**ROOMY), count=3, workers=1).limits == ()


@pytest.mark.no_cover
def test_little_evidence_is_refused() -> None:
    """Nothing is recommended from few calls, or from an incident that is not over."""
    few = record(world(bad(0.05, 3), hours=0.15), Settings(**ROOMY))
    found = sweep(few, Settings(**ROOMY), count=40, workers=1)
    assert "at least 100 are needed" in headline(found)
    unfinished = record(world(bad(0.5, 40), hours=1), Settings(**ROOMY))
    found = sweep(unfinished, Settings(**ROOMY), count=40, workers=1)
    assert (found.evidence.incidents, found.evidence.complete_incidents) == (1, 0)
    why = "No incident of the first route was recorded from its start to its end"
    assert why in headline(found)
    assert not found.recommended


def test_simplified_settings_keep_the_limits(
    flapping: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change without effect on the objective stays if the slowest calls need it."""
    today = Settings(**ROOMY)
    base = try_out(flapping, today, TunableSettings.of(today))

    def evaluated(knobs: TunableSettings) -> Evaluation:
        """Return lower costs for a long time limit, which is slow without a limit of waits."""
        cheap = knobs.per_call_timeout > today.per_call_timeout
        slow = cheap and knobs.max_wait is None
        changed: dict[str, Any] = {"cost_usd": base.whole.cost_usd * (0.8 if cheap else 1.0)}
        changed["p95_s"] = base.whole.p95_s * (2.0 if slow else 1.0)
        measured = [replace(each, **changed) for each in (base.whole, *base.halves)]
        return Evaluation(knobs, measured[0], (measured[1], measured[2]))

    @contextmanager
    def trying(*_: object) -> Iterator[object]:
        yield lambda some, _draw: map(evaluated, some)

    monkeypatch.setattr(SWEEPING, "trying", trying)
    advice = sweep(flapping, today, count=150).advice[Objective.CHEAP]
    assert advice.recommended
    assert set(advice.trial.knobs.differences(TunableSettings.of(today))) == {
        "per_call_timeout", "max_wait",
    }  # fmt: skip


def test_a_stray_call_a_month_earlier_changes_nothing(late: Recording) -> None:
    """It is left out and counted, so that the rest is what it would be without it."""
    rows: list[Row] = [Attempted(1.75e9 - 30 * 86_400, "stray", "google:gemini-3-pro-image", 20.0)]
    play(FLAPPING, LATE, seed=3, sinks=[Recorder(rows.append, epoch=1.75e9)])
    used = settings_in_effect(gather(rows), {})
    same(used.recording, late)
    assert list(used.recording.served) == list(late.served)
    assert any("1 call is left out" in note for note in used.notes)
    assert settings_in_effect(late, {}).notes == ()


@pytest.mark.ci
def test_a_setting_whose_slowest_calls_exceed_the_limit_in_other_draws_is_not_recommended() -> None:
    """The limit holds for the average of all draws, not only for the draw that was searched."""
    present, slower = (Metrics.of([measures(p95_s=p95)]) for p95 in (40.0, 51.0))
    why = "the best one has a p95 of 51 s, more than a quarter above the present 40 s."
    assert too_slow(slower, present, Objective.CHEAP) == why
    assert too_slow(slower, present, Objective.STAY) == why
    assert not too_slow(slower, present, Objective.FAST)
    assert not too_slow(present, present, Objective.CHEAP)


@pytest.mark.no_cover
@pytest.mark.ci
def test_each_recommended_line_has_an_effect() -> None:
    """Lines without effect are left out, and each line has its part of the gain.

    The breaker stayed open for too long, so one answer is right for all objectives.
    """
    often = world(*waves(bad(0.2, 4), every=1200, times=8), hours=3, per_minute=4)
    found = sweep(record(often, LATE), LATE, count=16, workers=1)
    assert set(found.recommended) == set(Objective)
    assert found.agreed is not None
    assert found.agreed.reset_timeout < 400
    assert "back to Google" in headline(found)
    for advice in found.recommended.values():
        lines = advice.trial.knobs.env_lines(found.today.knobs)
        assert sorted(f"{each.variable}={each.value}" for each in advice.contributions) == sorted(
            lines
        )
        assert all(each.gain > 0 for each in advice.contributions)


@pytest.mark.ci
@pytest.mark.no_cover
def test_a_sweep_that_is_stopped_keeps_what_was_tried(flapping: Recording) -> None:
    """The result is about the settings that were tried until then."""
    done: list[int] = []
    found = sweep(
        flapping,
        Settings(**ROOMY),
        count=60,
        workers=1,
        progress=lambda number, _total: done.append(number),
        stop=lambda: len(done) >= 14,
    )
    assert found.interrupted
    assert 2 <= len(found.trials) < 20
    assert set(found.advice) == set(Objective)


@pytest.mark.ci
@pytest.mark.no_cover
def test_a_recording_in_shadow_mode_is_compared_with_the_breaker_on() -> None:
    """It is replayed as it was recorded; all other settings have the breaker on."""
    recorded = Settings(**ROOMY, breaker_mode="shadow")
    found = sweep(record(FLAPPING, recorded), recorded, count=5, workers=1)
    assert found.fidelity.matches
    assert found.today.knobs.mode == "on"
    assert found.today.whole.detected > 0
    assert found.present.wasted_requests.value < found.replayed.wasted_requests.value / 2
    modes = [each.knobs.mode for each in found.trials]
    assert modes.count("shadow") == 1
    assert list(compared(found))[:3] == ["recorded", "replayed", "breaker on"]


@pytest.mark.ci
@pytest.mark.no_cover
def test_with_the_breaker_off_all_others_have_it_on() -> None:
    """The lines to paste switch it on."""
    today = Settings(**ROOMY, breaker_mode="off")
    found = sweep(record(FLAPPING, today), today, count=4, workers=1)
    assert found.fidelity.matches
    assert found.today.knobs.mode == "off"
    assert {each.knobs.mode for each in found.trials if each is not found.today} == {"on"}
    tried = replace(found.usual.knobs, fail_max=5).env_lines(found.today.knobs)
    assert tried == ["IMAGE_GEN_BREAKER_FAIL_MAX=5", "IMAGE_GEN_BREAKER_MODE=on"]


def test_the_fallbacks_breaker_can_be_tuned_apart() -> None:
    """Its numbers are one line of the last provider, and do not change the first one's breaker."""
    base = TunableSettings.of(Settings())
    apart = replace(base, fail_max=1, fallback_fail_max=8, fallback_reset_timeout=15.0)
    assert apart.env_lines(base) == [
        "IMAGE_GEN_BREAKER_FAIL_MAX=1",
        "IMAGE_GEN_OPENAI_BREAKER=fail_max=8,reset_timeout=15",
    ]
    applied = apart.applied(Settings())
    assert applied.breaker_settings("google")["fail_max"] == 1
    assert applied.breaker_settings("openai")["fail_max"] == 8
    assert TunableSettings.of(applied) == apart


@pytest.mark.no_cover
def test_what_if_compares_one_setting_with_what_was_recorded(flapping: Recording) -> None:
    """A longer series of failures before opening wastes more requests."""
    settings = Settings(**ROOMY)
    found = what_if(flapping, settings, Settings(**ROOMY, breaker_fail_max=8), draws=2)
    assert found.fidelity.matches
    assert found.recorded.wasted_requests.value == pytest.approx(
        found.replayed.wasted_requests.value, abs=3
    )
    assert found.changed.wasted_requests.value > 1.3 * found.replayed.wasted_requests.value


def test_routes_have_short_names() -> None:
    """The provider's is enough, unless it has several models in the chain."""
    assert labels(["google:a", "openai:b"]) == ["google", "openai"]
    assert labels(["google:a", "google:c", "openai:b"]) == ["a", "c", "openai"]


@pytest.mark.ci
@pytest.mark.no_cover
def test_processes_find_what_one_finds(flapping: Recording) -> None:
    """Two processes make the same trials and give the same advice as one."""
    today = Settings(**ROOMY, google_api_key="never-sent")
    alone = sweep(flapping, today, count=6, workers=1)
    together = sweep(flapping, today, count=6, workers=2)
    assert together == alone


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_recommendations_hold_on_a_day_they_were_not_made_from() -> None:
    """A setting that was chosen by one recording improves other simulated days of its kind."""
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
    """Where nothing ever failed there is nothing to tune, and every objective says so."""
    quiet = world(hours=1)
    calm = replace(
        quiet, services={name: replace(each, blips=0.0) for name, each in quiet.services.items()}
    )
    recording = record(calm, Settings(**ROOMY))
    found = sweep(recording, Settings(**ROOMY), count=6, workers=1)
    assert not any(advice.generalizes for advice in found.advice.values())
    (line,) = {advice_line(each) for each in found.advice.values()}
    assert line.startswith(
        "keep your settings: The first route never failed for long, so there is nothing to tune by:"
        f" 0 of its {len(next(iter(recording.routes.values()))):,} requests failed, and an incident"
        " has at least three failures"
    )
