"""The page in a real browser: content, window sizes, keyboard, controls and lost connections."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from browser_kit import Page, browser_page, needs_chromium
from dashboard_kit import TOKEN, served

from resilient_imagen import ImageGenerationError, Reason

pytestmark = [pytest.mark.ci, needs_chromium, pytest.mark.timeout(400)]

STATUS = "document.querySelector('#banner').dataset.status"
FOCUS = "document.activeElement.name || document.activeElement.textContent"


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 300))


async def tab_to(page: Page, wanted: str) -> None:
    """Press Tab until the element with this name or text has the focus."""
    for _ in range(60):
        if await page.evaluate(FOCUS) == wanted:
            return
        await page.press("Tab")
    raise AssertionError(f"{wanted} is not reached by the keyboard")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_an_outage_is_shown_live(width: int, dark: bool, tmp_path: Path) -> None:
    """State, cause and probe appear without a reload; nothing is wider than the window."""

    async def main() -> None:
        async with (
            served(jaeger_url="http://localhost:16686") as site,
            browser_page(tmp_path) as page,
        ):
            await page.size(width, dark=dark)
            await site.client.generate("a lighthouse")
            await page.open(site.url)
            await page.until(f"{STATUS} === 'ok'")
            assert await page.text("#headline") == "Images come from google."
            site.google.fail(Reason.OVERLOADED, status=503, latency=0)
            for _ in range(4):
                await site.client.generate("a lighthouse")
            await page.until(f"{STATUS} === 'degraded'")
            assert await page.text("#headline") == (
                "Images come from openai: google is out (overloaded)."
            )
            google = await page.text("#routes li")
            assert "cause: overloaded" in google
            assert "next probe in" in google
            assert "google overloaded: openai is next" in await page.text("#fallbacks")
            assert await page.evaluate("document.querySelectorAll('#charts svg').length") == 4
            shown = "[...document.querySelectorAll('button')].filter((e) => e.checkVisibility())"
            assert await page.evaluate(f"{shown}.length") == 0, "the page is read-only"
            site.openai.fail(Reason.UNAUTHENTICATED, status=401, latency=0)
            with pytest.raises(ImageGenerationError):
                await site.client.generate("a lighthouse")
            await page.until(f"{STATUS} === 'down'")
            assert (await page.text("#headline")).startswith("No images: ")
            assert "DOWN" in await page.evaluate("document.title")
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.problems == []

    run(main())


def test_live_regions_change_with_the_state_only(tmp_path: Path) -> None:
    """A screen reader announces changes of the state, and no countdown."""

    async def main() -> None:
        async with served() as site, browser_page(tmp_path) as page:
            site.google.fail(Reason.OVERLOADED, status=503, latency=0)
            for _ in range(4):
                await site.client.generate("a lighthouse")
            await page.open(site.url)
            await page.until(f"{STATUS} === 'degraded'")
            await page.evaluate(
                "globalThis.changes = 0, new MutationObserver((all) => changes += all.length)"
                ".observe(document.querySelector('#headline'),"
                " {childList: true, characterData: true, subtree: true})"
            )
            probe = await page.text("#routes .probe")
            await page.until(f"document.querySelector('.probe').textContent !== {probe!r}")
            assert await page.evaluate("changes") == 0
            live = "[...document.querySelectorAll('[aria-live], [role=status]')].map((e) => e.id)"
            assert await page.evaluate(live) == ["headline", "answer"]
            unnamed = "[...document.querySelectorAll('svg')].filter((e) => !e.ariaLabel).length"
            assert await page.evaluate(unnamed) == 0

    run(main())


def test_an_order_by_keyboard_alone(tmp_path: Path) -> None:
    """Tab and Enter open the dialog and give the order.

    With a wrong token the error is shown and no order is given.
    """

    async def main() -> None:
        async with served(token=TOKEN) as site, browser_page(tmp_path) as page:
            await page.size(390)
            await page.open(site.url)
            await page.until("document.querySelector('#routes button')")
            await tab_to(page, "Open…")
            await page.press("Enter")
            await page.until("document.querySelector('dialog').open")
            assert "google" in await page.text("#order-title")
            assert "this process only" in await page.text("#order-effect")
            await tab_to(page, "by")
            await page.write("<b>ana</b>")
            await tab_to(page, "token")
            await page.write("not-the-right-token")
            await page.press("Enter")
            await page.until("document.querySelector('#order-error').textContent")
            assert await page.text("#order-error") == "The token is wrong."
            assert site.client.snapshot()["control"]["orders"] == []
            await page.evaluate("document.querySelector('[name=token]').value = ''")
            await page.write(TOKEN)
            await page.press("Enter")
            await page.until("!document.querySelector('dialog').open")
            assert "obeyed by this process" in await page.text("#answer")
            assert await page.evaluate(FOCUS) == "Open…", "the focus returns"
            (order,) = site.client.snapshot()["control"]["orders"]
            assert (order["action"], order["by"]) == ("open", "<b>ana</b>")
            await page.until("document.querySelector('#orders button')")
            assert "<b>ana</b>" in await page.text("#orders"), "shown as it is, never as markup"
            assert "held open" in await page.text("#routes li")

    run(main())


def test_the_focus_stays_while_the_page_changes(tmp_path: Path) -> None:
    """Snapshots update the page in place, so a keyboard user keeps the focus."""

    async def main() -> None:
        async with served(token=TOKEN) as site, browser_page(tmp_path) as page:
            await page.open(site.url)
            await page.until("document.querySelector('#routes button')")
            await tab_to(page, "Close…")
            site.google.fail(Reason.OVERLOADED, status=503, latency=0)
            for _ in range(4):
                await site.client.generate("a lighthouse")
            await page.until(f"{STATUS} === 'degraded'")
            assert await page.evaluate(FOCUS) == "Close…"

    run(main())


def test_a_lost_connection_is_shown(tmp_path: Path) -> None:
    """The page marks its content as outdated instead of showing a healthy state."""

    async def main() -> None:
        async with browser_page(tmp_path) as page:
            async with served() as site:
                await page.open(site.url)
                await page.until(f"{STATUS} === 'ok'")
            await page.until(f"{STATUS} === 'unknown'")
            assert "does not answer" in await page.text("#headline")

    run(main())
