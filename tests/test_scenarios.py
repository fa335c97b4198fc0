"""Sixteen provider faults of failoverbench, and the outages that this library was made for.

S01 to S16 demand what the scenarios of github.com/failoverbench/failoverbench (methodology 0.1)
demand of a gateway for chat, put into images: a picture has no tokens, so a stream that is cut,
stalls or loses its end is a body that does. Written anew from what each scenario asks for. Real
SDKs talk to the emulator in memory, on virtual time, with the default settings but for pacing: a
scenario is about one caller, not about a quota. After each, a healthy call must still be served.
Where a scenario can be passed only by a setting, the test says so and shows the default, too.

The tests below them are the rows of the timing table of the design that this one replaces: three
tries of the primary, 5 and 10 seconds apart, then the fallback. There every setting is the default.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest

from resilient_imagen import (
    AllProvidersFailedError,
    ContentBlockedError,
    ImageClient,
    ImageResult,
    InvalidRequestError,
    ProviderOverloadedError,
    Reason,
    Settings,
)
from resilient_imagen.emulator import Emulator, faults
from resilient_imagen.emulator.faults import Fault
from resilient_imagen.emulator.vendor import Vendor
from resilient_imagen.emulator.wire import Delivery
from resilient_imagen.providers.google import GoogleProvider
from resilient_imagen.providers.openai import OpenAIProvider
from resilient_imagen.testing import TINY_PNG, run_virtual

HEALTHY = 4.0
"""Seconds that a good picture takes, of either vendor."""
SLACK = 0.01
BUDGET = 6
"""Tries of a failing primary that a scenario allows at most."""
UNPACED = {"ipm": 6000}
REVERSED = {"routes": "openai:gpt-image-2.5-flare,google:gemini-3-pro-image"}

CUT_LATE = faults.cut(40 / 60)
DRIES_UP = replace(faults.cut(20 / 60), delivery=Delivery(cut_at=20 / 60, seconds=30.0))
"""A third of the body over 30 seconds, so that no read timeout notices; then it is closed."""
TOO_LONG = faults.status(
    400,
    {
        "error": {
            "code": 400,
            "status": "INVALID_ARGUMENT",
            "message": "The input token count (70000) exceeds the maximum number of tokens allowed",
        }
    },
)


@dataclass
class World:
    """Both vendors, and a client whose SDKs talk to them."""

    google: Vendor
    openai: Vendor
    client: ImageClient

    async def ask(self, **options: Any) -> ImageResult:
        """One picture, which must be whole."""
        result = await self.client.generate("a lighthouse", **options)
        assert result.image_bytes == TINY_PNG
        return result

    @property
    def gaps(self) -> list[float]:
        """Seconds between the requests that Google saw."""
        times = [seen.time for seen in self.google.requests]
        return [after - before for before, after in pairwise(times)]


def play(scene: Callable[[World], Awaitable[None]], **settings: Any) -> None:
    """Play a scene; afterwards a healthy call is served, at once, and nothing is left over."""

    async def main() -> None:
        app = Emulator(picture=TINY_PNG, latency=HEALTHY)
        google = GoogleProvider(
            api_key="made-up", base_url="http://emulator", transport=app.transport()
        )
        openai = OpenAIProvider(
            api_key="made-up", base_url="http://emulator/v1", transport=app.transport()
        )
        providers = [google, openai]
        async with ImageClient(Settings(**settings), providers=providers) as client:
            world = World(app.google, app.openai, client)
            await scene(world)
            app.heal()
            asked = now()
            await world.ask()
            assert now() - asked <= HEALTHY + 60.0 / client.settings.ipm + SLACK
            assert (app.google.in_flight, app.openai.in_flight) == (0, 0)

    run_virtual(main())


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize(
    "fault",
    [faults.rate_limited(2.0), faults.status(429, headers={"Retry-After": "2"})],
    ids=["in the body", "in the header"],
)
def test_s01_429_with_retry_after(fault: Fault) -> None:
    """The hint is waited for, once, and the primary serves."""

    async def scene(world: World) -> None:
        world.google.fail(fault)
        result = await world.ask()
        assert (result.provider, result.attempts) == ("google", 2)
        assert 2.0 <= world.gaps[0] <= 2.5

    play(scene, **UNPACED)


def test_s02_429_without_retry_after_persistent() -> None:
    """Backed off from, then left; never hammered."""

    async def scene(world: World) -> None:
        world.google.set(faults.rate_limited())
        result = await world.ask()
        assert (result.provider, result.fallback_reason) == ("openai", "rate_limited")
        assert len(world.google.requests) <= BUDGET
        assert min(world.gaps) >= 3.0
        assert now() <= 40.0

    play(scene, **UNPACED)


def test_s03_500_once_then_healthy() -> None:
    """Asked once more, the same provider serves."""

    async def scene(world: World) -> None:
        world.google.fail(faults.status(500))
        result = await world.ask()
        assert (result.provider, result.attempts) == ("google", 2)
        assert world.openai.requests == ()
        assert now() <= 20.0

    play(scene, **UNPACED)


def test_s04_503_persistent() -> None:
    """Left within the budget of tries; with nowhere to go, the original error surfaces."""

    async def scene(world: World) -> None:
        world.google.set(faults.overload())
        result = await world.ask()
        assert (result.provider, result.fallback_reason) == ("openai", "overloaded")
        assert len(world.google.requests) <= BUDGET
        assert now() <= 40.0

    async def nowhere_to_go(world: World) -> None:
        world.google.set(faults.overload())
        with pytest.raises(ProviderOverloadedError, match="503 UNAVAILABLE"):
            await world.ask()
        assert len(world.google.requests) <= BUDGET

    play(scene, **UNPACED)
    play(nowhere_to_go, fallback_on="circuit_open", **UNPACED)


@pytest.mark.parametrize("fault", [faults.reset(), faults.disconnect()], ids=["reset", "closed"])
def test_s05_tcp_reset_before_headers(fault: Fault) -> None:
    """The request is sent again, and answered."""

    async def scene(world: World) -> None:
        world.google.fail(fault)
        result = await world.ask()
        assert (result.provider, result.attempts) == ("google", 2)
        assert now() <= 20.0

    play(scene, **UNPACED)


def test_s06_no_response_at_all() -> None:
    """A silent provider costs one timeout: it is not asked again, the other one is."""

    async def scene(world: World) -> None:
        world.google.set(faults.hang())
        result = await world.ask()
        assert (result.provider, result.fallback_reason) == ("openai", "timeout")
        assert len(world.google.requests) == 1
        assert now() <= 60.0 + HEALTHY + SLACK

    play(scene, **UNPACED)


def test_s07_slow_first_byte() -> None:
    """Headers at once, the picture after 20 s: answered; and left in time where 10 s is the limit.

    A picture has no first token, and 20 s is an ordinary time for one: the limit is a setting.
    """

    async def patient(world: World) -> None:
        world.google.set(faults.drip(20.0))
        assert (await world.ask()).provider == "google"
        assert now() == pytest.approx(20.0 + HEALTHY, abs=1.0)

    async def in_a_hurry(world: World) -> None:
        world.google.set(faults.drip(20.0))
        assert (await world.ask()).fallback_reason == "timeout"
        assert now() <= 15.0

    play(patient, **UNPACED)
    play(in_a_hurry, per_call_timeout=10, **UNPACED)


@pytest.mark.parametrize("abrupt", [False, True], ids=["closed", "reset"])
def test_s08_body_cut_in_the_middle(abrupt: bool) -> None:
    """The whole picture comes from elsewhere; never two thirds of one."""

    async def scene(world: World) -> None:
        world.google.set(faults.cut(40 / 60, abrupt=abrupt))
        result = await world.ask()
        assert (result.provider, result.fallback_reason) == ("openai", "connection")
        assert now() <= 40.0

    play(scene, **UNPACED)


def test_s09_body_stalls() -> None:
    """A body that dries up is left within the caller's time, which the fallback gets its share of.

    The bound is the caller's deadline. Without one each try may take IMAGE_GEN_PER_CALL_TIMEOUT.
    """

    async def bounded(world: World) -> None:
        world.google.set(DRIES_UP)
        assert (await world.ask(deadline=45)).provider == "openai"
        assert now() <= 45.0

    async def unbounded(world: World) -> None:
        world.google.set(DRIES_UP)
        assert (await world.ask()).fallback_reason == "connection"
        assert now() <= 180.0

    play(bounded, **UNPACED)
    play(unbounded, **UNPACED)


@pytest.mark.parametrize(
    "fault",
    [faults.bad_json(), faults.bad_base64(), faults.html(), faults.answer("picture_cut")],
    ids=["json", "base64", "web page", "half a picture"],
)
@pytest.mark.parametrize("times", [1, 20], ids=["once", "always"])
def test_s10_malformed_body(fault: Fault, times: int) -> None:
    """Asked once more, then left; nothing partial leaks to the caller."""

    async def scene(world: World) -> None:
        world.google.fail(fault, times=times)
        result = await world.ask()
        assert result.provider == ("google" if times == 1 else "openai")
        assert len(world.google.requests) == 2
        assert now() <= 30.0

    play(scene, **UNPACED)


def test_s11_answer_without_its_end_mark() -> None:
    """A picture without finishReason, content length or details of usage is a picture: at once."""
    part = {"inlineData": {"mimeType": "image/png", "data": base64.b64encode(TINY_PNG).decode()}}
    body = {
        "candidates": [{"content": {"role": "model", "parts": [part]}}],
        "usageMetadata": {"promptTokenCount": 7, "totalTokenCount": 1127},
    }

    async def scene(world: World) -> None:
        world.google.set(faults.status(200, body))
        result = await world.ask()
        assert (result.provider, result.attempts) == ("google", 1)
        assert (result.usage["input_tokens"], result.usage["total_tokens"]) == (7, 1127)
        assert now() <= 8.0

    play(scene, **UNPACED)


def test_s12_context_length_exceeded() -> None:
    """Never sent again as it was; on to a model that takes more only where the operator says so."""

    async def by_default(world: World) -> None:
        world.google.set(TOO_LONG)
        with pytest.raises(InvalidRequestError, match="400 INVALID_ARGUMENT"):
            await world.ask()
        assert (len(world.google.requests), len(world.openai.requests)) == (1, 0)

    async def with_a_larger_model(world: World) -> None:
        world.google.set(TOO_LONG)
        assert (await world.ask()).provider == "openai"
        assert len(world.google.requests) == 1

    play(by_default, **UNPACED)
    play(with_a_larger_model, fallback_on="invalid_request", **UNPACED)


@pytest.mark.parametrize("settings", [{}, REVERSED], ids=["google", "openai"])
def test_s13_content_filter_rejection(settings: dict[str, Any]) -> None:
    """One request, the provider's reason, and no way around it through the other vendor."""

    async def scene(world: World) -> None:
        for vendor in (world.google, world.openai):
            vendor.set(faults.blocked())
        with pytest.raises(ContentBlockedError, match="blocked by safety filters") as caught:
            await world.ask()
        assert caught.value.reason is Reason.CONTENT_BLOCKED
        assert len(world.google.requests) + len(world.openai.requests) == 1
        assert len(caught.value.attempts) == 1

    play(scene, **UNPACED, **settings)


