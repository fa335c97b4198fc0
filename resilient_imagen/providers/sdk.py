"""What the two built-in providers have in common: one request through an SDK, told truthfully.

A vendor's module adds how to build its SDK's client, how to ask it, how to read its answers and
which table its failures are looked up in.
"""

from __future__ import annotations

import asyncio
import sys
from abc import ABC, abstractmethod
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn
from urllib.parse import urlsplit

import anyio.lowlevel
import httpx2

from resilient_imagen.dns import HostResolver
from resilient_imagen.errors import ConfigurationError, provider_failure
from resilient_imagen.images.worker_pool import off_loop
from resilient_imagen.models import cost_usd
from resilient_imagen.providers.error_body import VendorError
from resilient_imagen.providers.genai_compat import suppress_instrumentation
from resilient_imagen.providers.http import CapturingClient, capture_exchange
from resilient_imagen.providers.network import credentials
from resilient_imagen.providers.per_loop_clients import PerLoopClients
from resilient_imagen.providers.response_parsing import ResponseError, decode_image
from resilient_imagen.providers.streaming_body import StreamingJsonBody
from resilient_imagen.providers.transport_errors import description, never_sent, transport_reason
from resilient_imagen.redaction import KnownSecret, redact
from resilient_imagen.request import ImageRequest, Reference
from resilient_imagen.tracebacks import clear_frame_locals, hide_frame_locals

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_imagen.providers.base import ProviderImage, TokenUsage
    from resilient_imagen.providers.classification import ClassifiedError
    from resilient_imagen.providers.http import CapturedExchange
    from resilient_imagen.reasons import Reason
    from resilient_imagen.result import Usage

__all__ = ["SdkProvider", "missing_dependency"]

_LARGE: Final = 2**18
"""Bytes of an answer, but for what was decoded on the way, from which on a thread reads it."""

_warmed_up: Final[set[type]] = set()
"""The providers whose SDK this process has used already."""


class SdkProvider(ABC):
    """A provider that sends one request per call through a vendor's official SDK.

    Args:
        name: The provider's name in routes, results and telemetry.
        api_key: White space around it is not part of it.
        base_url: Where the API is, of http or https; None means the vendor's own.
        max_connections: Requests in flight at most.
        connect_timeout: Seconds to connect. Every other limit is the pipeline's.
        transport: Sends instead of the network, for tests.

    Raises:
        ConfigurationError: The key could not be sent as a header, or the address is none.
    """

    def __init__(
        self,
        *,
        name: str,
        api_key: str,
        base_url: str | None,
        max_connections: int,
        connect_timeout: float,
        transport: httpx2.AsyncBaseTransport | None,
    ) -> None:
        self.name = name
        self.base_url = _address(name, base_url or self.default_base_url)
        self.is_relay = bool(base_url)
        self._api_key = _key(name, api_key)
        self._secrets = [
            KnownSecret(secret) for secret in (self._api_key, *credentials(self.base_url))
        ]
        self._max_connections = max_connections
        self._connect_timeout = connect_timeout
        self._transport = transport
        self._resolver = HostResolver()
        self._sessions = PerLoopClients(self._open)

    default_base_url: ClassVar[str]
    """The vendor's own address."""
    is_relay: bool
    """Whether requests go somewhere else, where other vendors' models may be had, too."""

    @abstractmethod
    def _build_sdk(self, http: CapturingClient) -> Any:
        """Import the SDK and make its client, sending through ``http``. Runs in a thread."""

    @abstractmethod
    async def _send(
        self, sdk: Any, request: ImageRequest, model: str, sent: CapturedExchange
    ) -> None:
        """Send the one request; ``sent`` keeps the answer."""

    @abstractmethod
    def _parse(self, body: StreamingJsonBody, model: str) -> ProviderImage:
        """The picture in the body of a 200; raises ResponseError if there is none."""

    @abstractmethod
    def _classify(self, complaint: VendorError) -> ClassifiedError:
        """Look up a refusal in the vendor's table."""

    @hide_frame_locals
    async def warm_up(self) -> None:
        """Import the SDK and build its client, off the loop; the first request does it otherwise.

        Raises:
            RuntimeError: The provider was closed.
        """
        await self._session()

    @hide_frame_locals
    async def generate(self, request: ImageRequest, model: str) -> ProviderImage:
        """Send one request.

        Raises:
            ImageGenerationError: With the reason by the vendor's table.
            RuntimeError: Something local went wrong; it says nothing about the vendor.
        """
        handled = id(sys.exception())
        sdk = await self._session()
        trouble: _SdkFailure | None = None
        with capture_exchange() as sent:
            try:
                await self._send(sdk, request, model, sent)
            except Exception as error:  # noqa: BLE001 - told apart below, after it is out of the way
                clear_frame_locals(error, up_to=handled)
                trouble = _SdkFailure.of(error, partial(self._redacted, request))
        # Raised from here, errors have no context, and no frame of theirs knows the SDK's own:
        # those hold keys, prompts and whole pages.
        response, body = sent.take()
        if response is None:
            self._no_answer(trouble, model)
        return await self._answer(response, body, request, model, trouble)

    async def aclose(self) -> None:
        """Close the connections of every event loop that still runs."""
        await self._sessions.aclose()

    async def _session(self) -> Any:
        try:
            return await self._sessions.get()
        except ConfigurationError as error:
            mine = copy(error)  # each waiting call adds its own attempts and frames to it
        raise mine

    def _open(self) -> tuple[Any, CapturingClient]:
        """Build client and connections; runs in a thread."""
        if type(self) not in _warmed_up:
            asyncio.run(self._warm_up_sdk())
            _warmed_up.add(type(self))
        http = self._wire(self._transport)
        return self._build_sdk(http), http

    def _wire(self, transport: httpx2.AsyncBaseTransport | None) -> CapturingClient:
        return CapturingClient(
            max_connections=self._max_connections,
            connect_timeout=self._connect_timeout,
            transport=transport,
            resolver=self._resolver,
        )

    async def _warm_up_sdk(self) -> None:
        """Play a request through to where it would be sent, on a loop of its own.

        SDKs and transports build and import half of themselves on first use: 80 ms that no event
        loop should stand still for.
        """
        await anyio.lowlevel.checkpoint()
        request = ImageRequest("rehearsal", references=(Reference(b"-", "image/png", 0),))
        async with self._wire(_NullTransport()) as http:
            with suppress_instrumentation(), capture_exchange() as sent, suppress(Exception):
                await self._send(self._build_sdk(http), request, "rehearsal", sent)
        with suppress(ResponseError):
            decode_image("AAAA", StreamingJsonBody())

    async def _answer(
        self,
        response: httpx2.Response,
        body: StreamingJsonBody,
        request: ImageRequest,
        model: str,
        trouble: _SdkFailure | None,
    ) -> ProviderImage:
        try:
            if not response.is_success:
                complaint = VendorError.read(
                    response.status_code, response.headers, response.content, request.prompt
                )
                raise ResponseError(self._classify(complaint))  # noqa: TRY301 - one way out for both
            if len(body.text) > _LARGE:
                return await off_loop(self._parse, body, model)
            return self._parse(body, model)
        except ResponseError as error:
            failure = error.failure
        raise provider_failure(
            failure.reason,
            provider=self.name,
            model=model,
            status=response.status_code,
            status_word=failure.status_word,
            retry_after=failure.retry_after,
            account_wide=failure.account_wide,
            vendor_message=self._redacted(request, failure.message),
            vendor_error=None if trouble is None else trouble.name,
            usage=self._usage(failure.tokens, model, request.resolution),
        )

    def _redacted(self, request: ImageRequest, text: str) -> str | None:
        """Make foreign text fit to be kept; None when nothing is left of it."""
        return redact(text, secrets=(self._api_key, request.prompt)) or None

    def _usage(self, tokens: TokenUsage | None, model: str, resolution: str) -> Usage | None:
        """What an answer without a picture used."""
        if tokens is None:
            return None
        return {
            "provider": self.name,
            "model": model,
            "input_tokens": tokens.input_tokens,
            "output_tokens": tokens.output_tokens,
            "total_tokens": tokens.total_tokens,
            "cost_usd": cost_usd(model, tokens, resolution, delivered=False),
        }

    def _no_answer(self, trouble: _SdkFailure | None, model: str) -> NoReturn:
        if trouble is None:
            raise RuntimeError(f"{self.name}: the SDK sent nothing")
        if trouble.reason is not None:
            raise provider_failure(
                trouble.reason,
                provider=self.name,
                model=model,
                vendor_message=trouble.description,
                vendor_error=trouble.name,
                never_sent=trouble.never_sent,
            )
        if trouble.harmless is not None:
            raise trouble.harmless from None
        raise RuntimeError(f"{self.name}: {trouble.name} on this side of the connection")


