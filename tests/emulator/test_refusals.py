"""Requests that the vendors refuse are refused by the emulator with the vendors' errors."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import httpx2
import openai
import pytest
from emulator_kit import GEMINI, GPT, Wired, picture, run_with_emulator
from google.genai import errors
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_imagen.emulator import Emulator
from resilient_imagen.emulator.gemini import Gemini
from resilient_imagen.emulator.gpt_image import GptImage
from resilient_imagen.emulator.http_messages import HttpRequest
from resilient_imagen.emulator.multipart import read_form
from resilient_imagen.emulator.vendor_api import ApiError

if TYPE_CHECKING:
    from resilient_imagen.emulator.vendor_api import VendorApi

PNG = (picture(), "image/png")


@pytest.mark.parametrize(
    ("options", "code", "word", "text"),
    [
        ({"model": "gemini-9"}, 404, "NOT_FOUND", "models/gemini-9 is not found"),
        ({"model": "gemini-3-pro-image-preview"}, 404, "NOT_FOUND", "no longer available"),
        ({"aspect_ratio": "7:5"}, 400, "INVALID_ARGUMENT", "`aspectRatio` does not support `7:5`"),
        ({"image_size": "8K"}, 400, "INVALID_ARGUMENT", "`imageSize` does not support `8K`"),
        ({"image_size": "1k"}, 400, "INVALID_ARGUMENT", "`imageSize` does not support `1k`"),
        (
            {"model": "gemini-3.1-flash-lite-image", "image_size": "2K"},
            400,
            "INVALID_ARGUMENT",
            "does not support `2K`",
        ),
        ({"model": "gemini-2.5-flash-image", "image_size": "1K"}, 500, "INTERNAL", "internal"),
        ({"references": (PNG,) * 15}, 400, "INVALID_ARGUMENT", "invalid argument"),
        (
            {"references": ((PNG[0], "application/octet-stream"),)},
            400,
            "INVALID_ARGUMENT",
            "Unsupported MIME type: application/octet-stream",
        ),
        (
            {"references": ((b"no picture", "image/png"),)},
            400,
            "INVALID_ARGUMENT",
            "Unable to process input image",
        ),
    ],
)
def test_gemini_refuses(options: dict[str, Any], code: int, word: str, text: str) -> None:
    """Gemini refuses unknown and retired models, sizes, types and too many references."""

    async def scenario(both: Wired) -> None:
        with pytest.raises(errors.APIError) as caught:
            await both.gemini(**options)
        error = caught.value
        assert (error.code, error.status) == (code, word)
        assert text in (error.message or "")

    run_with_emulator(scenario, way="memory")


@pytest.mark.parametrize(
    ("options", "status", "word", "text"),
    [
        ({"model": "gpt-image-9"}, 400, "invalid_value", "'gpt-image-9' does not exist"),
        ({"model": "dall-e-3"}, 400, "invalid_value", "does not exist"),
        ({"model": "gpt-image-1"}, 404, "model_not_found", "has been deprecated"),
        ({"size": "1x1"}, 400, "invalid_value", "Invalid size '1x1'"),
        ({"size": "1000x1000"}, 400, "invalid_value", "divisible by 16"),
        ({"size": "3856x2160"}, 400, "invalid_value", "Invalid size"),
        ({"size": "3840x1264"}, 400, "invalid_value", "Invalid size"),
        ({"size": "big"}, 400, "invalid_value", "Supported values are: '1024x1024'"),
        ({"model": "gpt-image-1.5", "size": "1152x2048"}, 400, "invalid_value", "Supported values"),
        ({"quality": "best"}, 400, "invalid_value", "'xhigh', and 'max'"),
        ({"model": "gpt-image-2", "quality": "max"}, 400, "invalid_value", "'high', and 'auto'"),
        ({"n": 11}, 400, "invalid_value", "Invalid value: '11'"),
        ({"response_format": "b64_json"}, 400, "unknown_parameter", "Unknown parameter"),
        ({"prompt": ""}, 400, "missing_required_parameter", "'prompt'"),
        ({"prompt": "x" * 32_001}, 400, "string_above_max_length", "string too long"),
    ],
)
def test_openai_refuses(options: dict[str, Any], status: int, word: str, text: str) -> None:
    """OpenAI refuses unknown and retired models, sizes, qualities, parameters and prompts."""

    async def scenario(both: Wired) -> None:
        with pytest.raises(openai.APIStatusError) as caught:
            await both.gpt(**options)
        assert (caught.value.status_code, caught.value.code) == (status, word)
        assert text in caught.value.message

    run_with_emulator(scenario, way="memory")


@pytest.mark.parametrize(
    ("images", "word"),
    [
        ([("a.gif", picture("GIF", "P"), "image/png")], "invalid_image_file"),
        ([("a.bmp", picture("BMP"), "image/png")], "invalid_image_file"),
        ([("a.jpg", picture("JPEG", "CMYK"), "image/jpeg")], "invalid_image_file"),
        ([("a.jpg", picture("MPO"), "image/jpeg")], "invalid_image_file"),
        ([("a.png", b"", "image/png")], "invalid_image_file"),
        ([("a.png", picture(), "application/octet-stream")], "unsupported_file_mimetype"),
        ([("a.png", *PNG)] * 17, "array_above_max_length"),
    ],
    ids=["gif", "bmp", "cmyk", "mpo", "empty", "octet-stream", "17"],
)
def test_openai_refuses_images(images: list[tuple[str, bytes, str]], word: str) -> None:
    """Only plain PNG, JPEG and WebP files are accepted, sixteen at most.

    MPO and CMYK are refused.
    """

    async def scenario(both: Wired) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            await both.gpt_edit(images)
        assert caught.value.code == word

    run_with_emulator(scenario, way="memory")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_openai_accepts_plain_images(kind: str) -> None:
    """The three formats that OpenAI documents are accepted."""

    async def scenario(both: Wired) -> None:
        edited = await both.gpt_edit([("a", picture(kind), f"image/{kind.lower()}")])
        assert len(edited.data) == 1

    run_with_emulator(scenario, way="memory")


def test_keys_are_checked() -> None:
    """A missing and an invalid key give each vendor's own error."""

    async def scenario(both: Wired) -> None:
        with pytest.raises(errors.ClientError) as wrong:
            await both.gemini()
        details: Any = wrong.value.details
        assert wrong.value.code == 400
        assert details["error"]["details"][0]["reason"] == "API_KEY_INVALID"
        both.openai.api_key = "sk-this-is-a-wrong-one"
        with pytest.raises(openai.AuthenticationError, match=r"provided: \*+-one\.") as refused:
            await both.gpt()
        assert refused.value.code == "invalid_api_key"
        client = both.http[0]
        for path, status in (
            (f"/v1beta/models/{GEMINI}:generateContent", 403),
            ("/v1/images/generations", 401),
            ("/v1/images/edits", 401),
        ):
            answer = await client.post(f"http://emulator{path}", content=b"{}")
            assert (path, answer.status_code) == (path, status)
        both.openai.api_key = "right"
        await both.gpt()

    run_with_emulator(
        scenario, Emulator(picture="tiny", google_keys=["r"], openai_keys=["right"]), "memory"
    )


