"""Azure OpenAI: addresses, keys, Entra ID in a thread, deployments and failures."""

# ruff: noqa: E501 - vendors' messages, as they are sent

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from typing import Any

import pytest
from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError
from azure.identity import CredentialUnavailableError
from cloud_kit import AZURE_KEY, ENTRA_TOKEN, FixedCredential, azure
from providers_kit import GOOD, PROMPT, RawServer, Received, http, raw_server, reference

from resilient_imagen import ConfigurationError, ImageGenerationError, Settings
from resilient_imagen.emulator import Emulator
from resilient_imagen.models import ModelName
from resilient_imagen.providers import build
from resilient_imagen.providers.azure import AzureProvider, azure_address
from resilient_imagen.request import ImageRequest
from resilient_imagen.testing import run_virtual

MODEL = ModelName("gpt-image-2.5-flare", "my-images")


async def one_request(
    answer: Any = GOOD["openai"], request: ImageRequest | None = None, **options: Any
) -> RawServer:
    """Send one request through Azure and return the server."""
    async with raw_server(answer) as server:
        provider = azure(server.url, **options)
        try:
            await provider.generate(request or ImageRequest(PROMPT), MODEL)
        finally:
            await provider.aclose()
        return server


def failing(answer: Any, **options: Any) -> ImageGenerationError:
    """Return the error of one request."""
    with pytest.raises(ImageGenerationError) as caught:
        asyncio.run(one_request(answer, **options))
    return caught.value


def test_a_token_of_entra_id_is_sent() -> None:
    """The token has the scope of Azure AI; the v1 API gets the deployment as the model."""
    credential = FixedCredential()
    server = asyncio.run(one_request(credential=credential))
    (request,) = server.requests
    assert request.headers["authorization"] == f"Bearer {ENTRA_TOKEN}"
    assert request.path == "/openai/v1/images/generations"
    assert request.json["model"] == "my-images"
    assert request.json["quality"] == "high"
    assert credential.scopes == ["https://ai.azure.com/.default"]


def test_a_key_is_sent() -> None:
    """With a key no credential is looked up."""
    server = asyncio.run(one_request(api_key=AZURE_KEY))
    assert server.requests[0].headers["authorization"] == f"Bearer {AZURE_KEY}"


def test_edits_go_to_the_v1_api() -> None:
    """References are uploaded as to OpenAI, with the deployment as the model."""
    request = ImageRequest(PROMPT, references=(reference(),))
    server = asyncio.run(one_request(request=request))
    assert server.requests[0].path == "/openai/v1/images/edits"
    assert b'name="model"\r\n\r\nmy-images\r\n' in server.requests[0].body


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ("https://r.openai.azure.com", "https://r.openai.azure.com/openai/v1/"),
        ("https://r.openai.azure.com/", "https://r.openai.azure.com/openai/v1/"),
        ("https://r.openai.azure.com/openai", "https://r.openai.azure.com/openai/v1/"),
        ("https://r.openai.azure.com/openai/v1", "https://r.openai.azure.com/openai/v1/"),
        ("https://r.openai.azure.com/openai/v1/", "https://r.openai.azure.com/openai/v1/"),
        ("https://gateway.example/images", "https://gateway.example/images/openai/v1/"),
    ],
)
def test_the_v1_path_is_appended_if_missing(endpoint: str, address: str) -> None:
    """The portal shows the address of a resource in several forms."""
    assert azure_address("azure", endpoint) == address
    assert AzureProvider(endpoint=endpoint, api_key="k").endpoint.any_vendor is False


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://r.openai.azure.com/openai/deployments/d/images/generations?api-version=2025-04-01",
        "https://r.openai.azure.com?api-version=2025-04-01",
    ],
)
def test_the_address_of_a_deployment_is_refused(endpoint: str) -> None:
    """The error states which address is needed."""
    with pytest.raises(ConfigurationError, match="azure: the endpoint must be the resource's"):
        AzureProvider(endpoint=endpoint, api_key="k")


