"""Vertex AI: addresses, credentials in a thread, and failures of token servers."""

# ruff: noqa: E501 - vendors' messages, as they are sent

from __future__ import annotations

import asyncio
import logging
import threading
import traceback
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from cloud_kit import EMAIL, PROJECT, TOKEN, google_token, service_account, vertex, with_tokens
from providers_kit import GOOD, PROMPT, RawServer, Received, arrived, http, raw_server, reference

from resilient_imagen import ConfigurationError, ImageGenerationError, Reason, Settings
from resilient_imagen.providers import build
from resilient_imagen.providers.access_token import AccessToken
from resilient_imagen.providers.google import split_version
from resilient_imagen.providers.vertex import VertexProvider, vertex_address
from resilient_imagen.request import ImageRequest

PRO = "gemini-3-pro-image"


async def one_request(
    folder: Path,
    answer: Any = GOOD["google"],
    request: ImageRequest | None = None,
    **options: Any,
) -> RawServer:
    """Send one request through Vertex AI and return the server."""
    async with raw_server(with_tokens(answer)) as server:
        provider = vertex(server.url, folder, **options)
        try:
            await provider.generate(request or ImageRequest(PROMPT), PRO)
        finally:
            await provider.aclose()
        return server


def failing(folder: Path, answer: Any, **options: Any) -> ImageGenerationError:
    """Return the error of one request."""

    async def main() -> ImageGenerationError:
        async with raw_server(answer) as server:
            provider = vertex(server.url, folder, **options)
            with pytest.raises(ImageGenerationError) as caught:
                await provider.generate(ImageRequest(PROMPT), PRO)
            await provider.aclose()
            return caught.value

    return asyncio.run(main())


def test_a_request_has_token_project_and_location(tmp_path: Path) -> None:
    """The path is that of Vertex AI, and the default project is that of the credentials."""
    server = asyncio.run(one_request(tmp_path, location="europe-west4"))
    token_request, request = server.requests
    assert token_request.path == "/token"
    assert request.headers["authorization"] == f"Bearer {TOKEN}"
    assert request.path == (
        f"/v1beta1/projects/{PROJECT}/locations/europe-west4/publishers/google/models/{PRO}"
        ":generateContent"
    )


def test_the_configured_project_takes_precedence(tmp_path: Path) -> None:
    """A service account may use another project than its own.

    A base URL may contain the version.
    """
    server = asyncio.run(one_request(tmp_path, project="123456789012"))
    assert "/v1beta1/projects/123456789012/locations/global/" in server.requests[1].path


def test_references_are_sent_as_to_the_gemini_api(tmp_path: Path) -> None:
    """The body equals that of a request to the Gemini API."""
    request = ImageRequest(PROMPT, references=(reference(),))
    server = asyncio.run(one_request(tmp_path, request=request))
    ours, theirs = server.requests[1].json, arrived("google", request).json
    assert ours["contents"][-1]["parts"] == theirs["contents"][-1]["parts"]
    assert ours["generationConfig"] == theirs["generationConfig"]


def test_an_express_key_needs_no_project() -> None:
    """The key is sent in its header, and the path has neither project nor location."""

    async def main() -> Received:
        async with raw_server(GOOD["google"]) as server:
            provider = VertexProvider(api_key="express-key", base_url=server.url)
            await provider.generate(ImageRequest(PROMPT), PRO)
            await provider.aclose()
            return server.requests[0]

    request = asyncio.run(main())
    assert request.headers["x-goog-api-key"] == "express-key"
    assert request.path == f"/v1beta1/publishers/google/models/{PRO}:generateContent"


def test_the_environment_changes_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK's own variables have no effect on project, location, key or version."""
    for name in ("GOOGLE_API_KEY", "GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION"):
        monkeypatch.setenv(name, "other")
    monkeypatch.setenv("GOOGLE_GENAI_API_VERSION", "v9")
    server = asyncio.run(one_request(tmp_path))
    assert server.requests[1].path.startswith(f"/v1beta1/projects/{PROJECT}/locations/global/")
    assert "x-goog-api-key" not in server.requests[1].headers


