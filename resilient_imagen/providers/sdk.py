"""Base class of the built-in providers: one request per call through a vendor's SDK.

Subclasses build the SDK's client, send a request, parse responses and classify errors.
"""

from __future__ import annotations

import ssl
import sys
from abc import ABC, abstractmethod
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, NoReturn

import httpx2

from resilient_imagen._validation import check_address, check_api_key, checked
from resilient_imagen.cost import priced_usage
from resilient_imagen.dns import HostResolver
from resilient_imagen.errors import ConfigurationError, provider_failure
from resilient_imagen.images.worker_pool import off_loop
from resilient_imagen.models import supported_options
from resilient_imagen.providers.access_token import TokenError
from resilient_imagen.providers.base import Endpoint, account_id
from resilient_imagen.providers.connections import credentials
from resilient_imagen.providers.error_body import VendorError
from resilient_imagen.providers.genai_compat import suppress_instrumentation
from resilient_imagen.providers.http import CapturingClient, capture_exchange
from resilient_imagen.providers.per_loop_clients import PerLoopClients
from resilient_imagen.providers.response_parsing import ResponseError
from resilient_imagen.providers.transport_errors import description, never_sent, transport_reason
from resilient_imagen.providers.vendor_options import check_protected_fields
from resilient_imagen.reasons import Reason
from resilient_imagen.redaction import KnownSecret, redact
from resilient_imagen.tracebacks import clear_frame_locals, hide_frame_locals

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_imagen.providers.access_token import AccessToken, TokenCache
    from resilient_imagen.providers.base import ProviderResult
    from resilient_imagen.providers.classification import ClassifiedError
    from resilient_imagen.providers.event_stream import EventReader
    from resilient_imagen.providers.http import CapturedExchange
    from resilient_imagen.providers.streaming_body import StreamingJsonBody
    from resilient_imagen.request import ImageRequest

__all__ = ["SdkFailure", "SdkProvider", "missing_dependency"]

_LARGE: Final = 2**18
"""Bytes of a response's JSON, without decoded base64, from which on it is parsed in a thread."""

_UNAUTHORIZED: Final = 401

_OPTIONS: Final = (
    "mask", "background", "output_format", "output_compression", "seed", "quality",
    "partial_images",
)  # fmt: skip
"""Options of a request that are reported if the vendor does not support them. Several images (n)
are requested one by one then."""

_warmed_up: Final[set[type]] = set()
"""Provider classes whose SDK was warmed up in this process."""


