"""Sweep: replay a recording with many settings, on all processors, and recommend settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from resilient_imagen.effective_settings import settings_from, value_text, variable_of
from resilient_imagen.settings import Settings
from resilient_imagen.tuning.diagnosis import explain, with_explanation
from resilient_imagen.tuning.evidence import Evidence, evidence_of
from resilient_imagen.tuning.fidelity import Fidelity, compare
from resilient_imagen.tuning.prediction import DRAWS
from resilient_imagen.tuning.recommendation import (
    Contribution,
    Evaluation,
    Objective,
    Recommendation,
    choose,
    front,
    gain_of,
    gain_on_draws,
    held_out_gain,
    is_allowed,
    judge,
    nearly_equal,
    too_slow,
)
from resilient_imagen.tuning.recorded_outcomes import RecordedOutcomes
from resilient_imagen.tuning.recorded_run import recorded_run
from resilient_imagen.tuning.result import Metrics
from resilient_imagen.tuning.run_metrics import measure
from resilient_imagen.tuning.trials import draws_of, trying
from resilient_imagen.tuning.tunable_settings import TunableSettings, neighbours, sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from resilient_imagen.tuning.fidelity import Hint
    from resilient_imagen.tuning.recording import Recording

__all__ = ["Sweep", "WhatIf", "sweep", "what_if"]

_FEW_DRAWS: Final = 4
"""Draws after an interruption. With two, the intervals are too wide for any recommendation."""
_AT_RANDOM: Final = 0.6
"""Share of the trials that are random on the grid; the others are neighbours of the best ones."""
_BINDING: Final = 0.05
"""Relative improvement of the mean time from which a limit of the pace is worth mentioning."""
_AGREEING: Final = 0.8
"""Share of each objective's gain that one setting for all of them must have."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """What was recorded, what the same settings give in a replay, and what others would."""

    recorded: Metrics
    """What happened."""
    replayed: Metrics
    """The recorded settings, replayed."""
    present: Metrics
    """The settings that others are compared with: the recorded ones, but with the breaker on if it
    was in shadow mode while it was recorded."""
    fidelity: Fidelity
    """Whether both agree; else nothing is recommended."""
    evidence: Evidence
    today: Evaluation
    """The present settings, as in ``present``."""
    usual: Evaluation
    """The library's defaults, with the present limits and routes."""
    trials: tuple[Evaluation, ...]
    """All evaluations, including the present settings."""
    front: tuple[Evaluation, ...]
    """The Pareto front."""
    advice: Mapping[Objective, Recommendation]
    limits: tuple[Contribution, ...]
    """Doubled limits of the pace that would make calls quicker, each alone. They are not among the
    settings that are tried: a recording cannot show whether an account allows more requests."""
    wanted: int
    """Number of settings that were to be tried."""
    interrupted: bool
    """Whether ``stop`` ended it before all of them were tried."""

    @property
    def recommended(self) -> Mapping[Objective, Recommendation]:
        """The objectives with a recommended setting."""
        return {each: advice for each, advice in self.advice.items() if advice.recommended}

    @property
    def agreed(self) -> TunableSettings | None:
        """The setting that all objectives with a recommendation agree on; None if they differ."""
        found = {advice.trial.knobs for advice in self.recommended.values()}
        return found.pop() if len(found) == 1 else None


@dataclass(frozen=True, slots=True)
class WhatIf:
    """What was recorded, the same settings replayed, and changed settings replayed."""

    recorded: Metrics
    replayed: Metrics
    changed: Metrics
    fidelity: Fidelity
    evidence: Evidence


def what_if(
    recording: Recording, settings: Settings, changed: Settings, *, draws: int = DRAWS
) -> WhatIf:
    """Compare changed settings with what was recorded.

    Args:
        recording: The recording.
        settings: The settings under which it was made.
        changed: The settings to try.
        draws: Number of replays of each.

    Raises:
        RuntimeError: A loop is running in this thread.
    """
    recorded, evidence = _recorded(recording, settings)
    replayed = Metrics.of(draws_of(recording, settings, draws))
    return WhatIf(
        recorded=recorded,
        replayed=replayed,
        changed=Metrics.of(draws_of(recording, changed, draws)),
        fidelity=compare(recorded, replayed, recording, settings),
        evidence=evidence,
    )


