"""Public addresses: the network addresses that a caller's URL may lead to.

The tables replace Python's ``is_global``, which differs between patch releases and does not cover
addresses that embed another address, or a cloud's internal addresses.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

__all__ = ["is_public"]

_V4_REFUSED: Final = tuple(
    IPv4Network(net)
    for net in (
        "0.0.0.0/8",  # this network; 0.0.0.0 reaches loopback
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT, also a cloud's metadata service
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's host, answering from within
        "169.254.0.0/16",  # link-local, metadata services
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",  # documentation, with the next two
        "198.51.100.0/24",
        "203.0.113.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarking
        "224.0.0.0/3",  # multicast, reserved, broadcast
    )
)
_V6_GLOBAL: Final = IPv6Network("2000::/3")
_V6_REFUSED: Final = tuple(
    IPv6Network(net)
    for net in (
        "2001::/23",  # protocols, Teredo among them
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which embeds any IPv4 address
        "3fff::/20",  # documentation
    )
)
_NAT64: Final = IPv6Network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Return whether a numeric address is public; False if it is not an address.

    An IPv4 address inside an IPv6 address (mapped, or NAT64) is checked as IPv4.
    """
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, IPv6Address):
        inner = _inner_v4(parsed)
        if inner is None:
            return parsed in _V6_GLOBAL and not any(parsed in net for net in _V6_REFUSED)
        parsed = inner
    return not any(parsed in net for net in _V4_REFUSED)


def _inner_v4(address: IPv6Address) -> IPv4Address | None:
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:  # how an IPv6-only network reaches the IPv4 internet
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return None
