"""The application: its commands, and how the process ends."""

from __future__ import annotations

import inspect
import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from resilient_imagen.cli.command_errors import (
    BAD_INPUT,
    FAILED,
    suggestion,
    system_words,
    warn,
    with_error_messages,
)
from resilient_imagen.cli.terminal import accept_any_text

__all__ = ["COMMANDS", "run"]

COMMANDS: Final = (
    "generate", "demo", "emulate", "status", "breaker", "settings", "tune", "cost", "monitoring",
    "dashboard",
)  # fmt: skip
"""Each is the function of this name in the module of this name, beside this one. The module imports
heavy libraries inside the function, because ``--help`` imports the modules of all commands."""

_HELP: Final = (
    "Ask for an image once; get one from the best provider that can serve now.\n\n"
    "Keys come from the environment: GOOGLE_GENAI_API_KEY for the primary, OPENAI_API_KEY for "
    "the fallback. Without any, try [bold]resilient-imagen demo[/bold], or add "
    "[bold]--emulator[/bold] to generate."
)


class _Commands(TyperGroup):
    """Imports a command when it is needed."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Suggest the nearest command for an unknown one."""
        if args[0] not in COMMANDS and args[0][:1] != "-" and not ctx.resilient_parsing:
            hint = suggestion(args[0].lower(), COMMANDS) or f"use one of {', '.join(COMMANDS)}."
            ctx.fail(f"No such command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the base class' signature
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - as above
        if cmd_name not in COMMANDS:
            return None
        function = getattr(import_module(f"resilient_imagen.cli.{cmd_name}"), cmd_name)
        app = typer.Typer(add_completion=False, rich_markup_mode="rich")
        app.command(cmd_name, help=_flowing(function))(with_error_messages(function))
        return typer.main.get_command(app)


def _flowing(function: object) -> str:
    """Return the docstring, each paragraph in one line: typer joins lines of the first one only."""
    paragraphs = (inspect.getdoc(function) or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


_app = typer.Typer(
    cls=_Commands, help=_HELP, rich_markup_mode="rich", pretty_exceptions_enable=False
)


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"resilient-imagen {version('resilient-imagen')}")
        raise typer.Exit


@_app.callback()
def _root(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Accept the options that come before a command."""


def run() -> None:
    """Run the command line of this process, and end it with the command's exit code."""
    accept_any_text()
    arguments = sys.argv[1:] or ["--help"]
    try:
        code = _app(arguments, prog_name="resilient-imagen", standalone_mode=False)
    except SystemExit as ended:  # the command failed and printed why
        code = ended.code
    except OSError as error:  # writing --help or --version failed
        warn(system_words(error))
        code = FAILED
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        # A usage error, of which typer's own report takes six lines.
        warn(f"{_usage_message(error)} See --help.")
        code = getattr(error, "exit_code", BAD_INPUT)
    sys.exit(_flushed(code))


def _usage_message(error: Exception) -> str:
    """Return the message of typer's usage error as a sentence, without phrases of pydantic's."""
    # Typer exports no class for an unknown option, and newer versions let pydantic convert values.
    known: Any = error
    options = getattr(error, "possibilities", None)
    if options:
        return f"{known.message}; did you mean {' or '.join(sorted(options))}?"
    if hasattr(error.__cause__, "errors"):
        from resilient_imagen._validation import explain

        cause: Any = error.__cause__
        known.message = "; ".join(explain(problem) for problem in cause.errors(include_url=False))
    text: str = known.format_message().rstrip(".")
    return text if text.endswith("?") else f"{text}."


def _flushed(code: Any) -> Any:
    """Flush standard output and return the exit code.

    If the interpreter did it, a failure would be a traceback and exit code 120.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        if not code:
            warn(system_words(error))
        with suppress(OSError, ValueError):  # the interpreter flushes the same buffer again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code or FAILED
    return code
