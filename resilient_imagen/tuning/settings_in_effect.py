"""The settings under which a recording was made, and the part of it that was made under them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from resilient_imagen.effective_settings import (
    changed_from_defaults,
    is_known,
    read_text,
    settings_from,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from resilient_imagen.settings import Settings
    from resilient_imagen.tuning.recording import Recording
    from resilient_imagen.tuning.rows import Configured

__all__ = ["SettingsInEffect", "SettingsSource", "settings_in_effect"]

SettingsSource: TypeAlias = Literal["recording", "file", "environment"]
"""Where settings are from; a file is that of ``--env-file``."""


@dataclass(frozen=True, slots=True)
class SettingsInEffect:
    """The settings that are replayed."""

    settings: Settings
    recording: Recording
    """The part of the recording that was made under them."""
    source: SettingsSource
    notes: tuple[str, ...]
    """Sentences about what was left out."""


def settings_in_effect(
    recording: Recording,
    environment: Mapping[str, str],
    *,
    given: Mapping[str, str] | None = None,
    changes: Mapping[str, str] | None = None,
) -> SettingsInEffect:
    """Return the settings to replay: those of the recording, else those of the environment.

    If the settings changed during the recording, the part with most calls under the same settings
    is used.

    Args:
        recording: The recording.
        environment: Variables to use if the recording has no settings.
        given: Variables to use in place of those of the recording and of the environment.
        changes: Variables that are changed in any case.

    Raises:
        ConfigurationError: A variable is not a setting, or its value is not allowed.
    """
    notes: list[str] = []
    recording = _without_strays(recording, notes)
    variables: Mapping[str, str] = environment
    source: SettingsSource = "environment"
    if given is not None:
        variables, source = given, "file"
    elif recording.settings:
        source = "recording"
        recording, variables = _longest_part(recording, notes)
        variables = _known(variables, notes)
    settings = settings_from({**variables, **(changes or {})})
    return SettingsInEffect(settings, recording, source, tuple(notes))


def _known(variables: Mapping[str, str], notes: list[str]) -> dict[str, str]:
    """Leave out settings of other versions, and of providers that were made in code."""
    known = {name: value for name, value in variables.items() if is_known(name, variables)}
    if unknown := sorted(variables.keys() - known.keys()):
        notes.append(
            f"Recorded settings that are not known here are left out: {', '.join(unknown)}."
        )
    return known


_SILENCE: Final = 86_400.0
"""Seconds without a call after which what follows is another recording."""
_STRAY: Final = 0.01
"""Maximum share of the calls beyond a silence that are left out."""


def _without_strays(recording: Recording, notes: list[str]) -> Recording:
    """Leave out a few calls long before or after all others, such as one test a month earlier."""
    asked, few = recording.asked, int(len(recording.asked) * _STRAY)
    silences = [
        index for index in range(1, len(asked)) if asked[index] - asked[index - 1] > _SILENCE
    ]
    first = max((index for index in silences if index <= few), default=0)
    end = min((index for index in silences if index >= len(asked) - few), default=len(asked))
    left_out = len(asked) - (end - first)
    if not left_out:
        return recording
    calls = "1 call is" if left_out == 1 else f"{left_out} calls are"
    notes.append(f"{calls} left out: more than a day lies between them and all others.")
    until = asked[end] if end < len(asked) else recording.duration + _SILENCE
    return recording.between(asked[first], until)


def _longest_part(recording: Recording, notes: list[str]) -> tuple[Recording, Mapping[str, str]]:
    """Return the part with most calls under the same settings, and these settings."""
    parts = list(_parts(recording))
    start, end, row = max(parts, key=lambda part: _calls_between(recording, part[0], part[1]))
    variables = read_text(row.settings)
    others = len(recording.asked) - _calls_between(recording, start, end)
    if others:
        other = next(each for each in parts if each[2] is not row)[2]
        before, now = (changed_from_defaults(read_text(each.settings)) for each in (other, row))
        changed = sorted(
            name for name in before.keys() | now.keys() if before.get(name) != now.get(name)
        )
        notes.append(
            f"The settings changed while it was recorded ({', '.join(changed)}): {others} calls"
            " under other settings are left out."
        )
        recording = recording.between(start, end)
    clients = {each.client for each in recording.settings}
    if len(clients) > 1:
        notes.append(
            f"{len(clients)} clients reported settings, and are replayed as one. If they ran at the"
            " same time without IMAGE_GEN_REDIS_URL, each had its breakers and pace to itself."
        )
    return recording, variables


def _parts(recording: Recording) -> Iterator[tuple[float, float, Configured]]:
    """Yield start, end and settings of each part; the first settings hold from the start on."""
    kept: list[Configured] = []
    for row in recording.settings:
        if not kept or read_text(row.settings) != read_text(kept[-1].settings):
            kept.append(row)
    starts = [0.0, *(row.at for row in kept[1:])]
    ends = [*starts[1:], recording.duration + 1.0]
    yield from zip(starts, ends, kept, strict=True)


def _calls_between(recording: Recording, start: float, end: float) -> int:
    return sum(start <= at < end for at in recording.asked)