class SdkProvider(ABC):
    """A provider that sends one request per call through a vendor's official SDK.

    Args:
        name: The provider's name in routes, results and telemetry.
        api_key: White space around it is ignored. None for an account with access tokens.
        base_url: The http or https address of the API; None means the vendor's.
        max_connections: Requests in flight at most.
        connect_timeout: Seconds to connect. The pipeline sets all other time limits.
        transport: Replaces the network, for tests.
        tokens: The account's access tokens; None means that the key is sent.
        account: Identifies the account in place of the key, for ``Endpoint.account``.

    Raises:
        ConfigurationError: The key cannot be sent as a header, or the address is not valid.
    """

    def __init__(
        self,
        *,
        name: str,
        api_key: str | None,
        base_url: str | None,
        max_connections: int,
        connect_timeout: float,
        transport: httpx2.AsyncBaseTransport | None,
        tokens: TokenCache | None = None,
        account: str | None = None,
    ) -> None:
        self.name = name
        self.base_url: str = checked(
            f"{name}: the base URL", check_address, base_url or self.default_base_url
        )
        self._api_key: str = checked(f"{name}: the API key", check_api_key, api_key) or ""
        if not self._api_key and tokens is None:
            raise ConfigurationError(f"{name}: the API key is empty")
        self._tokens = tokens
        self.endpoint: Endpoint = Endpoint(
            self.vendor,
            self.base_url,
            account_id(account or self._api_key, self.base_url),
            # A custom address is often a relay that serves models of several vendors.
            any_vendor=bool(base_url) and self.relays_other_vendors,
            telemetry_name=self.telemetry_name,
        )
        self._secrets = [
            KnownSecret(secret) for secret in (self._api_key, *credentials(self.base_url))
        ]
        self._max_connections = max_connections
        self._connect_timeout = connect_timeout
        self._transport = transport
        self._resolver = HostResolver()
        self._sessions = PerLoopClients(self._open)

    vendor: ClassVar[str]
    """The vendor's name in the model table."""
    telemetry_name: ClassVar[str]
    """The value of gen_ai.provider.name."""
    relays_other_vendors: ClassVar[bool] = True
    """Whether a custom address may serve models of other vendors, too."""
    default_base_url: str
    """The vendor's address."""
    supported_options: ClassVar[frozenset[str]]
    """The names of the request's options that the vendor supports."""
    protected_fields: ClassVar[frozenset[str]]
    """Fields of the vendor's request that ``vendor_options`` must not replace."""

    @abstractmethod
    def _build_sdk(self, http: CapturingClient, null: httpx2.Client) -> Any:
        """Import the SDK and build its asynchronous client on ``http``. Runs in a thread.

        A synchronous client, if the SDK builds one, is built on ``null``.
        """

    @abstractmethod
    def _warm_up_sdk(self, sdk: Any, null: httpx2.Client) -> None:
        """Send a request through the SDK's synchronous client and ``null``. Runs in a thread."""

    @abstractmethod
    async def _send(
        self, sdk: Any, request: ImageRequest, model: str, sent: CapturedExchange
    ) -> None:
        """Send the request; ``sent`` captures the response."""

    @abstractmethod
    def _parse(self, body: StreamingJsonBody, request: ImageRequest, model: str) -> ProviderResult:
        """Return the images in the body of a 200; raise ResponseError if there are none."""

    @abstractmethod
    def _classify(self, error: VendorError) -> ClassifiedError:
        """Classify a vendor's error by the vendor's rules."""

    @hide_frame_locals
    async def warm_up(self) -> None:
        """Import the SDK and build its client in a thread, before the first request needs it.

        An access token is fetched, too. If that fails, the first request tries again.

        Raises:
            RuntimeError: The provider was closed.
        """
        await self._session()
        if self._tokens is not None:
            with suppress(TokenError):
                await self._tokens.get()

    @hide_frame_locals
    async def generate(self, request: ImageRequest, model: str) -> ProviderResult:
        """Send one request.

        If the server rejects an access token that was kept from an earlier request, the request is
        sent once more with a new one.

        Raises:
            InvalidRequestError: ``vendor_options`` contains a protected field.
            ImageGenerationError: The request failed; its reason is by the vendor's rules.
            RuntimeError: A local failure, not the vendor's.
        """
        check_protected_fields(request, self.vendor, self.protected_fields)
        handled = id(sys.exception())
        sdk = await self._session()
        kept = None if self._tokens is None else self._tokens.kept
        token = await self._token(model)
        exchange = await self._exchange(sdk, request, model, token, handled)
        if exchange.rejects_token and token is not None and token is kept:
            # It may have been revoked before it expired, and then a new one is accepted.
            renewed = await self._token(model)
            if renewed is not None and renewed.value != token.value:
                exchange = await self._exchange(sdk, request, model, renewed, handled)
        response, body, events, sdk_failure, _ = exchange
        parse = partial(self._parse, body, request, model) if events is None else events.result
        result = await self._answer(response, len(body.text), parse, request, model, sdk_failure)
        supported = self._options_of(model)
        ignored = tuple(
            name
            for name in _OPTIONS
            if name not in supported and getattr(request, name) is not None
        )
        changes = self._adjustments(request, model)
        if not ignored and not changes:
            return result
        return replace(result, ignored_options=ignored, adjustments=changes)

    async def _exchange(
        self,
        sdk: Any,
        request: ImageRequest,
        model: str,
        token: AccessToken | None,
        handled: int,
    ) -> _Exchange:
        """Send the request, and return the response; ``handled`` is for ``clear_frame_locals``.

        Raises:
            ImageGenerationError: No response arrived.
            RuntimeError: A local failure.
        """
        sdk_failure: SdkFailure | None = None
        with capture_exchange() as sent:
            if token is not None:
                sent.authorize = partial(self._authorize, token)
            try:
                await self._send(sdk, request, model, sent)
            except Exception as error:  # noqa: BLE001 - classified, and raised outside this block
                clear_frame_locals(error, up_to=handled)
                sdk_failure = SdkFailure.of(error, partial(self._redacted, request))
        # Errors raised outside the except block have no context. The SDK's exception must not be
        # chained: it holds keys, prompts and whole response bodies.
        response, body, events = sent.take()
        if response is None:
            self._no_answer(sdk_failure, model)
        rejects_token = token is not None and response.status_code == _UNAUTHORIZED
        if rejects_token and self._tokens is not None:
            self._tokens.discard(token)
        return _Exchange(response, body, events, sdk_failure, rejects_token)

    def _options_of(self, model: str) -> frozenset[str]:
        """Return the options of ``supported_options`` that the model supports, too."""
        return supported_options(self.vendor, model, self.supported_options)

    def _adjustments(self, request: ImageRequest, model: str) -> tuple[str, ...]:
        """Describe options that the vendor supports, but not with the requested value."""
        del request, model
        return ()

    async def aclose(self) -> None:
        """Close the connections of every event loop that is still running."""
        await self._sessions.aclose()

    async def _session(self) -> Any:
        try:
            return await self._sessions.get()
        except ConfigurationError as error:
            own_copy = copy(error)  # each waiting call adds its attempts and frames to its error
        raise own_copy

    async def _token(self, model: str) -> AccessToken | None:
        """Return the account's access token; None if the key is sent.

        Raises:
            ImageGenerationError: No token could be fetched.
        """
        if self._tokens is None:
            return None
        try:
            return await self._tokens.get()
        except TokenError as error:
            failure = error
        raise provider_failure(
            failure.reason,
            provider=self.name,
            model=model,
            account_wide=failure.reason is Reason.UNAUTHENTICATED,
            vendor_message=redact(failure.message, secrets=(self._api_key,)) or None,
            vendor_error=failure.name,
            never_sent=True,
        )

    def _authorize(self, token: AccessToken, request: httpx2.Request) -> None:
        """Add an access token to a request."""
        request.headers["Authorization"] = f"Bearer {token.value}"

    def _open(self) -> tuple[Any, CapturingClient]:
        """Build client and connections; runs in a thread.

        Raises:
            ConfigurationError: The SDK is not installed, or the environment names a proxy or a file
                for TLS that cannot be used.
        """
        null = httpx2.Client(transport=httpx2.MockTransport(_empty_answer))
        try:
            http = CapturingClient(
                self.base_url,
                max_connections=self._max_connections,
                connect_timeout=self._connect_timeout,
                transport=self._transport,
                resolver=self._resolver,
            )
            sdk = self._build_sdk(http, null)  # which may set up TLS once more
        except (FileNotFoundError, IsADirectoryError, PermissionError, ssl.SSLError) as error:
            # Python's error does not name the file.
            raise ConfigurationError(
                f"TLS cannot be set up ({error.strerror}); if they are set, SSL_CERT_FILE must "
                "name a file in PEM format, and SSLKEYLOGFILE a file that can be written"
            ) from None
        if type(self) not in _warmed_up:
            # On its first request an SDK imports and builds much of its code, which takes 80 ms and
            # would block the event loop. An error here occurs again in the first real request.
            with suppress_instrumentation(), suppress(Exception):
                self._warm_up_sdk(sdk, null)
            _warmed_up.add(type(self))
        return sdk, http

    async def _answer(
        self,
        response: httpx2.Response,
        size: int,
        parse: Callable[[], ProviderResult],
        request: ImageRequest,
        model: str,
        sdk_failure: SdkFailure | None,
    ) -> ProviderResult:
        try:
            if not response.is_success:
                error_body = VendorError.read(
                    response.status_code, response.headers, response.content, request.prompt
                )
                raise ResponseError(self._classify(error_body))  # noqa: TRY301 - one way out for both
            return await off_loop(parse) if size > _LARGE else parse()
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
            vendor_error=None if sdk_failure is None else sdk_failure.name,
            usage=None
            if failure.tokens is None
            else priced_usage(
                failure.tokens,
                provider=self.name,
                model=model,
                resolution=request.resolution,
                delivered=False,
            ),
        )

    def _redacted(self, request: ImageRequest, text: str) -> str | None:
        """Return a vendor's message without secrets; None if nothing is left."""
        return redact(text, secrets=(self._api_key, request.prompt)) or None

    def _no_answer(self, sdk_failure: SdkFailure | None, model: str) -> NoReturn:
        if sdk_failure is None:
            raise RuntimeError(f"{self.name}: the SDK sent nothing")
        if sdk_failure.reason is not None:
            raise provider_failure(
                sdk_failure.reason,
                provider=self.name,
                model=model,
                vendor_message=sdk_failure.description,
                vendor_error=sdk_failure.name,
                never_sent=sdk_failure.never_sent,
            )
        if sdk_failure.harmless is not None:
            raise sdk_failure.harmless from None
        raise RuntimeError(f"{self.name}: local failure ({sdk_failure.name})")