def test_other_paths_are_not_found() -> None:
    """Only the image endpoints exist, and only for POST."""

    async def scenario(both: Wired) -> None:
        client = both.http[0]
        for answer in (
            await client.get("http://emulator/"),
            await client.post("http://emulator/v1/chat/completions", json={}),
            await client.get("http://emulator/v1/images/generations"),
        ):
            assert answer.status_code == 404
            assert answer.json()["error"]["message"].startswith("Invalid URL")

    run_with_emulator(scenario, way="memory")


def test_gemini_accepts_both_spellings() -> None:
    """Requests may use snake_case and standard base64; misplaced fields are refused."""
    blob = {"mime_type": "image/png", "data": base64.b64encode(PNG[0]).decode()}
    url = f"http://emulator/v1beta/models/{GEMINI}:generateContent"

    async def ask(client: httpx2.AsyncClient, config: dict[str, Any]) -> httpx2.Response:
        contents = [{"parts": [{"inline_data": blob}, {"text": "bluer"}]}]
        body = {"contents": contents, "generation_config": config}
        return await client.post(url, json=body, headers={"x-goog-api-key": "k"})

    async def scenario(both: Wired) -> None:
        good = await ask(both.http[0], {"image_config": {"aspect_ratio": "1:1"}})
        assert good.status_code == 200
        assert both.app.google.requests[0].references[0].size == len(PNG[0])
        for bad in ({"aspectRatio": "1:1"}, {"imageConfig": {"size": "1K"}}):
            answer = await ask(both.http[0], bad)
            assert answer.status_code == 400
            assert "Cannot find field." in answer.json()["error"]["message"]

    run_with_emulator(scenario, way="memory")


