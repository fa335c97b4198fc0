"""The requests that are sent to Gemini."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from paths import SUPPORT
from providers_kit import JPEG, KEY, PNG, PROMPT, arrived
from telemetry_kit import Telemetry

from resilient_imagen import ImageClient, Settings
from resilient_imagen.emulator import Emulator
from resilient_imagen.errors import ConfigurationError
from resilient_imagen.providers import build
from resilient_imagen.providers.google import GoogleProvider
from resilient_imagen.request import AspectRatio, ImageRequest, Reference

sent = partial(arrived, "google")
"""The request as it arrives at the server."""


def test_a_plain_request() -> None:
    """The request has the pinned version, the key header, the prompt, size and ratio."""
    request = sent(ImageRequest(PROMPT, aspect_ratio="9:16", resolution="2K"))
    assert request.path == "/v1/models/gemini-3-pro-image:generateContent"
    assert request.headers["x-goog-api-key"] == KEY
    assert request.json == {
        "contents": [
            {
                "role": "user",
                "parts": [
                    {
                        "text": f"Generate a high quality image: {PROMPT}. The image should be in "
                        "portrait orientation (taller than wide)."
                    }
                ],
            }
        ],
        "generationConfig": {
            "responseModalities": ["TEXT", "IMAGE"],
            "imageConfig": {"aspectRatio": "9:16", "imageSize": "2K"},
        },
    }


@pytest.mark.parametrize(
    ("ratio", "ending"),
    [
        ("4:5", "portrait orientation (taller than wide)."),
        ("21:9", "landscape orientation (wider than tall)."),
        ("1:1", "painted in oil"),
    ],
)
def test_the_prompt_states_the_orientation(ratio: AspectRatio, ending: str) -> None:
    """The prompt states the orientation, except for a square."""
    text = sent(ImageRequest(PROMPT, aspect_ratio=ratio)).json["contents"][0]["parts"][0]["text"]
    assert text.endswith(ending)


def text_for(request: ImageRequest, **options: Any) -> str:
    """Return the prompt as it arrives at the server."""
    text = sent(request, **options).json["contents"][0]["parts"][0]["text"]
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize(
    ("hints", "text"),
    [
        (("quality",), "Generate a high quality image: a fox"),
        (
            ("orientation",),
            "a fox. The image should be in portrait orientation (taller than wide).",
        ),
        ((), "a fox"),
    ],
    ids=["quality", "orientation", "none"],
)
def test_each_hint_can_be_left_out(hints: tuple[str, ...], text: str) -> None:
    """Only the configured hints are added to the prompt."""
    assert text_for(ImageRequest("a fox"), prompt_hints=hints) == text


def test_an_unknown_hint_is_refused_at_once() -> None:
    """The error names the allowed ones."""
    with pytest.raises(ConfigurationError, match="prompt_hints must be quality, orientation"):
        GoogleProvider(api_key=KEY, prompt_hints=("style",))


@pytest.mark.parametrize(
    ("prompt", "start"),
    [
        ("a fox", "a fox. The"),
        ("A fox.", "A fox. The"),
        ("A fox!  \n", "A fox! The"),
        ('A sign that says "Stop."', 'A sign that says "Stop." The'),
        ("a fox (red)", "a fox (red). The"),
        ("狐。", "狐。 The"),
    ],
)
def test_the_hint_begins_a_sentence(prompt: str, start: str) -> None:
    """A prompt that ends without a full stop gets one before the orientation."""
    assert text_for(ImageRequest(prompt), prompt_hints=["orientation"]).startswith(start)


def _client(tracer_provider: TracerProvider | None = None, **settings: Any) -> ImageClient:
    given = Settings(
        google_api_key=KEY, ipm=600_000, routes="google:gemini-3-pro-image", **settings
    )
    transport = Emulator(picture="tiny").transport()
    hints = given.prompt_hints
    provider = GoogleProvider(api_key=KEY, transport=transport, prompt_hints=hints)
    return ImageClient(given, providers=[provider], tracer_provider=tracer_provider)


def test_results_list_the_prompt_hints() -> None:
    """Each prompt hint is listed in the adjustments; without hints the list is empty."""

    async def adjustments(**settings: Any) -> tuple[str, ...]:
        async with _client(fit="none", **settings) as client:
            return (await client.generate("a fox", aspect_ratio="16:9")).adjustments

    assert asyncio.run(adjustments()) == (
        'added to the prompt: "Generate a high quality image:"',
        'added to the prompt: "The image should be in landscape orientation (wider than tall)"',
    )
    assert asyncio.run(adjustments(prompt_hints="none")) == ()


def test_spans_record_the_prompt_as_sent_where_content_is_captured() -> None:
    """The recorded prompt includes the hints; without capture none is recorded."""

    def recorded(**settings: Any) -> str | None:
        telemetry = Telemetry()

        async def main() -> None:
            async with _client(tracer_provider=telemetry.tracers, **settings) as client:
                await client.generate("a fox", aspect_ratio="9:16")

        asyncio.run(main())
        found = (telemetry.attempts()[0].attributes or {}).get("gen_ai.input.messages")
        return None if found is None else json.loads(str(found))[0]["parts"][0]["content"]

    assert recorded() is None
    assert recorded(capture_content="SPAN_ONLY") == (
        "Generate a high quality image: a fox. The image should be in portrait orientation "
        "(taller than wide)."
    )
    assert recorded(capture_content="SPAN_ONLY", prompt_hints="none") == "a fox"


def test_the_built_in_provider_takes_its_hints_from_the_settings() -> None:
    """IMAGE_GEN_PROMPT_HINTS reaches the provider that the client builds."""
    built = build("google", Settings(google_api_key=KEY, prompt_hints="orientation"))
    assert isinstance(built, GoogleProvider)
    hints = built.prompt_hints_for(ImageRequest("a fox", aspect_ratio="1:1"))
    assert hints.added_to("a fox") == "a fox"


def test_models_without_image_sizes_get_none() -> None:
    """No imageSize is sent to 2.5-flash-image, which answers it with a 500."""
    request = sent(ImageRequest(PROMPT), "gemini-2.5-flash-image")
    assert request.json["generationConfig"]["imageConfig"] == {"aspectRatio": "9:16"}


def test_an_unsupported_ratio_becomes_the_nearest_one() -> None:
    """A ratio such as 1:8 becomes the nearest one that the model supports."""
    config = sent(ImageRequest(PROMPT, aspect_ratio="1:8")).json["generationConfig"]
    assert config["imageConfig"]["aspectRatio"] == "9:16"


@pytest.mark.parametrize("operation", ["generate", "edit"])
def test_references_arrive_byte_for_byte(operation: Any) -> None:
    """The prompt comes first, then all references in order with their types."""
    big = PNG + os.urandom(1_500_001)
    samples = [(PNG, "image/png"), (JPEG, "image/jpeg"), (big, "image/png"), (PNG, "image/png")]
    references = tuple(Reference(data, mime, at) for at, (data, mime) in enumerate(samples))
    request = sent(ImageRequest(PROMPT, references=references, operation=operation))
    first, *parts = request.json["contents"][0]["parts"]
    assert first["text"].startswith(PROMPT)
    assert "portrait" in first["text"]
    blobs = [part.get("inlineData") for part in parts]
    types = [blob.get("mimeType") or blob.get("mime_type") for blob in blobs]
    assert types == [mime for _, mime in samples]
    assert [base64.b64decode(blob["data"]) for blob in blobs] == [data for data, _ in samples]


def test_the_environment_does_not_change_the_address(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Variables for Vertex AI, API versions, addresses, replays and other keys have no effect."""
    for name, value in {
        "GOOGLE_GENAI_USE_VERTEXAI": "true",
        "GOOGLE_GENAI_USE_ENTERPRISE": "true",
        "GOOGLE_GENAI_API_VERSION": "v1alpha",
        "GOOGLE_GEMINI_BASE_URL": "http://127.0.0.1:1",
        "GOOGLE_VERTEX_BASE_URL": "http://127.0.0.1:1",
        "GOOGLE_GENAI_CLIENT_MODE": "replay",
        "GOOGLE_GENAI_REPLAYS_DIRECTORY": str(tmp_path),
        "GOOGLE_GENAI_HTTP_CLIENT": "auto",
        "GOOGLE_CLOUD_PROJECT": "somebody",
        "GOOGLE_CLOUD_LOCATION": "europe-west1",
        "GOOGLE_API_KEY": "AIza-another",
    }.items():
        monkeypatch.setenv(name, value)
    request = sent(ImageRequest(PROMPT))
    assert request.path.startswith("/v1/models/")
    assert request.headers["x-goog-api-key"] == KEY


