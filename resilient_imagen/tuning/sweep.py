"""Sweep: replay a recording with many settings, on all processors, and rank the settings."""

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
from resilient_imagen.tuning.prediction import DRAWS
from resilient_imagen.tuning.recommendation import (
    Evaluation,
    Objective,
    Recommendation,
    advise,
    choose,
    front,
)
from resilient_imagen.tuning.replay import replay
from resilient_imagen.tuning.run_metrics import measure
from resilient_imagen.tuning.tunable_settings import TunableSettings, neighbours, sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from resilient_imagen.tuning.recording import Recording
    from resilient_imagen.tuning.run_metrics import Measures

__all__ = ["Sweep", "sweep", "try_out"]

_AT_RANDOM = 0.6
"""Share of the trials that are random on the grid; the others are neighbours of the best ones."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """The evaluations of all settings, and the recommendations."""

    today: Evaluation
    """The present settings."""
    usual: Evaluation
    """The library's defaults, with the present limits and routes."""
    trials: tuple[Evaluation, ...]
    """All evaluations, including the present settings."""
    front: tuple[Evaluation, ...]
    """The Pareto front."""
    advice: Mapping[Objective, Recommendation]
    draws: Mapping[Objective, tuple[Measures, ...]]
    """Measures of each recommended setting in several draws of what is not recorded."""
    today_draws: tuple[Measures, ...]


def try_out(
    recording: Recording, settings: Settings, knobs: TunableSettings, *, draw: int = 0
) -> Evaluation:
    """Replay a recording with one setting, and measure it."""
    played, truth = replay(recording, knobs.applied(settings), seed=draw, draw=draw)
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
    """Try many settings on a recording, and recommend settings.

    The present settings and the library's defaults are always included. All trials have the breaker
    on and no provider forced open. With several workers it starts processes, which ignore Ctrl-C:
    call it under ``if __name__ == "__main__"``, or pass ``workers=1``.

    Args:
        recording: The recording.
        settings: The present settings; None reads them from the environment.
        count: Number of settings to try.
        workers: Number of processes; None means the number of processors.
        progress: Called after each trial with the numbers of completed trials and of all trials.

    Raises:
        RuntimeError: A loop is running in this thread, and ``workers`` is 1.
    """
    today = Settings() if settings is None else settings
    now, seen = TunableSettings.of(today), dict[TunableSettings, Evaluation]()
    tell = progress or (lambda _done, _total: None)
    always = dict.fromkeys([now, replace(now, mode="on"), defaults()])
    count = max(count, len(always))
    first = [*always, *sample(max(0, int(count * _AT_RANDOM) - len(always)))]
    with _tryer(recording, today, workers) as run:

        def tried(some: Iterable[TunableSettings], draw: int = 0) -> Iterator[Evaluation]:
            for trial in run(some, draw):
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
                add(
                    sample(count * 2, seed=before)
                )  # no untried neighbours are left: sample more settings
            if len(seen) == before:
                break
        trials = tuple(seen.values())
        advice = {each: advise(trials, each, seen[now]) for each in Objective}
        wanted = [now, *(each.trial.knobs for each in advice.values())]
        drawn = [[trial.whole for trial in tried(wanted, draw)] for draw in range(DRAWS)]
    by_settings = list(zip(*drawn, strict=True))
    return Sweep(
        today=seen[now],
        usual=seen[defaults()],
        trials=trials,
        front=tuple(front(trials)),
        advice=advice,
        draws=dict(zip(advice, by_settings[1:], strict=True)),
        today_draws=by_settings[0],
    )


def defaults() -> TunableSettings:
    """Return the library's defaults."""
    fields = Settings.model_fields
    return TunableSettings.of(
        Settings.model_construct(**{name: each.default for name, each in fields.items()})
    )


# -- processes ------------------------------------------------------------------------------------

_work: tuple[Recording, Settings] | None = None
"""The recording and settings of a worker process."""


def _prepare(recording: Recording, settings: Settings) -> None:
    global _work  # noqa: PLW0603 - data shared by all tasks of a pool's process
    _work = recording, settings


def _try_prepared(draw: int, knobs: TunableSettings) -> Evaluation:
    if _work is None:
        raise RuntimeError("a worker that was not prepared")
    return try_out(*_work, knobs, draw=draw)


@contextmanager
def _tryer(
    recording: Recording, settings: Settings, workers: int | None
) -> Iterator[Callable[[Iterable[TunableSettings], int], Iterator[Evaluation]]]:
    """Provide a function that tries settings, in this process or in worker processes."""
    settings = settings.model_copy(update={"google_api_key": None, "openai_api_key": None})
    count = (os.cpu_count() or 1) if workers is None else workers
    if count == 1:
        yield lambda some, draw: (try_out(recording, settings, knobs, draw=draw) for knobs in some)
        return
    pool = ProcessPoolExecutor(
        count, get_context("spawn"), _prepare, (replace(recording), settings)
    )

    def run(some: Iterable[TunableSettings], draw: int) -> Iterator[Evaluation]:
        with _interrupts_held():  # processes that start here ignore interrupts
            return pool.map(partial(_try_prepared, draw), some)

    try:
        yield run
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Block SIGINT during the block; processes that are started in it inherit that."""
    if not hasattr(signal, "pthread_sigmask"):  # pragma: no cover - Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
