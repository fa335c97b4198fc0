"""Redis address: validated at start, and shown without its password."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, Self
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

from resilient_imagen._validation import split_url
from resilient_imagen.errors import ConfigurationError

__all__ = ["Address"]

_SCHEMES: Final = ("redis", "rediss")
_NAMESPACE: Final = "namespace"
_NAME: Final = re.compile(r"[\w.-]+", re.ASCII)
_OURS: Final = "resilient_imagen"


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed Redis URL: ``redis[s]://[user:password@]host[:port][/database]``.

    Or ``unix://[user:password@]/path?db=0``. ``?namespace=NAME`` separates fleets that share one
    database; other query parameters are for redis-py.
    """

    url: str = field(repr=False)
    """The URL for the client; it may contain a password."""
    shown: str
    """The URL for messages, without user and password."""
    namespace: str = _OURS
    """The prefix of every key."""

    @classmethod
    def parse(cls, url: str) -> Self:
        """Parse and check a URL.

        Raises:
            ConfigurationError: The URL is not valid; the text has the cause, but not the URL.
        """
        try:
            parts = urlsplit(url.strip())
            database = parts.path.strip("/")
            if parts.scheme == "unix":
                fits = bool(database)
            else:
                split_url(url, _SCHEMES)
                fits = not database or database.isdecimal()
            shown = _shown(parts)
        except ValueError:
            fits = False
        if not fits:
            raise ConfigurationError(
                "IMAGE_GEN_REDIS_URL: must be redis://[user:password@]host[:port][/database], "
                "rediss:// for TLS, or unix:///path/to/socket"
            )
        query = parse_qsl(parts.query, keep_blank_values=True)
        rest = urlencode([(name, value) for name, value in query if name != _NAMESPACE])
        name = dict(query).get(_NAMESPACE)
        if name is not None and not _NAME.fullmatch(name):
            raise ConfigurationError(
                "IMAGE_GEN_REDIS_URL: namespace must be letters, digits, '_', '-' and '.'"
            )
        namespace = _OURS if name is None else f"{_OURS}:{name}"
        return cls(parts._replace(query=rest).geturl(), shown, namespace)

    def key(self, kind: str, about: str) -> str:
        """Return a key's name. All keys of one command share a hash tag, for a sharded store."""
        return f"{self.namespace}:{{{about}}}:{kind}"

    @property
    def channel(self) -> str:
        """The channel on which changed records are published."""
        return f"{self.namespace}:news"


def _shown(parts: SplitResult) -> str:
    if parts.scheme == "unix":
        return f"unix://{parts.path}"
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}:{parts.port or 6379}/{parts.path.strip('/') or 0}"
