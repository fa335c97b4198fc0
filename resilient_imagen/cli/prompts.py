"""Reads a file of prompts, and says exactly which line is wrong before anything is paid for."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from resilient_imagen.cli.command_errors import CommandError
from resilient_imagen.cli.image_spec import ImageSpec, is_file, is_text, shown
from resilient_imagen.cli.output_files import digest_of
from resilient_imagen.errors import InvalidRequestError
from resilient_imagen.request import ImageRequest

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PromptRow", "read_prompts"]

_KEYS: Final = ("prompt", "id", "aspect_ratio", "resolution", "references")
_LONGEST_ID: Final = 100
"""Characters, and half as many bytes again: the system's limit is on bytes, suffixes included."""
_DEVICE: Final = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³])(\..*)?", re.IGNORECASE)
"""Names that Windows gives to devices, whatever extension follows."""
_SHOWN: Final = 5
"""Problems listed before "and so many more"."""


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One line of the file."""

    id: str
    """Names the picture's file; the same row has the same id in every run."""
    line: int
    order: ImageSpec
    asked: str
    """The same in every run in which the row asks for the same picture."""


class _RowError(ValueError):
    """What is wrong with one line."""


def read_prompts(path: Path, defaults: ImageSpec) -> list[PromptRow]:
    """Every row of a JSON Lines file; empty lines are skipped.

    Args:
        path: The file. References in it are relative to where it lies.
        defaults: What a row does not say.

    Raises:
        CommandError: Lines are wrong; the text names the first few and what is wrong.
        OSError: The file cannot be read.
    """
    rows, problems = [], []
    ids: dict[str, int] = {}
    digest = cache(digest_of)  # many rows share the same few references
    for number, text in enumerate(path.read_bytes().splitlines(), start=1):
        if not text.strip():
            continue
        try:
            row = _row(text, number, path.parent, defaults, digest)
            row = replace(row, id=_unique(row, ids))
        except _RowError as error:
            problems.append(f"line {number}: {error}")
            continue
        for name in _names(row):
            ids[_folded(name)] = number
        rows.append(row)
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise CommandError(f"{path}: {'; '.join(problems[:_SHOWN])}{more}")
    if not rows:
        raise CommandError(f"{path} holds no prompts")
    return rows


def _row(
    text: bytes, number: int, folder: Path, defaults: ImageSpec, digest: Callable[[Path], str]
) -> PromptRow:
    fields = _fields(text)
    order = replace(
        defaults,
        prompt=fields["prompt"],
        aspect_ratio=_given(fields, "aspect_ratio", defaults.aspect_ratio),
        resolution=_given(fields, "resolution", defaults.resolution),
        references=tuple(_reference(each, folder) for each in _references(fields)),
    )
    try:
        ImageRequest(order.prompt, order.aspect_ratio, order.resolution, **order.options)
    except InvalidRequestError as error:
        raise _RowError(str(error)) from None
    return PromptRow(_id(fields), number, order, _fingerprint(order, digest))


def _given(fields: dict[str, Any], name: str, default: str) -> Any:
    value = fields.get(name)
    return default if value is None else value


def _fingerprint(order: ImageSpec, digest: Callable[[Path], str]) -> str:
    """Of what is asked for; where files lie, or how long it may take, is no part of it."""
    try:
        references = [each if is_text(each) else digest(Path(each)) for each in order.references]
    except OSError as error:
        raise _RowError(f"names the reference {error.filename}: {error.strerror}") from None
    asked: list[object] = [
        *(order.prompt, order.aspect_ratio, order.resolution, order.model, references)
    ]
    if order.options:  # without options it is the same as in runs of earlier versions
        asked.append(dict(sorted(order.options.items())))
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def _fields(text: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):  # UnicodeDecodeError is one of the former
        raise _RowError("is not JSON") from None
    if not isinstance(fields, dict):
        raise _RowError('is not an object like {"prompt": "..."}')
    if "prompt" not in fields:
        raise _RowError('has no "prompt"')
    if unknown := sorted(set(fields) - set(_KEYS)):
        raise _RowError(f"has {unknown[0][:40]!r}; known are {', '.join(_KEYS)}")
    return fields


def _id(fields: dict[str, Any]) -> str:
    given = fields.get("id")
    if given is None:
        return ""
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise _RowError("has an id that is neither a text nor a whole number")
    # One spelling of an accented letter: some file systems keep another one than they are given.
    name = unicodedata.normalize("NFC", str(given))
    if not _is_safe(name):
        raise _RowError("has an id that is no file name: letters, digits, dot, dash, underscore")
    if _DEVICE.fullmatch(name):
        raise _RowError(f"has the id {name[:40]!r}, which names a device on Windows")
    return name


def _is_safe(name: str) -> bool:
    """Whether it can be a file's name anywhere: letters of any language and their marks, digits."""
    kinds = [unicodedata.category(letter)[0] for letter in name]
    usual = all(kind in "LMN" or letter in "_.-" for kind, letter in zip(kinds, name, strict=True))
    if not name or not usual or not (kinds[0] in "LN" or name[0] == "_"):
        return False
    return len(name) <= _LONGEST_ID and len(name.encode()) <= _LONGEST_ID * 3 // 2


def _folded(name: str) -> str:
    """The same for names that a file system may take for one: of other case, or other spelling."""
    spelt = unicodedata.normalize("NFD", name).casefold()
    return unicodedata.normalize("NFD", spelt)


def _unique(row: PromptRow, taken: dict[str, int]) -> str:
    """The row's own id, or one made from what is asked for: rows may then be moved about."""
    if row.id:
        for name in _names(row):
            if (line := taken.get(_folded(name))) is not None:
                whose = "the id" if name == row.id else f"a picture {name!r} and so a name"
                raise _RowError(f"has {whose} of line {line}")
        return row.id
    words = re.findall(r"[a-z0-9]+", row.order.prompt.lower())
    base = "-".join(["-".join(words)[:40].strip("-"), row.asked[:8]]).lstrip("-")
    made, copies = base, 1
    while any(name in taken for name in _names(replace(row, id=made))):
        copies += 1
        made = f"{base}-{copies}"
    return made


def _names(row: PromptRow) -> list[str]:
    """Return the names, without extensions, of the row's pictures."""
    several = range(2, (row.order.options.get("n") or 1) + 1)
    return [row.id, *(f"{row.id}-{number}" for number in several)]


def _references(fields: dict[str, Any]) -> list[str]:
    given = fields.get("references")
    if given is None:
        return []
    if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
        raise _RowError("has references that are no list of paths")
    return given


def _reference(place: str, folder: Path) -> str:
    if is_text(place):
        return place
    path = folder / place
    if not is_file(path):
        raise _RowError(f"names the reference {shown(place)}, which is not there")
    return str(path)
