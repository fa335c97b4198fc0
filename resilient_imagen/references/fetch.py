"""Reference fetcher: load an image from an untrusted URL, protected against SSRF.

An untrusted URL could make this machine send requests into its own network. So the host's name is
resolved once, all of its addresses must be public, and the connection is made to exactly the
address that was checked; each redirect is checked in the same way. DNS rebinding has no effect. TLS
still verifies the name.

It uses httpcore2 rather than an httpx2 client, which has proxies, cookies, credentials and
environment variables that would have to be switched off.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable, Iterable, Sequence
from ipaddress import ip_address
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import httpcore2
import httpx2

from resilient_imagen.dns import HostResolver, alternating
from resilient_imagen.images.image_errors import UnusableImageError
from resilient_imagen.images.limits import ImageLimits
from resilient_imagen.images.worker_pool import Pool, off_loop, share_of
from resilient_imagen.references.public_addresses import is_public

if TYPE_CHECKING:
    import ssl

__all__ = ["FetchError", "Fetcher", "Resolver"]

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Resolves a host name for a port to numeric addresses, best first."""

_OK: Final = 200
_REDIRECTS: Final = frozenset((301, 302, 303, 307, 308))
# Words, not numbers: applications search error texts for status codes of the providers.
_STATUS_WORDS: Final = {401: "access was denied", 403: "access was denied", 404: "was not found"}
_MOST_ADDRESSES: Final = 4
_LAST_PORT: Final = 2**16 - 1
_LONGEST_HOST: Final = 253
"""Longest host name, in characters, by the DNS standard."""
_MANY_PIECES: Final = 10_000
_SMALL_PIECE: Final = 512
"""Minimum average of a piece in bytes; many smaller pieces would keep the event loop busy."""
_PIECES_AT_ONCE: Final = 64


class FetchError(UnusableImageError):
    """An image could not be loaded from its URL. The text never contains the URL."""


