"""Partial images: OpenAI's event streams and their failures, through the real SDK."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from providers_kit import (
    GOOD,
    KEY,
    MODELS,
    PNG,
    PNG64,
    PROMPT,
    arrived,
    ask,
    http,
    provider_for,
    reference,
    run,
)

from resilient_imagen.cost import cost_usd
from resilient_imagen.emulator import Emulator, EmulatorServer, Fault, faults
from resilient_imagen.emulator.gpt_image_errors import NAMED
from resilient_imagen.errors import ImageGenerationError, InvalidRequestError
from resilient_imagen.images.inspect import sniff_mime
from resilient_imagen.providers.base import ProviderResult
from resilient_imagen.reasons import Reason
from resilient_imagen.request import ImageRequest, PartialImage

MODEL = MODELS["openai"]
PATIENCE = 60.0
"""Seconds after which a test counts as hanging."""


@dataclass
class Streamed:
    """One request with previews, and its results."""

    notes: list[PartialImage | str] = field(default_factory=list)
    """Previews, and ``begun`` for the first sign of life, in order."""
    result: ProviderResult | None = None
    error: ImageGenerationError | None = None

    @property
    def previews(self) -> list[PartialImage]:
        return [each for each in self.notes if isinstance(each, PartialImage)]

    @property
    def reason(self) -> Reason | None:
        return None if self.error is None else self.error.reason

    def request(self, **options: Any) -> ImageRequest:
        asked = ImageRequest(PROMPT, **{"partial_images": 2, "resolution": "1K", **options})
        return replace(
            asked,
            on_partial_image=self.notes.append,
            on_response=lambda: self.notes.append("begun"),
        )

    async def wait_for(self, answer: Awaitable[ProviderResult]) -> Streamed:
        try:
            async with asyncio.timeout(PATIENCE):
                self.result = await answer
        except ImageGenerationError as error:
            self.error = error
        return self


def streamed(*faulty: Fault, app: Emulator | None = None, **options: Any) -> list[Streamed]:
    """Send one request per fault to the emulator over sockets."""

    async def main() -> list[Streamed]:
        emulator = app or Emulator(picture="tiny")
        async with EmulatorServer(emulator) as server:
            provider = provider_for("openai", server.url)
            found = []
            for fault in faulty or (None,):
                if fault is not None:
                    emulator.openai.fail(fault)
                one = Streamed()
                found.append(await one.wait_for(provider.generate(one.request(**options), MODEL)))
            await provider.aclose()
            return found

    return asyncio.run(main())


def answered(
    events: bytes | str, headers: dict[str, str] | None = None, **options: Any
) -> Streamed:
    """Send a request to a server that responds with these events."""
    kind = {"content-type": "text/event-stream; charset=utf-8", **(headers or {})}
    raw = events.encode() if isinstance(events, str) else events
    one = Streamed()
    run(one.wait_for(ask("openai", http(200, raw, kind), one.request(**options))))
    return one


def event(kind: str = "image_generation.completed", **fields: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n"


COMPLETED = event(b64_json=PNG64, usage={"input_tokens": 5, "output_tokens": 9, "total_tokens": 14})
PREVIEW = event("image_generation.partial_image", b64_json=PNG64, partial_image_index=0)


# -- the good case --------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("operation", ["generate", "edit"])
def test_previews_arrive_before_the_image(operation: str, count: int) -> None:
    """Headers precede previews, each of which is a complete image."""
    references = (reference(),) if operation == "edit" else ()
    (one,) = streamed(partial_images=count, operation=operation, references=references)
    assert one.notes[0] == "begun"
    assert [preview.index for preview in one.previews] == list(range(count))
    assert len(one.notes) == 1 + count
    assert one.result is not None
    images = [*(preview.data for preview in one.previews), one.result.images[0].data]
    assert {sniff_mime(image) for image in images} == {"image/png"}
    assert {preview.mime_type for preview in one.previews} == {"image/png"}
    assert len(set(images)) == count + 1


def test_the_usage_of_a_stream_includes_its_previews() -> None:
    """The completed event has the token counts, which have a price."""
    (one,) = streamed()
    assert one.result is not None
    usage = one.result.usage
    assert usage.output_tokens is not None
    assert usage.output_tokens > 200
    assert usage.billed_images == 1
    assert cost_usd(MODEL, usage, "1K") is not None


@pytest.mark.parametrize("operation", ["generate", "edit"])
def test_the_request_asks_for_the_stream(operation: str) -> None:
    """Two fields are added; the rest equals the request without a stream."""
    references = (reference(),) if operation == "edit" else ()
    plain = ImageRequest(PROMPT, operation=operation, references=references)  # type: ignore[arg-type]
    sent = arrived("openai", replace(plain, partial_images=3))
    if operation == "edit":
        assert b'name="stream"\r\n\r\ntrue\r\n' in sent.body
        assert b'name="partial_images"\r\n\r\n3\r\n' in sent.body
        return
    assert sent.json.pop("stream") is True
    assert sent.json["partial_images"] == 3
    without = arrived("openai", plain)
    assert {**without.json, "stream": True, "partial_images": 3} == sent.json


@pytest.mark.parametrize("vendor", MODELS)
def test_without_previews_the_request_is_the_plain_one(vendor: str) -> None:
    """Without previews, in any notation, the request is unchanged."""
    plain = arrived(vendor, ImageRequest(PROMPT))
    for options in ({"partial_images": 0}, {"partial_images": None}):
        sent = arrived(vendor, ImageRequest(PROMPT, **options))
        assert (sent.body, sent.path) == (plain.body, plain.path)
        assert sent.headers.keys() == plain.headers.keys()
    assert b"stream" not in plain.body


def test_google_serves_a_request_for_previews_without_them() -> None:
    """The missing previews are listed; a fallback works in both directions."""
    request = ImageRequest(PROMPT, partial_images=2)
    result = run(ask("google", GOOD["google"], request))
    assert result.ignored_options == ("partial_images",)
    assert b"artial" not in arrived("google", request).body


@pytest.mark.parametrize("name", ["stream", "partial_images"])
def test_vendor_options_cannot_start_a_stream(name: str) -> None:
    """Vendor options for a stream are rejected."""
    with pytest.raises(InvalidRequestError, match=f"must not contain {name}"):
        run(ask("openai", None, ImageRequest(PROMPT, vendor_options={"openai": {name: 1}})))


def test_a_server_without_streams_is_supported() -> None:
    """A relay that ignores the parameter returns the image in one response."""
    one = Streamed()
    run(one.wait_for(ask("openai", GOOD["openai"], one.request())))
    assert one.result is not None
    assert one.result.images[0].data == PNG
    assert one.notes == ["begun"]


@pytest.mark.parametrize(
    "events",
    [
        f"{PREVIEW}{COMPLETED}data: [DONE]\n\n",
        f": ping\n\n{event('keepalive')}{PREVIEW}{COMPLETED}",
        f"event: ping\ndata: still working\n\n{PREVIEW}event: ping\ndata:\n\n{COMPLETED}",
        f"data:\n\n{PREVIEW}{COMPLETED}",
        f"{PREVIEW}{COMPLETED}".replace("\n", "\r\n"),
        f"{PREVIEW}{COMPLETED}".replace("event: ", "x: "),
        f"{PREVIEW}{COMPLETED.rstrip()}",
        f"{PREVIEW}{COMPLETED}{event('error', error={'code': 'server_error'})}",
        f"{PREVIEW}{COMPLETED}{COMPLETED}",
    ],
    ids=["done", "others", "pings", "empty", "crlf", "no-names", "no-end", "late-error", "twice"],
)
def test_variants_of_a_stream_are_supported(events: str) -> None:
    """Streams of relays, with added and missing parts, give one image and one preview."""
    one = answered(events)
    assert one.result is not None, one.error
    assert [image.data for image in one.result.images] == [PNG]
    assert one.result.usage.total_tokens == 14
    assert len(one.previews) == 1


def test_a_preview_that_cannot_be_decoded_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """An invalid preview is logged and does not fail the request."""
    broken = event("image_generation.partial_image", b64_json="*", partial_image_index=0)
    with caplog.at_level(logging.WARNING, "resilient_imagen"):
        one = answered(broken + PREVIEW + COMPLETED)
    assert one.result is not None
    assert len(one.previews) == 1
    assert "partial image that cannot be decoded" in caplog.text


# -- streams that fail ----------------------------------------------------------------------------


@pytest.mark.parametrize("abrupt", [False, True])
@pytest.mark.parametrize("events", [0, 1, 2, 3])
def test_a_stream_that_is_cut_is_a_broken_connection_until_the_image_is_there(
    events: int, abrupt: bool
) -> None:
    """A cut before the image is a connection failure; after it, the image is delivered."""
    (one,) = streamed(faults.cut_stream(events, abrupt=abrupt))
    if events == 3 and one.result is not None:
        assert one.error is None
        assert len(one.previews) == 2
    else:
        # A reset may discard events that have arrived and have not been read.
        assert abrupt or events < 3
        assert one.reason is Reason.CONNECTION
        assert len(one.previews) <= min(events, 2) if abrupt else len(one.previews) == events
    assert one.notes[:1] == ["begun"] or abrupt


@pytest.mark.parametrize("at", [0.1, 0.5, 0.99])
def test_a_stream_that_is_cut_inside_an_event_is_a_broken_connection(at: float) -> None:
    """An incomplete event is not delivered."""
    (one,) = streamed(faults.cut(at))
    assert (one.result, one.reason) == (None, Reason.CONNECTION)


@pytest.mark.parametrize("previews", [0, 2])
@pytest.mark.parametrize("name", sorted(NAMED))
def test_an_error_in_a_stream_has_the_reason_of_the_same_error_without_one(
    name: str, previews: int
) -> None:
    """Reason, hint and status word are the same as in a response with the error's HTTP status."""
    alone, inside = streamed(faults.error(name, 5.0), faults.error_event(name, previews, 5.0))
    assert alone.error is not None
    assert inside.error is not None
    assert inside.reason is alone.reason
    assert inside.error.retry_after == alone.error.retry_after
    assert inside.error.vendor_message == alone.error.vendor_message
    assert len(inside.previews) == previews
    assert alone.notes == ["begun"]


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ("", Reason.INVALID_RESPONSE),
        (PREVIEW, Reason.INVALID_RESPONSE),
        ("data: [DONE]\n\n", Reason.INVALID_RESPONSE),
        (f"{PREVIEW}data: [DONE]\n\n", Reason.INVALID_RESPONSE),
        (PREVIEW + "data: {nonsense\n\n", Reason.INVALID_RESPONSE),
        (COMPLETED[:-20], Reason.INVALID_RESPONSE),
        (event(b64_json="*"), Reason.INVALID_RESPONSE),
        (event(b64_json=None), Reason.NO_IMAGE),
        (event("error", message="boom"), Reason.SERVER_ERROR),
        ("event: error\ndata: the server caught fire\n\n", Reason.SERVER_ERROR),
        (event("error", error={"message": "boom"}), Reason.SERVER_ERROR),
        ('data: {"error": {"code": "moderation_blocked"}}\n\n', Reason.CONTENT_BLOCKED),
        (event("error", error={"type": "server_error", "code": 503}), Reason.OVERLOADED),
        ('data: {"choices": []}\n\n', Reason.NO_IMAGE),
    ],
)  # fmt: skip
def test_a_stream_without_an_image_fails_for_its_reason(events: str, reason: Reason) -> None:
    """The first event that reports a failure determines the reason."""
    one = answered(events)
    assert (one.result, one.reason) == (None, reason)
    assert one.error is not None
    assert PROMPT not in str(one.error)