def test_s14_fallback_takes_other_requests_than_the_primary() -> None:
    """The fallback starts afresh, with a request of its own kind, and has nothing to reject.

    In chat the trap is an answer half given that is to be continued; here it is what the primary
    takes and the fallback does not: words in the prompt, a ratio, its kind of references.
    """
    references = [TINY_PNG] * 15

    async def scene(world: World) -> None:
        world.google.set(CUT_LATE)
        result = await world.ask(references=references, aspect_ratio="9:16", resolution="4K")
        assert (result.provider, result.fallback_reason) == ("openai", "connection")
        (sent,) = world.openai.requests
        assert (sent.status, sent.operation, sent.prompt) == (200, "edit", "a lighthouse")
        assert [one.size for one in sent.references] == [len(TINY_PNG)] * 15
        assert {len(seen.references) for seen in world.google.requests} == {14}
        assert result.dropped_references == ()

    play(scene, **UNPACED)


def test_s15_primary_flaps() -> None:
    """Down for a minute, then healthy; twenty requests, 4 s apart, none of them lost.

    The primary is asked fewer times than there are requests while it is down, and serves again
    within 30 s of its recovery.
    """

    async def scene(world: World) -> None:
        world.google.schedule([(0.0, 60.0, faults.overload())])
        began = now()
        results = []

        async def one(number: int) -> None:
            await asyncio.sleep(4.0 * number)
            asked = now()
            results.append(await world.ask())
            assert now() - asked <= 30.0

        await asyncio.gather(*(one(number) for number in range(20)))
        assert len(results) == 20
        down = [seen for seen in world.google.requests if seen.time - began < 60.0]
        assert {seen.status for seen in down} == {503}
        assert len(down) <= 3  # of 15 requests
        served = [seen.time - began for seen in world.google.requests if seen.status == 200]
        assert 60.0 <= served[0] <= 90.0
        assert (await world.ask()).provider == "google"

    play(scene, **UNPACED)


