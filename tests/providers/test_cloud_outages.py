"""Outages with Vertex AI and Azure as further endpoints, through the emulator's sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cloud_kit import AZURE_KEY, EMAIL, ENTRA_TOKEN, PROJECT, azure, service_account
from failure_cases import CASES, failures
from providers_kit import KEY
from telemetry_kit import Telemetry

from resilient_imagen import (
    ImageClient,
    ImageGenerationError,
    ImageResult,
    ProviderError,
    Settings,
)
from resilient_imagen.emulator import BackgroundEmulator, Emulator, EmulatorServer, faults
from resilient_imagen.emulator.faults import Fault
from resilient_imagen.providers.azure import AzureProvider
from resilient_imagen.providers.sdk import SdkProvider
from resilient_imagen.providers.vertex import VertexProvider

PRO, FLARE = "gemini-3-pro-image", "gpt-image-2.5-flare"
ROUTES = f"google:{PRO},vertex:{PRO},openai:{FLARE},azure:my-images={FLARE}"
Scene = Callable[[Emulator, ImageClient, EmulatorServer], Awaitable[None]]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Telemetry]:
    """Run a scene with all four endpoints, set up by variables only."""

    def run(scene: Scene, routes: str = ROUTES, **settings: Any) -> Telemetry:
        telemetry = Telemetry()

        async def main() -> None:
            app = Emulator(picture="tiny", azure_deployments={"my-images": FLARE})
            async with EmulatorServer(app) as server:
                variables = {
                    "GOOGLE_GENAI_API_KEY": "google-key",
                    "GOOGLE_GEMINI_BASE_URL": server.google_url,
                    "GOOGLE_APPLICATION_CREDENTIALS": str(
                        service_account(tmp_path, server.token_url)
                    ),
                    "VERTEX_BASE_URL": server.vertex_url,
                    "OPENAI_API_KEY": "openai-key",
                    "OPENAI_BASE_URL": server.openai_url,
                    "AZURE_OPENAI_ENDPOINT": server.azure_url,
                    "AZURE_OPENAI_API_KEY": AZURE_KEY,
                }
                for name, value in variables.items():
                    monkeypatch.setenv(name, value)
                made = Settings(routes=routes, ipm=6000, max_retries=0, **settings)
                async with ImageClient(made, tracer_provider=telemetry.tracers) as client:
                    await client.warm_up()
                    await scene(app, client, server)

        asyncio.run(main())
        return telemetry

    return run


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (faults.overload(), "overloaded"),
        (faults.quota_exhausted(), "quota_exhausted"),
        (faults.hang(), "timeout"),
    ],
    ids=["overload", "quota", "hang"],
)
def test_vertex_serves_the_same_model_while_the_gemini_api_fails(
    play: Callable[..., Telemetry], fault: Fault, reason: str
) -> None:
    """Spans have the cause, the failed endpoint and the serving endpoint."""

    async def scene(app: Emulator, client: ImageClient, server: EmulatorServer) -> None:
        app.google.set(fault)
        result = await client.generate("a lighthouse")
        assert (result.provider, result.model, result.fallback_reason) == ("vertex", PRO, reason)

    telemetry = play(scene, per_call_timeout=2.0, on_timeout="abandon")
    failed, served = telemetry.attempts()
    assert failed.attributes is not None
    assert served.attributes is not None
    assert failed.attributes["gen_ai.provider.name"] == "gcp.gemini"
    assert failed.attributes["error.type"] == reason
    assert served.attributes["gen_ai.provider.name"] == "gcp.vertex_ai"
    (root,) = telemetry.roots()
    found = dict(root.attributes or {})
    assert found["imagegen.provider.served"] == "vertex"
    assert found["imagegen.fallback.cause"] == reason
    assert found["imagegen.fallback.from"] == f"google:{PRO}"
    assert PROJECT not in repr([dict(span.attributes or {}) for span in telemetry.spans()])


def test_openai_serves_while_both_google_endpoints_are_down(
    play: Callable[..., Telemetry],
) -> None:
    """The next vendor is asked after all endpoints of the model."""

    async def scene(app: Emulator, client: ImageClient, server: EmulatorServer) -> None:
        app.google.set(faults.overload())
        app.vertex.set(faults.overload())
        assert (await client.generate("a lighthouse")).provider == "openai"

    play(scene)


def test_azure_serves_while_openais_account_has_no_credit(
    play: Callable[..., Telemetry],
) -> None:
    """An account-wide error opens that account's routes only."""

    async def scene(app: Emulator, client: ImageClient, server: EmulatorServer) -> None:
        app.openai.set(faults.quota_exhausted())
        for _ in range(2):
            result = await client.generate("a lighthouse")
            assert (result.provider, result.model) == ("azure", FLARE)
        assert result.usage["cost_usd"] is not None
        assert len(app.openai.requests) == 1
        assert len(app.azure.requests) == 2

    telemetry = play(scene, f"openai:{FLARE},azure:my-images={FLARE}")
    names = [dict(span.attributes or {})["gen_ai.provider.name"] for span in telemetry.attempts()]
    assert names == ["openai", "azure.ai.openai", "azure.ai.openai"]