def test_no_completed_event_is_an_invalid_response() -> None:
    """A stream that ends after its previews is an invalid response."""
    (one,) = streamed(faults.no_completed())
    assert (one.reason, len(one.previews)) == (Reason.INVALID_RESPONSE, 2)
    assert one.error is not None
    assert "without a completed image" in str(one.error.vendor_message)


def test_a_refusal_of_the_stream_is_an_ordinary_error() -> None:
    """An HTTP error keeps its status, and its headers count as progress."""
    (one,) = streamed(faults.overload())
    assert one.error is not None
    assert (one.reason, one.error.status) == (Reason.OVERLOADED, 503)
    assert one.notes == ["begun"]


def test_several_images_are_one_result() -> None:
    """Token counts are added; if the stream breaks, the received images are delivered."""
    whole, cut = streamed(faults.silent(0.0), faults.cut_stream(4), n=3, partial_images=2)
    assert whole.result is not None
    assert cut.result is not None
    assert len(whole.result.images) == whole.result.usage.billed_images == 3
    assert len(cut.result.images) == cut.result.usage.billed_images == 2
    assert len({image.data for image in whole.result.images}) == 3


def test_counts_that_an_event_lacks_are_not_guessed() -> None:
    """A sum with a missing count is unknown."""
    one = answered(COMPLETED + event(b64_json=PNG64), n=2)
    assert one.result is not None
    assert one.result.usage.output_tokens is None
    assert one.result.usage.billed_images == 2


