"""Errors of commands: one line on standard error and an exit code, never a traceback."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import traceback
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Final, ParamSpec

import typer

from resilient_imagen.cli.terminal import echo, one_line
from resilient_imagen.errors import (
    ConfigurationError,
    ImageGenerationError,
    InvalidRequestError,
)
from resilient_imagen.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = [
    "BAD_INPUT",
    "FAILED",
    "CommandError",
    "advised",
    "keys_to_check",
    "line_and_code",
    "route_errors",
    "suggestion",
    "system_words",
    "warn",
    "with_error_messages",
]

FAILED: Final = 1
"""Exit code: no image, or not all of them."""
BAD_INPUT: Final = 2
"""Exit code: the command, its files or a setting is wrong; nothing was sent."""
_INTERRUPTED: Final = 130
"""Exit code after Ctrl-C, by the convention of shells."""

_EXTRAS: Final = {
    "h11": "emulator",
    "python_multipart": "emulator",
    "redis": "redis",
    "starlette": "dashboard",
    "uvicorn": "dashboard",
}

_VARIABLES: Final = {
    "google": ("GOOGLE_GENAI_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY"),
    "vertex": ("VERTEX_API_KEY", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT"),
    "openai": ("OPENAI_API_KEY",),
    "azure": ("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT"),
}
"""In the order in which Settings reads them. Any other provider has <NAME>_API_KEY."""
_ADDRESSES: Final = {"google": "GOOGLE_GEMINI_BASE_URL", "azure": "AZURE_OPENAI_ENDPOINT"}
"""Variables of addresses. Any other provider has <NAME>_BASE_URL."""
_PROXIES: Final = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
_ABOUT_THE_KEY: Final = frozenset({Reason.UNAUTHENTICATED, Reason.FORBIDDEN})

_P = ParamSpec("_P")


class CommandError(Exception):
    """Bad input: ends the command with this line and exit code 2."""


def warn(line: str) -> None:
    """Print one line on standard error; a closed standard error is ignored."""
    with contextlib.suppress(OSError):
        echo(f"resilient-imagen: {one_line(line)}", err=True)


def system_words(error: OSError) -> str:
    """Return the system's description of an error, with the file."""
    if isinstance(error, BrokenPipeError):
        return "broken pipe: nothing reads the output"
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror or type(error).__name__}"


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return "did you mean ...?" with the nearest known names, or an empty string."""
    nearest = get_close_matches(name, list(known), n=2)
    return f"did you mean {' or '.join(nearest)}?" if nearest else ""


def with_error_messages(command: Callable[_P, None]) -> Callable[_P, None]:
    """Return the command with every error turned into a line and an exit code."""

    @functools.wraps(command)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # since the start, see main
                signal.signal(signal.SIGINT, signal.default_int_handler)
            command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001 - each has its line
            line, code = line_and_code(error)
            warn(line)
            sys.exit(code)

    return run


def line_and_code(error: BaseException) -> tuple[str, int]:
    """Return the line that reports an error, and the exit code of a command that it ends."""
    match error:
        case KeyboardInterrupt():
            return "stopped", _INTERRUPTED
        case CommandError():
            return str(error), BAD_INPUT
        case ImageGenerationError():
            bad_input = isinstance(error, ConfigurationError | InvalidRequestError)
            unsent = bad_input and not error.attempts
            return (str(error), BAD_INPUT) if unsent else (_described(error), FAILED)
        case ImportError() if error.name in _EXTRAS:
            extra = _EXTRAS[error.name]
            return f"{error.name} is missing: pip install 'resilient-imagen[{extra}]'", BAD_INPUT
        case OSError():
            return system_words(error), FAILED
    # A bug. Its text may contain a prompt, so a report gets its type and place only.
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}:{frame.lineno}"
    return f"internal error, please report it: {type(error).__name__} at {place}", FAILED


def _described(error: ImageGenerationError) -> str:
    """Return an error's text with its reason, the requests sent, and what to do about it."""
    details = [str(error.reason)]
    if sent := len(error.attempts):
        details.append(f"{sent} request{'s' if sent > 1 else ''} sent")
    if error.retry_after is not None and not keys_to_check(error):  # waiting does not correct a key
        details.append(f"try again in {error.retry_after:.0f} s")
    return advised(f"{error} ({', '.join(details)})", error)


def keys_to_check(error: ImageGenerationError) -> list[str]:
    """Return the variables of the keys that were refused, in the order of the routes."""
    failures = [(each.provider, each.reason) for each in error.attempts]
    failures += [(each.provider or "", each.reason) for each in route_errors(error)]
    refused = dict.fromkeys(name for name, reason in failures if reason in _ABOUT_THE_KEY)
    return [
        _in_use(_VARIABLES.get(name, (f"{name.upper()}_API_KEY",)))
        for name in refused
        if name in _VARIABLES or os.environ.get(f"IMAGE_GEN_PROVIDER_{name.upper()}")
    ]


def advised(line: str, error: ImageGenerationError) -> str:
    """Return the line with the causes of refused keys and failed connections, and what to check."""
    messages: dict[str | None, str] = {}
    for each in route_errors(error):
        if each.vendor_message and each.reason in _ABOUT_THE_KEY:
            messages[each.provider] = f'{each.provider} says "{each.vendor_message}"'
        elif each.vendor_message and each.reason is Reason.CONNECTION:  # the system's description
            messages[each.provider] = f"{each.provider}: {each.vendor_message}"
    checks = [*keys_to_check(error), *_connections_to_check(error)]
    advice = [f"check {' and '.join(checks)}"] if checks else []
    return "; ".join([line, *messages.values(), *advice])


def _connections_to_check(error: ImageGenerationError) -> list[str]:
    """Return what a provider that could not be reached depends on, with the variables in use."""
    unreached = [
        each.provider or ""
        for each in route_errors(error)
        if each.reason is Reason.CONNECTION and each.not_sent
    ]
    if not unreached:
        return []
    addresses = (_ADDRESSES.get(name, f"{name.upper()}_BASE_URL") for name in unreached)
    proxies = (name for each in _PROXIES for name in (each, each.lower()))
    names = dict.fromkeys((*proxies, *addresses))
    return ["the network", *(name for name in names if os.environ.get(name))]


def route_errors(error: ImageGenerationError) -> Sequence[ImageGenerationError]:
    """Return the errors of the routes that were asked: the error itself if it is of one route."""
    return getattr(error, "errors", (error,))


def _in_use(variables: tuple[str, ...]) -> str:
    return next((name for name in variables if os.environ.get(name, "").strip()), variables[0])
