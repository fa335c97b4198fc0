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

    def fetch() -> AccessToken:
        found = _from_default_chain() if credential is None else _get(credential)
        if isinstance(found, TokenError):
            raise found
        return found

    return fetch


def _from_default_chain() -> AccessToken | TokenError:
    """Return a token of DefaultAzureCredential.

    A new credential is made for each token, about once an hour: a kept one would return a token
    that Azure has rejected again from its cache.
    """
    from azure.identity import DefaultAzureCredential

    with DefaultAzureCredential(
        connection_timeout=_SECONDS, read_timeout=_SECONDS, retry_total=1
    ) as chain:
        members = tuple(map(_Member, chain.credentials))
        chain.credentials = members
        found = _get(chain)
    if isinstance(found, TokenError) and any(member.was_unreachable for member in members):
        found.reason = Reason.CONNECTION
    return found


class _Member:
    """A credential of a chain. The chain keeps only the text of its failure."""

    def __init__(self, credential: Any) -> None:
        self._credential = credential
        self._credential_name = getattr(credential, "_credential_name", type(credential).__name__)
        """The name in the chain's error."""
        self.was_unreachable = False
        """Whether no server answered. A credential that is not set up on this machine is not asked
        for a token, and does not count."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._credential, name)

    def get_token(self, *scopes: str, **options: Any) -> _Token:
        """Return a token; may block."""
        try:
            found: _Token = self._credential.get_token(*scopes, **options)
        except Exception as error:
            unavailable = type(error).__name__ == "CredentialUnavailableError"
            self.was_unreachable = not unavailable and _is_unreachable(error)
            raise
        return found


def _get(credential: TokenCredential) -> AccessToken | TokenError:
    """Return a credential's token, or its failure without a context."""
    try:
        found = credential.get_token(_SCOPE)
    except Exception as error:  # noqa: BLE001 - a credential of any library
        return TokenError(*_described(error))
    return AccessToken(found.token, found.expires_on)


def _is_installed() -> bool:
    try:
        return find_spec("azure.identity") is not None
    except ModuleNotFoundError:
        return False


def _described(error: Any) -> tuple[Reason, str, str]:
    """Return reason, message and type name of a credential's failure."""
    message = getattr(error, "message", "")
    if _is_unreachable(error):
        reason = Reason.CONNECTION
    elif getattr(error, "status_code", None) in range(500, 600):
        reason = Reason.SERVER_ERROR
    else:
        reason = Reason.UNAUTHENTICATED
    return reason, message if isinstance(message, str) else "", type(error).__name__


def _is_unreachable(error: BaseException) -> bool:
    """Return whether no server answered: ServiceRequestError and ServiceResponseError."""
    chain = (error, error.__cause__, error.__context__)
    names = {"ServiceRequestError", "ServiceResponseError"}
    return any(base.__name__ in names for cause in chain for base in type(cause).__mro__)
