"""Trials: replays of a recording with one setting each, in this process or in several."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import TYPE_CHECKING

from resilient_imagen.tuning.evidence import folds_of
from resilient_imagen.tuning.recommendation import Evaluation
from resilient_imagen.tuning.recorded_run import calls_that_stayed
from resilient_imagen.tuning.replay import replay
from resilient_imagen.tuning.run_metrics import measure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from resilient_imagen.settings import Settings
    from resilient_imagen.tuning.recording import Recording
    from resilient_imagen.tuning.run_metrics import Measures
    from resilient_imagen.tuning.tunable_settings import TunableSettings

__all__ = ["draws_of", "try_out", "trying"]


def try_out(
    recording: Recording, settings: Settings, knobs: TunableSettings, *, draw: int = 0
) -> Evaluation:
    """Replay a recording with one setting, and measure it."""
    played, truth = replay(recording, knobs.applied(settings), seed=draw, draw=draw)
    incidents, stayed = truth.incidents(), calls_that_stayed(recording)
    first, second = (measure(played, incidents, part) for part in folds_of(recording, incidents))
    whole = None if len(stayed) == len(recording.asked) else stayed
    return Evaluation(knobs, measure(played, incidents, whole), (first, second))


def draws_of(recording: Recording, settings: Settings, draws: int) -> Sequence[Measures]:
    """Replay a recording with settings several times, and measure each replay."""
    stayed, found = calls_that_stayed(recording), []
    for draw in range(draws):
        played, truth = replay(recording, settings, seed=draw, draw=draw)
        found.append(measure(played, truth.incidents(), stayed))
    return found


# -- processes ------------------------------------------------------------------------------------

_work: tuple[Recording, Settings] | None = None
"""The recording and settings of a worker process."""


def _prepare(recording: Recording, settings: Settings) -> None:
    global _work  # noqa: PLW0603 - data shared by all tasks of a pool's process
    _work = recording, settings
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process with its parent. A killed parent cannot end it, and its queue stays open."""
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)


def _try_prepared(draw: int, knobs: TunableSettings) -> Evaluation:
    if _work is None:
        raise RuntimeError("a worker that was not prepared")
    return try_out(*_work, knobs, draw=draw)


@contextmanager
def trying(
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
