"""``resilient-imagen demo``: an outage from beginning to end, without a key."""

from __future__ import annotations

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from resilient_imagen.cli.command_errors import FAILED, CommandError

if TYPE_CHECKING:
    from rich.console import Console

    from resilient_imagen.cli.demo_scenario import DemoRun

__all__ = ["demo"]

_ANSWER_SECONDS: Final = 3.0
"""Seconds in which a collector must answer."""


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

    A storyboard of eight scenes with reference images is made four times, with both vendors' real
    SDKs over real sockets, by an emulator inside this process. No key, no bill; 15 seconds.
    """
    from resilient_imagen._validation import checked, shown_address
    from resilient_imagen.cli.client_session import run_traced
    from resilient_imagen.cli.demo_scenario import DemoRun, demo_emulator
    from resilient_imagen.cli.demo_view import draw_contact_sheet, show_breaker
    from resilient_imagen.cli.files import check_target, write_whole
    from resilient_imagen.cli.terminal import Console

    if output is None:
        output = Path(tempfile.mkdtemp(prefix="resilient-imagen-")) / "contact-sheet.png"
    elif output.suffix.lower() not in {".png", ".jpg", ".jpeg"}:
        raise CommandError(f"{output}: the contact sheet is a .png or a .jpg")
    check_target("-o", output)
    pages = checked("--jaeger-url", shown_address, jaeger_url) if jaeger else ""
    collector = _collector(jaeger_otlp_url, jaeger_url) if jaeger else None
    console = Console()
    run = DemoRun(demo_emulator())
    main = partial(_run, console, run, vertex=vertex)
    arrived = run_traced(main, collector=collector, asked=jaeger)
    console.print()
    show_breaker(console, run)
    write_whole(output, draw_contact_sheet(run, output.suffix))
    console.print(f"Contact sheet: {output}", soft_wrap=True)
    if jaeger and not arrived:
        console.print("No links: not all traces arrived.")
    elif jaeger:
        for what, image in run.landmarks.items():
            if image.trace_id is not None:
                link = f"{pages.rstrip('/')}/trace/{image.trace_id}"
                console.print(f"Call that {what}: {link}", soft_wrap=True)
    if any(image.result is None for image in run.images):
        raise SystemExit(FAILED)


def _collector(otlp_url: str | None, jaeger_url: str) -> str | None:
    """Return the address for traces, which answers; None if OpenTelemetry's variables have it.

    Raises:
        CommandError: Nothing answers there. The exporter would report that only at the end.
        ConfigurationError: It is not an address.
    """
    import httpx2

    from resilient_imagen._validation import checked, shown_address

    kinds = ("", "TRACES_")
    if otlp_url is None and any(os.environ.get(f"OTEL_EXPORTER_OTLP_{k}ENDPOINT") for k in kinds):
        return None
    address = otlp_url
    try:
        if address is None:
            address = f"{httpx2.URL(jaeger_url).copy_with(scheme='http', port=4318, path='/')}"
        shown = checked("--jaeger-otlp-url", shown_address, address)
        httpx2.get(address, timeout=_ANSWER_SECONDS)
    except httpx2.InvalidURL:  # its text may quote a password
        raise CommandError(
            "no request can be sent to --jaeger-url or --jaeger-otlp-url: its address, or that of "
            "a proxy in the environment, is not valid"
        ) from None
    except httpx2.HTTPError as error:
        raise CommandError(
            f"nothing takes traces at {shown} ({error}): start a Jaeger, or give its address by "
            "--jaeger-url or --jaeger-otlp-url"
        ) from None
    return address


async def _run(console: Console, run: DemoRun, *, vertex: bool) -> None:
    from resilient_imagen.cli.client_session import open_client
    from resilient_imagen.cli.demo_scenario import demo_settings
    from resilient_imagen.cli.demo_view import watching

    settings = demo_settings(vertex=vertex)
    console.print(
        "Eight scenes, four at a time, made four times. Time is scaled down: a request has a limit "
        f"of {settings['per_call_timeout']:.0f} s here instead of 60, the breaker stays open for "
        f"{settings['breaker_reset_timeout']} s instead of 60."
    )
    async with open_client(settings, {}, emulator=run.app, sinks=[run]) as client:
        await client.warm_up()
        with watching(console, run, client):
            await run.run(client)
