"""A client for one command: its settings, the emulator if it is wanted, and its tracing."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from resilient_imagen.cli.command_errors import CommandError, warn
from resilient_imagen.cli.usage_errors import check_model

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence

    from resilient_imagen import ImageClient, Settings
    from resilient_imagen.emulator import Emulator, EmulatorServer
    from resilient_imagen.telemetry.events import Event
    from resilient_imagen.telemetry.sink import EventSink

__all__ = ["make_settings", "open_client", "run_traced"]

_UNPACED: Final = {"ipm": 6000}
"""An emulator has no quota to keep to."""


def run_traced(
    main: Callable[[], Coroutine[Any, Any, None]],
    *,
    collector: str | None = None,
    asked: bool = False,
) -> bool:
    """Run ``main()`` on a new event loop, with tracing if OTEL_* variables ask for it.

    Args:
        main: Makes the coroutine.
        collector: Base address of an OTLP collector, which wins over the environment.
        asked: Whether the user asked for traces, so that their absence is explained.

    Returns:
        False when traces were made that did not arrive.
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


def make_settings(given: Mapping[str, Any], usual: Mapping[str, Any]) -> Settings:
    """Settings from the command line, then the environment, then the command's own defaults.

    Args:
        given: Fields that the command line sets; None means it does not.
        usual: Fields that the command sets where the environment does not.

    Raises:
        ConfigurationError: A variable holds what is not allowed.
    """
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
    """A client, closed at the end; see ``make_settings`` for the first two arguments.

    Args:
        given: As in ``make_settings``.
        usual: As in ``make_settings``.
        emulator: Served on loopback, and used instead of the vendors.
        sinks: Receive events, beside telemetry.
        model: The model that the calls will name, if any.

    Raises:
        CommandError: There is no key, or the model is unknown.
        ConfigurationError: A variable holds what is not allowed.
    """
    from resilient_imagen import ImageClient
    from resilient_imagen.providers import build, needed_variable

    async with AsyncExitStack() as stack:
        if emulator is not None:
            from resilient_imagen.emulator import EmulatorServer

            server = await stack.enter_async_context(EmulatorServer(emulator))
            given, usual = {**given, **_leading_to(server)}, {**_UNPACED, **usual}
            providers = _providers_leading_to(server, make_settings(given, usual))
            given = {**given, "providers": providers}
        settings = make_settings(given, usual)
        check_model(model, settings)
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


class _WarningSink:
    """Prints warnings for operators on standard error, such as a missing key or a retired model.

    Args:
        emulated: Whether an emulator serves the requests. Its latencies are not the vendors'.
    """

    inline = True

    def __init__(self, *, emulated: bool) -> None:
        self._omitted = {"time_limit_below_typical"} if emulated else set()

    def handle(self, event: Event) -> None:
        from resilient_imagen.telemetry.events import OperatorWarning

        if isinstance(event, OperatorWarning) and event.code not in self._omitted:
            warn(event.message)


def _leading_to(server: EmulatorServer) -> dict[str, Any]:
    from resilient_imagen.emulator.proxies import bypassing

    # A proxy of the environment's cannot reach a server inside this process.
    os.environ.update(bypassing(os.environ))
    return {
        "google_api_key": "emulated",
        "openai_api_key": "emulated",
        "google_base_url": server.google_url,
        "openai_base_url": server.openai_url,
    }


def _providers_leading_to(server: EmulatorServer, settings: Settings) -> dict[str, Any]:
    """Return the settings of providers, with accounts and addresses of the emulator.

    Google and OpenAI have these in fields of ``Settings``.
    """
    from pydantic import SecretStr

    urls = {
        "google": server.google_url,
        "openai": server.openai_url,
        "vertex": server.vertex_url,
        "azure": server.azure_url,
    }
    found: dict[str, Any] = dict(settings.providers)
    for name in ("vertex", "azure", *settings.providers):
        if name not in {"google", "openai"} and (chosen := settings.provider(name)) is not None:
            account = {"project": None, "location": None, "credentials": None}
            address = {"api_key": SecretStr("emulated"), "base_url": urls[chosen.kind]}
            found[name] = chosen.model_copy(update={**account, **address})
    return found
