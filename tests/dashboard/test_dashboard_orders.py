"""Orders from the page, and requests that must not change anything."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping
from typing import Any

import pytest
from dashboard_kit import PATH, TOKEN, Answer, request, served, snapshot

from resilient_imagen import ConfigurationError, ImageClient, dashboard
from resilient_imagen.testing import FakeProvider

OPEN = {"action": "open", "target": "google", "by": "ana", "why": "incident 7", "seconds": 60}


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 100))


def good(port: int) -> dict[str, str]:
    """Return the headers of the page's own requests."""
    return {
        "Origin": f"http://127.0.0.1:{port}",
        "Sec-Fetch-Site": "same-origin",
        "Content-Type": "application/json",
        "Authorization": f"Bearer {TOKEN}",
    }


async def give(port: int, order: object, headers: Mapping[str, str] | None = None) -> Answer:
    return await request(
        port,
        f"{PATH}orders",
        method="POST",
        headers=good(port) if headers is None else headers,
        body=json.dumps(order).encode(),
    )


def test_an_order_is_obeyed() -> None:
    """The client obeys, and the page shows the order and its effect."""

    async def main() -> None:
        async with served(token=TOKEN) as page:
            answer = await give(page.port, OPEN)
            assert answer.status == 200, answer
            assert json.loads(answer.body) == {
                "order": "breaker open google",
                "answer": "obeyed by this process",
            }
            assert (await page.client.generate("a lighthouse")).provider == "openai"
            view = await snapshot(page.port)
            assert [each["order"] for each in view["orders"]] == ["breaker open google"]
            assert view["headline"] == "Images come from openai: google is kept out by an operator."
            assert view["changes"][0]["sentence"].startswith("ana ordered breaker open google")
            reset = await give(page.port, {"action": "reset", "target": "google", "by": "ana"})
            assert reset.status == 200
            assert (await page.client.generate("a lighthouse")).provider == "google"

    run(main())


def test_a_setting_is_changed() -> None:
    """An order to set a value changes the running client.

    An invalid one gets an error with the cause.
    """

    async def main() -> None:
        order = {"action": "set", "target": "IMAGE_GEN_BREAKER_FAIL_MAX", "value": "7", "by": "ana"}
        async with served(token=TOKEN) as page:
            assert (await give(page.port, order)).status == 200
            (breaker, _) = (route["breaker"] for route in page.client.snapshot()["routes"])
            assert breaker["fail_max"] == 7
            invalid = await give(page.port, {**order, "value": "none"})
            assert invalid.status == 400
            assert "IMAGE_GEN_BREAKER_FAIL_MAX" in json.loads(invalid.body)["error"]

    run(main())


FORGED: dict[str, tuple[int, dict[str, str | None]]] = {
    "no token": (401, {"Authorization": None}),
    "a wrong token": (401, {"Authorization": f"Bearer {TOKEN}x"}),
    "a part of the token": (401, {"Authorization": f"Bearer {TOKEN[:-1]}"}),
    "another scheme": (401, {"Authorization": f"Basic {TOKEN}"}),
    "a token that is not ASCII": (401, {"Authorization": "Bearer \u00fc"}),
    "another origin": (403, {"Origin": "http://evil.example"}),
    "no origin": (403, {"Origin": None}),
    "an origin without a host": (403, {"Origin": "null"}),
    "an origin that cannot be parsed": (403, {"Origin": "http://["}),
    "a request of another site": (403, {"Sec-Fetch-Site": "cross-site"}),
    "a form": (415, {"Content-Type": "application/x-www-form-urlencoded"}),
    "plain text, which needs no preflight": (415, {"Content-Type": "text/plain"}),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_request_changes_nothing(case: str) -> None:
    """Each check alone rejects the request: all other headers are right."""
    status, changed = FORGED[case]

    async def main() -> None:
        async with served(token=TOKEN) as page:
            headers = {**good(page.port), **changed}
            given = {name: value for name, value in headers.items() if value is not None}
            answer = await give(page.port, OPEN, given)
            assert answer.status == status
            assert "access-control-allow-origin" not in answer.headers
            assert TOKEN not in answer.body
            assert page.client.snapshot()["control"]["orders"] == []

    run(main())


@pytest.mark.parametrize("method", ["GET", "PUT", "OPTIONS", "DELETE"])
def test_other_methods_change_nothing(method: str) -> None:
    """Orders are accepted by POST only, and a preflight request of another site is rejected."""

    async def main() -> None:
        async with served(token=TOKEN) as page:
            headers = {**good(page.port), "Access-Control-Request-Method": "POST"}
            answer = await request(page.port, f"{PATH}orders", method=method, headers=headers)
            assert answer.status == 405
            assert page.client.snapshot()["control"]["orders"] == []

    run(main())


def test_a_page_without_a_token_is_read_only() -> None:
    """No token is accepted, and the page has no controls."""

    async def main() -> None:
        async with served() as page:
            configuration = await request(page.port, f"{PATH}configuration")
            assert json.loads(configuration.body)["controls"] is False
            for authorization in ("Bearer ", "Bearer None", f"Bearer {TOKEN}"):
                headers = {**good(page.port), "Authorization": authorization}
                assert (await give(page.port, OPEN, headers)).status == 403
            assert page.client.snapshot()["control"]["orders"] == []

    run(main())


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b"\xff\xfe", b'{"action":"open"}', b'{"serial":1}', b"[" * 4000, b"null"],
    ids=["cut short", "a list", "not text", "fields missing", "serial", "deep", "null"],
)
def test_garbage_is_answered_with_an_error(body: bytes) -> None:
    """The response is 400 with a sentence, and nothing changes."""

    async def main() -> None:
        async with served(token=TOKEN) as page:
            answer = await request(
                page.port, f"{PATH}orders", method="POST", headers=good(page.port), body=body
            )
            assert answer.status == 400
            assert json.loads(answer.body)["error"].startswith("an order ")
            assert page.client.snapshot()["control"]["orders"] == []

    run(main())


def test_a_large_request_is_refused() -> None:
    """The request is not read to its end."""

    async def main() -> None:
        async with served(token=TOKEN) as page:
            answer = await give(page.port, {**OPEN, "why": "x" * 5000})
            assert answer.status == 413

    run(main())


@pytest.mark.parametrize("token", ["", "short", "fifteen-letters", "sixteen letters\n", "ü" * 16])
def test_a_weak_token_is_an_error(token: str) -> None:
    """The error states the rule, and does not contain the token."""

    async def main() -> None:
        async with ImageClient(providers=[FakeProvider("google")]) as client:
            with pytest.raises(ConfigurationError, match="at least 16") as caught:
                dashboard.app(client, token=token)
            assert not token or token not in str(caught.value)

    run(main())


def test_other_host_names_are_refused() -> None:
    """With ``hosts``, a name that an attacker's DNS points here can neither read nor change."""

    async def main() -> None:
        async with served(token=TOKEN, hosts=["127.0.0.1"]) as page:
            assert (await request(page.port)).status == 200
            evil = {"Host": "evil.example", "Origin": "http://evil.example"}
            for name in ("", "page.js", "events"):
                assert (await request(page.port, PATH + name, headers=evil)).status == 421
            assert (await give(page.port, OPEN, {**good(page.port), **evil})).status == 421
            for host in ("[", "127.0.0.1.evil.example", "", "evil@127.0.0.1:80:90"):
                assert (await request(page.port, headers={"Host": host})).status in {400, 421}

    run(main())
