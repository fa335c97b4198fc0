"""Terminal output: the only place where commands print, and where untrusted text is made safe.

Prompts, file names, vendors' messages, recordings and Redis hold text written by others. A control
character in it could move the cursor, set the window's title or reorder the line, and rich would
read square brackets in it as markup.
"""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from typing import TYPE_CHECKING, Any, Final

import rich.console
import typer
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import ConsoleOptions, RenderableType
    from rich.segment import Segment
    from rich.text import Text

__all__ = [
    "Console",
    "accept_any_text",
    "echo",
    "echo_json",
    "folding_table",
    "one_line",
    "printable",
    "table_console",
]

_UNSAFE: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories: control (escape, C1), format (bidi overrides), surrogates, separators."""
_KEPT: Final = frozenset("\n\t\u200c\u200d")
"""The joiners, of category Cf, are part of Persian, Hindi and emoji spelling."""
_NO_LIMIT: Final = 1_000_000
"""Characters of a line, more than any table has."""
_LONGEST: Final = 2_000
"""Maximum characters of a line of untrusted text; further ones are counted."""


def printable(text: str) -> str:
    r"""Return the text with every character that could act on a terminal escaped, as ``\x1b``."""
    return text if text.isprintable() else "".join(map(_escaped, text))


def one_line(text: str) -> str:
    """Return untrusted text as a safe single line of bounded length."""
    line = printable(" ".join(text.split()))
    more = len(line) - _LONGEST
    return f"{line[:_LONGEST]} ... ({more} more characters)" if more > 0 else line


def echo(text: str, *, err: bool = False) -> None:
    """Print text, made safe, and a line break.

    Raises:
        OSError: Nothing can be written there.
    """
    typer.echo(printable(text), err=err)


def echo_json(value: Any, *, err: bool = False, indent: int | None = None) -> None:
    """Print a value as JSON: ASCII without control characters, whatever its strings hold.

    Raises:
        OSError: Nothing can be written there.
    """
    typer.echo(json.dumps(value, indent=indent).replace("\x7f", "\\u007f"), err=err)


def accept_any_text() -> None:
    """Let characters that the output's encoding lacks be escaped instead of raising an error."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


class Console(rich.console.Console):
    """A rich console that takes strings literally, without markup, and prints only safe text.

    Args:
        options: As of rich's console.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "highlight": False, "emoji": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        """Make a string safe before it is measured and wrapped."""
        return super().render_str(printable(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Make text safe that comes in rich's own classes and so never was a string here."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def table_console() -> Console:
    """Return a console for tables.

    In a pipe without COLUMNS its width has no limit, so that each row is one line.
    """
    console = Console()
    if not console.file.isatty() and not os.environ.get("COLUMNS"):
        console.width = _NO_LIMIT
    return console


def folding_table(*columns: str) -> Table:
    """Return a table that shows all of its text: long names are folded instead of cut off."""
    table = Table()
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _escaped(sign: str) -> str:
    if sign in _KEPT or unicodedata.category(sign) not in _UNSAFE:
        return sign
    return sign.encode("unicode_escape").decode()