class _Exchange(NamedTuple):
    """A response, and the SDK's failure because of it."""

    response: httpx2.Response
    body: StreamingJsonBody
    events: EventReader | None
    sdk_failure: SdkFailure | None
    rejects_token: bool
    """Whether the server did not accept the access token."""


@dataclass(frozen=True, slots=True)
class SdkFailure:
    """The parts of an SDK's exception that are safe to keep."""

    name: str
    reason: Reason | None
    """The reason of a transport failure; None for a local failure."""
    description: str | None
    """The message of the operating system, TLS library or HTTP library, redacted."""
    never_sent: bool
    """Whether no connection was made, so that nothing was sent."""
    harmless: Exception | None
    """The exception itself, if its text cannot contain parts of the request."""

    @classmethod
    def of(cls, error: Exception, redacted: Callable[[str], str | None]) -> SdkFailure:
        """Extract the safe parts of an exception; ``redacted`` removes secrets from a str."""
        return cls(
            type(error).__name__,
            transport_reason(error),
            redacted(description(error)),
            never_sent(error),
            error if _is_harmless(error) else None,
        )


def _empty_answer(request: httpx2.Request) -> httpx2.Response:
    """Return an empty response to a request that is not sent."""
    return httpx2.Response(200, json={}, request=request)


def missing_dependency(package: str, error: ImportError) -> ConfigurationError:
    """Return the error to raise when an SDK or a package that it needs is not installed."""
    missing = error.name or "a part of it"
    return ConfigurationError(f"{package} cannot be loaded: {missing} is missing")


def _is_harmless(error: Exception) -> bool:
    """Return whether an exception's text cannot contain parts of the request."""
    return type(error).__module__ == "builtins" and not isinstance(error, UnicodeError)