def test_a_transport_that_the_sdk_cannot_import_is_a_wrong_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error names the variable that selects a package which is not installed."""
    monkeypatch.setattr("google.genai._api_client.httpx", None)
    monkeypatch.setenv("GOOGLE_GENAI_HTTP_CLIENT", "httpx")
    with pytest.raises(ConfigurationError, match="google: GOOGLE_GENAI_HTTP_CLIENT names a"):
        sent(ImageRequest(PROMPT))


FAKE_AIOHTTP = """
import sys, types

def explode(*args, **kwargs):
    raise AssertionError("aiohttp was used")

fake = types.ModuleType("aiohttp")
for name in ("ClientConnectorError", "ClientConnectorDNSError", "ClientOSError",
             "ServerDisconnectedError", "ClientResponse", "StreamReader"):
    setattr(fake, name, type(name, (Exception,), {}))
for name in ("ClientSession", "TCPConnector"):
    setattr(fake, name, type(name, (), {"__init__": explode}))
sys.modules["aiohttp"] = fake
from google.genai import _api_client
assert _api_client.has_aiohttp, "the SDK did not notice it"

from providers_kit import PROMPT, ask, google_body, http, run
from resilient_imagen.errors import ImageGenerationError
from resilient_imagen.request import ImageRequest
assert run(ask("google", http(200, google_body()))).images[0].mime_type == "image/png"
try:
    run(ask("google", http(503, "")))
