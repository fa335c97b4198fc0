"""Messages for a command line that cannot be run: unknown names, values that are not allowed."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from resilient_imagen.cli.command_errors import CommandError
from resilient_imagen.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Iterable

    from resilient_imagen import Settings

__all__ = ["check_model", "suggestion", "unknown_command", "usage_message"]

_SHOWN = 80
"""Characters of an unknown model's name that are shown."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return "did you mean ...?" with the nearest known names, or an empty string."""
    nearest = get_close_matches(name, list(known), n=2)
    return f"did you mean {' or '.join(nearest)}?" if nearest else ""


def unknown_command(name: str, commands: Iterable[str]) -> str:
    """Return the message for a command that does not exist, with the nearest one or with all."""
    commands = list(commands)
    hint = suggestion(name.lower(), commands) or f"use one of {', '.join(commands)}."
    return f"No such command {name!r}; {hint}"


def usage_message(error: Exception) -> str:
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


def check_model(model: str | None, settings: Settings) -> None:
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
