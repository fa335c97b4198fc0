"""The live page of a client and its content, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from dashboard_kit import PATH, request, served, serving, snapshot
from opentelemetry.sdk.trace import TracerProvider
from readme_kit import executed, guide_of

from resilient_imagen import (
    ConfigurationError,
    ImageClient,
    ImageGenerationError,
    Reason,
    Settings,
    dashboard,
    sync,
)
from resilient_imagen.dashboard.stream import Broadcaster
from resilient_imagen.dashboard.view import ClientSource, View
from resilient_imagen.testing import FakeProvider, run_virtual

pytest_plugins = ["resilient_imagen.emulator.pytest_plugin"]

STATIC = Path(dashboard.__file__).parent / "static"


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 100))


def test_healthy() -> None:
    """Both routes are closed; images, requests and costs of the last minute are counted."""

    async def main() -> None:
        async with served() as page:
            for _ in range(3):
                await page.client.generate("a lighthouse")
            view = await snapshot(page.port)
            assert (view["status"], view["headline"]) == ("ok", "Images come from google.")
            assert [route["state"] for route in view["routes"]] == ["closed", "closed"]
            assert len(view["minutes"]) == 60
            last = {key: sum(minute[key] for minute in view["minutes"]) for key in last_keys}
            assert last == {"calls": 3, "images": 3, "requests": 3, "failed": 0}
            assert sum(minute["cost_usd"] for minute in view["minutes"]) > 0
            assert view["fallbacks"] == []
            assert view["hedging"]["calls_last_hour"] == 3
            assert {each["provider"] for each in view["queues"]} == {"google", "openai"}

    last_keys = ("calls", "images", "requests", "failed")
    run(main())


def test_outage() -> None:
    """The page names the cause, the route that serves, and the trace of the last fallback."""

    async def main() -> None:
        async with served() as page:
            page.google.fail(Reason.OVERLOADED, status=503, latency=0)
            for _ in range(5):
                await page.client.generate("a lighthouse")
            view = await snapshot(page.port)
            assert view["status"] == "degraded"
            assert view["headline"] == "Images come from openai: google is out (overloaded)."
            google = view["routes"][0]
            assert (google["state"], google["cause"]) == ("open", "overloaded")
            assert 0 < google["next_probe_s"] <= 66
            assert (
                "5 of 5 images of the last 5 minutes came from a fallback route." in view["notices"]
            )
            sentences = {each["sentence"]: each["count"] for each in view["fallbacks"]}
            assert sum(sentences.values()) == 5
            assert "google overloaded: openai is next" in sentences
            assert any("circuit open" in each["sentence"] for each in view["changes"])

    run(main())


def test_all_down() -> None:
    """The headline states that no image is delivered, and the cause."""

    async def main() -> None:
        async with served() as page:
            page.google.fail(Reason.OVERLOADED, status=503, latency=0)
            page.openai.fail(Reason.UNAUTHENTICATED, status=401, latency=0)
            for _ in range(5):
                with pytest.raises(ImageGenerationError):
                    await page.client.generate("a lighthouse")
            view = await snapshot(page.port)
            assert view["status"] == "down"
            assert view["headline"] == (
                "No images: google is out (overloaded); openai is out (unauthenticated)."
            )
            assert "5 of 5 calls of the last 5 minutes returned no image." in view["notices"]

    run(main())


def test_fallbacks_have_the_ids_of_their_traces() -> None:
    """The id is that of the call's trace, and the page's configuration has Jaeger's address."""

    async def main() -> None:
        google = FakeProvider("google", latency=0).fail(Reason.SERVER_ERROR, status=500, latency=0)
        providers = [google, FakeProvider("openai", latency=0)]
        tracers = TracerProvider()
        settings = Settings(max_retries=0)
        async with ImageClient(settings, providers=providers, tracer_provider=tracers) as client:
            source = ClientSource(client)
            with tracers.get_tracer("test").start_as_current_span("request") as span:
                await client.generate("a lighthouse")
            (fallback,) = (await source.read())["fallbacks"] or [{}]
            assert fallback["traces"] == [f"{span.get_span_context().trace_id:032x}"]

    run(main())