def test_s16_failover_accounting() -> None:
    """The result names who served and what that cost; failed attempts cost nothing."""

    async def scene(world: World) -> None:
        world.google.set(faults.overload())
        result = await world.ask()
        (served,) = world.openai.requests
        assert (result.provider, result.model) == ("openai", served.model)
        usage = result.usage
        assert (usage["provider"], usage["model"]) == ("openai", served.model)
        assert usage["total_tokens"] == (usage["input_tokens"] or 0) + (usage["output_tokens"] or 0)
        assert world.client.snapshot()["cost_usd"] == usage["cost_usd"]
        assert len(world.google.requests) <= BUDGET

    play(scene, **UNPACED)


# -- the timing table: a picture takes 3 to 10 seconds -----------------------------------------


@pytest.mark.parametrize("seconds", [3.0, 10.0])
def test_row_google_healthy(seconds: float) -> None:
    """3 to 10 s: what the picture takes, and nothing on top."""

    async def scene(world: World) -> None:
        world.google.set_latency(seconds)
        result = await world.ask()
        assert (result.provider, result.attempts) == ("google", 1)
        assert now() == pytest.approx(seconds, abs=SLACK)
        world.google.set_latency(HEALTHY)

    play(scene)


def test_row_google_503_retry_works() -> None:
    """About 10 s: one pause, then the picture."""

    async def scene(world: World) -> None:
        world.google.fail(faults.overload())
        result = await world.ask()
        assert (result.provider, result.attempts) == ("google", 2)
        assert now() <= 10.0 + SLACK

    play(scene)


def test_row_google_down_for_more_than_30_minutes() -> None:
    """15 to 20 s by OpenAI: for the first picture only. The others take what OpenAI takes."""

    async def scene(world: World) -> None:
        world.google.set(faults.overload())
        seconds = []
        for _ in range(40):
            asked = now()
            result = await world.ask()
            assert result.provider == "openai"
            seconds.append(now() - asked)
            await asyncio.sleep(60.0 - seconds[-1])
        assert seconds[0] <= 20.0
        # A probe that fails costs the one call that carried it nothing but its own instant.
        assert max(seconds[1:]) <= HEALTHY + 1.0
        assert len(world.google.requests) <= 3 + 8  # three to open, then probes ever rarer

    play(scene)


def test_row_both_down() -> None:
    """About 25 s until the failure, and it names both."""

    async def scene(world: World) -> None:
        for vendor in (world.google, world.openai):
            vendor.set(faults.overload())
        with pytest.raises(AllProvidersFailedError) as caught:
            await world.ask()
        assert now() <= 25.0
        assert caught.value.reason is Reason.OVERLOADED
        assert {attempt.provider for attempt in caught.value.attempts} == {"google", "openai"}

    play(scene)
