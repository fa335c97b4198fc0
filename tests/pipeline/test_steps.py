"""Steps with several accounts: ``google+google_b:model`` is one step of the chain."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from pipeline_kit import CancelAtStep, now
from steps_kit import CHAIN, GPT, PRO, STEP, StepScenario, run_steps
from telemetry_kit import Telemetry

from resilient_imagen import (
    AllProvidersFailedError,
    CircuitOpenError,
    ConfigurationError,
    ContentBlockedError,
    ImageClient,
    ImageGenerationError,
    ImageResult,
    InvalidRequestError,
    Reason,
    Settings,
)
from resilient_imagen.providers.base import Endpoint
from resilient_imagen.telemetry.events import (
    RequestEnded,
    RetryScheduled,
    RouteFallback,
    ShortCircuited,
)
from resilient_imagen.testing import FakeProvider, run_virtual


async def batch(scenario: StepScenario, count: int) -> tuple[float, list[str]]:
    """Request images concurrently; return the seconds they took, and who served them."""
    started = now()
    results = await asyncio.gather(*(scenario.ask() for _ in range(count)))
    return now() - started, [result.provider for result in results]


# -- pace -----------------------------------------------------------------------------------------


def test_two_accounts_of_ten_images_per_minute_give_twenty_together() -> None:
    """Forty images at once take as long as twenty with one account."""

    async def scene(scenario: StepScenario) -> None:
        seconds, served = await batch(scenario, 40)
        assert seconds == pytest.approx(19 * 6 + 1, abs=0.1)
        assert served.count("google") == served.count("google_b") == 20
        assert scenario.openai.sent == []

    run_steps(scene, ipm=10, max_concurrent=20)


def test_a_busy_slot_counts_although_no_latency_is_known() -> None:
    """A call uses the account with a free slot, and does not queue at the other one."""

    async def scene(scenario: StepScenario) -> None:
        seconds, served = await batch(scenario, 2)
        assert sorted(served) == ["google", "google_b"]
        assert seconds == pytest.approx(1.0)

    run_steps(scene, max_concurrent=1, routes="google+google_b:unknown-model")


def test_a_caller_compares_queues_again_after_the_set_up() -> None:
    """Two calls choose the same account before one of them queues.

    The later one changes the account.
    """

    async def scene(scenario: StepScenario) -> None:
        async def warm_up() -> None:
            await asyncio.sleep(1)

        scenario.google.warm_up = warm_up  # type: ignore[attr-defined]
        scenario.google.latency = scenario.google_b.latency = 20.0
        both = await asyncio.gather(scenario.ask(), scenario.ask())
        assert [each.provider for each in both] == ["google", "google_b"]
        assert [each.latency_s for each in both] == pytest.approx([21, 21], abs=0.1)
        assert scenario.changes() == [("google", "google_b", "saturated")]

    run_steps(scene, max_concurrent=1)


def test_callers_of_a_rate_limited_account_use_the_other_one() -> None:
    """No call fails, and none waits longer than the other account's limit requires."""

    async def scene(scenario: StepScenario) -> None:
        scenario.google.fail(Reason.RATE_LIMITED, status=429, retry_after=500.0)
        seconds, served = await batch(scenario, 20)
        assert served == ["google_b"] * 20
        assert seconds <= 20 * 6 + 1

    run_steps(scene, ipm=10, max_concurrent=20)


def test_waiting_callers_return_to_an_account_that_serves_again() -> None:
    """After a short rate limit the queue of the other account is shared between both."""

    async def scene(scenario: StepScenario) -> None:
        scenario.google.fail(Reason.RATE_LIMITED, status=429, retry_after=20.0, times=1)
        seconds, served = await batch(scenario, 40)
        assert served.count("google") > 15
        assert seconds < 130  # 40 images at 6 s from one account alone take 235 s

    run_steps(scene, ipm=10, max_concurrent=20)


def test_a_caller_leaves_the_queue_of_an_account_that_hangs() -> None:
    """A caller whose turn is overdue moves to the other account, which can send at once."""

    async def scene(scenario: StepScenario) -> None:
        scenario.google_b.latency = 10.0
        for _ in range(4):  # measure both accounts
            await asyncio.gather(scenario.ask(), scenario.ask())
        scenario.google.hang()
        scenario.google_b.latency = 10.0
        tasks = [asyncio.create_task(scenario.ask()) for _ in range(3)]
        await asyncio.sleep(25)
        assert [task.done() for task in tasks[1:]] == [True, True]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    run_steps(scene, max_concurrent=1)