@pytest.mark.no_cover
def test_one_snapshot_per_second_for_any_traffic() -> None:
    """Thousands of events cause no further snapshots, and an idle client causes no fewer."""

    async def main() -> None:
        google = FakeProvider("google", latency=0.01)
        providers = [google.fail(Reason.SERVER_ERROR, status=500), FakeProvider("openai")]
        settings = Settings(ipm=60_000, max_concurrent=100)
        async with ImageClient(settings, providers=providers) as client:
            source, made = ClientSource(client), 0

            async def read() -> View:
                nonlocal made
                made += 1
                return await source.read()

            broadcaster = Broadcaster(read)
            with broadcaster.browser():
                for _ in range(10):
                    await asyncio.gather(*(client.generate("a lighthouse") for _ in range(100)))
                now = asyncio.get_running_loop().time()
                assert made <= now + 1
                seen, before = await broadcaster.after(b""), made
                for _ in range(5):
                    seen = await broadcaster.after(seen)
                assert made == before + 5
            view = await source.read()
            assert sum(minute["calls"] for minute in view["minutes"] or ()) == 1000
            assert sum(each["count"] for each in view["fallbacks"] or ()) == 1000
            assert len(view["fallbacks"] or ()) <= 20

    run_virtual(main())


def test_the_page_loads_nothing_from_other_hosts() -> None:
    """The page's files refer to no other host, and have no inline script or style."""
    for file in STATIC.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "//" not in text.replace("// ", "").replace('"//"', ""), file.name
        assert "style=" not in text
    assert "<script>" not in (STATIC / "page.html").read_text(encoding="utf-8")


def test_files_are_served_with_strict_headers() -> None:
    """Every response, including errors, forbids framing, storing and content from other hosts."""

    async def main() -> None:
        async with served() as page:
            for name in ("", "page.css", "page.js", "icon.svg", "configuration", "missing"):
                answer = await request(page.port, PATH + name)
                assert answer.status == (404 if name == "missing" else 200)
                policy = answer.headers["content-security-policy"]
                assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
                assert "unsafe" not in policy
                assert answer.headers["x-frame-options"] == "DENY"
                assert answer.headers["cache-control"] == "no-store"
                assert answer.headers["x-content-type-options"] == "nosniff"

    run(main())


def test_a_mounted_page_is_found_without_the_slash() -> None:
    """The address without the trailing slash redirects to the page."""

    async def main() -> None:
        async with served() as page:
            answer = await request(page.port, PATH.rstrip("/"))
            assert answer.status == 307
            assert answer.headers["location"] == page.url

    run(main())


@pytest.mark.parametrize(
    "url", ["localhost:16686", "javascript:alert(1)", "http://a:b@c", "http://a:1/b@c"]
)
def test_an_address_of_jaeger_is_checked(url: str) -> None:
    """The address must use http or https, because it becomes a link."""

    async def main() -> None:
        async with ImageClient(providers=[FakeProvider("google")]) as client:
            with pytest.raises(ConfigurationError, match="jaeger_url must"):
                dashboard.app(client, jaeger_url=url)

    run(main())


def test_a_closed_client_is_down() -> None:
    """A closed client has closed circuits, but accepts no calls."""

    async def main() -> None:
        async with served() as page:
            await page.client.aclose()
            view = await snapshot(page.port)
            assert (view["status"], view["headline"]) == (
                "down",
                "No images: the client is closed.",
            )

    run(main())


def test_a_synchronous_client_is_rejected() -> None:
    """The synchronous client runs on another event loop."""
    refused = pytest.raises(TypeError, match=r"not resilient_imagen\.sync\.ImageClient")
    with sync.ImageClient(providers=[FakeProvider("google")]) as client, refused:
        dashboard.app(client)  # type: ignore[arg-type]


@pytest.mark.usefixtures("imagen_emulator")
def test_the_guides_application() -> None:
    """The sample for FastAPI serves the page, its files and its stream."""

    async def main() -> None:
        app = executed(guide_of("dashboard").samples()[0])["app"]
        async with app.router.lifespan_context(app), serving(app) as port:
            for name in ("", "page.js", "configuration"):
                assert (await request(port, PATH + name)).status == 200
            assert (await snapshot(port))["status"] == "ok"

    run(main())