def test_virtual_time_does_not_advance_while_a_token_is_fetched() -> None:
    """As for other work in a thread, no deadline passes meanwhile."""

    class Slow(FixedCredential):
        def get_token(self, *scopes: str) -> Any:
            time.sleep(0.05)  # in a thread, where virtual time would pass
            return super().get_token(*scopes)

    async def main() -> None:
        emulator = Emulator(picture="tiny")
        provider = azure(
            "https://r.openai.azure.com", credential=Slow(), transport=emulator.transport()
        )
        async with asyncio.timeout(5):
            await provider.generate(ImageRequest(PROMPT), ModelName("gpt-image-2"))
        assert asyncio.get_running_loop().time() < 5
        await provider.aclose()

    run_virtual(main())


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (ServiceRequestError("Name or service not known"), "connection"),
        (ClientAuthenticationError("AADSTS7000215: Invalid client secret"), "unauthenticated"),
        (CredentialUnavailableError("EnvironmentCredential authentication unavailable"), "unauthenticated"),
        (RuntimeError("planted-secret-in-a-foreign-error"), "unauthenticated"),
    ],
)  # fmt: skip
def test_a_failed_token_is_a_failure_of_the_account(failure: Exception, reason: str) -> None:
    """An unreachable token server is a connection failure; any other error concerns the account."""
    error = failing(GOOD["openai"], credential=FixedCredential(failure))
    assert (error.reason, error.account_wide) == (reason, reason == "unauthenticated")
    assert error.vendor_error == type(failure).__name__
    assert error.__context__ is None
    assert "planted-secret" not in f"{error} {error.vendor_message}"


@pytest.mark.parametrize(
    ("status", "body", "reason", "account_wide"),
    [
        (404, {"code": "DeploymentNotFound", "message": "The API deployment for this resource does not exist."},
         "model_not_found", False),
        (400, {"code": "content_filter", "message": "The response was filtered.",
               "innererror": {"code": "ResponsibleAIPolicyViolation"}}, "content_blocked", False),
        (400, {"code": "contentFilter", "message": "Your task failed as a result of our safety system."},
         "content_blocked", False),
        (400, {"code": "moderation_blocked", "message": "Rejected."}, "content_blocked", False),
        (401, {"code": "401", "message": "Access denied due to invalid subscription key or wrong API endpoint."},
         "unauthenticated", True),
        (401, {"code": "PermissionDenied", "message": "The principal `x` lacks the required data action `y`."},
         "forbidden", True),
        (403, {"code": "AccessDenied", "message": "Access denied due to Virtual Network/Firewall rules."},
         "forbidden", True),
        (429, {"code": "EngineOverloaded", "message": "The engine is currently overloaded."}, "overloaded", False),
        (429, {"code": "429", "message": "Requests have exceeded the rate limit. Please retry after 9 seconds."},
         "rate_limited", False),
    ],
)  # fmt: skip
def test_azure_errors(status: int, body: dict[str, Any], reason: str, account_wide: bool) -> None:
    """Azure's error codes have the same reasons as OpenAI's."""
    error = failing(http(status, {"error": body}))
    assert (error.reason, error.account_wide) == (reason, account_wide)
    assert error.retry_after == (9 if reason == "rate_limited" else None)


def test_no_log_or_traceback_has_key_or_token(caplog: pytest.LogCaptureFixture) -> None:
    """Neither log records of level DEBUG nor tracebacks with local variables contain them."""
    caplog.set_level(logging.DEBUG)
    for secret, options in ((ENTRA_TOKEN, {}), (AZURE_KEY, {"api_key": AZURE_KEY})):
        body = {"code": "401", "message": f"Access denied for {secret}"}
        error = failing(http(401, {"error": body}), **options)
        frames = traceback.TracebackException.from_exception(error, capture_locals=True)
        shown = repr([each.locals for each in frames.stack if "/tests/" not in each.filename])
        assert secret not in f"{shown} {error} {error.vendor_message} {caplog.text}"