# -- breakers -------------------------------------------------------------------------------------


def test_an_open_account_is_skipped() -> None:
    """The call is not a fallback, and its trace states why the account got no request."""

    async def scene(scenario: StepScenario) -> None:
        scenario.account("google").force_trip(cause="overloaded", summary="503")
        result = await scenario.ask()
        assert (result.provider, result.fallback_reason) == ("google_b", None)
        assert [each.provider for each in scenario.events.of(ShortCircuited)] == ["google"]
        assert scenario.changes() == [("google", "google_b", "circuit_open")]
        assert scenario.google.sent == []

    run_steps(scene)


def test_the_next_step_follows_when_both_accounts_are_open() -> None:
    """The call falls back, for the reason circuit_open."""

    async def scene(scenario: StepScenario) -> None:
        for provider in ("google", "google_b"):
            scenario.account(provider).force_trip(cause="overloaded", summary="503")
        result = await scenario.ask()
        assert (result.provider, result.fallback_reason) == ("openai", "circuit_open")
        assert [each.provider for each in scenario.events.of(ShortCircuited)] == [
            "google",
            "google_b",
        ]
        assert len(scenario.events.of(RouteFallback)) == 1

    run_steps(scene)


@pytest.mark.parametrize("when_all_open", ["fail", "wait"])
def test_the_only_step_with_both_accounts_open(when_all_open: str) -> None:
    """The call fails with both accounts named, or waits for the first one that is due."""

    async def scene(scenario: StepScenario) -> None:
        scenario.account("google").open_for(300, cause="overloaded", summary="503")
        scenario.account("google_b").open_for(30, cause="overloaded", summary="503")
        if when_all_open == "wait":
            assert (await scenario.ask()).provider == "google_b"
            assert now() == pytest.approx(31, abs=5)
            return
        with pytest.raises(CircuitOpenError) as caught:
            await scenario.ask()
        assert "google " in str(caught.value)
        assert "google_b " in str(caught.value)
        assert caught.value.retry_after == pytest.approx(30, abs=5)

    run_steps(scene, routes=STEP, when_all_open=when_all_open)


def test_a_failure_of_one_account_opens_its_own_routes_only() -> None:
    """A rejected key of one account does not affect the other account."""

    async def scene(scenario: StepScenario) -> None:
        scenario.google.fail(Reason.UNAUTHENTICATED, status=401, account_wide=True)
        assert (await scenario.ask()).provider == "google_b"
        assert not scenario.account("google").allows_calls()
        assert scenario.account("google_b").allows_calls()

    run_steps(scene)


def test_a_probe_in_flight_is_waited_for_if_no_account_is_usable() -> None:
    """The call waits for the probe's outcome; the open account does not end it."""

    async def scene(scenario: StepScenario) -> None:
        scenario.account("google").force_trip(cause="overloaded", summary="503")
        scenario.account("google_b").force_trip(cause="overloaded", summary="503")
        await asyncio.sleep(1300)
        scenario.account("google").force_trip(cause="overloaded", summary="503")
        scenario.google_b.latency = 5.0
        first, second = await asyncio.gather(scenario.ask(), scenario.ask())
        assert {first.provider, second.provider} == {"google_b"}

    run_steps(scene, routes=STEP)


# -- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reason",
    [
        Reason.OVERLOADED, Reason.RATE_LIMITED, Reason.QUOTA_EXHAUSTED, Reason.SERVER_ERROR,
        Reason.CONNECTION, Reason.UNAUTHENTICATED, Reason.FORBIDDEN, Reason.MODEL_NOT_FOUND,
        Reason.INVALID_RESPONSE, Reason.NO_IMAGE, Reason.TIMEOUT,
    ],
)  # fmt: skip
@pytest.mark.parametrize("max_retries", [0, 2])
def test_a_temporary_failure_tries_the_other_account_at_once(
    reason: Reason, max_retries: int
) -> None:
    """The request is neither a fallback nor a retry, and does not back off."""

    async def scene(scenario: StepScenario) -> None:
        scenario.google.fail(reason)
        result = await scenario.ask()
        assert (result.provider, result.fallback_reason) == ("google_b", None)
        assert result.attempts == 2
        assert now() == pytest.approx(1.1)
        assert scenario.changes() == [("google", "google_b", str(reason))]
        assert not scenario.events.of(RouteFallback)
        assert not scenario.events.of(RetryScheduled)
        (ended,) = scenario.events.of(RequestEnded)
        assert (ended.retries, ended.fallback_cause, ended.fallback_from) == (0, None, None)

    run_steps(scene, max_retries=max_retries)


