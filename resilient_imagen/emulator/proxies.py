"""Proxy variables: exclude loopback, so that a local server is connected to directly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LOOPBACK", "bypassing"]

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_EVERYTHING: Final = "*"


def bypassing(environment: Mapping[str, str]) -> dict[str, str]:
    """Return values for NO_PROXY and no_proxy that add loopback to the present hosts.

    Both get the same value, because some programs read only one of them.
    """
    given = ",".join(environment.get(name, "") for name in ("no_proxy", "NO_PROXY"))
    hosts = dict.fromkeys(filter(None, (host.strip() for host in given.split(","))))
    # A star is valid only as the whole value.
    listed = _EVERYTHING if _EVERYTHING in hosts else ",".join(dict.fromkeys((*hosts, *LOOPBACK)))
    return {"NO_PROXY": listed, "no_proxy": listed}