@pytest.mark.parametrize(
    ("service", "fault", "reason"),
    [
        ("vertex", faults.error("credentials_expired"), "unauthenticated"),
        ("vertex", faults.error("permission_denied"), "forbidden"),
        ("vertex", faults.error("location_unknown"), "forbidden"),
        ("vertex", faults.error("model_gone"), "model_not_found"),
        ("vertex", faults.blocked(), "content_blocked"),
        ("azure", faults.error("deployment_not_found"), "model_not_found"),
        ("azure", faults.error("content_filter"), "content_blocked"),
        ("azure", faults.error("permission_denied"), "forbidden"),
        ("azure", faults.error("key_invalid"), "unauthenticated"),
        ("azure", faults.rate_limited(7), "rate_limited"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_failures_of_the_clouds(
    play: Callable[..., Telemetry], service: str, fault: Fault, reason: str
) -> None:
    """Each failure has its reason, over the emulator's paths."""

    async def scene(app: Emulator, client: ImageClient, server: EmulatorServer) -> None:
        getattr(app, service).set(fault)
        with pytest.raises(ImageGenerationError) as caught:
            await client.generate("a lighthouse")
        assert caught.value.reason == reason
        assert "123456789012" not in f"{caught.value} {caught.value.vendor_message}"

    play(scene, f"vertex:{PRO}" if service == "vertex" else f"azure:my-images={FLARE}")


def test_a_deployment_that_does_not_exist_is_model_not_found(
    play: Callable[..., Telemetry],
) -> None:
    """The emulator has only the deployments with which it was created."""

    async def scene(app: Emulator, client: ImageClient, server: EmulatorServer) -> None:
        with pytest.raises(ProviderError, match=f"azure {FLARE}: 404 NOT_FOUND") as caught:
            await client.generate("a lighthouse")
        assert caught.value.reason == "model_not_found"

    play(scene, f"azure:other={FLARE}")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (faults.error("invalid_grant"), "unauthenticated"),
        (faults.reset(), "connection"),
        (faults.disconnect(), "connection"),
        (faults.status(503), "server_error"),
        (faults.bad_json(), "invalid_response"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_faults_of_the_token_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: Fault, reason: str
) -> None:
    """A failing token server leads to the next route, and Vertex AI serves again afterwards."""
    monkeypatch.setattr("google.auth._exponential_backoff.time.sleep", lambda _: None)

    async def main() -> None:
        app = Emulator(picture="tiny")
        async with EmulatorServer(app) as server:
            app.tokens.set(fault)
            account = service_account(tmp_path, server.token_url)
            vertex = VertexProvider(credentials=account, base_url=server.vertex_url)
            azure = AzureProvider(endpoint=server.azure_url, api_key=AZURE_KEY)
            settings = Settings(
                routes=f"vertex:{PRO},azure:{FLARE}", ipm=6000, max_retries=0, breaker_mode="off"
            )
            async with ImageClient(settings, providers=[vertex, azure]) as client:
                result: ImageResult = await client.generate("a lighthouse")
                assert (result.provider, result.fallback_reason) == ("azure", reason)
                app.tokens.heal()
                assert (await client.generate("a lighthouse")).provider == "vertex"

    asyncio.run(main())


def test_two_projects_have_limits_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each provider has its own rate limit, concurrency and time limit."""
    monkeypatch.setenv("IMAGE_GEN_VERTEX_IPM", "20")
    monkeypatch.setenv("IMAGE_GEN_VERTEX_MAX_CONCURRENT", "2")
    monkeypatch.setenv("IMAGE_GEN_AZURE_TIMEOUT", "99")
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "https://r.openai.azure.com")
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", AZURE_KEY)
    client = ImageClient(Settings(routes=f"vertex:{PRO},azure:{FLARE}"))
    vertex, azure = client._routing.routes
    assert (vertex.limiter.snapshot()["max_concurrent"], vertex.timeout) == (2, 60)
    assert (azure.limiter.snapshot()["max_concurrent"], azure.timeout) == (4, 99)


def _with_keys(vendor: str, url: str) -> SdkProvider:
    """Return a provider with a key, of express mode for Vertex AI."""
    if vendor == "google":
        return VertexProvider(api_key=KEY, base_url=url, name="google")
    return AzureProvider(endpoint=url, api_key=KEY, name="openai")


@pytest.mark.parametrize("access", ["keys", "tokens"])
def test_the_failure_catalogue_has_the_same_reasons(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, access: str
) -> None:
    """Every reported failure, through the paths of Vertex AI and Azure.

    With tokens, Vertex AI has a project and a service account whose tokens come from a server.
    """

    with BackgroundEmulator() as emulator:
        account = service_account(tmp_path, emulator.token_url)

        def with_tokens(vendor: str, url: str) -> SdkProvider:
            if vendor == "google":
                return VertexProvider(credentials=account, base_url=url, name="google")
            return azure(url, name="openai")

        chosen = _with_keys if access == "keys" else with_tokens
        monkeypatch.setattr("failure_cases.provider_for", chosen)
        outcomes = asyncio.run(failures())
        assert bool(emulator.tokens.requests) == (access == "tokens")
    for case in CASES:
        outcome = outcomes[case["id"]]
        if isinstance(outcome, str):
            assert outcome == case["reason"], case["id"]
            continue
        assert outcome.reason == case["reason"], case["id"]
        hint = case["retry_after_s"]
        assert outcome.retry_after == (None if hint is None else pytest.approx(hint)), case["id"]
        shown = f"{outcome} {outcome.vendor_message}"
        assert not [each for each in (KEY, PROJECT, ENTRA_TOKEN, EMAIL) if each in shown]
