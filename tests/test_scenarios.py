"""The sixteen provider faults of failoverbench, all with the same settings, BENCH.

The tests require what the scenarios of github.com/failoverbench/failoverbench (methodology 0.1)
require of a gateway for chat, applied to images: an image has no tokens, so a stream that is
truncated, stalls or has no end corresponds to such a body. They are written from the requirements
of each scenario. After each, a healthy call must be served. test_default_timing.py tests the
defaults.
"""

from __future__ import annotations

import asyncio
import base64
import re
from typing import Any

import pytest
from readme_kit import GUIDES
from scenario_kit import (
    BUDGET,
    CUT_LATE,
    DRIES_UP,
    TOO_LONG,
    UNPACED,
    OutageScenario,
    both_overloaded,
    both_refuse,
    now,
    primary_hangs,
    run_outage_scenario,
    single_fault,
)

from resilient_imagen import Reason
from resilient_imagen.emulator import faults
from resilient_imagen.emulator.faults import Fault
from resilient_imagen.reasons import POLICIES
from resilient_imagen.testing import TINY_PNG

LEADING_ON = [reason for reason, policy in POLICIES.items() if policy.next_route]
BENCH: dict[str, Any] = {
    **UNPACED,
    "per_call_timeout": 10,
    "fallback_on": ",".join([*LEADING_ON, Reason.INVALID_REQUEST]),
}
"""What the sixteen are played with: a chat's patience, and on to a model that takes more."""


def test_the_guide_states_these_settings() -> None:
    """The guide has the number of scenarios and their settings."""
    assert len({name[:8] for name in globals() if re.match(r"test_s\d\d_", name)}) == 16
    (claim,) = re.findall(r"^.*16 of 16.*$", GUIDES["benchmarks/README.md"].text, re.MULTILINE)
    assert f"`IMAGE_GEN_IPM={BENCH['ipm']}`" in claim
    assert f"`IMAGE_GEN_PER_CALL_TIMEOUT={BENCH['per_call_timeout']}`" in claim
    assert (
        "`IMAGE_GEN_FALLBACK_ON` every reason that leads on anyway and `invalid_request`" in claim
    )


@pytest.mark.parametrize(
    "fault",
    [faults.rate_limited(2.0), faults.status(429, headers={"Retry-After": "2"})],
    ids=["in the body", "in the header"],
)
def test_s01_429_with_retry_after(fault: Fault) -> None:
    """The hint is waited for once, and the primary serves."""

    async def scene(scenario: OutageScenario) -> None:
        scenario.google.fail(fault)
        result = await scenario.ask()
        assert (result.provider, result.attempts) == ("google", 2)
        assert 2.0 <= scenario.gaps[0] <= 2.5

    run_outage_scenario(scene, **BENCH)


def test_s02_429_without_retry_after_persistent() -> None:
    """The call backs off and then falls back, within the budget of requests."""

    async def scene(scenario: OutageScenario) -> None:
        scenario.google.set(faults.rate_limited())
        result = await scenario.ask()
        assert (result.provider, result.fallback_reason) == ("openai", "rate_limited")
        assert len(scenario.google.requests) <= BUDGET
        assert min(scenario.gaps) >= 3.0
        assert now() <= 40.0

    run_outage_scenario(scene, **BENCH)


def test_s03_500_once_then_healthy() -> None:
    """One retry succeeds at the same provider."""
    run_outage_scenario(single_fault(faults.status(500), 20.0), **BENCH)


def test_s04_503_persistent() -> None:
    """The call falls back within the budget; without a fallback, the error is raised."""

    async def scene(scenario: OutageScenario) -> None:
        scenario.google.set(faults.overload())
        result = await scenario.ask()
        assert (result.provider, result.fallback_reason) == ("openai", "overloaded")
        assert len(scenario.google.requests) <= BUDGET
        assert now() <= 40.0

    run_outage_scenario(scene, **BENCH)
    run_outage_scenario(both_overloaded, **BENCH)


@pytest.mark.parametrize("fault", [faults.reset(), faults.disconnect()], ids=["reset", "closed"])
def test_s05_tcp_reset_before_headers(fault: Fault) -> None:
    """The request is sent again and answered."""
    run_outage_scenario(single_fault(fault, 20.0), **BENCH)


def test_s06_no_response_at_all() -> None:
    """A silent provider costs one timeout, without a retry, before the fallback."""
    run_outage_scenario(primary_hangs(10.0), **BENCH)


def test_s07_slow_first_byte() -> None:
    """An image after 20 s exceeds the limit of 10 s and falls back."""

    async def scene(scenario: OutageScenario) -> None:
        scenario.google.set(faults.drip(20.0))
        assert (await scenario.ask()).fallback_reason == "timeout"
        assert now() <= 15.0

    run_outage_scenario(scene, **BENCH)


@pytest.mark.parametrize("abrupt", [False, True], ids=["closed", "reset"])
def test_s08_body_cut_in_the_middle(abrupt: bool) -> None:
    """A complete image is delivered by the fallback, never a truncated one."""

    async def scene(scenario: OutageScenario) -> None:
        scenario.google.set(faults.cut(40 / 60, abrupt=abrupt))
        result = await scenario.ask()
        assert (result.provider, result.fallback_reason) == ("openai", "connection")
        assert now() <= 40.0

    run_outage_scenario(scene, **BENCH)


