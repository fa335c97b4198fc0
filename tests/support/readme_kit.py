"""Guide test kit: the README of the project and those of its packages, samples and commands."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from paths import ROOT

_PROGRAM: Final = re.compile(
    r"(?:[A-Z_]+=\S+ )*(?:\"\$\(\.ci/|\.ci/|(?:resilient-imagen|python3?|pip|docker|curl"
    r"|opentelemetry-instrument)(?: |$))"
)
_FENCED: Final = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_INLINE: Final = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


@dataclass(frozen=True)
class Guide:
    """One README.md."""

    path: Path

    @property
    def name(self) -> str:
        """Return the path within the project."""
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def text(self) -> str:
        """Return the whole document."""
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def prose(self) -> str:
        """Return the document without its code blocks."""
        return _FENCED.sub("", self.text)

    @cached_property
    def headings(self) -> list[str]:
        """Return all headings below the title, in order."""
        return re.findall(r"^##+ (.*)$", self.prose, re.MULTILINE)

    @property
    def anchors(self) -> set[str]:
        """Return the fragments by which links name the headings."""
        return {
            re.sub(r"[^a-z0-9 -]", "", each.lower()).replace(" ", "-") for each in self.headings
        }

    def section(self, heading: str) -> str:
        """Return the text below a heading, up to the next one of the same or a higher level."""
        lines: list[str] = []
        level = 0
        fenced = False
        for line in self.text.splitlines(keepends=True):
            fenced ^= line.startswith("```")
            marks = re.match(r"(#+) ", line)
            if marks is not None and not fenced:
                if level and len(marks[1]) <= level:
                    break
                if not level and line.strip() == f"{marks[1]} {heading}":
                    level = len(marks[1])
                    continue
            if level:
                lines.append(line)
        assert level, f"{self.name} has no section {heading}"
        return "".join(lines)

    def samples(self, language: str = "python", *, heading: str | None = None) -> list[str]:
        """Return the code blocks of a language: all of them, or those of a section."""
        text = self.text if heading is None else self.section(heading)
        return [code for known, code in _FENCED.findall(text) if known == language]

    def commands(self, *, heading: str | None = None) -> list[str]:
        """Return every command: in blocks, after a ``$``, and in sentences."""
        text = self.text if heading is None else self.section(heading)
        in_bash = "".join(code for language, code in _FENCED.findall(text) if language == "bash")
        after_dollar = re.findall(r"^\$ ((?:.*\\\n)*.*)$", text, re.MULTILINE)
        inline = _INLINE.findall(_FENCED.sub("", text))
        found = [*in_bash.splitlines(), *after_dollar, *inline]
        return [line for line in found if _PROGRAM.match(line)]


def _guides() -> Iterator[Guide]:
    yield Guide(ROOT / "README.md")
    for folder in ("resilient_imagen", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("README.md")):
            yield Guide(path)


GUIDES: Final[Mapping[str, Guide]] = {guide.name: guide for guide in _guides()}
"""Every guide by its path; one that is added is checked without being named anywhere."""
README: Final = GUIDES["README.md"]
LIBRARY: Final = GUIDES["resilient_imagen/README.md"]


def guide_of(package: str) -> Guide:
    """Return the guide of a package of the library."""
    return GUIDES[f"resilient_imagen/{package}/README.md"]


def executed(code: str) -> dict[str, Any]:
    """Execute a sample, and return the names that it defines."""
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), names)
    return names


def searches() -> list[dict[str, str]]:
    """Return the tags of each search in Jaeger, in the table's order."""
    text = guide_of("telemetry").section("Six searches")
    rows = re.findall(r"^\|[^|]*\?[^|]*\| `([^`]+)` \|", text, re.MULTILINE)
    return [dict(tag.split("=", 1) for tag in row.split()) for row in rows]