class Fetcher:
    """Loads images over https. It keeps no connections, so any event loop may use it.

    Args:
        limits: Size, time, redirects, and whether http or private addresses are allowed.
        resolve: Replaces the system's resolver.
        ssl_context: Replaces the system's trust store.
    """

    def __init__(
        self,
        limits: ImageLimits | None = None,
        *,
        resolve: Resolver | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._limits = limits or ImageLimits()
        self._network = _GuardedNetwork(self._limits, resolve or _system_lookup)
        self._ssl_context = ssl_context
        self._closed = False

    async def fetch(self, url: str) -> bytes:
        """Load the body at an http(s) URL, up to ``max_reference_bytes``.

        Raises:
            FetchError: The URL cannot be loaded, or is not allowed; the text has the cause.
            UnusableImageError: The body is too large.
        """
        if self._closed:
            raise FetchError("the loader is closed")
        try:
            async with asyncio.timeout(self._limits.fetch_seconds):
                return await self._load(self._allowed(_parsed(url)))
        except TimeoutError:  # before its base class OSError
            raise FetchError("took too long to load") from None
        except UnusableImageError:
            raise
        except Exception:  # noqa: BLE001 - an untrusted server must not fail a call
            raise FetchError("its server could not be reached, or closed the connection") from None

    async def aclose(self) -> None:
        """Refuse further use. Loads in progress end within their time limit."""
        self._closed = True

    async def _load(self, url: httpx2.URL) -> bytes:
        async with httpcore2.AsyncConnectionPool(
            ssl_context=await self._trust(), network_backend=self._network
        ) as pool:
            for _ in range(self._limits.max_redirects + 1):
                async with pool.stream("GET", _core_url(url), headers=_headers(url)) as response:
                    if response.status == _OK:
                        return await self._body(response)
                    url = self._allowed(_next_url(url, response))
        raise FetchError("was redirected too often")

    async def _body(self, response: httpcore2.Response) -> bytes:
        body = io.BytesIO()  # returns its bytes without a copy
        pieces = 0
        async for chunk in response.aiter_stream():
            self._limits.check_bytes(body.tell() + len(chunk))
            body.write(chunk)
            pieces += 1
            if pieces > _MANY_PIECES and body.tell() < pieces * _SMALL_PIECE:
                raise FetchError("arrives in too many small pieces")
            if (
                pieces % _PIECES_AT_ONCE == 0
            ):  # data that has arrived already is returned without a pause
                await asyncio.sleep(0)
        return body.getvalue()

    def _allowed(self, url: httpx2.URL) -> httpx2.URL:
        schemes = {"https", "http"} if self._limits.allow_http else {"https"}
        if url.scheme not in schemes:
            raise FetchError(f"is not an {' or '.join(sorted(schemes))} address")
        if url.userinfo:
            raise FetchError("is an address with a user name or password in it")
        if not 0 < len(url.raw_host) <= _LONGEST_HOST:
            raise FetchError("is not a valid address")
        if url.port is not None and not 0 < url.port <= _LAST_PORT:
            raise FetchError("is an address with a port that does not exist")
        return url

    async def _trust(self) -> ssl.SSLContext:
        if self._ssl_context is None:  # built on first use: it takes some 20 ms
            self._ssl_context = await off_loop(_system_trust, pool=Pool.REFERENCES)
        return self._ssl_context


class _GuardedNetwork(httpcore2.AsyncNetworkBackend):
    """A network backend that connects only to checked addresses."""

    def __init__(self, limits: ImageLimits, resolve: Resolver) -> None:
        self._limits = limits
        self._resolve = resolve
        self._network = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002, ASYNC109 - the overridden signature
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Resolve the host, check all addresses, and connect to the first one that answers.

        Raises:
            FetchError: An address is not public, or no address answers.
        """
        addresses = await self._addresses(host, port)
        for address in addresses:
            self._check(address)
        for address in islice(alternating(addresses), _MOST_ADDRESSES):
            try:
                stream = await self._network.connect_tcp(
                    address, port, self._limits.connect_seconds, local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue
            return await self._verified(stream)
        raise FetchError("its server could not be reached")

    async def _addresses(self, host: str, port: int) -> Sequence[str]:
        if _is_numeric(host):
            return [host]
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError):
            addresses = []
        if not addresses:
            raise FetchError("its server's name is unknown")
        return addresses

    def _check(self, address: str) -> None:
        """Reject an address that is not public; one such address rejects the host's name."""
        if not self._limits.allow_private and not is_public(address):
            raise FetchError("leads to an address that is not public")

    async def _verified(self, stream: httpcore2.AsyncNetworkStream) -> httpcore2.AsyncNetworkStream:
        """Check the socket's peer address, in case a lower layer connected elsewhere."""
        try:
            self._check(str(stream.get_extra_info("server_addr")[0]))
        except BaseException:
            await stream.aclose()
            raise
        return stream


def _parsed(url: str) -> httpx2.URL:
    try:
        return httpx2.URL(url.strip())
    except (httpx2.InvalidURL, ValueError):
        raise FetchError("is not a valid address") from None


def _next_url(url: httpx2.URL, response: httpcore2.Response) -> httpx2.URL:
    if response.status not in _REDIRECTS:
        raise FetchError(_STATUS_WORDS.get(response.status, "its server did not deliver it"))
    location = next((value for name, value in response.headers if name.lower() == b"location"), b"")
    try:
        return url.join(location.decode("latin-1"))
    except (httpx2.InvalidURL, ValueError):
        raise FetchError("was redirected to an address that is not valid") from None


def _core_url(url: httpx2.URL) -> httpcore2.URL:
    return httpcore2.URL(
        scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
    )


def _headers(url: httpx2.URL) -> list[tuple[bytes, bytes]]:
    return [
        (b"Host", url.netloc),
        (b"User-Agent", b"resilient-imagen"),
        (b"Accept", b"image/png,image/jpeg,image/webp,image/gif,image/*;q=0.5"),
        (
            b"Accept-Encoding",
            b"identity",
        ),  # a compressed body could have any size when decompressed
    ]


def _is_numeric(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _system_trust() -> ssl.SSLContext:
    return httpx2.create_ssl_context(trust_env=False)


_MAX_LOOKUPS: Final = 32
"""Concurrent name look-ups of all calls; a hanging one occupies a thread for half a minute."""
_resolver: Final = HostResolver(_MAX_LOOKUPS)


async def _system_lookup(host: str, port: int) -> Sequence[str]:
    """Resolve a host name by the system's resolver, within the call's limit of look-ups."""
    async with share_of(Pool.NAMES):
        return await _resolver.resolve(host, port)