def test_a_refusal_is_not_sent_to_the_other_account() -> None:
    """The other account would refuse the prompt, too."""

    async def scene(scenario: StepScenario) -> None:
        scenario.google.fail(Reason.CONTENT_BLOCKED)
        with pytest.raises(ContentBlockedError):
            await scenario.ask()
        assert scenario.asked() == ["google"]

    run_steps(scene)


@pytest.mark.parametrize(
    ("max_retries", "asked"),
    [
        (0, ["google", "google_b"]),
        (1, ["google", "google_b"]),
        (2, ["google", "google_b", "google"]),
        (3, ["google", "google_b", "google", "google_b"]),
    ],
)
def test_retries_count_per_step(max_retries: int, asked: list[str]) -> None:
    """Both accounts together get as many requests as one account; each is asked at least once."""

    async def scene(scenario: StepScenario) -> None:
        scenario.google.fail(Reason.SERVER_ERROR, status=500)
        scenario.google_b.fail(Reason.SERVER_ERROR, status=500)
        result = await scenario.ask()
        assert scenario.asked() == [*asked, "openai"]
        assert (result.provider, result.fallback_reason) == ("openai", "server_error")
        assert len(scenario.events.of(RetryScheduled)) == max(0, max_retries - 1)

    run_steps(scene, max_retries=max_retries, breaker_fail_max=10)


def test_a_retry_goes_to_the_account_whose_hint_is_over_first() -> None:
    """The longer hint of the account asked last does not end the step."""

    async def scene(scenario: StepScenario) -> None:
        scenario.google.fail(Reason.RATE_LIMITED, status=429, retry_after=3.0, times=1)
        scenario.google_b.fail(Reason.RATE_LIMITED, status=429, retry_after=300.0)
        result = await scenario.ask()
        assert result.provider == "google"
        assert scenario.asked() == ["google", "google_b", "google"]
        assert 3 < now() < 6

    run_steps(scene)


def test_the_error_of_a_step_names_every_account() -> None:
    """The error shows an operator which keys to check."""

    async def scene(scenario: StepScenario) -> None:
        scenario.google.fail(Reason.UNAUTHENTICATED, status=401)
        scenario.google_b.fail(Reason.OVERLOADED, status=503)
        with pytest.raises(AllProvidersFailedError, match=r"google .*401.*google_b .*503"):
            await scenario.ask()

    run_steps(scene, routes=STEP, max_retries=1)


# -- time -----------------------------------------------------------------------------------------


def test_a_step_leaves_one_reserve_of_the_deadline() -> None:
    """The next step gets half of the time, whether the first one has one account or two."""

    async def scene(scenario: StepScenario) -> None:
        scenario.google.hang()
        scenario.google_b.hang()
        result = await scenario.ask(deadline=40)
        assert result.provider == "openai"
        assert result.latency_s == pytest.approx(22, abs=0.1)
        assert scenario.asked() == ["google", "openai"]

    run_steps(scene, per_call_timeout=60)


def test_the_only_step_leaves_a_reserve_for_its_other_account() -> None:
    """A hanging account does not use up the whole deadline."""

    async def scene(scenario: StepScenario) -> None:
        scenario.google.hang()
        result = await scenario.ask(deadline=40)
        assert result.provider == "google_b"
        assert result.latency_s == pytest.approx(21, abs=0.1)

    run_steps(scene, routes=STEP, per_call_timeout=60)


# -- overlap --------------------------------------------------------------------------------------


def test_a_slow_probe_is_hedged_by_the_other_account() -> None:
    """The call is not a fallback, and the span event names the hedged request."""

    async def scene(scenario: StepScenario) -> None:
        scenario.account("google").force_trip(cause="overloaded", summary="503")
        await asyncio.sleep(1300)
        scenario.google.latency, started = 20.0, now()
        result = await scenario.ask()
        assert (result.provider, result.fallback_reason) == ("google_b", None)
        assert now() - started == pytest.approx(4)
        assert scenario.changes() == [("google", "google_b", "circuit_open")]
        assert not scenario.events.of(RouteFallback)
        await asyncio.sleep(20)
        assert scenario.account("google").allows_calls()

    run_steps(scene, hedge_probe_after=3, on_timeout="keep")


