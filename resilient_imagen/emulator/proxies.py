"""Proxy variables: a server on loopback is reached directly, whatever the environment says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LOOPBACK", "bypassing"]

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_EVERYTHING: Final = "*"


def bypassing(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the values of NO_PROXY and no_proxy that add loopback to the hosts listed there.

    Both get the same value: of the two, some programs read only one.
    """
    given = ",".join(environment.get(name, "") for name in ("no_proxy", "NO_PROXY"))
    hosts = dict.fromkeys(filter(None, (host.strip() for host in given.split(","))))
    # A star counts only if it stands alone.
    listed = _EVERYTHING if _EVERYTHING in hosts else ",".join(dict.fromkeys((*hosts, *LOOPBACK)))
    return {"NO_PROXY": listed, "no_proxy": listed}