def test_azure_identity_fetches_tokens_of_a_managed_identity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The real DefaultAzureCredential uses App Service's identity endpoint."""

    def answer(request: Received) -> bytes:
        if request.path.startswith("/msi/token"):
            assert request.headers["x-identity-header"] == "identity-secret"
            expires = str(int(time.time()) + 3600)
            return http(
                200, {"access_token": ENTRA_TOKEN, "expires_on": expires, "token_type": "Bearer"}
            )
        return GOOD["openai"]

    async def main() -> RawServer:
        async with raw_server(answer) as server:
            monkeypatch.setenv("IDENTITY_ENDPOINT", f"{server.url}/msi/token")
            monkeypatch.setenv("IDENTITY_HEADER", "identity-secret")
            monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")
            monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", server.url)
            provider = build("azure", Settings())
            assert provider is not None
            await provider.generate(ImageRequest(PROMPT), MODEL)
            await provider.aclose()
            return server

    requests = asyncio.run(main()).requests
    assert requests[0].path.endswith("&resource=https://ai.azure.com")
    assert requests[1].headers["authorization"] == f"Bearer {ENTRA_TOKEN}"


@pytest.mark.parametrize(
    ("selected", "reason"),
    [("ManagedIdentityCredential", "connection"), ("EnvironmentCredential", "unauthenticated")],
)
def test_a_chain_of_credentials_that_reaches_no_server_is_a_connection_failure(
    monkeypatch: pytest.MonkeyPatch, selected: str, reason: str
) -> None:
    """A member of the chain must have requested a token: one that is not configured proves
    nothing about the network.
    """
    monkeypatch.setenv("IDENTITY_ENDPOINT", "http://127.0.0.1:9/msi/token")
    monkeypatch.setenv("IDENTITY_HEADER", "identity-secret")
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", selected)
    error = failing(GOOD["openai"], credential=None)
    assert (error.reason, error.account_wide) == (reason, reason == "unauthenticated")
    assert error.vendor_error == "ClientAuthenticationError"
    assert f"Attempted credentials: {selected}: " in " ".join(str(error.vendor_message).split())
    assert error.__context__ is None


def test_a_token_that_azure_rejects_is_replaced_by_a_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rejected token is not returned again from the cache of the real
    DefaultAzureCredential.
    """
    issued: list[str] = []
    sent: list[str] = []

    def answer(request: Received) -> bytes:
        if request.path.startswith("/msi/token"):
            issued.append(f"entra-token-{len(issued)}")
            expires = str(int(time.time()) + 3600)
            return http(
                200, {"access_token": issued[-1], "expires_on": expires, "token_type": "Bearer"}
            )
        sent.append(request.headers["authorization"].removeprefix("Bearer "))
        if sent == ["entra-token-0"] * 3:
            return http(401, {"error": {"code": "401", "message": "Token was revoked."}})
        return GOOD["openai"]

    async def main() -> None:
        async with raw_server(answer) as server:
            monkeypatch.setenv("IDENTITY_ENDPOINT", f"{server.url}/msi/token")
            monkeypatch.setenv("IDENTITY_HEADER", "identity-secret")
            monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")
            provider = AzureProvider(endpoint=server.url)
            for _ in range(3):
                await provider.generate(ImageRequest(PROMPT), MODEL)
            await provider.aclose()

    asyncio.run(main())
    assert sent == ["entra-token-0", "entra-token-0", "entra-token-0", "entra-token-1"]


def test_without_azure_identity_the_error_names_key_and_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error is raised at construction, not by the first request."""

    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("resilient_imagen.providers.entra_id.find_spec", missing)
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "https://r.openai.azure.com")
    with pytest.raises(
        ConfigurationError, match=r"set the key, or install resilient-imagen\[azure\]"
    ):
        build("azure", Settings())
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "k")
    assert build("azure", Settings()) is not None


def test_a_route_without_an_endpoint_is_off() -> None:
    """A missing endpoint has the same effect as a missing key."""
    assert build("azure", Settings()) is None


@pytest.mark.parametrize(
    ("variable", "value"),
    [("AZURE_OPENAI_ENDPOINT", "my-resource"), ("AZURE_OPENAI_API_KEY", "a b")],
)
def test_shared_variables_are_checked_only_where_they_are_used(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    """Invalid values may be meant for another program."""
    monkeypatch.setenv(variable, value)
    settings = Settings()
    with pytest.raises(ConfigurationError, match=variable):
        build("azure", settings)