@pytest.mark.parametrize(
    ("location", "host"),
    [
        ("global", "aiplatform.googleapis.com"),
        ("us", "aiplatform.us.rep.googleapis.com"),
        ("eu", "aiplatform.eu.rep.googleapis.com"),
        ("europe-west4", "europe-west4-aiplatform.googleapis.com"),
    ],
)
def test_the_host_is_that_of_the_location(location: str, host: str) -> None:
    """Each location has its own capacity and, except global, its own data residency."""
    provider = VertexProvider(project=PROJECT, location=location)
    assert vertex_address(location) == provider.endpoint.base_url == f"https://{host}"
    assert (provider.endpoint.vendor, provider.endpoint.any_vendor) == ("google", False)
    assert PROJECT not in provider.endpoint.account


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("https://relay.example/v1beta", ("https://relay.example", "v1beta")),
        ("https://relay.example/gemini/v1/", ("https://relay.example/gemini", "v1")),
        ("https://relay.example/v1beta1", ("https://relay.example", "v1beta1")),
        ("https://relay.example/gemini", ("https://relay.example/gemini", None)),
        ("https://v1", ("https://v1", None)),
        ("https://relay.example/v1beta?key=1", ("https://relay.example/v1beta?key=1", None)),
    ],
)
def test_an_address_may_end_in_a_version(address: str, parts: tuple[str, str | None]) -> None:
    """Many relays and mock servers offer only one version."""
    assert split_version(address) == parts


@pytest.mark.parametrize("version", ["v1", "v1beta"])
def test_a_version_in_the_address_is_sent_once(version: str) -> None:
    """It replaces the default version."""
    request = arrived("google", ImageRequest(PROMPT), path=f"/relay/{version}")
    assert request.path == f"/relay/{version}/models/{PRO}:generateContent"


def test_a_token_is_fetched_once_for_concurrent_requests(tmp_path: Path) -> None:
    """The token is reused while it is valid, and is not fetched on the event loop."""
    threads: set[str] = set()
    names = threading.enumerate

    def answer(request: Received) -> bytes:
        if request.path == "/token":
            threads.update(thread.name for thread in names())
            return google_token()
        return GOOD["google"]

    async def main() -> RawServer:
        async with raw_server(answer) as server:
            provider = vertex(server.url, tmp_path)
            await provider.warm_up()
            for _ in range(2):
                await asyncio.gather(
                    *(provider.generate(ImageRequest(PROMPT), PRO) for _ in range(4))
                )
            await provider.aclose()
            return server

    server = asyncio.run(main())
    assert [request.path for request in server.requests].count("/token") == 1
    assert "resilient-imagen-vertex" in threads


class RevokingServer:
    """A server that issues tokens in order, and rejects those in ``revoked``."""

    def __init__(self, *tokens: str, revoked: Iterable[str] = ()) -> None:
        self.tokens = iter(tokens)
        self.revoked = set(revoked)
        self.answers: list[str] = []

    def __call__(self, request: Received) -> bytes:
        if request.path == "/token":
            self.answers.append("token")
            return google_token(next(self.tokens))
        if request.headers["authorization"].removeprefix("Bearer ") in self.revoked:
            self.answers.append("401")
            body = {"code": 401, "status": "UNAUTHENTICATED", "message": "Token has expired"}
            return http(401, {"error": body})
        self.answers.append("200")
        return GOOD["google"]


