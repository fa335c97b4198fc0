"""Credentials of Vertex AI, Azure and declared providers appear in no output.

The providers are set up by variables, and use the real libraries and sockets.
"""

from __future__ import annotations

import asyncio
import json
import logging
import traceback
from pathlib import Path
from typing import Any

import pytest
from cloud_kit import (
    AZURE_KEY,
    EMAIL,
    ENTRA_TOKEN,
    PROJECT,
    TOKEN,
    google_token,
    private_key,
    service_account,
)
from providers_kit import RawServer, Received, http, raw_server
from telemetry_kit import Telemetry

from resilient_imagen import ImageClient, ImageGenerationError, Settings

NUMBER = "480912345678"
EXPRESS_KEY, SECOND_KEY = "planted-express-key-0123", "planted.second-key.4567"
SECRETS = {
    "project": PROJECT,
    "number": NUMBER,
    "token": TOKEN,
    "e-mail": EMAIL,
    "private key": private_key().splitlines()[3],
    "Azure's key": AZURE_KEY,
    "token of Entra ID": ENTRA_TOKEN,
    "key of express mode": EXPRESS_KEY,
    "key of a declared provider": SECOND_KEY,
}
ROUTES = (
    "vertex:gemini-3-pro-image",
    "vertex_b:gemini-3-pro-image",
    "vertex_c:gemini-3-pro-image",
    "azure:my-images=gpt-image-2",
    "azure_b:my-images=gpt-image-2",
    "proxy:some-model",
)


def echo(request: Received, status: int) -> bytes:
    """Return an error that quotes the whole request and everything that is planted."""
    quoted = f"{request.path} {request.headers} {' '.join(SECRETS.values())}"
    message = f"no access to projects/{NUMBER}, projects/{PROJECT}: {quoted} {private_key()}"
    return http(status, {"error": {"code": status, "message": message, "status": message}})


def shown_by(error: BaseException) -> str:
    """Return everything that an application may print about an error, including local variables."""
    frames = traceback.TracebackException.from_exception(error, capture_locals=True)
    ours = [each.locals for each in frames.stack if "/tests/" not in each.filename]
    return f"{error!r} {error} {vars(error)} {ours} {traceback.format_exception(error)}"


def logged(record: logging.LogRecord) -> str:
    """Return everything that a formatter may show of a record.

    At level DEBUG google-auth logs the token server's response. It hides the tokens itself, but no
    error descriptions.
    """
    extra = {name: value for name, value in vars(record).items() if name != "httpResponse"}
    return f"{record.getMessage()} {extra}"


async def run_calls(
    monkeypatch: pytest.MonkeyPatch, folder: Path, telemetry: Telemetry, status: int, fault: str
) -> tuple[list[str], RawServer]:
    """Send a request to every endpoint; return the output of an application, and the server."""

    def answer(request: Received) -> bytes | None:
        is_token = request.path.startswith(("/token", "/msi/token"))
        if not is_token or fault == "refused":
            return echo(request, status)
        if request.path == "/token":
            return google_token()
        answer = {"access_token": ENTRA_TOKEN, "expires_on": "4102444800", "token_type": "Bearer"}
        return http(200, answer)

    async with raw_server(answer) as server:
        tokens = "http://127.0.0.1:9" if fault == "unreachable" else server.url
        account = str(service_account(folder, f"{tokens}/token"))
        for name, value in {
            "GOOGLE_CLOUD_PROJECT": NUMBER,
            "GOOGLE_APPLICATION_CREDENTIALS": account,
            "VERTEX_BASE_URL": server.url,
            "IMAGE_GEN_PROVIDER_VERTEX_B": "vertex",
            "VERTEX_B_CREDENTIALS": account,
            "VERTEX_B_BASE_URL": server.url,
            "IMAGE_GEN_PROVIDER_VERTEX_C": "vertex",
            "VERTEX_C_API_KEY": EXPRESS_KEY,
            "VERTEX_C_BASE_URL": server.url,
            "AZURE_OPENAI_ENDPOINT": server.url,
            "AZURE_OPENAI_API_KEY": AZURE_KEY,
            "IMAGE_GEN_PROVIDER_AZURE_B": "azure",
            "AZURE_B_BASE_URL": server.url,
            "IDENTITY_ENDPOINT": f"{tokens}/msi/token",
            "IDENTITY_HEADER": "identity-secret",
            "AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential",
            "IMAGE_GEN_PROVIDER_PROXY": "openai",
            "PROXY_API_KEY": SECOND_KEY,
            "PROXY_BASE_URL": f"{server.url}/v1",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        shown = []
        settings = Settings(routes=ROUTES, ipm=6000, max_retries=0)
        async with ImageClient(
            settings, tracer_provider=telemetry.tracers, meter_provider=telemetry.meters
        ) as client:
            for route in ROUTES:
                with pytest.raises(ImageGenerationError) as caught:
                    await client.generate("a lighthouse", routes=route)
                shown.append(shown_by(caught.value))
            shown += [repr(settings), repr(client), json.dumps(client.snapshot())]
        return shown, server


@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("status", "fault"),
    [(401, "none"), (403, "none"), (503, "none"), (400, "refused"), (503, "unreachable")],
)
def test_no_credential_of_any_endpoint_is_output(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    status: int,
    fault: str,
) -> None:
    """Logs at level DEBUG, spans, metrics, errors, tracebacks with local variables and
    snapshots contain none.

    The service, or the token server, quotes everything in its error.
    """
    monkeypatch.setattr("google.auth._exponential_backoff.time.sleep", lambda _: None)
    caplog.set_level(logging.DEBUG)
    telemetry = Telemetry()
    shown, server = asyncio.run(run_calls(monkeypatch, tmp_path, telemetry, status, fault))
    spans: list[Any] = [
        (each.name, dict(each.attributes or {}), each.status.description, list(each.events))
        for each in telemetry.spans()
    ]
    events = [dict(event.attributes or {}) for each in telemetry.spans() for event in each.events]
    metrics = telemetry.reader.get_metrics_data()
    assert metrics is not None
    records = [each for each in caplog.records if each.name.startswith(("imagegen", "resilient"))]
    assert len(records) >= len(ROUTES)
    assert len(server.requests) >= (len(ROUTES) if fault == "none" else 3)
    places = {
        "errors": "\n".join(shown),
        "spans": repr(spans) + repr(events),
        "metrics": metrics.to_json(),
        "logs": "\n".join(map(logged, caplog.records)),
    }
    for place, text in places.items():
        for what, secret in SECRETS.items():
            at = text.find(secret)
            assert at < 0, f"{what} in {place}: …{text[max(0, at - 300) : at + 100]}…"
