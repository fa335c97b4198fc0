"""Whoever shares something: what the fleet's background task asks of gates and pacers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from resilient_imagen.fleet.record import Record
    from resilient_imagen.fleet.steps import Step

__all__ = ["Answer", "Errand", "Member"]

Answer: TypeAlias = "Callable[[Any | None], None]"


class Errand(NamedTuple):
    """A step to be taken, and who wants to know. None: it may or may not have been taken."""

    step: Step
    answer: Answer


class Member(Protocol):
    """Whoever shares something. All methods are called on the loop and must not wait."""

    topic: str
    """What records about it are called; see `Fleet.topic`."""

    def check_in(self) -> Errand:
        """What to say on joining and once in a while."""
        ...

    def hear(self, record: Record) -> None:
        """The record about its topic has changed."""
        ...

    def joined(self) -> None:
        """The fleet is in reach, and the check-in was answered."""
        ...

    def left(self) -> None:
        """The fleet is out of reach: go on alone."""
        ...

    def goodbye(self) -> Iterable[Step]:
        """What to say before the process goes."""
        ...