def test_a_revoked_token_is_replaced_within_the_request(tmp_path: Path) -> None:
    """A kept token that the server rejects is renewed once, also for concurrent requests."""
    server_side = RevokingServer("first-token-of-two", "second-token-of-two")

    async def main() -> None:
        async with raw_server(server_side) as server:
            provider = vertex(server.url, tmp_path)
            await provider.generate(ImageRequest(PROMPT), PRO)
            server_side.answers.clear()
            server_side.revoked.add("first-token-of-two")
            both = (provider.generate(ImageRequest(PROMPT), PRO) for _ in range(2))
            for result in await asyncio.gather(*both):
                assert result.images
            await provider.aclose()

    asyncio.run(main())
    assert sorted(server_side.answers) == ["200", "200", "401", "401", "token"]


def test_a_new_token_that_is_rejected_is_unauthenticated(tmp_path: Path) -> None:
    """The account is at fault: the request is sent once, and the next request gets a new token."""
    server_side = RevokingServer("first-token", "second-token", revoked=["first-token"])

    async def main() -> None:
        async with raw_server(server_side) as server:
            provider = vertex(server.url, tmp_path)
            with pytest.raises(ImageGenerationError) as caught:
                await provider.generate(ImageRequest(PROMPT), PRO)
            assert (caught.value.reason, caught.value.account_wide) == ("unauthenticated", True)
            await provider.generate(ImageRequest(PROMPT), PRO)
            await provider.aclose()

    asyncio.run(main())
    assert server_side.answers == ["token", "401", "token", "200"]


def test_a_renewed_token_that_is_rejected_too_is_unauthenticated(tmp_path: Path) -> None:
    """The token is renewed once only."""
    both = "first-token", "second-token"
    server_side = RevokingServer(*both, "third-token", revoked=both)

    async def main() -> None:
        async with raw_server(server_side) as server:
            provider = vertex(server.url, tmp_path)
            await provider.warm_up()
            with pytest.raises(ImageGenerationError) as caught:
                await provider.generate(ImageRequest(PROMPT), PRO)
            assert caught.value.reason is Reason.UNAUTHENTICATED
            await provider.aclose()

    asyncio.run(main())
    assert server_side.answers == ["token", "401", "token", "401"]


def test_loading_credentials_does_not_change_warning_filters(tmp_path: Path) -> None:
    """Warning filters are shared with other threads, so they are never replaced."""
    filters = warnings.filters
    asyncio.run(one_request(tmp_path))
    assert warnings.filters is filters


def test_a_token_that_expires_soon_serves_while_it_is_renewed(tmp_path: Path) -> None:
    """Requests use the old token during the renewal."""
    served: list[str] = []

    def answer(request: Received) -> bytes | None:
        if request.path == "/token":
            served.append("token")
            return google_token(seconds=100) if len(served) == 1 else None
        return GOOD["google"]

    async def main() -> None:
        async with raw_server(answer) as server:
            provider = vertex(server.url, tmp_path)
            for _ in range(3):
                await provider.generate(ImageRequest(PROMPT), PRO)
            await provider.aclose()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (http(400, {"error": "invalid_grant", "error_description": f"{EMAIL} {TOKEN}"}), "unauthenticated"),
        (http(401, {"error": "unauthorized_client"}), "unauthenticated"),
        (http(200, {"token": "none"}), "unauthenticated"),
    ],
)  # fmt: skip
def test_a_failed_refresh_is_unauthenticated(tmp_path: Path, reply: bytes, reason: str) -> None:
    """The error is account-wide, names the cause, and shows neither key nor account."""
    error = failing(tmp_path, reply)
    assert (error.reason, error.account_wide) == (reason, True)
    assert error.vendor_error == "RefreshError"
    assert EMAIL not in str(error.vendor_message)
    assert error.__context__ is None


def test_an_unreachable_token_server_is_a_connection_failure(tmp_path: Path) -> None:
    """No request is sent to Vertex AI, and the next attempt requests a token again."""
    error = failing(tmp_path, GOOD["google"], token_uri="http://127.0.0.1:9/token")
    assert (error.reason, error.account_wide) == (Reason.CONNECTION, False)
    assert error.vendor_error == "TransportError"


