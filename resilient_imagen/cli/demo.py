"""``resilient-imagen demo``: an outage from its beginning to its end, without any key."""

from __future__ import annotations

import os
import re
import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import SplitResult, urlsplit

import typer

from resilient_imagen.cli.command_errors import FAILED, CommandError

if TYPE_CHECKING:
    from rich.console import Console

    from resilient_imagen.cli.demo_scenario import DemoRun

__all__ = ["demo"]

_PORTS: Final = {"http": 80, "https": 443}
_CONNECT_SECONDS: Final = 3.0
"""Seconds until a collector must accept a connection."""


def demo(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where to save the contact sheet: a .png or .jpg."),
    ] = None,
    vertex: Annotated[
        bool,
        typer.Option("--vertex", help="Ask the same model at Vertex AI before OpenAI."),
    ] = False,
    jaeger: Annotated[
        bool, typer.Option("--jaeger", help="Send traces to a Jaeger, and print links to four.")
    ] = False,
    jaeger_url: Annotated[
        str, typer.Option(help="Where its pages are.", envvar="JAEGER_URL")
    ] = "http://localhost:16686",
    jaeger_otlp_url: Annotated[
        str | None,
        typer.Option(
            help="Where it takes traces; by default OTEL_EXPORTER_OTLP_ENDPOINT, or else port "
            "4318 of the same host.",
            envvar="JAEGER_OTLP_URL",
        ),
    ] = None,
) -> None:
    """Watch an outage: Google is healthy, then overloaded, then hanging, then back.

    A storyboard of eight scenes with reference pictures is made four times, by both vendors' real
    SDKs, over real sockets, from an emulator inside this process. No key, no bill; 15 seconds.
    """
    from resilient_imagen.cli.client_session import run_traced
    from resilient_imagen.cli.demo_scenario import DemoRun, demo_emulator
    from resilient_imagen.cli.terminal import Console

    target = _target(output)
    collector = (jaeger_otlp_url or _otlp(jaeger_url)) if jaeger else None
    if jaeger:
        _check_listening(collector)
    console = Console()
    play = DemoRun(demo_emulator())
    perform = partial(_perform, console, play, vertex=vertex)
    arrived = run_traced(perform, collector=collector, asked=jaeger)
    _close(console, play, target)
    if jaeger and arrived:
        _show_traces(console, play, jaeger_url.rstrip("/"))
    elif jaeger:
        console.print("No links: not all traces arrived.")
    if any(panel.result is None for panel in play.panels):
        raise SystemExit(FAILED)


def _target(output: Path | None) -> Path:
    from resilient_imagen.cli.output_files import check_target

    if output is None:
        import tempfile

        return Path(tempfile.mkdtemp(prefix="resilient-imagen-")) / "contact-sheet.png"
    if output.suffix.lower() not in {".png", ".jpg", ".jpeg"}:
        raise CommandError(f"{output}: the contact sheet is a .png or a .jpg")
    check_target(output)
    return output


def _otlp(jaeger_url: str) -> str | None:
    """Beside the pages, unless the environment says where traces go."""
    if any(os.environ.get(f"OTEL_EXPORTER_OTLP_{kind}ENDPOINT") for kind in ("", "TRACES_")):
        return None
    return f"http://{_parsed(jaeger_url).hostname or 'localhost'}:4318"


def _parsed(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise _malformed(url) from None
    return parts


def _malformed(url: str) -> CommandError:
    shown = re.sub(r"//[^/]*@", "//", url)
    return CommandError(
        f"{shown} is not an address such as http://localhost:4318: see --jaeger-url and "
        "--jaeger-otlp-url"
    )


def _check_listening(collector: str | None) -> None:
    """Refuse to begin if nothing would take the traces; exporting them would show it at the end.

    Args:
        collector: Base address of the collector; None for the environment's.

    Raises:
        CommandError: The address is malformed, or no connection to it can be opened.
    """
    from urllib.request import getproxies, proxy_bypass

    from resilient_imagen.telemetry.setup import otlp_address, without_credentials

    address = otlp_address(collector)
    if address is None:
        return
    parts = _parsed(address)
    host, port = parts.hostname, parts.port or _PORTS.get(parts.scheme)
    if host is None or port is None:
        raise _malformed(address)
    if parts.scheme in getproxies() and not proxy_bypass(host):
        return  # the exporter does not connect to the collector itself
    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise CommandError(
            f"nothing takes traces at {without_credentials(address)} "
            f"({error.strerror or 'no answer'}): start a Jaeger, or give its address by "
            "--jaeger-url or --jaeger-otlp-url"
        ) from None


async def _perform(console: Console, play: DemoRun, *, vertex: bool) -> None:
    from resilient_imagen.cli.client_session import open_client
    from resilient_imagen.cli.demo_scenario import demo_settings
    from resilient_imagen.cli.demo_view import watching

    settings = demo_settings(vertex=vertex)
    console.print(
        "Eight scenes, four at a time, made four times. Time is scaled down: a request has a limit "
        f"of {settings['per_call_timeout']:.0f} s here instead of 60, the breaker stays open for "
        f"{settings['breaker_reset_timeout']} s instead of 60."
    )
    async with open_client(settings, {}, emulator=play.app, sinks=[play]) as client:
        await client.warm_up()
        with watching(console, play, client):
            await play.run(client)


def _close(console: Console, play: DemoRun, target: Path) -> None:
    from resilient_imagen.cli.contact_sheet import draw_contact_sheet
    from resilient_imagen.cli.demo_view import show_breaker, show_times
    from resilient_imagen.cli.output_files import write_whole

    console.print()
    show_times(console, play)
    console.print()
    show_breaker(console, play)
    write_whole(target, draw_contact_sheet(play.panels, target.suffix))
    console.print(f"Contact sheet: {target}", soft_wrap=True)


def _show_traces(console: Console, play: DemoRun, jaeger_url: str) -> None:
    for what, panel in play.landmarks.items():
        if panel.trace_id is not None:
            console.print(f"Call that {what}: {jaeger_url}/trace/{panel.trace_id}", soft_wrap=True)
