"""Reads a file of prompts, and says exactly which line is wrong before anything is paid for."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from resilient_imagen.cli.guard import CommandError
from resilient_imagen.cli.order import Order, is_address
from resilient_imagen.errors import InvalidRequestError
from resilient_imagen.request import ImageRequest

__all__ = ["Row", "read_prompts"]

_KEYS: Final = ("prompt", "id", "aspect_ratio", "resolution", "references")
_SAFE_ID: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_SHOWN: Final = 5
"""Problems listed before "and so many more"."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the file."""

    id: str
    """Names the picture's file; the same row has the same id in every run."""
    line: int
    order: Order
    asked: str
    """The same in every run in which the row asks for the same picture."""


class _RowError(ValueError):
    """What is wrong with one line."""


def read_prompts(path: Path, defaults: Order) -> list[Row]:
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
    for number, text in enumerate(path.read_bytes().splitlines(), start=1):
        if not text.strip():
            continue
        try:
            row = _row(text, number, path.parent, defaults)
            row = replace(row, id=_unique(row, ids))
        except _RowError as error:
            problems.append(f"line {number}: {error}")
            continue
        ids[row.id.lower()] = number
        rows.append(row)
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise CommandError(f"{path}: {'; '.join(problems[:_SHOWN])}{more}")
    if not rows:
        raise CommandError(f"{path} holds no prompts")
    return rows


def _row(text: bytes, number: int, folder: Path, defaults: Order) -> Row:
    fields = _fields(text)
    order = replace(
        defaults,
        prompt=fields["prompt"],
        aspect_ratio=fields.get("aspect_ratio", defaults.aspect_ratio),
        resolution=fields.get("resolution", defaults.resolution),
        references=tuple(_reference(each, folder) for each in _references(fields)),
    )
    try:
        ImageRequest(order.prompt, order.aspect_ratio, order.resolution)
    except InvalidRequestError as error:
        raise _RowError(str(error)) from None
    return Row(_id(fields), number, order, _fingerprint(order, _references(fields)))


def _fingerprint(order: Order, references: list[str]) -> str:
    """Of what is asked for; where the file lies, or how long it may take, is no part of it."""
    asked = [order.prompt, order.aspect_ratio, order.resolution, order.model, references]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def _fields(text: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except ValueError:  # UnicodeDecodeError is one
        raise _RowError("is not JSON") from None
    if not isinstance(fields, dict):
        raise _RowError('is not an object like {"prompt": "..."}')
    if "prompt" not in fields:
        raise _RowError('has no "prompt"')
    if unknown := sorted(set(fields) - set(_KEYS)):
        raise _RowError(f"has {unknown[0]!r}; known are {', '.join(_KEYS)}")
    return fields


def _id(fields: dict[str, Any]) -> str:
    given = fields.get("id")
    if given is None:
        return ""
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise _RowError("has an id that is neither a text nor a whole number")
    if not _SAFE_ID.fullmatch(str(given)):
        raise _RowError("has an id that is no file name: letters, digits, dot, dash, underscore")
    return str(given)


def _unique(row: Row, taken: dict[str, int]) -> str:
    """The row's own id, or one made from what is asked for: rows may then be moved about."""
    if row.id:
        if row.id.lower() in taken:
            raise _RowError(f"has the id of line {taken[row.id.lower()]}")
        return row.id
    words = re.findall(r"[a-z0-9]+", row.order.prompt.lower())
    base = "-".join(["-".join(words)[:40].strip("-"), row.asked[:8]]).lstrip("-")
    made, copies = base, 1
    while made in taken:
        copies += 1
        made = f"{base}-{copies}"
    return made


def _references(fields: dict[str, Any]) -> list[str]:
    given = fields.get("references")
    if given is None:
        return []
    if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
        raise _RowError("has references that are no list of paths")
    return given


def _reference(place: str, folder: Path) -> str:
    if is_address(place):
        return place
    path = folder / place
    if not path.is_file():
        raise _RowError(f"names the reference {place}, which is not there")
    return str(path)