def test_s09_body_stalls() -> None:
    """A stalled body costs one timeout."""

    async def scene(scenario: OutageScenario) -> None:
        scenario.google.set(DRIES_UP)
        assert (await scenario.ask()).fallback_reason == "timeout"
        assert now() <= 45.0

    run_outage_scenario(scene, **BENCH)


@pytest.mark.parametrize(
    "fault",
    [faults.bad_json(), faults.bad_base64(), faults.html(), faults.answer("picture_cut")],
    ids=["json", "base64", "web page", "half an image"],
)
@pytest.mark.parametrize("times", [1, 20], ids=["once", "always"])
def test_s10_malformed_body(fault: Fault, times: int) -> None:
    """The request is retried once and then falls back; no partial data is delivered."""

    async def scene(scenario: OutageScenario) -> None:
        scenario.google.fail(fault, times=times)
        result = await scenario.ask()
        assert result.provider == ("google" if times == 1 else "openai")
        assert len(scenario.google.requests) == 2
        assert now() <= 30.0

    run_outage_scenario(scene, **BENCH)


def test_s11_answer_without_its_end_mark() -> None:
    """An image without finishReason, content length or usage details is delivered at once."""
    part = {"inlineData": {"mimeType": "image/png", "data": base64.b64encode(TINY_PNG).decode()}}
    body = {
        "candidates": [{"content": {"role": "model", "parts": [part]}}],
        "usageMetadata": {"promptTokenCount": 7, "totalTokenCount": 1127},
    }

    async def scene(scenario: OutageScenario) -> None:
        scenario.google.set(faults.status(200, body))
        result = await scenario.ask()
        assert (result.provider, result.attempts) == ("google", 1)
        assert (result.usage["input_tokens"], result.usage["total_tokens"]) == (7, 1127)
        assert now() <= 8.0

    run_outage_scenario(scene, **BENCH)


def test_s12_context_length_exceeded() -> None:
    """The request is not retried unchanged; a model with a larger limit gets it."""

    async def scene(scenario: OutageScenario) -> None:
        scenario.google.set(TOO_LONG)
        assert (await scenario.ask()).provider == "openai"
        assert len(scenario.google.requests) == 1

    run_outage_scenario(scene, **BENCH)


def test_s13_content_filter_rejection() -> None:
    """A refusal costs one request, has the provider's reason, and does not fall back."""
    run_outage_scenario(both_refuse, **BENCH)


def test_s14_fallback_has_another_request_format() -> None:
    """The fallback gets a request in its own format and accepts it.

    In chat, the difficulty is to continue a partial answer; here it is the primary's features that
    the fallback lacks: words in the prompt, a ratio, its kind of references.
    """
    references = [TINY_PNG] * 15

    async def scene(scenario: OutageScenario) -> None:
        scenario.google.set(CUT_LATE)
        result = await scenario.ask(references=references, aspect_ratio="9:16", resolution="4K")
        assert (result.provider, result.fallback_reason) == ("openai", "connection")
        (sent,) = scenario.openai.requests
        assert (sent.status, sent.operation, sent.prompt) == (200, "edit", "a lighthouse")
        assert [one.size for one in sent.references] == [len(TINY_PNG)] * 15
        assert {len(seen.references) for seen in scenario.google.requests} == {14}
        assert result.dropped_references == ()

    run_outage_scenario(scene, **BENCH)


def test_s15_primary_flaps() -> None:
    """The primary is down for a minute; all twenty requests, 4 s apart, are served.

    The primary is asked fewer times than there are requests while it is down, and serves again
    within 30 s of its recovery.
    """

    async def scene(scenario: OutageScenario) -> None:
        scenario.google.schedule([(0.0, 60.0, faults.overload())])
        began = now()
        results = []

        async def one(number: int) -> None:
            await asyncio.sleep(4.0 * number)
            asked = now()
            results.append(await scenario.ask())
            assert now() - asked <= 30.0

        await asyncio.gather(*(one(number) for number in range(20)))
        assert len(results) == 20
        down = [seen for seen in scenario.google.requests if seen.time - began < 60.0]
        assert {seen.status for seen in down} == {503}
        assert len(down) <= 3  # of 15 requests
        served = [seen.time - began for seen in scenario.google.requests if seen.status == 200]
        assert 60.0 <= served[0] <= 90.0
        assert (await scenario.ask()).provider == "google"

    run_outage_scenario(scene, **BENCH)


def test_s16_failover_accounting() -> None:
    """The result names provider and cost; failed attempts cost nothing."""

    async def scene(scenario: OutageScenario) -> None:
        scenario.google.set(faults.overload())
        result = await scenario.ask()
        (served,) = scenario.openai.requests
        assert (result.provider, result.model) == ("openai", served.model)
        usage = result.usage
        assert (usage["provider"], usage["model"]) == ("openai", served.model)
        assert usage["total_tokens"] == (usage["input_tokens"] or 0) + (usage["output_tokens"] or 0)
        assert scenario.client.snapshot()["cost_usd"] == usage["cost_usd"]
        assert len(scenario.google.requests) <= BUDGET

    run_outage_scenario(scene, **BENCH)
