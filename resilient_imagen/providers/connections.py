"""Connections whose host names are resolved by the provider's own HostResolver.

httpx2 connects through anyio, which resolves names in the event loop's default executor. Here
HostResolver resolves the name, and the addresses are then tried one after the other, each with a
short head start over the next (Happy Eyeballs, RFC 8305). TLS still verifies the name. Connections
to proxies are made in the same way.
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import anyio
import httpcore2
import httpx2

from resilient_imagen._validation import split_url
from resilient_imagen.dns import alternating
from resilient_imagen.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
    from urllib.parse import SplitResult

    from resilient_imagen.dns import HostResolver

__all__ = ["ResolvingTransport", "credentials", "proxy_for"]

_HEAD_START: Final = 0.25
"""Seconds until the next address is tried beside an address that has not answered."""
_PROXY_SCHEMES: Final = frozenset({"http", "https", "socks5", "socks5h"})


class ResolvingTransport(httpx2.AsyncHTTPTransport):
    """The httpx2 transport, with or without a proxy, that resolves names by a HostResolver.

    Args:
        resolver: Resolves the server's name, or the proxy's.
        options: Keyword arguments of httpx2.AsyncHTTPTransport.
    """

    def __init__(self, resolver: HostResolver, **options: Any) -> None:
        super().__init__(**options)
        # ``network_backend`` is a public parameter of httpcore2's pools, but httpx2 cannot pass it
        # on. A transport on httpcore2 alone would need no private name, but official
        # instrumentations record only requests of this base class.
        self._pool._network_backend = _ResolvingBackend(resolver)  # noqa: SLF001


class _ResolvingBackend(httpcore2.AsyncNetworkBackend):
    def __init__(self, resolver: HostResolver) -> None:
        self._resolver = resolver
        self._network = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the overridden signature
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to the first address of ``host`` that answers.

        Raises:
            ConnectTimeout: The name server or every address took longer than ``timeout`` seconds.
            ConnectError: The name has no address, or none of them can be connected to.
        """
        step = "resolve"
        try:
            with anyio.fail_after(timeout):
                addresses = await self._resolver.resolve(host, port)
                step = "connect to"
                return await _first_connected(
                    partial(
                        self._network.connect_tcp,
                        address,
                        port,
                        local_address=local_address,
                        socket_options=socket_options,
                    )
                    for address in alternating(addresses)
                )
        except TimeoutError:
            raise httpcore2.ConnectTimeout(f"could not {step} {host} in time") from None
        except OSError as error:  # the resolver's
            raise httpcore2.ConnectError(str(error)) from error


_Connect: TypeAlias = "Callable[[], Awaitable[httpcore2.AsyncNetworkStream]]"


async def _first_connected(connects: Iterable[_Connect]) -> httpcore2.AsyncNetworkStream:
    """Race connections that start one after the other; return the first and close the others."""
    streams: list[httpcore2.AsyncNetworkStream] = []
    failures: list[Exception] = []

    async def attempt(connect: _Connect, ended: anyio.Event) -> None:
        try:
            streams.append(await connect())
            race.cancel_scope.cancel()
        except Exception as error:  # noqa: BLE001 - raised below, if no address answers
            failures.append(error)
        finally:
            ended.set()

    try:
        async with anyio.create_task_group() as race:
            for connect in connects:
                ended = anyio.Event()
                race.start_soon(attempt, connect, ended)
                with anyio.move_on_after(_HEAD_START):
                    await ended.wait()
    except BaseException:
        await _close(streams)
        raise
    if streams:
        await _close(streams[1:])
        return streams[0]
    for failure in failures:
        if not isinstance(failure, httpcore2.ConnectError):
            raise failure  # a local failure, not the vendor's
    failed = httpcore2.ConnectError("no address could be connected to")
    # As the context, not as the cause: httpcore2 drops the cause.
    failed.__context__ = ExceptionGroup(str(failed), failures)
    raise failed


async def _close(streams: Sequence[httpcore2.AsyncNetworkStream]) -> None:
    with anyio.CancelScope(shield=True):
        for stream in streams:
            await stream.aclose()


def proxy_for(base_url: str) -> str | None:
    """Return the address of the proxy that the environment or the system names for a URL, or None.

    NO_PROXY is respected. A proxy's address without a scheme is taken as http.

    Raises:
        ConfigurationError: The proxy's address is not valid, or needs a package that is missing.
    """
    parts = urlsplit(base_url)
    proxies = getproxies()
    variable = f"{parts.scheme}_proxy" if proxies.get(parts.scheme) else "all_proxy"
    proxy = proxies.get(variable.removesuffix("_proxy"), "").strip()
    if not proxy or _bypasses_proxies(parts):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    _check_proxy(proxy, variable.upper())
    return proxy


def _bypasses_proxies(parts: SplitResult) -> bool:
    """Return whether NO_PROXY names the host: with or without its port, in brackets if IPv6."""
    host = parts.hostname or ""
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    return any(map(proxy_bypass, (f"[{host}]:{port}" if ":" in host else f"{host}:{port}", host)))


def _check_proxy(proxy: str, variable: str) -> None:
    """Check a proxy's address; the error does not show it, as it may contain a password."""
    try:
        parts = split_url(proxy, _PROXY_SCHEMES)
        httpx2.Proxy(proxy)
    except (ValueError, httpx2.InvalidURL):
        parts = None
    if parts is None:
        raise ConfigurationError(
            f"{variable} is not the address of a proxy; use http://host:port, https://host:port or "
            "socks5://host:port"
        )
    if parts.scheme.startswith("socks") and find_spec("socksio") is None:
        raise ConfigurationError(
            f"{variable} names a SOCKS proxy, for which the package socksio is missing; install it"
        )


def credentials(base_url: str) -> Iterator[str]:
    """Yield the user names and passwords in the vendor's address and in the proxies' addresses."""
    for url in (base_url, *getproxies().values()):
        try:
            parts = urlsplit(url if "://" in url else f"//{url}")
        except ValueError:
            continue
        for text in (parts.username, parts.password):
            if text:
                yield from {text, unquote(text)}