_LEAF: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just([[]]) | st.just({})
)
_GEMINI_BODY = st.fixed_dictionaries(
    {},
    optional={
        "contents": _LEAF
        | st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "parts": _LEAF
                    | st.lists(
                        st.fixed_dictionaries(
                            {},
                            optional={
                                "text": _LEAF,
                                "inlineData": _LEAF
                                | st.fixed_dictionaries({"data": _LEAF, "mimeType": _LEAF}),
                            },
                        ),
                        max_size=3,
                    )
                },
            ),
            max_size=2,
        ),
        "generationConfig": _LEAF
        | st.fixed_dictionaries(
            {}, optional={"imageConfig": _LEAF | st.dictionaries(st.text(max_size=3), _LEAF)}
        )
        | st.fixed_dictionaries(
            {"imageConfig": st.fixed_dictionaries({"aspectRatio": _LEAF, "imageSize": _LEAF})}
        ),
    },
)
_GPT_BODY = st.fixed_dictionaries(
    {"model": st.just(GPT) | _LEAF, "prompt": st.just("a cat") | _LEAF},
    optional={
        name: _LEAF | st.sampled_from(["1024x1024", "0x0", "99999x16", "auto", "\u0661x\u0661"])
        for name in ("size", "quality", "n", "output_format", "background", "moderation")
    },
)


def _verdict(dialect: VendorApi, request: HttpRequest) -> int:
    """Return the vendor's status; an image to draw counts as 200."""
    try:
        canvas = dialect.check(dialect.read(request))
    except ApiError as refusal:
        return refusal.reply.status
    return 200 if canvas.width > 0 < canvas.height else 0


@settings(max_examples=200, deadline=None)
@given(body=_GEMINI_BODY.map(json.dumps) | st.text(max_size=20))
def test_any_body_is_refused_or_accepted_by_gemini(body: str) -> None:
    """Every body is either accepted or gets a 400."""
    path = f"/v1/models/{GEMINI}:generateContent"
    request = HttpRequest("POST", path, {}, body.encode("utf-8", "replace"))
    assert _verdict(Gemini(), request) in (200, 400)


@settings(max_examples=200, deadline=None)
@given(body=_GPT_BODY.map(json.dumps) | st.text(max_size=20))
def test_any_body_is_refused_or_accepted_by_openai(body: str) -> None:
    """Every body is either accepted or gets a 400."""
    sent = body.encode("utf-8", "replace")
    request = HttpRequest("POST", "/v1/images/generations", {}, sent)
    assert _verdict(GptImage(), request) in (200, 400)


_NAMES = st.sampled_from(["prompt", "model", "image[]", "image", "size", "n"])
_FIELDS = st.lists(
    st.tuples(_NAMES, st.none() | st.just("f.png"), st.binary(max_size=40)), max_size=5
)


@settings(max_examples=150, deadline=None)
@given(fields=_FIELDS, cut=st.integers(0, 400))
def test_forms_are_read_or_refused(fields: list[tuple[str, str | None, bytes]], cut: int) -> None:
    """A complete form gives its parts in order, and a truncated one is refused."""
    boundary = "frontier"
    parts = []
    for name, filename, data in fields:
        extra = "" if filename is None else f'; filename="{filename}"'
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'
        parts.append(head.encode() + data.replace(b"\r", b"").replace(b"-", b"") + b"\r\n")
    body = b"".join(parts) + f"--{boundary}--\r\n".encode()
    kind = f"multipart/form-data; boundary={boundary}"
    form = read_form(kind, body)
    if fields:
        assert form is not None
        assert [(part.name, part.filename) for part in form] == [f[:2] for f in fields]
    broken = body[: min(cut, len(body) - 5)]
    assert read_form(kind, broken) is None
    headers = {"content-type": kind}
    for sent in (body, broken):
        request = HttpRequest("POST", "/v1/images/edits", headers, sent)
        assert _verdict(GptImage(), request) == 400


