"""Access tokens of Microsoft Entra ID, through azure-identity's synchronous credentials."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Protocol

from resilient_imagen.errors import ConfigurationError
from resilient_imagen.providers.access_token import AccessToken, TokenError
from resilient_imagen.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TokenCredential", "entra_tokens"]

_SCOPE: Final = "https://ai.azure.com/.default"
_SECONDS: Final = 10.0
"""Time limit to connect to a token server, and for each read."""


class _Token(Protocol):
    @property
    def token(self) -> str: ...
    @property
    def expires_on(self) -> int: ...


class TokenCredential(Protocol):
    """A synchronous credential, as those of azure-identity."""

    def get_token(self, *scopes: str) -> _Token:
        """Return a token; may block."""
        ...


def entra_tokens(name: str, credential: TokenCredential | None) -> Callable[[], AccessToken]:
    """Return a function that fetches a token; it blocks.

    Args:
        name: The provider's name, for the error.
        credential: None means azure-identity's DefaultAzureCredential, made on first use.

    Raises:
        ConfigurationError: azure-identity is needed and not installed.
    """
    if credential is None and not _is_installed():
        raise ConfigurationError(
            f"{name}: there is no API key, and Entra ID needs azure-identity; set the key, or "
            "install resilient-imagen[azure]"
        )
    made: list[TokenCredential] = [] if credential is None else [credential]

    def fetch() -> AccessToken:
        if not made:
            from azure.identity import DefaultAzureCredential

            made.append(
                DefaultAzureCredential(
                    connection_timeout=_SECONDS, read_timeout=_SECONDS, retry_total=1
                )
            )
        try:
            found = made[0].get_token(_SCOPE)
        except Exception as error:  # noqa: BLE001 - a credential of any library
            failure = TokenError(*_described(error))
        else:
            return AccessToken(found.token, found.expires_on)
        raise failure

    return fetch


def _is_installed() -> bool:
    try:
        return find_spec("azure.identity") is not None
    except ModuleNotFoundError:
        return False


def _described(error: Any) -> tuple[Reason, str, str]:
    """Return reason, message and type name of a credential's failure.

    ServiceRequestError and ServiceResponseError mean that no server answered. A chain of
    credentials reports them only in its message.
    """
    message = getattr(error, "message", "")
    chain = (error, error.__cause__, error.__context__)
    unreachable = {"ServiceRequestError", "ServiceResponseError"}
    if any(base.__name__ in unreachable for cause in chain for base in type(cause).__mro__):
        reason = Reason.CONNECTION
    elif getattr(error, "status_code", None) in range(500, 600):
        reason = Reason.SERVER_ERROR
    else:
        reason = Reason.UNAUTHENTICATED
    return reason, message if isinstance(message, str) else "", type(error).__name__
