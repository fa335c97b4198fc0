"""Tools to see which objects are still in memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

PROMPT = "Zebrafish quartet rehearsing beneath an obsidian aqueduct"


class WatchedPrompt(str):
    """A prompt that a weak reference can point to."""

    __slots__ = ("__weakref__",)


@contextmanager
def without_cycle_collector() -> Iterator[None]:
    """Free memory by reference counts only, and let ``gc.get_objects`` return new objects only.

    Older objects stay frozen, so that later collections do not examine them again.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