@dataclass(frozen=True, slots=True)
class _SdkFailure:
    """What is kept of an SDK's exception."""

    name: str
    reason: Reason | None
    """What it says about the way to the vendor; None for a local trouble."""
    description: str | None
    """The system's, TLS library's or HTTP library's words, redacted."""
    never_sent: bool
    """Whether there was no connection to send anything on."""
    harmless: Exception | None
    """The exception itself, where its text is sure to hold nothing of the request."""

    @classmethod
    def of(cls, error: Exception, redacted: Callable[[str], str | None]) -> _SdkFailure:
        """Keep what may be kept; ``redacted`` makes a text fit for it."""
        return cls(
            type(error).__name__,
            transport_reason(error),
            redacted(description(error)),
            never_sent(error),
            error if _is_harmless(error) else None,
        )


def missing_dependency(package: str, error: ImportError) -> ConfigurationError:
    """What to raise when an SDK, or what it was told to use, is not there."""
    missing = error.name or "a part of it"
    return ConfigurationError(f"{package} cannot be loaded: {missing} is missing")


class _NullTransport(httpx2.AsyncBaseTransport):
    """Sends nothing."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("not meant to be sent", request=request)


def _is_harmless(trouble: Exception) -> bool:
    """Whether an exception's text is sure to hold nothing of the request."""
    return type(trouble).__module__ == "builtins" and not isinstance(trouble, UnicodeError)


def _key(name: str, api_key: str) -> str:
    key = api_key.strip()
    if not key:
        raise ConfigurationError(f"{name}: the API key is empty")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigurationError(
            f"{name}: the API key holds characters that no key has (a space, a line break or a "
            "letter beyond ASCII); copy it again"
        )
    return key


def _address(name: str, base_url: str) -> str:
    try:
        parts = urlsplit(base_url.strip())
        fine = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        fine = False
    if not fine:
        raise ConfigurationError(f"{name}: the base URL must begin with https:// or http://")
    return base_url.strip()
