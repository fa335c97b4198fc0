"""Access tokens: fetched in a daemon thread, kept until shortly before they expire.

Look-up and refresh of credentials block: they read files, ask a metadata server or send requests.
Each provider has one thread for them, so a token server that hangs affects only its own requests.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from resilient_imagen.daemon_thread import DaemonThreadCall
from resilient_imagen.redaction import KnownSecret

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_imagen.reasons import Reason

__all__ = ["AccessToken", "TokenCache", "TokenError"]

_REFRESH_BELOW: Final = 225.0
"""Seconds of remaining life from which a token is renewed, as in google-auth. It is used during the
renewal."""
_USABLE_ABOVE: Final = 20.0
"""Seconds of remaining life below which a request waits for a new token."""


@dataclass(frozen=True, slots=True)
class AccessToken:
    """A token for the Authorization header."""

    value: str = field(repr=False)
    expires_at: float
    """Seconds since 1970."""
    project: str | None = field(default=None, repr=False)
    """Google: the project of the credentials."""
    quota_project: str | None = field(default=None, repr=False)
    """Google: the project to charge, where the credentials name one."""
    _secrets: tuple[KnownSecret, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Redact the token and the projects everywhere while this object is alive."""
        names = (self.value, self.project, self.quota_project)
        secrets = tuple(KnownSecret(name) for name in names if name)
        object.__setattr__(self, "_secrets", secrets)


class TokenError(Exception):
    """No token could be fetched.

    Args:
        reason: ``unauthenticated``, or a temporary failure such as ``connection``.
        message: The description of the cause, not yet redacted.
        name: Name of the exception's type.
    """

    def __init__(self, reason: Reason, message: str, name: str) -> None:
        super().__init__(name)
        self.reason = reason
        self.message = message
        self.name = name


class TokenCache:
    """The current token of one account. May be used from any event loop and thread.

    Args:
        fetch: Returns a new token; blocks; raises TokenError.
        thread_name: The name of the thread in which it runs.
    """

    def __init__(self, fetch: Callable[[], AccessToken], thread_name: str) -> None:
        self._fetch = fetch
        self._token: AccessToken | None = None
        self._fetching = DaemonThreadCall(self._outcome, thread_name)

    @property
    def kept(self) -> AccessToken | None:
        """The token of earlier requests; None before the first one and after ``discard``."""
        return self._token

    async def get(self) -> AccessToken:
        """Return a usable token; renew it in the background if it expires soon.

        Raises:
            TokenError: There is no usable token, and none could be fetched.
        """
        token = self._token
        left = 0.0 if token is None else token.expires_at - time.time()
        if token is not None and left > _USABLE_ABOVE:
            if left < _REFRESH_BELOW:
                self._fetching.start()
            return token
        outcome = await self._fetching()
        if isinstance(outcome, AccessToken):
            return outcome
        # A new exception for each caller, because a traceback holds its caller's frames.
        raise TokenError(*outcome)

    def discard(self, token: AccessToken | None) -> None:
        """Fetch a new token for the next request, because the server rejected this one."""
        if self._token is token:
            self._token = None

    def _outcome(self) -> AccessToken | tuple[Reason, str, str]:
        try:
            self._token = token = self._fetch()
        except TokenError as error:
            return error.reason, error.message, error.name
        return token
