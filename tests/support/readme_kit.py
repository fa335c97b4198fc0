"""README test kit: its code blocks, and every command that it shows."""

from __future__ import annotations

import re
from typing import Any

from readme_tables import README

TEXT = README.read_text(encoding="utf-8")

_PROGRAM = re.compile(
    r"(?:[A-Z_]+=\S+ )*(?:\"\$\(\.ci/|\.ci/|(?:resilient-imagen|python3?|pip|docker|curl"
    r"|opentelemetry-instrument)(?: |$))"
)


def section(heading: str) -> str:
    """Return the text below a heading of the second level."""
    (found,) = re.findall(rf"^## {heading}$(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
    return str(found)


def blocks(heading: str, language: str) -> list[str]:
    """Return the code blocks of a language in a section."""
    return re.findall(rf"^```{language}\n(.*?)^```", section(heading), re.DOTALL | re.MULTILINE)


def python_blocks(text: str) -> list[str]:
    """Return the Python samples of any document."""
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def executed(code: str) -> dict[str, Any]:
    """Execute a block, and return the names that it defines."""
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), names)
    return names


def commands(text: str = TEXT) -> list[str]:
    """Return every command: in blocks, after a ``$``, and in sentences."""
    in_bash = "".join(re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    after_dollar = re.findall(r"^\$ ((?:.*\\\n)*.*)$", text, re.MULTILINE)
    inline = re.findall(
        r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    )
    return [
        line for line in [*in_bash.splitlines(), *after_dollar, *inline] if _PROGRAM.match(line)
    ]


def searches() -> list[dict[str, str]]:
    """Return the tags of each search in Jaeger, in the table's order."""
    rows = re.findall(r"^\|[^|]*\?[^|]*\| `([^`]+)` \|", section("See it in Jaeger"), re.MULTILINE)
    return [dict(tag.split("=", 1) for tag in row.split()) for row in rows]
