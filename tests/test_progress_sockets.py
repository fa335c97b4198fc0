"""Progress and previews through the real SDKs and sockets: async, sync and with a fallback."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import resilient_imagen as ri
from resilient_imagen import Progress, Reason, sync, thread_callbacks
from resilient_imagen.emulator import BackgroundEmulator, Fault, faults
from resilient_imagen.testing import RecordingSink

ROUTES = "openai:gpt-image-2.5-flare,google:gemini-3-pro-image"
PATIENCE = 60.0


@pytest.fixture
def vendors(vendors: BackgroundEmulator, monkeypatch: pytest.MonkeyPatch) -> BackgroundEmulator:
    monkeypatch.setenv("IMAGE_GEN_ROUTES", ROUTES)
    return vendors


async def reported(**options: Any) -> tuple[list[Progress], ri.ImageResult, RecordingSink]:
    """Generate an image; return all events, the result and the requests."""
    recorded, seen = RecordingSink(), list[Progress]()
    async with asyncio.timeout(PATIENCE), ri.ImageClient(sinks=[recorded]) as client:
        result = await client.generate(
            "a fox", on_progress=seen.append, **{"partial_images": 2, **options}
        )
    return seen, result, recorded


def kinds(seen: list[Progress]) -> list[tuple[str, str | None]]:
    return [(event.kind, event.provider) for event in seen if event.kind != "queued"]


PREVIEW = ("partial_image", "openai")
ENDS = [("finishing", "openai"), ("done", "openai")]


def test_previews_reach_the_caller(vendors: BackgroundEmulator) -> None:
    """Each preview differs from the previous one, and the last event has the result."""
    seen, result, _ = asyncio.run(reported())
    assert kinds(seen) == [("sending", "openai"), PREVIEW, PREVIEW, *ENDS]
    images = [event.image_bytes for event in seen if event.image_bytes is not None]
    assert images[-1] == result.image_bytes
    assert len(set(images)) == 3


@pytest.mark.parametrize("events", [0, 1, 2, 3])
def test_a_truncated_stream_is_retried(vendors: BackgroundEmulator, events: int) -> None:
    """A truncated request may be billed; its previews are delivered, and finally the image."""
    vendors.openai.fail(faults.cut_stream(events))
    seen, result, recorded = asyncio.run(reported())
    again = [("sending", "openai"), PREVIEW, PREVIEW, *ENDS]
    if events == 3:
        assert kinds(seen) == again
        assert [each.reason for each in recorded.attempts] == [None]
    else:
        first = [("sending", "openai"), *[PREVIEW] * events, ("retrying", "openai")]
        assert kinds(seen) == [*first, *again]
        assert [each.reason for each in recorded.attempts] == [Reason.CONNECTION, None]
        assert recorded.attempts[0].may_have_been_billed
    assert [event.kind for event in seen].count("done") == 1
    assert result.attempts == len(vendors.openai.requests)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (faults.error_event("rate_limited", 2), Reason.RATE_LIMITED),
        (faults.no_completed(2), Reason.INVALID_RESPONSE),
        (faults.cut_stream(2), Reason.CONNECTION),
    ],
    ids=lambda value: value.name if isinstance(value, Fault) else "",
)
def test_previews_before_a_fallback_are_delivered(
    vendors: BackgroundEmulator, fault: Fault, reason: Reason
) -> None:
    """Google delivers after OpenAI's previews, without previews of its own, and the result
    states this.
    """
    vendors.openai.set(fault)
    seen, result, recorded = asyncio.run(reported())
    assert PREVIEW in kinds(seen)
    assert kinds(seen)[-4:] == [
        ("falling_back", "google"), ("sending", "google"), ("finishing", "google"),
        ("done", "google"),
    ]  # fmt: skip
    assert result.fallback_reason is reason
    assert any("partial_images" in note for note in result.adjustments)
    failed = [each for each in recorded.attempts if each.provider == "openai"]
    assert {each.reason for each in failed} == {reason}
    assert all(each.may_have_been_billed for each in failed)


def test_a_stream_has_the_newest_preview_and_the_image(vendors: BackgroundEmulator) -> None:
    """Previews that arrive faster than they are consumed replace each other."""

    async def main() -> None:
        async with (
            asyncio.timeout(PATIENCE),
            ri.ImageClient() as client,
            client.stream("a fox", partial_images=3) as events,
        ):
            seen = [event async for event in events]
            result = await events.result()
        assert PREVIEW in kinds(seen)
        assert kinds(seen)[-2:] == ENDS
        assert seen[-1].image_bytes == result.image_bytes

    asyncio.run(main())


def test_call_options_carry_progress(vendors: BackgroundEmulator) -> None:
    """The block is for call sites that cannot be changed.

    The call's own callback takes precedence.
    """
    outer: list[Progress] = []
    inner: list[Progress] = []

    async def main() -> None:
        try:
            with ri.call_options(on_progress=outer.append, partial_images=1):
                await ri.generate_image("a fox")
                await ri.edit_image(ri.testing.TINY_PNG, "x", on_progress=inner.append)
        finally:
            await ri.reset_default_client()

    asyncio.run(main())
    assert [kind for kind, _ in kinds(outer)] == ["sending", "partial_image", "finishing", "done"]
    assert [kind for kind, _ in kinds(inner)] == ["sending", "partial_image", "finishing", "done"]


# -- the synchronous API --------------------------------------------------------------------------


@pytest.fixture
def client(vendors: BackgroundEmulator) -> Iterator[sync.ImageClient]:
    with sync.ImageClient() as made:
        yield made


def test_the_calling_thread_gets_the_progress(client: sync.ImageClient) -> None:
    """Sync and async callbacks run in it, and have all events when the call returns."""
    seen: list[tuple[str, int]] = []

    async def later(event: Progress) -> None:
        await asyncio.sleep(0)
        seen.append((event.kind, threading.get_ident()))

    def now(event: Progress) -> None:
        seen.append((event.kind, threading.get_ident()))

    for callback in (now, later):
        seen.clear()
        client.generate("a fox", partial_images=2, on_progress=callback)
        found = [kind for kind, _ in seen if kind != "queued"]
        # A callback that is busy gets the newest preview only.
        assert [kind for kind in found if kind != "partial_image"] == [
            "sending", "finishing", "done",
        ]  # fmt: skip
        assert "partial_image" in found
        assert {thread for _, thread in seen} == {threading.get_ident()}


def test_a_callback_of_a_thread_that_raises_affects_nothing(
    client: sync.ImageClient, caplog: pytest.LogCaptureFixture
) -> None:
    """The failure is logged by its type."""

    def fails(event: Progress) -> None:
        raise ValueError(event.kind)

    assert client.generate("a fox", on_progress=fails).provider == "openai"
    assert "on_progress failed: ValueError" in caplog.text


def test_a_hanging_callback_of_a_thread_is_abandoned_once(
    client: sync.ImageClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time limit after the call applies to all waiting events together."""
    monkeypatch.setattr(thread_callbacks, "SECONDS_AFTER_CALL", 0.1)
    seen: list[str] = []

    async def hang(event: Progress) -> None:
        seen.append(event.kind)
        await asyncio.Event().wait()

    assert client.generate("a fox", on_progress=hang).provider == "openai"
    assert len(seen) == 1


