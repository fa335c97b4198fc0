"""Plays a recording under many settings, on all processors, and ranks them."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING

from resilient_imagen.settings import Settings
from resilient_imagen.tuning.engine import run_simulation
from resilient_imagen.tuning.recommendation import (
    Evaluation,
    Objective,
    Recommendation,
    advise,
    choose,
    front,
)
from resilient_imagen.tuning.recorded_outcomes import RecordedOutcomes
from resilient_imagen.tuning.run_metrics import measure
from resilient_imagen.tuning.tunable_settings import TunableSettings, neighbours, sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from resilient_imagen.tuning.recording import Recording
    from resilient_imagen.tuning.run_metrics import Measures
    from resilient_imagen.tuning.simulation_run import SimulationResult

__all__ = ["Sweep", "replay", "sweep", "try_out"]

_AT_RANDOM = 0.6
"""Share of the trials that are spread over the grid; the others are near the best of those."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """What all settings led to, and which to take."""

    today: Evaluation
    """The settings as they are."""
    usual: Evaluation
    """The library's defaults, with today's limits and routes."""
    trials: tuple[Evaluation, ...]
    """All, today's among them."""
    front: tuple[Evaluation, ...]
    """Those that no other beats in everything."""
    advice: Mapping[Objective, Recommendation]
    bounds: Mapping[Objective, tuple[Measures, Measures]]
    """Of each recommended setting, with every unseen gap turned to the better or to the worse:
    at the gap's start, and at its end."""
    today_bounds: tuple[Measures, Measures]


def replay(
    recording: Recording, settings: Settings, *, seed: int = 0, turning: float = 0.5
) -> tuple[SimulationResult, RecordedOutcomes]:
    """Play a recording under other settings.

    Args:
        recording: What was seen.
        settings: To be tried; its routes are asked in their order.
        seed: For all chance.
        turning: Where in an unseen gap the service's state changes, from 0 (its start) to 1.
    """
    truth = RecordedOutcomes(recording, settings, turning=turning)
    return run_simulation(settings, truth, recording.asked, seed=seed), truth


def try_out(
    recording: Recording, settings: Settings, knobs: TunableSettings, *, turning: float = 0.5
) -> Evaluation:
    """Play a recording under one setting, and sum up."""
    played, truth = replay(recording, knobs.applied(settings), turning=turning)
    troubles, middle = truth.incidents(), recording.duration / 2
    halves = measure(played, troubles, 0.0, middle), measure(played, troubles, middle)
    return Evaluation(knobs, measure(played, troubles), halves)


def sweep(
    recording: Recording,
    settings: Settings | None = None,
    *,
    count: int = 200,
    workers: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Sweep:
    """Try many settings on a recording, and recommend.

    Today's settings and the library's defaults are always among them. What is tried is tried with
    the breaker on and no provider forced open. With more than one worker it starts processes, which
    do without Ctrl-C: call it from under ``if __name__ == "__main__"``, or pass ``workers=1``.

    Args:
        recording: What was seen.
        settings: As they are today; read from the environment when None.
        count: Settings to try.
        workers: Processes; as many as there are processors when None.
        progress: Told after each trial how many settings are done, and how many there will be.

    Raises:
        RuntimeError: A loop is running in this thread, and it is to do the work.
    """
    today = Settings() if settings is None else settings
    now, seen = TunableSettings.of(today), dict[TunableSettings, Evaluation]()
    tell = progress or (lambda _done, _total: None)
    always = dict.fromkeys([now, replace(now, mode="on"), defaults()])
    count = max(count, len(always))
    first = [*always, *sample(max(0, int(count * _AT_RANDOM) - len(always)))]
    with _tryer(recording, today, workers) as run:

        def tried(some: Iterable[TunableSettings], turning: float = 0.5) -> Iterator[Evaluation]:
            for trial in run(some, turning):
                yield trial
                tell(len(seen), count)

        def add(some: Iterable[TunableSettings]) -> None:
            new = [knobs for knobs in dict.fromkeys(some) if knobs not in seen]
            for trial in tried(new[: max(0, count - len(seen))]):
                seen[trial.knobs] = trial

        add(first)
        while len(seen) < count:
            before = len(seen)
            bests = [choose(list(seen.values()), each, seen[now]).knobs for each in Objective]
            add(near for best in bests for near in neighbours(best))
            if len(seen) == before:
                add(sample(count * 2, seed=before))  # the hills are climbed: look elsewhere
            if len(seen) == before:
                break
        trials = tuple(seen.values())
        advice = {each: advise(trials, each, seen[now]) for each in Objective}
        wanted = [now, *(each.trial.knobs for each in advice.values())]
        edges = [[trial.whole for trial in tried(wanted, turning)] for turning in (0.0, 1.0)]
    pairs = list(zip(*edges, strict=True))
    return Sweep(
        today=seen[now],
        usual=seen[defaults()],
        trials=trials,
        front=tuple(front(trials)),
        advice=advice,
        bounds=dict(zip(advice, pairs[1:], strict=True)),
        today_bounds=pairs[0],
    )


def defaults() -> TunableSettings:
    """The knobs as the library sets them when nobody does."""
    fields = Settings.model_fields
    return TunableSettings.of(
        Settings.model_construct(**{name: each.default for name, each in fields.items()})
    )


# -- processes ------------------------------------------------------------------------------------

_work: tuple[Recording, Settings] | None = None
"""In a worker process: what it plays."""


def _prepare(recording: Recording, settings: Settings) -> None:
    global _work  # noqa: PLW0603 - how a pool's processes are given what all their tasks share
    _work = recording, settings


def _try_prepared(turning: float, knobs: TunableSettings) -> Evaluation:
    if _work is None:
        raise RuntimeError("a worker that was not prepared")
    return try_out(*_work, knobs, turning=turning)


@contextmanager
def _tryer(
    recording: Recording, settings: Settings, workers: int | None
) -> Iterator[Callable[[Iterable[TunableSettings], float], Iterator[Evaluation]]]:
    """How to try settings: here, or in processes of their own."""
    settings = settings.model_copy(update={"google_api_key": None, "openai_api_key": None})
    count = (os.cpu_count() or 1) if workers is None else workers
    if count == 1:
        yield lambda some, turning: (
            try_out(recording, settings, knobs, turning=turning) for knobs in some
        )
        return
    pool = ProcessPoolExecutor(
        count, get_context("spawn"), _prepare, (replace(recording), settings)
    )

    def run(some: Iterable[TunableSettings], turning: float) -> Iterator[Evaluation]:
        with _interrupts_held():  # a process that starts in here ignores interrupts
            return pool.map(partial(_try_prepared, turning), some)

    try:
        yield run
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Let Ctrl-C wait until the end of the block; processes started in it inherit the waiting."""
    if not hasattr(signal, "pthread_sigmask"):  # pragma: no cover - Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
