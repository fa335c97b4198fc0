"""How a command ends: with one clear line on standard error and an exit code, never a traceback."""

from __future__ import annotations

import contextlib
import functools
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, ParamSpec

import typer

from resilient_imagen.cli.error_hints import advised, keys_to_check
from resilient_imagen.cli.interrupts import allow_cleanup
from resilient_imagen.cli.terminal import echo, one_line
from resilient_imagen.errors import (
    ConfigurationError,
    ImageGenerationError,
    InvalidRequestError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "BAD_INPUT",
    "FAILED",
    "INTERRUPTED",
    "CommandError",
    "describe",
    "system_words",
    "warn",
    "with_error_messages",
]

FAILED: Final = 1
"""Exit code: no image, or not all of them."""
BAD_INPUT: Final = 2
"""Exit code: something about the command, its files or a setting is wrong; nothing was sent."""
INTERRUPTED: Final = 130
"""Exit code: Ctrl-C, as shells count it."""

_EXTRAS: Final = {
    "h11": "emulator",
    "python_multipart": "emulator",
    "redis": "redis",
    "vl_convert": "tuning",
}

_P = ParamSpec("_P")


class CommandError(Exception):
    """Ends the command with this line and exit code."""

    def __init__(self, message: str, code: int = BAD_INPUT) -> None:
        super().__init__(message)
        self.code = code


def warn(line: str) -> None:
    """Tell people something that is no result, in one line; nothing ends because none listens."""
    with contextlib.suppress(OSError):
        echo(f"resilient-imagen: {one_line(line)}", err=True)


def describe(error: ImageGenerationError) -> str:
    """An error's text, with its reason, what was spent on it, and what to do about it."""
    details = [str(error.reason)]
    if error.attempts:
        sent = len(error.attempts)
        details.append(f"{sent} request{'s' if sent > 1 else ''} sent")
    if error.retry_after is not None and not keys_to_check(error):  # waiting does not correct a key
        details.append(f"try again in {error.retry_after:.0f} s")
    return advised(f"{error} ({', '.join(details)})", error)


def system_words(error: OSError) -> str:
    """The system's own words, with the file."""
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror or type(error).__name__}"


def with_error_messages(command: Callable[_P, None]) -> Callable[_P, None]:
    """The command with every way of failing turned into a line and an exit code."""

    @functools.wraps(command)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            allow_cleanup()
            command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except KeyboardInterrupt:
            _end("stopped", INTERRUPTED)
        except CommandError as error:
            _end(str(error), error.code)
        except ImageGenerationError as error:
            _end(*_generation_failure(error))
        except ImportError as error:
            _end(*_missing(error))
        except BrokenPipeError:
            _end("nobody reads the output any more", FAILED)
        except OSError as error:
            _end(system_words(error), FAILED)
        except Exception as error:  # noqa: BLE001 - a bug of ours; its text may hold a prompt
            _end(_bug(error), FAILED)

    return run


def _end(line: str, code: int) -> NoReturn:
    warn(line)
    sys.exit(code)


def _generation_failure(error: ImageGenerationError) -> tuple[str, int]:
    ours = isinstance(error, ConfigurationError | InvalidRequestError) and not error.attempts
    return (str(error), BAD_INPUT) if ours else (describe(error), FAILED)


def _missing(error: ImportError) -> tuple[str, int]:
    extra = _EXTRAS.get(error.name or "")
    if extra is None:
        return _bug(error), FAILED
    return f"{error.name} is missing: pip install 'resilient-imagen[{extra}]'", BAD_INPUT


def _bug(error: BaseException) -> str:
    """What and where, for a report; never the text."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}:{frame.lineno}"
    return f"internal error, please report it: {type(error).__name__} at {place}"