def test_a_request_past_its_limit_is_kept_beside_the_other_account_and_then_the_next_step() -> None:
    """At most two requests are in flight; the third one displaces the first."""

    async def scene(scenario: StepScenario) -> None:
        scenario.google.hang()
        scenario.google_b.hang()
        result = await scenario.ask()
        assert (result.provider, result.fallback_reason) == ("openai", "timeout")
        assert scenario.asked() == ["google", "openai", "google_b"]
        assert now() == pytest.approx(22, abs=0.1)

    run_steps(scene, on_timeout="keep", per_call_timeout=10)


def test_a_kept_request_and_one_to_the_same_account_after_it_end_by_the_deadline() -> None:
    """The second task of a call may join the queue of an account that the first one has asked."""

    async def scene(scenario: StepScenario) -> None:
        scenario.google_b.hang(times=1)
        calls = [asyncio.ensure_future(scenario.ask(deadline=2.0)) for _ in range(2)]
        done, _ = await asyncio.wait(calls)
        results = [call.exception() or call.result().provider for call in done]
        assert results.count("google") >= 1, results
        assert all(isinstance(each, str | ImageGenerationError) for each in results), results
        assert now() <= 2.01
        await asyncio.sleep(10)
        assert scenario.idle()

    run_steps(
        scene,
        routes=STEP,
        max_concurrent=1,
        max_retries=0,
        per_call_timeout=5.0,
        breaker_fail_max=1,
        on_timeout="keep",
    )


# -- telemetry and settings -----------------------------------------------------------------------


def test_the_root_span_has_an_event_for_a_change_of_the_account() -> None:
    """The root span has no fallback event."""

    async def main() -> None:
        telemetry = Telemetry()
        google, google_b = FakeProvider("google"), FakeProvider("google_b")
        google.fail(Reason.OVERLOADED, status=503)
        async with ImageClient(
            Settings(routes=STEP),
            providers=[google, google_b],
            tracer_provider=telemetry.tracers,
        ) as client:
            await client.generate("x")
        (root,) = telemetry.spans("imagegen.generate")
        names = [event.name for event in root.events]
        assert "imagegen.account.changed" in names
        assert "imagegen.fallback" not in names
        event = next(each for each in root.events if each.name == "imagegen.account.changed")
        assert dict(event.attributes or {}) == {
            "imagegen.event.from": f"google:{PRO}",
            "imagegen.event.to": f"google_b:{PRO}",
            "imagegen.event.cause": "overloaded",
        }

    run_virtual(main())


def test_the_snapshot_names_the_step_of_its_accounts() -> None:
    """Routes that are a step of their own do not have the key."""

    async def scene(scenario: StepScenario) -> None:
        rows = scenario.client.snapshot()["routes"]
        assert [(row["route"], row.get("step")) for row in rows] == [
            (f"google:{PRO}", STEP),
            (f"google_b:{PRO}", STEP),
            (f"openai:{GPT}", None),
        ]

    run_steps(scene)


def test_the_snapshot_names_the_step_of_routes_that_a_call_names() -> None:
    """A model that replaces the configured one belongs to the step.

    A configured route keeps its own step.
    """

    async def scene(scenario: StepScenario) -> None:
        await scenario.ask(routes=f"google+google_b:gemini-nano-banana-2.1,google:{PRO}")
        await scenario.ask(model="gemini-2.5-flash-image")
        steps = {row["route"]: row.get("step") for row in scenario.client.snapshot()["routes"]}
        assert steps[f"google:{PRO}"] == STEP
        for model in ("gemini-nano-banana-2.1", "gemini-2.5-flash-image"):
            for provider in ("google", "google_b"):
                assert steps[f"{provider}:{model}"] == f"google+google_b:{model}"
        await scenario.ask(routes="google:gemini-nano-banana-2.1")
        steps = {row["route"]: row.get("step") for row in scenario.client.snapshot()["routes"]}
        assert steps["google:gemini-nano-banana-2.1"] is None

    run_steps(scene)