def test_a_caller_need_not_wait_for_a_token_server_that_hangs(tmp_path: Path) -> None:
    """A cancelled call ends while the token server still keeps its connection open."""

    async def main() -> None:
        asked = asyncio.Event()

        def answer(request: Received) -> bytes | None:
            if request.path != "/token":
                return b""
            asked.set()
            return None

        async with raw_server(answer) as server:
            provider = vertex(server.url, tmp_path)
            waiting = asyncio.ensure_future(provider.generate(ImageRequest(PROMPT), PRO))
            await asked.wait()
            waiting.cancel()
            await asyncio.wait({waiting})
            assert waiting.cancelled()
            await provider.aclose()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (None, "DefaultCredentialsError"),
        ("no json", "DefaultCredentialsError"),
        ('{"type": "service_account", "private_key": "planted-private-key"}', "MalformedError"),
    ],
)
def test_a_bad_credentials_file_is_unauthenticated(
    tmp_path: Path, content: str | None, name: str
) -> None:
    """The call falls back to the next route, and the error contains nothing of the file."""
    path = tmp_path / "account.json"
    if content is not None:
        path.write_text(content)

    async def main() -> ImageGenerationError:
        provider = VertexProvider(credentials=str(path), base_url="http://127.0.0.1:9")
        with pytest.raises(ImageGenerationError) as caught:
            await provider.generate(ImageRequest(PROMPT), PRO)
        await provider.aclose()
        return caught.value

    error = asyncio.run(main())
    assert error.reason is Reason.UNAUTHENTICATED
    assert error.vendor_error in {name, "DefaultCredentialsError"}
    assert "planted-private-key" not in f"{error} {error.vendor_message}"


RPC = "type.googleapis.com/google.rpc.ErrorInfo"


@pytest.mark.parametrize(
    ("status", "body", "reason", "account_wide"),
    [
        (401, {"status": "UNAUTHENTICATED", "message": "Request had invalid authentication credentials.",
               "details": [{"@type": RPC, "reason": "ACCESS_TOKEN_EXPIRED"}]}, "unauthenticated", True),
        (403, {"status": "PERMISSION_DENIED",
               "message": "Permission 'aiplatform.endpoints.predict' denied on resource "
               f"'//aiplatform.googleapis.com/projects/{PROJECT}/locations/global' (or it may not exist).",
               "details": [{"@type": RPC, "reason": "IAM_PERMISSION_DENIED"}]}, "forbidden", True),
        (403, {"status": "PERMISSION_DENIED",
               "message": "Permission 'aiplatform.endpoints.predict' denied on resource '//x' (or it may not exist)."},
         "forbidden", True),
        (403, {"status": "PERMISSION_DENIED",
               "message": "Vertex AI API has not been used in project 123456789012 before or it is disabled."},
         "forbidden", True),
        (400, {"status": "INVALID_ARGUMENT", "message": "Unsupported region: mars-north1."}, "forbidden", True),
        (400, {"status": "FAILED_PRECONDITION",
               "message": "Location mars-north1 is not supported."}, "forbidden", True),
        (404, {"status": "NOT_FOUND",
               "message": f"Publisher Model `projects/{PROJECT}/locations/us/publishers/google/models/x` was "
               "not found or your project does not have access to it."}, "model_not_found", False),
        (429, {"status": "RESOURCE_EXHAUSTED", "message": "Resource exhausted. Please try again later."},
         "overloaded", False),
    ],
)  # fmt: skip
def test_vertex_errors(
    tmp_path: Path, status: int, body: dict[str, Any], reason: str, account_wide: bool
) -> None:
    """Failures of credentials, permission and location concern the account, and errors do not
    contain the project.
    """
    error = failing(tmp_path, with_tokens(http(status, {"error": {"code": status, **body}})))
    assert (error.reason, error.account_wide) == (reason, account_wide)
    shown = f"{error} {error.vendor_message}"
    assert PROJECT not in shown
    assert "123456789012" not in shown


