"""The client of a command, with its settings, the emulator if requested, and tracing."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from resilient_imagen.cli.command_errors import CommandError, suggestion, warn
from resilient_imagen.redaction import redact
from resilient_imagen.telemetry.events import OperatorWarning

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence

    from resilient_imagen import ImageClient, Settings
    from resilient_imagen.emulator import Emulator, EmulatorServer
    from resilient_imagen.telemetry.events import Event
    from resilient_imagen.telemetry.sink import EventSink

__all__ = ["open_client", "run_traced"]

_SHOWN: Final = 80
"""Characters of an unknown model's name that are shown."""


def run_traced(
    main: Callable[[], Coroutine[Any, Any, None]],
    *,
    collector: str | None = None,
    asked: bool = False,
) -> bool:
    """Run ``main()`` on a new event loop, with tracing if OTEL_* variables ask for it.

    Args:
        main: Returns the coroutine.
        collector: Base address of an OTLP collector; it replaces the environment's.
        asked: The user asked for traces, so their absence is explained.

    Returns:
        False if traces did not arrive.
    """
    from resilient_imagen.telemetry.setup import setup_tracing

    finish = setup_tracing("resilient-imagen", endpoint=collector, asked=asked, warn=warn)
    arrived = True
    try:
        asyncio.run(main())
    finally:
        if finish is not None:
            arrived = finish()
    return arrived


def _settings(given: Mapping[str, Any], usual: Mapping[str, Any]) -> Settings:
    """Return settings from the command line, then the environment, then the command's defaults."""
    from resilient_imagen import Settings

    chosen = {name: value for name, value in given.items() if value is not None}
    settings = Settings(**chosen)
    unset = {name: value for name, value in usual.items() if name not in settings.model_fields_set}
    return Settings(**chosen, **unset) if unset else settings


@asynccontextmanager
async def open_client(
    given: Mapping[str, Any],
    usual: Mapping[str, Any],
    *,
    emulator: Emulator | None = None,
    sinks: Sequence[EventSink] = (),
    model: str | None = None,
) -> AsyncIterator[ImageClient]:
    """Open a client.

    Args:
        given: Fields of Settings from the command line; None means that it does not set one.
        usual: Fields of Settings that are the command's defaults.
        emulator: Served on loopback, and used instead of the vendors.
        sinks: Receive events, beside telemetry.
        model: The model that the calls will name, if any.

    Raises:
        CommandError: There is no key, or the model is unknown.
        ConfigurationError: A variable has a value that is not allowed.
    """
    from resilient_imagen import ImageClient
    from resilient_imagen.providers import build, needed_variable

    async with AsyncExitStack() as stack:
        if emulator is not None:
            from resilient_imagen.emulator import EmulatorServer

            server = await stack.enter_async_context(EmulatorServer(emulator))
            usual = {"ipm": 6000, **usual}  # an emulator has no quota
            given = {**given, **_emulated(server, _settings(given, usual))}
        settings = _settings(given, usual)
        _check_model(model, settings)
        names = dict.fromkeys(route.provider for route in settings.routes)
        if all(build(name, settings) is None for name in names):
            needed = [needed_variable(name, settings) for name in names if settings.provider(name)]
            raise CommandError(
                f"no API key: set {' or '.join(needed)}; --emulator needs neither"
                if needed
                else f"IMAGE_GEN_ROUTES names {', '.join(names)}, which is not declared"
            )
        warnings = _WarningSink(emulated=emulator is not None)
        client = ImageClient(settings, sinks=[warnings, *sinks])
        yield await stack.enter_async_context(client)


def _check_model(model: str | None, settings: Settings) -> None:
    """Refuse a model that is in neither the model table, IMAGE_GEN_MODELS nor IMAGE_GEN_ROUTES.

    The library passes an unknown name on, since vendors bring out new models. On the command line
    it is more likely a typing error, and the request would be answered by the fallback.

    Raises:
        CommandError: The model is unknown; the message lists the nearest known names.
    """
    from resilient_imagen.models import MODELS, find_model

    name = (model or "").strip()
    known = {*(route.model for route in settings.routes), *settings.model_rows}
    if model is None or find_model(name) or name in known:
        return
    rows = [*MODELS.values(), *settings.model_rows.values()]
    living = [row for row in rows if row.successor is None]
    first = [row.name for row in living if row.vendor == settings.routes[0].provider]
    hint = (
        suggestion(name.lower(), [row.name for row in living]) or f"use one of {', '.join(first)}."
    )
    raise CommandError(
        f"--model {redact(name, limit=_SHOWN)}: no such model; {hint} A model that this version "
        "does not know can be used once IMAGE_GEN_ROUTES names it."
    )


class _WarningSink:
    """Prints warnings for operators, such as a missing key or a retired model."""

    inline = True

    def __init__(self, *, emulated: bool) -> None:
        self._omitted = {"time_limit_below_typical"} if emulated else set()

    def handle(self, event: Event) -> None:
        if isinstance(event, OperatorWarning) and event.code not in self._omitted:
            warn(event.message)


def _emulated(server: EmulatorServer, settings: Settings) -> dict[str, Any]:
    """Return the fields that send the requests of all providers to the emulator."""
    from pydantic import SecretStr

    from resilient_imagen.emulator.proxies import bypassing

    os.environ.update(bypassing(os.environ))  # a proxy cannot reach a server on loopback
    urls = {
        "google": server.google_url,
        "openai": server.openai_url,
        "vertex": server.vertex_url,
        "azure": server.azure_url,
    }
    providers: dict[str, Any] = dict(settings.providers)
    for name in {"vertex", "azure", *providers} - {"google", "openai"}:
        if (provider := settings.provider(name)) is not None:
            account = {"project": None, "location": None, "credentials": None}
            address = {"api_key": SecretStr("emulated"), "base_url": urls[provider.kind]}
            providers[name] = provider.model_copy(update={**account, **address})
    return {
        "google_api_key": "emulated",
        "openai_api_key": "emulated",
        "google_base_url": server.google_url,
        "openai_base_url": server.openai_url,
        "providers": providers,
    }
