"""Prompt files of ``generate --from``: JSON Lines, checked in full before anything is sent."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final

from resilient_imagen.cli.command_errors import CommandError
from resilient_imagen.cli.image_spec import ImageSpec, is_text, missing_file
from resilient_imagen.request import ImageRequest

__all__ = ["PromptRow", "read_prompts"]

_KEYS: Final = (
    *("prompt", "id", "aspect_ratio", "resolution", "references"),
    *("n", "output_format", "output_compression", "background", "quality", "seed"),
)
_ID: Final = re.compile(rb'(?![.-])[^/\\:*?"<>|]{1,150}')
"""UTF-8 of an id. File systems allow 255 bytes; a number and an extension are added."""


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One line of a prompt file."""

    id: str
    """Name of the row's image file, without extension; the same in every run."""
    line: int
    spec: ImageSpec
    asked: str
    """Fingerprint of the request; it changes if another image is requested."""

    @property
    def names(self) -> list[str]:
        """Names of the row's image files, without extensions."""
        count = self.spec.options.get("n") or 1
        return [self.id, *(f"{self.id}-{number}" for number in range(2, count + 1))]


def read_prompts(path: Path, defaults: ImageSpec) -> list[PromptRow]:
    """Read all rows of a file, whose directory is that of its references.

    Raises:
        CommandError: Lines are wrong; the message lists them.
        OSError: The file cannot be read.
    """
    _digest.cache_clear()  # a reference may have changed since an earlier run of this process
    rows: list[PromptRow] = []
    problems: list[str] = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            if line.strip():
                rows.append(_parsed(number, line, path.parent, defaults))
        except (ValueError, OSError) as error:
            problems.append(f"line {number}: {error}")
    taken: dict[str, int] = {}
    for row in rows:
        lines = {taken.setdefault(name.casefold(), row.line) for name in row.names} - {row.line}
        problems += [f"line {row.line}: image name used in line {n}; set another id" for n in lines]
    if problems or not rows:
        raise CommandError(f"{path}: {'; '.join(problems) or 'contains no prompts'}")
    return rows


def _parsed(number: int, line: bytes, folder: Path, defaults: ImageSpec) -> PromptRow:
    """Return the row of a line; a ValueError says how the line is wrong."""
    try:
        fields = {**json.loads(line)}
    except (ValueError, TypeError, RecursionError):
        raise ValueError('is not a valid JSON object, like {"prompt": "..."}') from None
    if unknown := sorted(fields.keys() - set(_KEYS)):
        raise ValueError(f"has the unknown key {unknown[0][:40]!r}; keys are {', '.join(_KEYS)}")
    given = {key: value for key, value in fields.items() if value is not None}
    given_id, references = given.pop("id", None), given.pop("references", [])
    if not isinstance(references, list) or not all(isinstance(each, str) for each in references):
        raise ValueError("references must be a list of paths, addresses or data URLs")
    if (missing := missing_file(references, folder)) is not None:
        raise ValueError(f"there is no file at the reference {missing}")
    own = {key: given.pop(key) for key in ("prompt", "aspect_ratio", "resolution") if key in given}
    sources = tuple(each if is_text(each) else str(folder / each) for each in references)
    spec = replace(defaults, **own, references=sources, options={**defaults.options, **given})
    ImageRequest(spec.prompt, spec.aspect_ratio, spec.resolution, **spec.options)  # checks them
    asked = _fingerprint(spec)
    return PromptRow(_row_id(given_id, spec.prompt, asked), number, spec, asked)


def _row_id(given: object, prompt: str, asked: str) -> str:
    """Return a row's id; the request decides a derived one, so that rows may be moved."""
    if given is None:
        words = "-".join(re.findall(r"[a-z0-9]+", prompt.lower()))[:40].strip("-")
        return f"{words}-{asked[:8]}".lstrip("-")
    name = unicodedata.normalize("NFC", str(given))
    if type(given) in (str, int) and name.isprintable() and _ID.fullmatch(name.encode()):
        return name
    raise ValueError(
        "id must be a string or a whole number that can name a file: up to 150 bytes, no dot or "
        'dash first, none of / \\ : * ? " < > |'
    )


def _fingerprint(spec: ImageSpec) -> str:
    """Return a hash of the request: the contents of references count, their paths do not."""
    references = [each if is_text(each) else _digest(Path(each)) for each in spec.references]
    asked: list[object] = [spec.prompt, spec.aspect_ratio, spec.resolution, spec.model, references]
    if spec.options:
        asked.append(spec.options)
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


@cache  # many rows share a few references
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
