"""Redis errors: translate redis-py's exceptions to short messages without data."""

from __future__ import annotations

import contextlib
import errno
import re
import socket
import ssl
from typing import TYPE_CHECKING, Final

from redis import exceptions as redis_exceptions

from resilient_imagen.distributed.store import MisconfiguredError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["translate_redis_errors"]

_FINAL_ERRORS: Final = (
    (
        redis_exceptions.AuthenticationError,
        "",
        "it refuses the user name or password, or requires one",
    ),
    (redis_exceptions.ResponseError, "DB index", "it has no database of that number"),
    (redis_exceptions.ResponseError, "SELECT is not allowed", "it has no database of that number"),
    (redis_exceptions.AskError, "", "it is one node of a cluster, and our keys are on another"),
    (redis_exceptions.InvalidResponse, "", "the server is not Redis"),
)
"""redis-py's error, a part of its text, and our message, for errors of configuration."""

_DENIED: Final = re.compile(r"ACL failure in script|The user executing the script can't run")
"""Error replies of scripts for missing rights, by Redis 7.2 and later, and by Redis 7.0."""
_COMMAND: Final = re.compile(r"the '([a-z|]{1,40})' command")
_MAY_PASS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (redis_exceptions.BusyLoadingError, "it is still loading"),
    (redis_exceptions.ReadOnlyError, "it is read-only"),
    (redis_exceptions.OutOfMemoryError, "it is full"),
    (socket.gaierror, "its name does not resolve"),
    (ConnectionRefusedError, "refused"),
    (FileNotFoundError, "no such socket"),
    (PermissionError, "not permitted"),
    (TimeoutError, "no answer"),
)
_UNREACHABLE: Final = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL}
_NOT_TLS: Final = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}
"""OpenSSL's errors for an answer that is not TLS."""


@contextlib.contextmanager
def translate_redis_errors() -> Iterator[None]:
    """Raise redis-py's errors as StoreUnavailableError, because their text may contain data."""
    try:
        yield
    except StoreUnavailableError:
        raise
    except Exception as error:  # noqa: BLE001 - any exception of redis-py means that Redis is unavailable
        raise _translate(error) from None


def _translate(error: Exception) -> StoreUnavailableError:
    for kind, word, text in _FINAL_ERRORS:
        if isinstance(error, kind) and word in str(error):
            return MisconfiguredError(text)
    if isinstance(error, redis_exceptions.NoPermissionError) or _DENIED.search(str(error)):
        return MisconfiguredError(f"it does not permit this user to {_missing_right(str(error))}")
    # redis-py wraps errors of the operating system; an error reply has no cause.
    cause = error.__cause__ or error.__context__
    if isinstance(error, redis_exceptions.RedisError) and isinstance(
        cause, StoreUnavailableError | OSError
    ):
        return cause if isinstance(cause, StoreUnavailableError) else _translate_os_error(cause)
    return _translate_os_error(error)


def _missing_right(text: str) -> str:
    if command := _COMMAND.search(text):
        return f"run {command[1].upper()}"
    if "access a channel" in text:
        return "use the channel <namespace>:news"
    if "access a key" in text or "can't access at least one of the keys" in text:
        return "use the keys <namespace>:*"
    return "run a command that our scripts need"


def _translate_os_error(error: Exception) -> StoreUnavailableError:
    if isinstance(error, ssl.SSLError):
        return _translate_tls_error(error)
    for kind, text in _MAY_PASS:
        if isinstance(error, kind):
            return StoreUnavailableError(text)
    if isinstance(error, redis_exceptions.ResponseError):
        word = str(error).partition(" ")[0]
        return StoreUnavailableError(
            word if word.isupper() and word.isalpha() else type(error).__name__
        )
    if isinstance(error, OSError | redis_exceptions.ConnectionError):
        away = isinstance(error, OSError) and error.errno in _UNREACHABLE
        return StoreUnavailableError("not reachable" if away else "connection lost")
    return StoreUnavailableError(type(error).__name__)


def _translate_tls_error(error: ssl.SSLError) -> StoreUnavailableError:
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message.partition(",")[0].strip(". ")
        return MisconfiguredError(f"its certificate is not trusted: {why}")
    reason = error.reason or ""
    if reason in _NOT_TLS:
        return MisconfiguredError("it does not use TLS: redis:// instead of rediss://")
    if "CERTIFICATE" in reason or "UNKNOWN_CA" in reason:
        return MisconfiguredError("it refuses our certificate, or requires one")
    return StoreUnavailableError("TLS failed")
