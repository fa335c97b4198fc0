"""Keys, prompts and images that a vendor echoes do not appear in any output."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import random
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
import structlog
from cloud_kit import ENTRA_TOKEN, PROJECT, TOKEN, FixedCredential
from google.auth.credentials import Credentials
from opentelemetry.sdk.trace import ReadableSpan
from paths import DATA
from providers_kit import MODELS, google_body, openai_body
from telemetry_kit import Telemetry

from resilient_imagen import ImageClient, ImageGenerationError, ProviderError, Reason, Settings
from resilient_imagen._provider_settings import ProviderArguments
from resilient_imagen.providers.azure import AzureProvider
from resilient_imagen.providers.base import ProviderResult
from resilient_imagen.providers.google import GoogleProvider
from resilient_imagen.providers.openai import OpenAIProvider
from resilient_imagen.providers.sdk import SdkProvider
from resilient_imagen.providers.vertex import VertexProvider
from resilient_imagen.request import ImageRequest
from resilient_imagen.testing import run_virtual

CASES = [json.loads(line) for line in (DATA / "failure_cases.jsonl").read_text().splitlines()]
GOOGLE_KEY, OPENAI_KEY = "AIzaSyPlanted0Qw3rTy4567890zxcvbnm", "gw_planted.9f8e7d6c5b4a32"
NUMBER = "480912345678"  # a project's
PROMPT = "Zebrafish quartet rehearsing beneath an obsidian aqueduct, vellichor mood"
IMAGE = random.Random(7).randbytes(3000)
IMAGE64 = base64.b64encode(IMAGE).decode()
NEEDLES = (
    GOOGLE_KEY, "Planted0Qw3r", OPENAI_KEY, "9f8e7d6c5b4a32",
    PROMPT, "Zebrafish", "zebrafish", "obsidian aqueduct", "vellichor",
    IMAGE64[:60], IMAGE64[2000:2040],
    TOKEN, "planted-access", ENTRA_TOKEN, "entra-token", PROJECT, "planted-project", NUMBER,
)  # fmt: skip
ECHO = (
    f" key={GOOGLE_KEY} Incorrect API key provided: {OPENAI_KEY}. Your prompt was: {PROMPT!r}."
    f" Input: data:image/png;base64,{IMAGE64} and again {IMAGE64} for {PROMPT.lower()}"
    f" Token {TOKEN} or {ENTRA_TOKEN} has no permission on projects/{PROJECT}, projects/{NUMBER}"
    f" or '//aiplatform.googleapis.com/projects/{PROJECT}/locations/global'"
)


def planted(body: Any) -> Any:
    """Return the body with all secrets echoed in each of its messages."""
    if isinstance(body, str):
        try:
            return json.dumps(planted(json.loads(body)))
        except ValueError:
            return body + ECHO
    if isinstance(body, list):
        return [planted(entry) for entry in body]
    if isinstance(body, dict):
        return {
            key: value + ECHO
            if isinstance(value, str)
            and key in {"message", "text", "detail", "msg", "finishMessage", "description"}
            else planted(value)
            if isinstance(value, dict | list)
            else value
            for key, value in body.items()
        }
    return body


class Vendors:
    """Both vendors: one fails as the case specifies, and the other one serves."""

    def __init__(self) -> None:
        self.case: dict[str, Any] = CASES[0]

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        case, vendor = self.case, "openai" if "/images/" in request.url.path else "google"
        if vendor != case["provider"]:
            good = google_body() if vendor == "google" else openai_body()
            return httpx2.Response(200, json=good)
        if case["transport"] == "read_timeout":
            raise httpx2.ReadTimeout(ECHO, request=request)
        if case["http_status"] is None:
            raise httpx2.ReadError(ECHO, request=request)
        headers = {**(case["headers"] or {}), "x-debug": f"{OPENAI_KEY} {PROMPT}"}
        body = planted(case["body"])
        content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        return httpx2.Response(case["http_status"], headers=headers, content=content)


class Refreshing(Credentials):
    """Google Cloud credentials whose token needs no token server."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.project_id = PROJECT
        self._quota_project_id = NUMBER

    def refresh(self, _request: Any) -> None:
        self.token = TOKEN
        self.expiry = datetime.now(UTC).replace(tzinfo=None) + timedelta(hours=1)