@pytest.mark.parametrize("limited", [False, True], ids=["both serve", "one is rate limited"])
def test_two_projects_set_up_by_variables_share_the_load(
    monkeypatch: pytest.MonkeyPatch, limited: bool
) -> None:
    """Ten images per minute are the default of each account, so both have twenty together.

    While one account is rate limited no call fails, and none waits longer than the other account's
    pace requires.
    """
    for name, value in {
        "IMAGE_GEN_ROUTES": CHAIN,
        "IMAGE_GEN_PROVIDER_GOOGLE_B": "google",
        "GOOGLE_GENAI_API_KEY": "AIza-a",
        "GOOGLE_B_API_KEY": "AIza-b",
        "OPENAI_API_KEY": "sk-c",
        "IMAGE_GEN_GOOGLE_IPM": "10",
        "IMAGE_GEN_GOOGLE_B_IPM": "10",
        "IMAGE_GEN_MAX_CONCURRENT": "20",
    }.items():
        monkeypatch.setenv(name, value)

    async def main() -> tuple[list[ImageResult], float]:
        google, google_b = FakeProvider("google"), FakeProvider("google_b")
        google_b.endpoint = Endpoint("google")
        if limited:
            google.fail(Reason.RATE_LIMITED, status=429, retry_after=500.0)
        async with ImageClient(providers=[google, google_b]) as client:
            count = 20 if limited else 40
            results = await asyncio.gather(*(client.generate("a lighthouse") for _ in range(count)))
            return results, now()

    results, seconds = run_virtual(main())
    served = Counter(result.provider for result in results)
    assert {result.fallback_reason for result in results} == {None}
    if limited:
        assert served == {"google_b": 20}
        assert seconds <= 20 * 6 + 1
        waits = sorted(result.latency_s for result in results)
        assert all(wait <= place * 6 + 1.1 for place, wait in enumerate(waits))
    else:
        assert served == {"google": 20, "google_b": 20}
        assert seconds == pytest.approx(19 * 6 + 1, abs=0.1)


def test_accounts_come_from_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each account has its own limits; one without its key is off, and the other serves."""
    for name, value in {
        "IMAGE_GEN_ROUTES": STEP,
        "IMAGE_GEN_PROVIDER_GOOGLE_B": "google",
        "GOOGLE_GENAI_API_KEY": "AIza-a",
        "GOOGLE_B_API_KEY": "AIza-b",
        "IMAGE_GEN_GOOGLE_B_IPM": "30",
    }.items():
        monkeypatch.setenv(name, value)

    async def routes() -> list[tuple[str, float, str | None, str | None]]:
        async with ImageClient() as client:
            return [
                (row["route"], row["queue"]["interval_s"], row["off"], row.get("step"))
                for row in client.snapshot()["routes"]
            ]

    first, second = (f"google:{PRO}", 6.0, None, STEP), (f"google_b:{PRO}", 2.0, None, STEP)
    assert run_virtual(routes()) == [first, second]
    monkeypatch.delenv("GOOGLE_B_API_KEY")
    assert run_virtual(routes()) == [
        first,
        (f"google_b:{PRO}", 2.0, "GOOGLE_B_API_KEY is not set", STEP),
    ]


@pytest.mark.parametrize(
    ("routes", "why"),
    [
        ("google+:m", "must be provider:model"),
        ("+google:m", "must be provider:model"),
        ("google+google:m", "names the same provider:model twice"),
        ("google:m,google+google_b:m", "names the same provider:model twice"),
        ("google + google_b:m", "without spaces inside"),
    ],
)
def test_a_malformed_step_is_refused(routes: str, why: str) -> None:
    """The error states what is allowed."""
    with pytest.raises(ConfigurationError, match=f"IMAGE_GEN_ROUTES: .*{why}"):
        Settings(routes=routes)


# -- routes of a call -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "routes", [f"openai:{GPT},google:{PRO}", [f"openai:{GPT}", f"google:{PRO}"]]
)
def test_a_call_may_name_its_own_chain(routes: Any) -> None:
    """The chain is in the syntax of the variable, or a sequence of its entries."""

    async def scene(scenario: StepScenario) -> None:
        scenario.openai.fail(Reason.QUOTA_EXHAUSTED, status=429)
        result = await scenario.ask(routes=routes)
        assert (result.provider, result.fallback_reason) == ("google", "quota_exhausted")
        assert (await scenario.ask()).provider == "google"

    run_steps(scene)


def test_routes_of_calls_keep_their_breakers_and_queues() -> None:
    """A route whose circuit opened is still open when another call names it."""

    async def scene(scenario: StepScenario) -> None:
        scenario.google.fail(Reason.QUOTA_EXHAUSTED, status=429, times=1)
        name = "google+google_b:gemini-nano-banana-2.1"
        assert (await scenario.ask(routes=name)).provider == "google_b"
        assert (await scenario.ask(routes=name)).provider == "google_b"
        assert len(scenario.google.sent) == 1
        assert (await scenario.ask(routes=f"google:{PRO}")).provider == "google"

    run_steps(scene)


def test_a_model_replaces_that_of_all_accounts_of_the_first_step() -> None:
    """Both accounts are asked for the caller's model."""

    async def scene(scenario: StepScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503)
        result = await scenario.ask(model="gemini-nano-banana-2.1")
        assert (result.provider, result.model) == ("google_b", "gemini-nano-banana-2.1")

    run_steps(scene)