def test_a_thread_iterates_over_a_stream(client: sync.ImageClient) -> None:
    """Events, result and errors equal those of the asynchronous stream."""
    with client.stream("a fox", partial_images=2) as events:
        seen = list(events)
        result = events.result()
    assert kinds(seen)[0] == ("sending", "openai")
    assert kinds(seen)[-2:] == ENDS
    assert seen[-1].image_bytes == result.image_bytes
    assert [event.kind for event in client.stream_edit(result, "more red")][-1] == "done"
    with pytest.raises(ri.InvalidRequestError):
        next(client.stream(""))


def test_a_thread_that_leaves_a_stream_cancels_its_call(
    client: sync.ImageClient, vendors: BackgroundEmulator
) -> None:
    """The connection is closed, and nothing waits for the image."""
    vendors.openai.set(faults.stall(1))
    with client.stream("a fox", partial_images=2) as events:
        for event in events:
            if event.kind == "partial_image":
                break
    vendors.wait_until(lambda: vendors.openai.in_flight == 0)
    assert list(events) == []
    with pytest.raises(RuntimeError, match="closed before"):
        events.result()


def test_a_slow_thread_does_not_delay_the_image(
    client: sync.ImageClient, vendors: BackgroundEmulator
) -> None:
    """The image is generated while the thread handles its first event."""
    with client.stream("a fox", partial_images=2) as events:
        next(events)
        vendors.wait_until(lambda: any(each.delivered for each in vendors.openai.requests))
        deadline = time.monotonic() + PATIENCE
        while (event := next(events)).kind != "done":
            assert time.monotonic() < deadline
        assert event.image_bytes is not None
