"""Misbehaving browsers do not affect calls, and use bounded memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from itertools import pairwise
from typing import Any

import pytest
from dashboard_kit import PATH, TOKEN, request, served, snapshot, watching

from resilient_imagen import Reason
from resilient_imagen.dashboard import stream
from resilient_imagen.dashboard.activity import Activity
from resilient_imagen.dashboard.stream import MAX_BROWSERS, Broadcaster, EventStream
from resilient_imagen.telemetry import events
from resilient_imagen.testing import run_virtual

Message = dict[str, Any]


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 100))


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET " + b"/" * 100_000,
        b"POST " + PATH.encode() + b"orders HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET " + PATH.encode() + b"..%2f..%2fsecurity.py HTTP/1.1\r\nHost: a\r\n\r\n",
        b"",
    ],
    ids=["TLS", "version", "endless line", "negative length", "path", "silence"],
)
def test_garbage_does_not_affect_calls_or_other_browsers(sent: bytes) -> None:
    """Twenty browsers send garbage and stay connected; all others are served."""

    async def main() -> None:
        async with served(token=TOKEN) as page:
            bad = [await asyncio.open_connection("127.0.0.1", page.port) for _ in range(20)]
            for _, writer in bad:
                writer.write(sent)
            assert (await page.client.generate("a lighthouse")).provider == "google"
            view = await snapshot(page.port)
            assert sum(minute["calls"] for minute in view["minutes"]) == 1
            assert page.client.snapshot()["control"]["orders"] == []
            for _, writer in bad:
                writer.close()

    run(main())


def test_browsers_that_never_read_take_no_place_from_others() -> None:
    """Streams beyond the maximum are rejected, and a browser that leaves frees its place."""

    async def main() -> None:
        async with served() as page:
            get = f"GET {PATH}events HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\n\r\n".encode()
            writers = []
            for _ in range(MAX_BROWSERS):
                reader, writer = await asyncio.open_connection("127.0.0.1", page.port)
                writer.write(get)
                await reader.readline()  # it is connected, and reads nothing more
                writers.append(writer)
            refused = await request(page.port, f"{PATH}events")
            assert refused.status == 503
            assert (await page.client.generate("a lighthouse")).provider == "google"
            for writer in writers:
                writer.close()
            while (await _first_line(page.port)) != b"HTTP/1.1 200 OK\r\n":  # noqa: ASYNC110 - sockets
                await asyncio.sleep(0.05)

    run(main())


async def _first_line(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {PATH}events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
    try:
        return await reader.readline()
    finally:
        writer.close()


async def never_send() -> Message:
    """Receive nothing, as from a browser that stays connected."""
    await asyncio.Event().wait()
    return {}


def served_to(
    broadcaster: Broadcaster, send: Callable[[Message], Awaitable[None]]
) -> Coroutine[Any, Any, None]:
    return EventStream(broadcaster)({"type": "http"}, never_send, send)  # type: ignore[arg-type]


def test_a_stalled_browser_is_dropped_and_a_slow_one_skips_snapshots() -> None:
    """A slow browser gets the latest snapshot only, and nothing is queued for it."""

    async def main() -> None:
        made = 0

        async def read() -> dict[str, object]:
            nonlocal made
            made += 1
            return {"number": made}

        broadcaster = Broadcaster(read)
        got: list[bytes] = []

        async def slowly(message: Message) -> None:
            if body := message.get("body"):
                got.append(body)
                await asyncio.sleep(4)

        async def never(message: Message) -> None:
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()

        began = asyncio.get_running_loop().time()
        stalled = asyncio.create_task(served_to(broadcaster, never))
        slow = asyncio.create_task(served_to(broadcaster, slowly))
        with pytest.raises(TimeoutError):
            await stalled
        assert asyncio.get_running_loop().time() - began == pytest.approx(stream.STALLED, abs=0.01)
        assert broadcaster.browsers == 1
        await slow
        numbers = [int(each.split(b'"number":')[1].rstrip(b"}\n")) for each in got]
        assert len(numbers) == 5
        assert all(later - earlier >= 3 for earlier, later in pairwise(numbers))
        assert broadcaster.browsers == 0
        await asyncio.sleep(10)
        assert made <= 21, "nothing is made while nobody watches"

    run_virtual(main())


def test_browsers_that_come_and_go_cause_one_snapshot_per_second() -> None:
    """A thousand connections within a second do not cause a thousand snapshots."""

    async def main() -> None:
        made = 0

        async def read() -> dict[str, object]:
            nonlocal made
            made += 1
            return {}

        broadcaster = Broadcaster(read)
        for _ in range(1000):
            with broadcaster.browser():
                assert await broadcaster.after(b"")
            await asyncio.sleep(0.001)
        assert made <= 2

    run_virtual(main())


def test_a_failing_snapshot_is_logged_and_retried(caplog: pytest.LogCaptureFixture) -> None:
    """The browser gets an error without details, and the log has the traceback."""

    async def main() -> None:
        fails = [True]

        async def read() -> dict[str, object]:
            if fails.pop() if fails else False:
                raise KeyError("secret")
            return {"status": "ok"}

        broadcaster = Broadcaster(read)
        with broadcaster.browser():
            first = await broadcaster.after(b"")
            assert b"no snapshot (KeyError)" in first
            assert b"secret" not in first
            assert b'"status":"ok"' in await broadcaster.after(first)

    run_virtual(main())
    assert "dashboard: no snapshot" in caplog.text


def test_memory_does_not_grow_with_events() -> None:
    """After a hundred hours with ten thousand fallbacks, one hour and twenty fallbacks are kept."""

    async def main() -> None:
        activity = Activity()
        for number in range(10_000):
            activity.handle(
                events.RouteFallback(
                    from_route=f"google:{number}", to_route="openai:b", cause=Reason.OVERLOADED
                )
            )
            activity.handle(events.OperatorWarning(code="control", message=str(number)))
            ended = events.RequestEnded(
                outcome="error", latency_s=1, attempts=1, retries=0, short_circuits=0, queue_s=0,
                backoff_s=0, fallback_cause=None, fallback_from=None, result=None, error=None,
            )  # fmt: skip
            activity.handle(ended)
            await asyncio.sleep(36)
        assert len(activity.minutes()) == 60
        assert sum(minute.failed for minute in activity.minutes()) == pytest.approx(100, abs=2)
        assert len(activity.fallbacks()) == 20
        assert len(activity.changes()) == 20
        assert len(activity._counters._rows) == 60

    run_virtual(main())


def test_a_stream_ends_so_that_the_server_can_stop() -> None:
    """A stream ends after twenty seconds, and the browser connects again."""

    async def main() -> None:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        async def read() -> dict[str, object]:
            return {}

        await served_to(Broadcaster(read), send)
        assert asyncio.get_running_loop().time() <= stream.LONGEST + stream.PERIOD
        assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
        assert sent[1]["body"].startswith(b"retry: 500\n")

    run_virtual(main())


def test_no_snapshots_are_made_without_browsers() -> None:
    """Snapshots stop after the last browser has left."""

    def producers() -> list[asyncio.Task[Any]]:
        return [each for each in asyncio.all_tasks() if "_produce" in str(each.get_coro())]

    async def main() -> None:
        async with served() as page:
            async with watching(page.port) as views:
                await anext(views)
                assert len(producers()) == 1
            (producer,) = producers()
            await asyncio.wait({producer})

    run(main())
