"""The requests that are sent to OpenAI."""

from __future__ import annotations

import base64
from email import message_from_bytes
from email.message import Message
from functools import partial
from typing import Any
from urllib.parse import parse_qs

import pytest
from providers_kit import JPEG, KEY, PNG, PROMPT, arrived, ask, http, openai_body, run

from resilient_imagen.request import ImageRequest, Reference

sent = partial(arrived, "openai")
"""The request as it arrives at the server."""


def test_a_plain_request() -> None:
    """The request has the unchanged prompt, an exact size, one image and no unsupported fields."""
    request = sent(ImageRequest(PROMPT, aspect_ratio="9:16", resolution="2K"))
    assert request.path == "/v1/images/generations"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.json == {
        "model": "gpt-image-2.5-flare",
        "prompt": PROMPT,
        "n": 1,
        "size": "1584x2816",
        "quality": "high",
    }


@pytest.mark.parametrize("references", [(), (Reference(PNG, "image/png", 0),)])
def test_a_relays_path_and_query_are_kept(references: Any) -> None:
    """The path of the API is inserted before the query."""
    request = sent(
        ImageRequest(PROMPT, references=references), path="/relay?version=2026-01&team=&x=a%26b#top"
    )
    path, _, query = request.path.partition("?")
    assert path == f"/relay/images/{'edits' if references else 'generations'}"
    assert parse_qs(query, keep_blank_values=True) == {
        "version": ["2026-01"],
        "team": [""],
        "x": ["a&b"],
    }


@pytest.mark.parametrize(
    ("model", "asked", "used"),
    [
        ("gpt-image-2.5-flare", "max", "max"),
        ("gpt-image-2", "xhigh", "high"),
        ("gpt-image-2", "low", "low"),
    ],
)
def test_quality_is_limited_to_that_of_the_model(model: str, asked: str, used: str) -> None:
    """Qualities above high are sent as high if the model does not have them."""
    assert sent(ImageRequest(PROMPT), model, quality=asked).json["quality"] == used


@pytest.mark.parametrize("operation", ["generate", "edit"])
def test_references_are_uploaded_byte_for_byte(operation: Any) -> None:
    """Each reference is a file under image[] with a matching name and type."""
    references = (
        Reference(PNG, "image/png", 0),
        Reference(JPEG, "image/jpeg", 3),
        Reference(PNG, "image/webp", 4),
    )
    request = sent(ImageRequest(PROMPT, references=references, operation=operation))
    assert request.path == "/v1/images/edits"
    head = f"content-type: {request.headers['content-type']}\r\n\r\n".encode()
    fields: dict[str, Any] = {}
    files = []
    for part in message_from_bytes(head + request.body).get_payload():
        assert isinstance(part, Message)
        data = part.get_payload(decode=True)
        assert isinstance(data, bytes)
        name = part.get_param("name", header="content-disposition")
        if name == "image[]":
            files.append((part.get_filename(), part.get_content_type(), data))
        else:
            fields[str(name)] = data.decode()
    assert files == [
        ("reference-0.png", "image/png", PNG),
        ("reference-3.jpg", "image/jpeg", JPEG),
        ("reference-4.webp", "image/webp", PNG),
    ]
    assert fields == {
        "model": "gpt-image-2.5-flare",
        "prompt": PROMPT,
        "n": "1",
        "size": "1584x2816",
        "quality": "high",
    }


def test_the_environment_does_not_change_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables for address, organization, project or key have no effect."""
    for name, value in {
        "OPENAI_BASE_URL": "http://127.0.0.1:1",
        "OPENAI_ORG_ID": "org-another",
        "OPENAI_PROJECT_ID": "proj_another",
        "OPENAI_API_KEY": "sk-another",
        "OPENAI_ADMIN_KEY": "sk-admin-another",
    }.items():
        monkeypatch.setenv(name, value)
    request = sent(ImageRequest(PROMPT))
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert "openai-organization" not in request.headers
    assert "openai-project" not in request.headers


def test_options_of_a_request_are_sent() -> None:
    """Each option has the name that the Images API gives it; unset options are not sent."""
    request = sent(
        ImageRequest(
            PROMPT,
            aspect_ratio="1:1",
            resolution="1K",
            n=3,
            background="transparent",
            output_format="webp",
            output_compression=0,
            quality="low",
            vendor_options={"openai": {"moderation": "low"}, "google": {"labels": {}}},
        )
    )
    assert request.json == {
        "model": "gpt-image-2.5-flare",
        "prompt": PROMPT,
        "n": 3,
        "size": "1024x1024",
        "quality": "low",
        "background": "transparent",
        "output_format": "webp",
        "output_compression": 0,
        "moderation": "low",
    }


def test_a_mask_is_uploaded_beside_the_image() -> None:
    """The mask is a PNG file under its own name."""
    image, mask = Reference(PNG, "image/png", 0), Reference(PNG, "image/png", 0)
    request = sent(ImageRequest(PROMPT, references=(image,), operation="edit", mask=mask))
    assert b'name="mask"; filename="mask.png"' in request.body
    assert b'name="image[]"' in request.body


def test_every_image_of_an_answer_is_returned() -> None:
    """An answer to n=2 has two images, and both are counted as billed."""
    body = openai_body()
    body["data"] = [{"b64_json": base64.b64encode(each).decode()} for each in (JPEG, PNG, JPEG)]
    result = run(ask("openai", http(200, body), ImageRequest(PROMPT, n=2)))
    assert [each.data for each in result.images] == [PNG, JPEG]
    assert result.usage.billed_images == 2
