"""Google Cloud credentials: look-up and refresh through google-auth. Everything here blocks."""

from __future__ import annotations

import time
import warnings
from datetime import UTC
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from resilient_imagen.providers.access_token import AccessToken, TokenError
from resilient_imagen.reasons import Reason
from resilient_imagen.redaction import KnownSecret

if TYPE_CHECKING:
    import os

    from google.auth.credentials import Credentials

__all__ = ["GoogleCredentials"]

_SCOPES: Final = ("https://www.googleapis.com/auth/cloud-platform",)
_SECONDS: Final = 10.0
"""Time limit to connect to a token server, and for each read; google-auth's own is 120."""
_LIFETIME: Final = 3600.0
"""Seconds that a token without a stated expiry is kept."""


class GoogleCredentials:
    """Credentials of one account, looked up on first use.

    Args:
        source: Credentials, or the path of a credentials file; None means Application Default
            Credentials.
        project: The project of the requests; None means that of the credentials.
    """

    def __init__(
        self, source: str | os.PathLike[str] | Credentials | None, project: str | None
    ) -> None:
        self._source = source
        self._project = project
        self._found: tuple[Any, str | None] | None = None
        self._secret: KnownSecret | None = None
        """Keeps the credentials' own project out of every text, too: token servers quote it."""

    def fetch(self) -> AccessToken:
        """Return a new token.

        Raises:
            TokenError: ``connection`` if a server cannot be reached, ``server_error`` if the token
                server has a temporary failure, ``invalid_response`` if its response is malformed,
                else ``unauthenticated``.
        """
        from google.auth.transport.requests import Request

        request = partial(Request(), timeout=_SECONDS)
        try:
            if self._found is None:
                self._found = self._look_up(request)
            credentials, project = self._found
            if project:
                self._secret = KnownSecret(project)
            credentials.refresh(request)
            return _token(credentials, self._project or project)
        except TokenError:
            raise
        except Exception as error:  # noqa: BLE001 - google-auth raises errors of any parser
            failure = _described(error)
        raise failure  # outside the except block, so that it has no context

    def _look_up(self, request: Any) -> tuple[Any, str | None]:
        import google.auth

        source: Any = self._source
        if source is None:
            return google.auth.default(scopes=_SCOPES, request=request)
        if hasattr(source, "refresh"):
            return source, getattr(source, "project_id", None)
        # The warning is about files from untrusted sources; this one is the operator's. The filter
        # remains, because catch_warnings would change the filters of all threads for a moment.
        warnings.filterwarnings(
            "ignore", "The load_credentials_from_file method", DeprecationWarning
        )
        load: Any = google.auth.load_credentials_from_file
        found: tuple[Any, str | None] = load(source, scopes=_SCOPES, request=request)
        return found


def _token(credentials: Any, project: str | None) -> AccessToken:
    if not project:
        raise TokenError(
            Reason.UNAUTHENTICATED, "the credentials name no project; set it", "ValueError"
        )
    expiry = credentials.expiry
    return AccessToken(
        credentials.token,
        time.time() + _LIFETIME if expiry is None else expiry.replace(tzinfo=UTC).timestamp(),
        project=project,
        quota_project=getattr(credentials, "quota_project_id", None),
    )


def _described(error: Exception) -> TokenError:
    from google.auth.exceptions import GoogleAuthError, TransportError

    causes = (error, error.__cause__, error.__context__)
    if any(isinstance(cause, TransportError) for cause in causes):
        reason = Reason.CONNECTION
    elif getattr(error, "retryable", False):
        reason = Reason.SERVER_ERROR
    elif not isinstance(error, GoogleAuthError | OSError | ValueError):
        reason = Reason.INVALID_RESPONSE
    else:
        reason = Reason.UNAUTHENTICATED
    # Only google-auth's own text: another library's error may quote the file's content. The second
    # argument is the token server's whole response.
    message = str(error.args[0]) if isinstance(error, GoogleAuthError) and error.args else ""
    return TokenError(reason, message, type(error).__name__)