def test_no_log_or_traceback_has_token_or_project(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither log records of level DEBUG nor tracebacks with local variables contain them."""
    caplog.set_level(logging.DEBUG)
    message = f"no access for projects/{PROJECT} with {TOKEN}"
    body = {"code": 403, "status": "PERMISSION_DENIED", "message": message}
    error = failing(tmp_path, with_tokens(http(403, {"error": body})))
    ours = [each.getMessage() for each in caplog.records if not each.name.startswith("asyncio")]
    frames = traceback.TracebackException.from_exception(error, capture_locals=True)
    shown = repr([each.locals for each in frames.stack if "/tests/" not in each.filename])
    for secret in (PROJECT, TOKEN):
        assert not [line for line in ours if secret in line]
        assert secret not in shown
        assert secret not in f"{error} {error.vendor_message}"
    assert secret not in repr(AccessToken(TOKEN, 0.0, project=PROJECT))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"project": "My Project"}, "vertex: the project must be a project's ID or number"),
        ({"location": "Europe!"}, "vertex: the location must be global, us, eu or a region"),
        ({"prompt_hints": ["style"]}, "vertex: prompt_hints must be quality, orientation"),
        ({"api_key": " "}, "vertex: the API key is empty"),
        ({"base_url": "aiplatform"}, "vertex: the base URL must be an address"),
        ({"base_url": "off"}, "vertex: the base URL must be an address"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    """The error is raised at construction, and does not contain the project."""
    with pytest.raises(ConfigurationError) as caught:
        VertexProvider(**options)
    assert message in str(caught.value)
    assert "My Project" not in str(caught.value)


def test_variables_build_the_provider(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each of Vertex AI's variables applies, and a declared provider has its own."""

    async def main() -> RawServer:
        async with raw_server(with_tokens(GOOD["google"])) as server:
            account = service_account(tmp_path, f"{server.url}/token")
            monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "first-project")
            monkeypatch.setenv("GOOGLE_CLOUD_LOCATION", "eu")
            monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(account))
            monkeypatch.setenv("VERTEX_BASE_URL", server.url)
            monkeypatch.setenv("IMAGE_GEN_PROVIDER_VERTEX_B", "vertex")
            monkeypatch.setenv("VERTEX_B_PROJECT", "second-project")
            monkeypatch.setenv("VERTEX_B_CREDENTIALS", str(account))
            monkeypatch.setenv("VERTEX_B_BASE_URL", server.url)
            monkeypatch.setenv("IMAGE_GEN_PROVIDER_VERTEX_C", "vertex")
            monkeypatch.setenv("VERTEX_C_API_KEY", "express-key")
            monkeypatch.setenv("VERTEX_C_BASE_URL", server.url)
            settings = Settings()
            assert "first-project" not in repr(settings)
            for name in ("vertex", "vertex_b", "vertex_c"):
                provider = build(name, settings)
                assert provider is not None
                await provider.generate(ImageRequest(PROMPT), PRO)
                await provider.aclose()
            return server

    paths = [request.path for request in asyncio.run(main()).requests]
    assert [path.split("/publishers")[0] for path in paths if path != "/token"] == [
        "/v1beta1/projects/first-project/locations/eu",
        "/v1beta1/projects/second-project/locations/global",
        "/v1beta1",
    ]


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("GOOGLE_CLOUD_PROJECT", "My Project", "GOOGLE_CLOUD_PROJECT must be a project's ID"),
        ("GOOGLE_CLOUD_LOCATION", "Mars!", "GOOGLE_CLOUD_LOCATION must be global"),
        ("VERTEX_BASE_URL", "x", "VERTEX_BASE_URL must be an address"),
    ],
)
def test_shared_variables_are_checked_only_where_they_are_used(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    """Invalid values may be meant for another program."""
    monkeypatch.setenv(variable, value)
    settings = Settings()
    with pytest.raises(ConfigurationError) as caught:
        build("vertex", settings)
    assert message in str(caught.value)