def test_a_form_without_a_boundary_is_refused() -> None:
    """JSON sent to the edits endpoint, and a string instead of a file, get OpenAI's 400."""

    async def scenario(both: Wired) -> None:
        client, url = both.http[1], "http://emulator/v1/images/edits"
        headers = {"authorization": "Bearer k"}
        plain = await client.post(url, json={"model": GPT}, headers=headers)
        assert plain.status_code == 400
        form = {"image": (None, "a path"), "prompt": (None, "bluer")}
        text = await client.post(url, files=form, headers=headers)
        assert text.json()["error"]["code"] == "invalid_type"

    run_with_emulator(scenario, way="memory")


_GENERATE = "/v1/images/generations"
_CONTENT = f"/v1beta/models/{GEMINI}:generateContent"
_HOSTILE = {
    "deep lists": b"[" * 200_000,
    "deep objects": b'{"a":' * 200_000,
    "deep and whole": b'{"prompt":' + b"[" * 900 + b"]" * 900 + b"}",
    "a deep value": b'{"prompt": "a", "size": ' + b"[" * 101 + b"]" * 101 + b"}",
    "half a character": b'{"prompt": "\\ud800", "contents": [{"parts": [{"text": "\\ud800"}]}]}',
    "a number of 5000 digits": b'{"prompt": ' + b"9" * 5000 + b"}",
    "no UTF-8": b'{"prompt": "\xff\xfe"}',
    "a list": b"[]",
    "a number": b"7",
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("way", ["socket", "memory"])
@pytest.mark.parametrize("name", _HOSTILE)
def test_a_hostile_body_is_refused(name: str, way: str) -> None:
    """Deeply nested JSON and similar bodies get the vendor's 400, and the connection stays open."""

    async def scenario(both: Wired) -> None:
        base = both.server.url if both.server else "http://emulator"
        headers = {"authorization": "Bearer k", "x-goog-api-key": "k"}
        for path, words in ((_CONTENT, "Invalid JSON payload"), (_GENERATE, "could not parse")):
            answer = await both.http[0].post(base + path, content=_HOSTILE[name], headers=headers)
            assert answer.status_code == 400
            assert words in answer.json()["error"]["message"]
        await both.gpt()
        await both.gemini()

    run_with_emulator(scenario, way=way)


@pytest.mark.parametrize("count", ["9" * 5000, "0", "11", "-1", "1.0", "\u0661", "", [[]], 10**400])
def test_an_impossible_count_is_refused(count: object) -> None:
    """A count is refused for any number of digits."""
    body = json.dumps({"model": GPT, "prompt": "a cat", "n": count}).encode()
    assert _verdict(GptImage(), HttpRequest("POST", _GENERATE, {}, body)) == 400


def _form(*parts: bytes) -> HttpRequest:
    body = b"".join(b"--x\r\n" + part + b"\r\n" for part in parts) + b"--x--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=x"}
    return HttpRequest("POST", "/v1/images/edits", headers, body)


def test_forms_are_bounded() -> None:
    """Endless parts and endless headers of parts are refused as unreadable bodies."""
    field = b'Content-Disposition: form-data; name="prompt"\r\n\r\na'
    assert read_form("multipart/form-data; boundary=x", _form(*[field] * 1000).body) is not None
    unread = b"could not parse the body"
    for hostile in (
        _form(*[field] * 1001),
        _form(b"X-Long: " + b"x" * 20_000 + b"\r\n" + field),
        _form(b"x" * 20_000 + b": a\r\n" + field),
        _form(b"".join(b"X-%d: a\r\n" % number for number in range(4000)) + field),
    ):
        problem = GptImage().read(hostile).problem
        assert problem is not None
        assert (problem.status, unread in problem.body) == (400, True)
