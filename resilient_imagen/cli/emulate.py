"""``resilient-imagen emulate``: both vendors' APIs on a loopback port, for any application."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resilient_imagen.cli.command_errors import CommandError
from resilient_imagen.cli.terminal import echo

if TYPE_CHECKING:
    from resilient_imagen.emulator import Emulator

__all__ = ["emulate"]


def emulate(
    port: Annotated[
        int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.", min=0, max=65535)
    ] = 8080,
    script: Annotated[
        Path | None,
        typer.Option(
            help="Faults over time, in JSON: see [bold]--example[/bold].",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    example: Annotated[bool, typer.Option("--example", help="Print a script and end.")] = False,
) -> None:
    """Serve Gemini's and OpenAI's image APIs, also as Vertex AI and Azure, on this machine.

    Prints the environment variables that point an application at it. Ctrl-C ends it. A request's
    body may have 256 MiB; a larger one is answered with 413.
    """
    if example:
        echo(_EXAMPLE.rstrip())
        return
    app = _emulator(script)
    try:
        asyncio.run(_serve(app, port))
    except KeyboardInterrupt:
        echo("stopped", err=True)  # Ctrl-C is how this command is meant to end
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise CommandError(f"port {port} cannot be used: {why}") from None


def _emulator(script: Path | None) -> Emulator:
    from resilient_imagen.emulator import Emulator, ScriptError, parse_script

    if script is None:
        return Emulator()
    try:
        return parse_script(script.read_bytes()).emulator()
    except ScriptError as error:
        raise CommandError(f"{script}: {error}") from None


async def _serve(app: Emulator, port: int) -> None:
    from resilient_imagen.emulator import EmulatorServer

    async with EmulatorServer(app, port=port) as server:
        echo(
            f"export GOOGLE_GENAI_API_KEY=emulated OPENAI_API_KEY=emulated\n"
            f"export GOOGLE_GEMINI_BASE_URL={server.google_url}\n"
            f"export OPENAI_BASE_URL={server.openai_url}\n"
            f"export VERTEX_API_KEY=emulated VERTEX_BASE_URL={server.vertex_url}\n"
            f"export AZURE_OPENAI_API_KEY=emulated AZURE_OPENAI_ENDPOINT={server.azure_url}"
        )
        echo("serving; Ctrl-C ends it", err=True)
        await asyncio.get_running_loop().create_future()


_EXAMPLE = """\
{
  "seed": 7,
  "google": {
    "latency": {"median": 3, "p95": 8},
    "next": [{"fault": "reset", "times": 2}],
    "windows": [
      {"from": 30, "to": 90, "fault": {"kind": "overload", "share": 0.8}},
      {"from": 90, "to": 150, "fault": "hang"}
    ]
  },
  "openai": {"latency": 4}
}
"""