except ImageGenerationError as error:
    print(error)
"""


def test_aiohttp_in_the_environment_changes_nothing() -> None:
    """An installed aiohttp does not change the SDK's transport, errors and retries."""
    done = subprocess.run(
        [sys.executable, "-c", FAKE_AIOHTTP],
        cwd=SUPPORT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "google gemini-3-pro-image: 503 UNAVAILABLE"


def test_a_relays_path_is_kept() -> None:
    """A path of the base URL precedes the version."""
    request = sent(ImageRequest(PROMPT), path="/relay/")
    assert request.path == "/relay/v1/models/gemini-3-pro-image:generateContent"


def test_references_are_part_of_the_json_document() -> None:
    """The body is valid JSON of the stated length, and contains each reference in base64."""
    request = sent(ImageRequest(PROMPT, references=(Reference(PNG, "image/png", 0),) * 14))
    assert len(request.body) == int(request.headers["content-length"])
    assert "transfer-encoding" not in request.headers
    assert json.dumps(request.json).count(base64.b64encode(PNG).decode()) == 14


def test_options_of_a_request_are_sent() -> None:
    """The seed and Google's own fields become part of the document; OpenAI's do not."""
    options: dict[str, Any] = {
        "google": {"generationConfig": {"topK": 3}},
        "openai": {"moderation": "low"},
    }
    request = sent(ImageRequest(PROMPT, aspect_ratio="1:1", seed=0, vendor_options=options))
    assert request.json["generationConfig"] == {
        "responseModalities": ["TEXT", "IMAGE"],
        "imageConfig": {"aspectRatio": "1:1", "imageSize": "2K"},
        "seed": 0,
        "topK": 3,
    }
    assert "moderation" not in request.json