ENDPOINTS = {
    "vendors": {"google": "google", "openai": "openai"},
    "clouds": {"google": "vertex", "openai": "azure"},
    "declared": {"google": "google_b", "openai": "proxy"},
}
"""The name of each vendor's provider."""


def providers_of(names: Mapping[str, str], transport: httpx2.MockTransport) -> list[SdkProvider]:
    """Return the provider of each vendor with this name."""
    if "vertex" in names.values():
        return [
            VertexProvider(credentials=Refreshing(), transport=transport),
            AzureProvider(
                endpoint="https://r.openai.azure.com",
                credential=FixedCredential(),
                transport=transport,
            ),
        ]
    return [
        GoogleProvider(api_key=GOOGLE_KEY, transport=transport, name=names["google"]),
        OpenAIProvider(api_key=OPENAI_KEY, transport=transport, name=names["openai"]),
    ]


def client_for(
    vendors: Vendors, telemetry: Telemetry, *order: str, endpoints: str = "vendors"
) -> ImageClient:
    """Return a client of both vendors, in this order."""
    transport = httpx2.MockTransport(vendors)
    names = ENDPOINTS[endpoints]
    declared: dict[str, ProviderArguments] = {
        "google_b": {"kind": "google", "api_key": GOOGLE_KEY},
        "proxy": {"kind": "openai", "api_key": OPENAI_KEY, "base_url": "https://proxy.example/v1"},
        "vertex": {"project": PROJECT},
        "azure": {"api_key": OPENAI_KEY, "base_url": "https://r.openai.azure.com"},
    }
    return ImageClient(
        Settings(
            routes=",".join(f"{names[vendor]}:{MODELS[vendor]}" for vendor in order),
            google_api_key=GOOGLE_KEY,
            openai_api_key=OPENAI_KEY,
            providers=declared,
            max_retries=1,
            ipm=600_000,
        ),
        providers=providers_of(names, transport),
        tracer_provider=telemetry.tracers,
        meter_provider=telemetry.meters,
    )


async def shown_of(client: ImageClient, **options: Any) -> str:
    """Run one call, and return everything about it that a caller could print."""
    try:
        return repr(await client.generate(PROMPT, **options))
    except ImageGenerationError as error:
        return "\n".join([*traceback.format_exception(error), repr(error), repr(vars(error))])


async def catalogue(telemetry: Telemetry, endpoints: str) -> str:
    """Run every failure with and without a reference, for each vendor as the primary."""
    vendors, shown = Vendors(), []
    for names in (("google", "openai"), ("openai", "google")):
        async with client_for(vendors, telemetry, *names, endpoints=endpoints) as client:
            for case in CASES:
                if case["provider"] != names[0]:
                    continue
                vendors.case = case
                shown.append(await shown_of(client))
                reference = {"image_base64": IMAGE64, "mime_type": "image/png"}
                shown.append(await shown_of(client, references=[reference]))
                shown += [json.dumps(client.snapshot()), repr(client.settings), repr(client)]
                await asyncio.sleep(3600)  # every breaker is due again
    return "\n".join(shown)


def everything_in(span: ReadableSpan) -> str:
    events = [(event.name, dict(event.attributes or {})) for event in span.events]
    return repr((span.name, dict(span.attributes or {}), span.status.description, events))


def exported(telemetry: Telemetry) -> str:
    spans = [everything_in(span) for span in telemetry.spans()]
    metrics = telemetry.reader.get_metrics_data()
    assert metrics is not None
    return "\n".join([*spans, metrics.to_json()])