def sweep(
    recording: Recording,
    settings: Settings | None = None,
    *,
    count: int = 200,
    workers: int | None = None,
    progress: Callable[[int, int], object] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Sweep:
    """Try many settings on a recording, and recommend settings.

    The present settings and the library's defaults are always included. All trials have the breaker
    on and no provider forced open. With several workers it starts processes, which ignore Ctrl-C:
    call it under ``if __name__ == "__main__"``, or pass ``workers=1``.

    Args:
        recording: The recording.
        settings: The settings under which it was made; None reads them from the environment.
        count: Number of settings to try.
        workers: Number of processes; None means the number of processors.
        progress: Called after each replay with the numbers of completed replays and of all.
        stop: Called after each trial. Once it returns true, no more settings are tried, and the
            result is about those that were.

    Raises:
        RuntimeError: A loop is running in this thread, and ``workers`` is 1.
    """
    today = Settings() if settings is None else settings
    with trying(recording, today, workers) as run:
        return _Sweeper(recording, today, run, count, progress, stop).result()


class _Sweeper:
    def __init__(
        self,
        recording: Recording,
        settings: Settings,
        run: Callable[[Iterable[TunableSettings], int], Iterator[Evaluation]],
        count: int,
        progress: Callable[[int, int], object] | None,
        stop: Callable[[], bool] | None,
    ) -> None:
        self._recording = recording
        self._settings = settings
        self._run = run
        self._played = TunableSettings.of(settings)
        shadow = self._played.mode == "shadow"  # for recording; other settings are compared with on
        self._now = replace(self._played, mode="on") if shadow else self._played
        self._usual = replace(defaults(), fallback=self._now.fallback)
        self._always = list(
            dict.fromkeys([self._played, self._now, replace(self._now, mode="on"), self._usual])
        )
        self._count = max(count, len(self._always))
        self._progress = progress or (lambda _done, _total: None)
        self._stop = stop or (lambda: False)
        self._stopped = False
        self._seen: dict[TunableSettings, Evaluation] = {}
        self._done = 0
        self._total = self._count

    def result(self) -> Sweep:
        recorded, evidence = _recorded(self._recording, self._settings)
        for knobs in self._always:
            self._evaluated(knobs)
        draws = self._draws([self._played, self._now])
        replayed = Metrics.of([each.whole for each in draws[self._played]])
        fidelity = compare(recorded, replayed, self._recording, self._settings)
        chosen = dict.fromkeys(Objective, self._seen[self._now])
        objection = _objection(fidelity, evidence)
        if not fidelity.matches:
            fidelity = with_explanation(fidelity, self._explained(recorded))
        elif not objection:
            chosen = self._chosen()
            draws |= self._draws(each.knobs for each in chosen.values() if each.knobs != self._now)
        advice = {
            each: self._advice(each, trial, draws, objection) for each, trial in chosen.items()
        }
        trials = tuple(self._seen.values())
        return Sweep(
            recorded=recorded,
            replayed=replayed,
            present=Metrics.of([each.whole for each in draws[self._now]]),
            fidelity=fidelity,
            evidence=evidence,
            today=self._seen[self._now],
            usual=self._seen[self._usual],
            trials=trials,
            front=tuple(front(trials)),
            advice=advice,
            limits=() if objection or self._interrupted() else tuple(self._binding_limits()),
            wanted=self._count,
            interrupted=self._interrupted(),
        )

    def _interrupted(self) -> bool:
        self._stopped = self._stopped or self._stop()
        return self._stopped

    def _chosen(self) -> dict[Objective, Evaluation]:
        """Return the best setting for each objective, as simple as possible."""
        self._search()
        trials, today = list(self._seen.values()), self._seen[self._now]
        simplified = {
            each: self._simplified(choose(trials, each, today), each) for each in Objective
        }
        return self._unified(simplified)

    def _binding_limits(self) -> Iterator[Contribution]:
        before = self._seen[self._now].whole
        present = self._now.applied(self._settings)
        for field in ("ipm", "max_concurrent"):
            doubled = 2 * getattr(self._settings, field)
            settings = present.model_copy(update={field: doubled})
            (after,) = draws_of(self._recording, settings, 1)
            gain = gain_of(after, before, Objective.FAST)
            if gain >= _BINDING:
                yield Contribution(variable_of(field), value_text(doubled), gain)

    def _explained(self, recorded: Metrics) -> Sequence[Hint]:
        def try_out(some: Iterable[TunableSettings]) -> Iterator[Evaluation]:
            each = list(some)
            self._total = self._done + len(each)
            for trial in self._run(each, 0):
                self._step()
                yield trial
                if self._interrupted():
                    return

        return explain(recorded, self._seen[self._played], try_out)

    # -- trials --------------------------------------------------------------------------------

    def _search(self) -> None:
        at_random = int(self._count * _AT_RANDOM) - len(self._always)
        self._add(sample(max(0, at_random), base=self._now))
        while len(self._seen) < self._count and not self._interrupted():
            before, trials = len(self._seen), list(self._seen.values())
            bests = [choose(trials, each, self._seen[self._now]).knobs for each in Objective]
            self._add(near for best in bests for near in neighbours(best))
            if len(self._seen) == before:  # no untried neighbours are left
                self._add(sample(self._count * 2, seed=before, base=self._now))
            if len(self._seen) == before:
                break

    def _add(self, some: Iterable[TunableSettings]) -> None:
        new = [knobs for knobs in dict.fromkeys(some) if knobs not in self._seen]
        for trial in self._run(new[: max(0, self._count - len(self._seen))], 0):
            self._seen[trial.knobs] = trial
            self._step()
            if self._interrupted():
                break

    def _step(self) -> None:
        self._done += 1
        self._total = max(self._total, self._done)
        self._progress(self._done, self._total)

    def _evaluated(self, knobs: TunableSettings) -> Evaluation:
        if knobs not in self._seen:
            (self._seen[knobs],) = self._run([knobs], 0)
            self._step()
        return self._seen[knobs]

    def _draws(
        self, wanted: Iterable[TunableSettings]
    ) -> dict[TunableSettings, Sequence[Evaluation]]:
        """Return several draws of each setting, the first one of which is known."""
        each = list(dict.fromkeys(wanted))
        found = {knobs: [self._seen[knobs]] for knobs in each}
        draws = _FEW_DRAWS if self._interrupted() else DRAWS
        self._total = max(self._total, self._done + (draws - 1) * len(each))
        for draw in range(1, draws):
            for trial in self._run(each, draw):
                found[trial.knobs].append(trial)
                self._step()
        return {knobs: tuple(trials) for knobs, trials in found.items()}

    # -- advice --------------------------------------------------------------------------------

    def _simplified(self, trial: Evaluation, objective: Objective) -> Evaluation:
        """Leave out each changed setting without which the result is as good, within the limits."""
        names, today = trial.knobs.differences(self._now), self._seen[self._now].whole
        for name in names:
            if self._interrupted():
                break
            without = replace(trial.knobs, **{name: getattr(self._now, name)})
            if not without.is_valid or (name == "mode" and self._now.mode != "on"):
                continue
            simpler = self._evaluated(without)
            keeps_limits = is_allowed(simpler.whole, today, objective)
            if keeps_limits and nearly_equal(simpler, trial, objective):
                trial = simpler
        return trial

    def _unified(self, chosen: Mapping[Objective, Evaluation]) -> dict[Objective, Evaluation]:
        """Return one setting for all objectives that gain by any, if it has most of their gains."""
        today = self._seen[self._now]
        gains = {each: gain_of(trial.whole, today.whole, each) for each, trial in chosen.items()}
        gaining = [each for each in Objective if gains[each] > 0]
        for candidate in sorted(
            (chosen[each] for each in gaining), key=lambda each: each.knobs.changed_from(self._now)
        ):
            shares = [
                gain_of(candidate.whole, today.whole, each) >= _AGREEING * gains[each]
                for each in gaining
            ]
            if all(shares) and all(
                choose([candidate], each, today) is candidate for each in gaining
            ):
                return {each: candidate if each in gaining else chosen[each] for each in Objective}
        return dict(chosen)

    def _advice(
        self,
        objective: Objective,
        trial: Evaluation,
        draws: Mapping[TunableSettings, Sequence[Evaluation]],
        objection: str,
    ) -> Recommendation:
        count = min(len(draws[self._now]), len(draws[trial.knobs]))
        today, own = draws[self._now][:count], draws[trial.knobs][:count]
        gain = gain_on_draws(own, today, objective)
        held_out = held_out_gain(list(self._seen.values()), objective, today[0])
        changed = trial.knobs != self._now
        metrics = Metrics.of([each.whole for each in own])
        present = Metrics.of([each.whole for each in today])
        objection = (
            objection
            or judge(objective, gain, held_out, changed=changed)
            or too_slow(metrics, present, objective)
        )
        return Recommendation(
            objective=objective,
            trial=trial,
            metrics=metrics,
            gain=gain,
            held_out=held_out,
            objection=objection,
            contributions=() if objection else tuple(self._contributions(trial, objective)),
        )

    def _contributions(self, trial: Evaluation, objective: Objective) -> Sequence[Contribution]:
        today, found = self._seen[self._now], []
        whole = gain_of(trial.whole, today.whole, objective)
        for line in trial.knobs.env_lines(self._now):
            variable, _, value = line.partition("=")
            names = [
                name
                for name in trial.knobs.differences(self._now)
                if replace(self._now, **{name: getattr(trial.knobs, name)})
                .env_lines(self._now)[0]
                .startswith(f"{variable}=")
            ]
            without = replace(trial.knobs, **{name: getattr(self._now, name) for name in names})
            if not without.is_valid or without.mode != "on" or self._stopped:
                found.append(Contribution(variable, value, whole))
                continue
            rest = self._evaluated(without)
            lost = whole - gain_of(rest.whole, today.whole, objective)
            found.append(Contribution(variable, value, lost))
        return sorted(found, key=lambda each: -each.gain)


def _objection(fidelity: Fidelity, evidence: Evidence) -> str:
    """Return a sentence on why nothing can be recommended; empty if something can."""
    if not fidelity.matches:
        return "the replay of these settings does not give what was recorded (see above)."
    return evidence.missing


def _recorded(recording: Recording, settings: Settings) -> tuple[Metrics, Evidence]:
    """Return the measures of what was recorded, and the evidence that it is."""
    incidents = RecordedOutcomes(recording, settings).incidents()
    happened = measure(recorded_run(recording, settings), incidents)
    return Metrics.of([happened]), evidence_of(recording, settings.accounts[0].key, incidents)


def defaults() -> TunableSettings:
    """Return the library's defaults."""
    return replace(TunableSettings.of(settings_from({})), fallback="")