@pytest.mark.parametrize(
    ("routes", "why"),
    [
        (
            "xai:grok-2-image",
            (
                r"routes names the provider xai; "
                r"known providers: azure, google, google_b, openai, vertex"
            ),
        ),
        ("google", r"routes must be provider:model .*; got google"),
        ("", r"routes must name at least one provider:model"),
        ([f"google:{GPT}"], rf"routes: google:{GPT} is not valid: .* openai model"),
        (7, r"routes must be a string with commas or a list of strings; got 7"),
        (f"google:{'m' * 300}", r"models of at most 200 characters"),
    ],
)
def test_a_chain_that_cannot_be_used_is_refused(routes: Any, why: str) -> None:
    """The caller gets an InvalidRequestError before anything is sent."""

    async def scene(scenario: StepScenario) -> None:
        with pytest.raises(InvalidRequestError, match=why):
            await scenario.ask(routes=routes)
        assert scenario.asked() == []

    run_steps(scene)


def test_a_call_may_name_a_provider_without_a_configured_route(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is built for the first call; without its key the error names the variable."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    async def main(**settings: Any) -> list[str]:
        google = FakeProvider("google")
        chosen = Settings(routes=f"google:{PRO}", **settings)
        async with ImageClient(chosen, providers=[google]) as client:
            with pytest.raises(ImageGenerationError) as caught:
                await client.generate("x", routes=f"openai:{GPT}", deadline=0.001)
            return [str(caught.value), *client.breakers]

    error, *routes = run_virtual(main())
    assert error == "routes: none can be used; set OPENAI_API_KEY"
    error, *routes = run_virtual(main(openai_api_key="sk-fake"))
    assert routes == [f"google:{PRO}", f"openai:{GPT}"]


# -- cancellation ---------------------------------------------------------------------------------


def _overloaded(scenario: StepScenario) -> None:
    scenario.google.fail(Reason.OVERLOADED, status=503)


def _throttled(scenario: StepScenario) -> None:
    scenario.google.fail(Reason.RATE_LIMITED, status=429, retry_after=3.0)
    scenario.google_b.fail(Reason.SERVER_ERROR, status=500)


def _hanging(scenario: StepScenario) -> None:
    scenario.google.hang()
    scenario.google_b.hang()


@pytest.mark.parametrize("script", [_overloaded, _throttled, _hanging])
@pytest.mark.parametrize("probing", [False, True], ids=["closed", "probing"])
def test_a_call_cancelled_at_every_await_leaks_nothing(script: Any, probing: bool) -> None:
    """Each call is cancelled one suspension later than the previous one."""

    async def scene(scenario: StepScenario) -> None:
        step = 1
        while step < 100:
            if probing:
                scenario.account("google").force_trip(cause="overloaded")
                await asyncio.sleep(1300)
            script(scenario)
            canceller = CancelAtStep(step)
            task = await canceller.run(scenario.ask(deadline=60))
            if not task.cancelled():
                error = task.exception()
                assert error is None or isinstance(error, ImageGenerationError), error
            assert scenario.idle(), step
            for provider in (scenario.google, scenario.google_b, scenario.openai):
                provider.heal()
            await asyncio.sleep(1300)
            if not task.cancelled() and canceller.steps < step:
                break
            step += 1
        assert 3 < step < 100
        assert (await scenario.ask()).provider in {"google", "google_b"}

    run_steps(scene, ipm=60, hedge_probe_after=3, on_timeout="keep")