@pytest.fixture(params=["structlog", "logging"])
def logged(request: pytest.FixtureRequest) -> Iterator[Callable[[], str]]:
    """Return all log output of the library and of the SDKs."""
    lines: list[str] = []
    if request.param == "structlog":

        def keep(_logger: Any, _name: str, event: Any) -> Any:
            lines.append(json.dumps(event))
            raise structlog.DropEvent

        structlog.configure(processors=[structlog.processors.format_exc_info, keep])
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(  # type: ignore[method-assign]
        logging.Formatter().format(record) + repr(record.__dict__)
    )
    root, ours = logging.getLogger(), logging.getLogger("imagegen")
    root.addHandler(handler)
    before = root.level, ours.level
    root.setLevel(logging.INFO)
    ours.setLevel(logging.DEBUG)
    yield lambda: "\n".join(lines)
    root.removeHandler(handler)
    root.setLevel(before[0])
    ours.setLevel(before[1])
    structlog.reset_defaults()


@pytest.mark.no_cover
@pytest.mark.parametrize(
    "logged", ["structlog", pytest.param("logging", marks=pytest.mark.ci)], indirect=True
)
@pytest.mark.parametrize("endpoints", ENDPOINTS)
def test_no_secret_is_output_for_any_reported_failure(
    logged: Callable[[], str], endpoints: str
) -> None:
    """Spans, metrics, logs, error texts and tracebacks of every reported failure are clean."""
    telemetry = Telemetry()

    shown = run_virtual(catalogue(telemetry, endpoints))
    places = {"errors": shown, "telemetry": exported(telemetry), "logs": logged()}
    assert len(telemetry.roots()) == 2 * len(CASES)
    assert places["logs"].count("imagegen.attempt.failed") >= len(CASES)
    assert "[…]" in places["telemetry"], "nothing was echoed, so nothing was proved"
    for place, text in places.items():
        for needle in NEEDLES:
            at = text.find(needle)
            assert at < 0, f"{place}: …{text[max(0, at - 200) : at + 100]}…"


def test_invalid_arguments_are_not_repeated(logged: Callable[[], str]) -> None:
    """Errors about invalid arguments do not repeat them: they may be prompts or images."""
    telemetry = Telemetry()

    async def main() -> str:
        async with client_for(Vendors(), telemetry, "google", "openai") as client:
            mistakes: list[dict[str, Any]] = [
                {"aspect_ratio": PROMPT},
                {"resolution": IMAGE64},
                {"references": [IMAGE64, PROMPT, {"image_base64": IMAGE64 + "!"}]},
                {"references": [{"image_url": f"https://{OPENAI_KEY}@127.0.0.1/{PROMPT}"}]},
            ]
            shown = [await shown_of(client, **mistake) for mistake in mistakes]
            try:
                await client.edit(IMAGE64, PROMPT)
            except ImageGenerationError as error:
                shown += [*traceback.format_exception(error), repr(vars(error))]
        return "\n".join(shown)

    shown = run_virtual(main())
    for place in (shown, exported(telemetry), logged()):
        for needle in NEEDLES:
            at = place.find(needle)
            assert at < 0, place[max(0, at - 200) : at + 100]


class QuotingProvider:
    """An application's provider whose errors quote the request."""

    name = "google"

    async def generate(self, request: ImageRequest, model: str) -> ProviderResult:
        raise ProviderError(
            f"cannot draw {request.prompt} with {GOOGLE_KEY}",
            reason=Reason.INVALID_REQUEST,
            vendor_message=f"not with {OPENAI_KEY}, token={OPENAI_KEY}: {request.prompt.upper()}",
            status_word=request.prompt,
        )

    async def aclose(self) -> None:
        """Do nothing."""


def test_an_applications_provider_may_quote_the_prompt(logged: Callable[[], str]) -> None:
    """The error of such a provider reaches the caller and all sinks without the prompt."""
    telemetry = Telemetry()

    async def main() -> str:
        async with ImageClient(
            Settings(routes="google:gemini-3-pro-image", max_retries=0),
            providers=[QuotingProvider()],
            tracer_provider=telemetry.tracers,
            meter_provider=telemetry.meters,
        ) as client:
            return await shown_of(client)

    shown = run_virtual(main())
    assert "cannot draw […] with […]" in shown
    needles = [needle for needle in NEEDLES if "9f8e7d" not in needle and needle != OPENAI_KEY]
    for place in (shown, exported(telemetry), logged()):
        for needle in needles:
            at = place.lower().find(needle.lower())
            assert at < 0, place[max(0, at - 200) : at + 100]