# -- connections ----------------------------------------------------------------------------------


def with_server(scene: Callable[[Emulator, EmulatorServer, Any], Awaitable[None]]) -> None:
    async def main() -> None:
        app = Emulator(picture="tiny")
        async with asyncio.timeout(PATIENCE), EmulatorServer(app) as server:
            provider = provider_for("openai", server.url)
            await scene(app, server, provider)
            await provider.aclose()
            await app.openai.until(lambda vendor: vendor.open_connections == 0)

    asyncio.run(main())


def test_the_connection_of_a_stream_is_used_again() -> None:
    """A stream that was read completely leaves a reusable connection."""

    async def scene(app: Emulator, server: EmulatorServer, provider: Any) -> None:
        for _ in range(3):
            await provider.generate(Streamed().request(), MODEL)
        assert server.open_connections == 1

    with_server(scene)


def test_an_image_is_delivered_although_its_stream_does_not_end() -> None:
    """The image is delivered without the rest of the stream, whose connection is closed."""

    async def scene(app: Emulator, server: EmulatorServer, provider: Any) -> None:
        app.openai.fail(faults.stall(3))
        result = await provider.generate(Streamed().request(), MODEL)
        assert len(result.images) == 1
        await app.openai.until(lambda vendor: vendor.open_connections == 0)

    with_server(scene)


@pytest.mark.parametrize("events", [0, 1, 2])
def test_a_cancelled_stream_closes_its_connection(events: int) -> None:
    """A stream cancelled at any point closes its connection and then calls no listener."""

    async def scene(app: Emulator, server: EmulatorServer, provider: Any) -> None:
        app.openai.fail(faults.stall(events))
        one, waits = Streamed(), asyncio.Event()

        def note(what: PartialImage | str) -> None:
            one.notes.append(what)
            if len(one.notes) > events:
                waits.set()

        request = replace(one.request(), on_partial_image=note, on_response=lambda: note("begun"))
        task = asyncio.create_task(provider.generate(request, MODEL))
        await waits.wait()
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        assert len(one.previews) == events
        await app.openai.until(lambda vendor: vendor.open_connections == 0)

    with_server(scene)


def test_secrets_of_an_event_stay_out_of_errors() -> None:
    """An error event that repeats key and prompt is redacted."""
    error_event = event(
        "error", error={"code": "server_error", "message": f"{PROMPT} by {KEY} failed"}
    )
    one = answered(error_event)
    assert one.error is not None
    for text in (str(one.error), repr(one.error), str(one.error.vendor_message)):
        assert PROMPT not in text
        assert KEY not in text
