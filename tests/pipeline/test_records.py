"""Records of a call: attempts, counters, times, notes, the snapshot and errors."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import Any

import pytest
from images_samples import encoded, noise, picture
from pipeline_kit import FAST, PipelineScenario, run_scenario

from resilient_imagen import (
    AllProvidersFailedError,
    Attempt,
    CircuitOpenError,
    ConfigurationError,
    ContentBlockedError,
    DeadlineExceededError,
    ImageClient,
    InvalidRequestError,
    Provider,
    ProviderOverloadedError,
    Reason,
    Settings,
    models,
)
from resilient_imagen.cost import TokenUsage
from resilient_imagen.errors import provider_failure
from resilient_imagen.providers.base import (
    Endpoint,
    PromptHints,
    ProviderImage,
    ProviderResult,
)
from resilient_imagen.request import ImageRequest
from resilient_imagen.telemetry.events import (
    AttemptEnded,
    AttemptStarted,
    BreakerChanged,
    OperatorWarning,
    RequestEnded,
    RouteFallback,
)
from resilient_imagen.testing import TINY_PNG, FakeProvider, RecordingSink, run_virtual

PRO, FLARE = "gemini-3-pro-image", "gpt-image-2.5-flare"
ALONE: dict[str, Any] = {"routes": f"google:{PRO}", **FAST}
STAYING: dict[str, Any] = {"fallback_on": "invalid_request", **FAST}
"""Google is never left for what happens here."""
PNG = encoded(picture(), "PNG")


def ended(scenario: PipelineScenario) -> RequestEnded:
    """Return the event of the latest call."""
    return scenario.events.of(RequestEnded)[-1]


def test_the_error_lists_every_request() -> None:
    """Each attempt has the vendor's status and hint, its time, and whether it may be billed."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503, latency=2.0, times=1)
        scenario.google.fail(Reason.RATE_LIMITED, status=429, latency=0.5, retry_after=300.0)
        scenario.openai.fail(Reason.SERVER_ERROR, status=500, latency=4.0)
        with pytest.raises(AllProvidersFailedError) as caught:
            await scenario.ask()
        attempts = [
            Attempt(a.provider, a.model, a.reason, a.status, round(a.latency_s, 3), a.retry_after)
            for a in caught.value.attempts
        ]
        assert attempts == [
            Attempt("google", PRO, Reason.OVERLOADED, 503, 2.0, None),
            Attempt("google", PRO, Reason.RATE_LIMITED, 429, 0.5, 300.0),
            Attempt("openai", FLARE, Reason.SERVER_ERROR, 500, 4.0, None),
            Attempt("openai", FLARE, Reason.SERVER_ERROR, 500, 4.0, None),
        ]
        billed = [attempt.may_have_been_billed for attempt in caught.value.attempts]
        assert billed == [False, False, True, True]
        assert (ended(scenario).attempts, ended(scenario).retries) == (4, 2)
        assert ended(scenario).fallback_from == f"google:{PRO}"

    run_scenario(scene, **FAST)


def test_event_and_result_have_usage_and_latency() -> None:
    """Both have the vendor's token counts and the price from the model table."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.latency = 7.0
        result = await scenario.ask()
        served = ended(scenario).served
        assert isinstance(served, AttemptEnded)
        assert served.usage == result.usage
        assert result.usage == {
            "provider": "google",
            "model": PRO,
            "input_tokens": 10,
            "output_tokens": 100,
            "total_tokens": None,
            "cost_usd": pytest.approx(0.134),
        }
        assert (served.latency_s, served.status, served.retry_after) == (7.0, 200, None)
        assert served.may_have_been_billed

    run_scenario(scene, **FAST)


def test_the_times_of_a_call_are_recorded_separately() -> None:
    """The event has the seconds in the queue, between retries and for the SDK, the retries and
    the skipped routes.
    """

    class Built(FakeProvider):
        async def warm_up(self) -> None:
            await asyncio.sleep(3.0)

    async def main() -> None:
        google = Built("google").fail(Reason.OVERLOADED, status=503, latency=0.0, times=2)
        events = RecordingSink()
        settings = Settings(routes=f"google:{PRO}", ipm=6)
        async with ImageClient(settings, providers=[google], sinks=[events]) as client:
            await client.generate("x")
        (event,) = events.of(RequestEnded)
        sent = [request.at for request in google.sent]
        assert sent[0] == pytest.approx(3.0)
        assert sent[1] == pytest.approx(13.0, abs=0.01)
        assert sent[2] == pytest.approx(23.0, abs=0.01)
        assert event.setup_s == pytest.approx(3.0)
        assert event.queue_s + event.backoff_s == pytest.approx(20.0, abs=0.01)
        assert 2.0 < event.backoff_s < 10.0 < event.queue_s
        assert (event.retries, event.short_circuits, event.attempts) == (2, 0, 3)
        assert event.latency_s == pytest.approx(24.0, abs=0.01)

    run_virtual(main())


def test_a_skipped_route_is_counted_and_named() -> None:
    """The error states what opened the circuit: a failure or an operator."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503, latency=0.0)
        with pytest.raises(ProviderOverloadedError):
            await scenario.ask()
        with pytest.raises(CircuitOpenError) as caught:
            await scenario.ask()
        assert str(caught.value) == f"google {PRO}: skipped after 503 temporarily unavailable"
        assert (caught.value.provider, caught.value.model) == ("google", PRO)
        assert caught.value.retry_after == pytest.approx(63, abs=3)
        assert (ended(scenario).short_circuits, ended(scenario).attempts) == (1, 0)
        scenario.client.breakers[f"google:{PRO}"].force_open = True
        with pytest.raises(CircuitOpenError) as caught:
            await scenario.ask()
        assert str(caught.value) == f"google {PRO}: skipped by the operator"
        assert caught.value.retry_after is None

    run_scenario(scene, **STAYING)


def test_the_error_lists_all_skipped_routes() -> None:
    """The error begins with the first route, and has the earliest time at which a route is due."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503, latency=0.0)
        scenario.openai.fail(Reason.QUOTA_EXHAUSTED, status=429, latency=0.0)
        with pytest.raises(AllProvidersFailedError):
            await scenario.ask()
        with pytest.raises(CircuitOpenError) as caught:
            await scenario.ask()
        assert str(caught.value) == (
            f"google {PRO}: skipped after 503 temporarily unavailable; "
            f"openai {FLARE}: skipped after 429 quota used up"
        )
        assert (caught.value.provider, caught.value.model) == ("google", PRO)
        assert caught.value.retry_after == pytest.approx(63, abs=3)
        assert caught.value.attempts == ()
        assert ended(scenario).short_circuits == 2

    run_scenario(scene, **FAST)


@pytest.mark.parametrize(
    ("settings", "script", "most"),
    [
        ({"max_concurrent": 1, "max_retries": 0}, "queue", "queueing"),
        ({"retry_base_delay": 30.0}, "fail", "pausing before retries"),
        ({}, "probe", "waiting for a circuit breaker"),
    ],
)
def test_the_deadline_error_names_the_longest_phase(
    settings: dict[str, Any], script: str, most: str
) -> None:
    """On one route, the error states which phase of the call took most of the time."""

    async def scene(scenario: PipelineScenario) -> None:
        busy: list[asyncio.Task[Any]] = []
        await asyncio.sleep(1000)
        if script == "fail":
            scenario.google.fail(Reason.OVERLOADED, status=503, times=1).hang()
        elif script == "queue":
            scenario.google.fail(Reason.OVERLOADED, status=503, latency=25.0, times=1).hang()
            busy = [asyncio.create_task(scenario.ask())]
        else:
            scenario.google.fail(Reason.OVERLOADED, status=503, latency=0.0)
            with pytest.raises(ProviderOverloadedError):
                await scenario.ask()
            await asyncio.sleep(70)
            scenario.google.hang()
            busy = [asyncio.create_task(scenario.ask())]
        await asyncio.sleep(1)
        with pytest.raises(DeadlineExceededError) as caught:
            await scenario.ask(deadline=40)
        assert str(caught.value).endswith(f"out of time, mostly spent {most}")
        for task in busy:
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)

    run_scenario(scene, **{**STAYING, **settings})


def test_the_deadline_error_has_the_vendors_hint() -> None:
    """The hint is that of the route in use when the deadline passed."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.RATE_LIMITED, status=429, retry_after=0.5, times=1).hang()
        with pytest.raises(DeadlineExceededError) as caught:
            await scenario.ask(deadline=40)
        assert caught.value.retry_after == 0.5
        assert [attempt.reason for attempt in caught.value.attempts] == ["rate_limited", "deadline"]

    run_scenario(scene, **STAYING)


def test_a_new_route_inherits_the_failure_that_opened_its_account() -> None:
    """The error of the skipped route names the failure that opened the account's circuits."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.UNAUTHENTICATED, status=401, account_wide=True)
        await scenario.ask()
        await scenario.ask(model="gemini-9-image")
        routes = {
            route["model"]: route["breaker"] for route in scenario.client.snapshot()["routes"]
        }
        assert routes["gemini-9-image"]["why"] == "unauthenticated"
        assert routes["gemini-9-image"]["retry_after"] == routes[PRO]["retry_after"]
        scenario.openai.fail(Reason.OVERLOADED, status=503)
        with pytest.raises(AllProvidersFailedError, match="gemini-9-image: skipped after 401"):
            await scenario.ask(model="gemini-9-image")

    run_scenario(scene, **FAST)


def test_a_new_route_inherits_an_open_account_from_any_sibling() -> None:
    """The first sibling is forced open by an operator, which does not concern the account.

    The second one counts.
    """

    async def scene(scenario: PipelineScenario) -> None:
        await scenario.ask(model="gemini-nano-banana-2.1")
        scenario.google.fail(Reason.UNAUTHENTICATED, status=401, account_wide=True)
        await scenario.ask()
        sent = len(scenario.google.sent)
        scenario.client.breakers[f"google:{PRO}"].force_open = True
        result = await scenario.ask(model="gemini-9-image")
        assert (result.fallback_reason, len(scenario.google.sent)) == ("circuit_open", sent)

    run_scenario(scene, **FAST)


def test_the_snapshot_of_a_route() -> None:
    """It has the route's names, its usual latency and the reason for which a call last left it."""

    async def scene(scenario: PipelineScenario) -> None:
        for _ in range(4):
            await scenario.ask(resolution="1K")
        scenario.google.fail(Reason.OVERLOADED, status=503, latency=0.0)
        await scenario.ask()
        await asyncio.sleep(10)
        google, openai = scenario.client.snapshot()["routes"]
        assert (google["route"], google["provider"]) == (f"google:{PRO}", "google")
        assert (google["model"], google["off"]) == (PRO, None)
        assert google["usual_latency_s"] == {"1K": 1.0}
        assert google["last_fallback"] == {"reason": "overloaded", "seconds_ago": 12.0}
        assert google["breaker"]["name"] == google["route"]
        assert google["queue"]["max_concurrent"] == 4
        assert openai["last_fallback"] is None
        assert openai["usual_latency_s"] == {"2K": None}

    run_scenario(scene, **FAST)


def test_the_usual_latency_is_the_median_of_the_latest_sixteen() -> None:
    """The median is known from the fourth success on, separately for each resolution."""

    async def scene(scenario: PipelineScenario) -> None:
        def usual() -> Any:
            return scenario.client.snapshot()["routes"][0]["usual_latency_s"]

        for number, latency in enumerate([1.0, 3.0, 5.0, 7.0]):
            assert usual() == ({"1K": None} if number else {})
            scenario.google.latency = latency
            await scenario.ask(resolution="1K")
        assert usual() == {"1K": 4.0}
        scenario.google.latency = 9.0
        for _ in range(13):
            await scenario.ask(resolution="1K")
        assert usual() == {"1K": 9.0}
        scenario.google.latency = 2.0
        for _ in range(9):
            await scenario.ask(resolution="1K")
        assert usual() == {"1K": 2.0}

    run_scenario(scene, **FAST)


def test_references_beyond_a_models_limit_are_listed() -> None:
    """The first references in the caller's order are sent."""

    async def scene(scenario: PipelineScenario) -> None:
        result = await scenario.ask(references=[PNG] * 16)
        assert list(result.dropped_references) == [
            {"index": 14, "why": f"google:{PRO} takes 14 references"},
            {"index": 15, "why": f"google:{PRO} takes 14 references"},
        ]
        (sent,) = scenario.google.sent
        assert [reference.index for reference in sent.request.references] == list(range(14))
        result = await scenario.ask(references=[PNG] * 14)
        assert result.dropped_references == ()

    run_scenario(scene, **FAST)


def test_max_reference_mb_limits_all_references_of_a_request() -> None:
    """References within IMAGE_GEN_MAX_REFERENCE_MB are sent unchanged."""
    sample = encoded(noise(600, 600), "PNG")

    async def tight(scenario: PipelineScenario) -> None:
        result = await scenario.ask(references=[sample, sample])
        (sent,) = scenario.google.sent
        assert sum(len(each.data) for each in sent.request.references) <= 1.5 * len(sample)
        assert any("made smaller" in note for note in result.adjustments)

    async def wide(scenario: PipelineScenario) -> None:
        result = await scenario.ask(references=[sample, sample])
        (sent,) = scenario.google.sent
        assert [each.data for each in sent.request.references] == [sample] * 2
        assert result.adjustments == ()

    run_scenario(tight, max_reference_mb=1.5 * len(sample) / 1e6, **FAST)
    run_scenario(wide, max_reference_mb=2.001 * len(sample) / 1e6, **FAST)


def test_a_models_limit_applies_to_all_references_of_a_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model that is not in the table has no limit."""
    sample = encoded(noise(600, 600), "PNG")
    known = models.get_model("google", PRO)
    assert known is not None
    small = replace(known, max_total_bytes=int(1.5 * len(sample)))
    monkeypatch.setattr(models, "get_model", lambda vendor, _name: {"google": small}.get(vendor))

    async def main(vendor: str) -> int:
        provider = FakeProvider(vendor)
        settings = Settings(routes=f"{vendor}:{PRO}", **FAST)
        async with ImageClient(settings, providers=[provider]) as client:
            await client.generate("x", references=[sample, sample])
        return sum(len(each.data) for each in provider.sent[0].request.references)

    assert run_virtual(main("google")) <= 1.5 * len(sample)
    assert run_virtual(main("local")) == 2 * len(sample)


def test_adjustments_include_a_providers_prompt_hints() -> None:
    """Prompt hints follow the notes about the image; the method is optional for a provider."""

    class Hinting(FakeProvider):
        def prompt_hints_for(self, request: ImageRequest) -> PromptHints:
            return PromptHints(after=f" ({request.prompt})")

    async def main() -> None:
        settings = Settings(**ALONE)
        async with ImageClient(settings, providers=[Hinting("google")]) as client:
            plain = await client.generate("x")
            assert plain.adjustments == ('added to the prompt: "(x)"',)
            with_reference = await client.generate("x", references=[PNG])
            assert with_reference.adjustments == ('added to the prompt: "(x)"',)

    run_virtual(main())


def test_an_incomplete_image_is_an_invalid_response() -> None:
    """A truncated image, or other data, with status 200 is retried."""

    class Truncated:
        name = "google"

        def __init__(self, data: bytes) -> None:
            self.data, self.sent = data, 0

        async def generate(self, request: ImageRequest, model: str) -> ProviderResult:
            self.sent += 1
            image = ProviderImage(self.data, "image/png")
            return ProviderResult((image,), model, TokenUsage(input_tokens=1, output_tokens=2))

        async def aclose(self) -> None:
            """Nothing to close."""

    async def main(data: bytes) -> None:
        google = Truncated(data)
        async with ImageClient(Settings(**ALONE), providers=[google]) as client:
            with pytest.raises(Exception, match=PRO) as caught:
                await client.generate("x", aspect_ratio="1:1")
        error: Any = caught.value
        assert (error.reason, error.status, google.sent) == (Reason.INVALID_RESPONSE, 200, 2)
        assert [attempt.may_have_been_billed for attempt in error.attempts] == [True, True]
        assert error.attempts[0].usage["output_tokens"] == 2

    for data in (TINY_PNG[:-20], b"not an image" * 9, TINY_PNG[:33]):
        run_virtual(main(data))


def configured(providers: tuple[Provider, ...] = (), **settings: Any) -> list[tuple[str, str]]:
    """Return the warnings of a client that is made, as codes and texts."""

    async def main() -> list[tuple[str, str]]:
        events = RecordingSink()
        async with ImageClient(Settings(**settings), providers=providers, sinks=[events]):
            pass
        return [(warned.code, warned.message) for warned in events.of(OperatorWarning)]

    return run_virtual(main())


DECLARE = "IMAGE_GEN_PROVIDER_<NAME> declares another one"


@pytest.mark.parametrize(
    ("settings", "providers", "text"),
    [
        (
            {"routes": "b:m, a:m, google:pro"},
            (),
            "IMAGE_GEN_ROUTES names a, b; known providers: azure, google, openai, vertex; "
            + DECLARE,
        ),
        (
            {"routes": "local:m"},
            ("local", "y", "x"),
            "no route leads to x, y; name it in IMAGE_GEN_ROUTES",
        ),
        (
            {"routes": "local:m", "force_open": "b, a"},
            ("local",),
            "IMAGE_GEN_FORCE_OPEN names a, b; "
            "known providers: azure, google, local, openai, vertex; " + DECLARE,
        ),
        ({}, (), "no route can be used: set GOOGLE_GENAI_API_KEY or OPENAI_API_KEY"),
    ],
)
def test_invalid_route_settings_are_warned_of_at_startup(
    settings: dict[str, Any], providers: tuple[str, ...], text: str
) -> None:
    """The warning names the variable to change and what is allowed."""
    with pytest.raises(ConfigurationError, match=f"^{re.escape(text)}$"):
        configured(tuple(FakeProvider(name) for name in providers), **settings)


def test_warnings_about_routes_have_codes() -> None:
    """A missing key, a retired model and an unknown one have a code each."""
    warned = configured(openai_api_key="sk-fake", routes="google:pro, openai:gpt-image-99")
    assert warned == [
        ("missing_key", "GOOGLE_GENAI_API_KEY is not set: routes to google are off"),
        ("unknown_model", "model gpt-image-99 is not in the model table; passed on as is"),
    ]
    routes = "google:gemini-3-pro-image-preview"
    assert configured((FakeProvider("google"),), routes=routes) == [
        ("retired_model", "model gemini-3-pro-image-preview was retired; using gemini-3-pro-image")
    ]


def test_a_model_of_another_vendor_is_rejected() -> None:
    """The error names the model, its vendor, the first route and the setting to change."""

    async def scene(scenario: PipelineScenario) -> None:
        with pytest.raises(InvalidRequestError) as caught:
            await scenario.ask(model=" gpt-image-2 ")
        assert str(caught.value) == (
            "model gpt-image-2 belongs to openai, and the first route is "
            f"google:{PRO}; change IMAGE_GEN_ROUTES to put another vendor first"
        )
        with pytest.raises(InvalidRequestError) as caught:
            await scenario.ask(model=7)
        assert str(caught.value) == (
            "model must be a model's name of at most 200 characters, or None"
        )

    run_scenario(scene, **FAST)


def test_a_model_for_one_call_is_not_asked_twice() -> None:
    """It replaces the first route, and a later route with the same model is skipped."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.MODEL_NOT_FOUND, status=404)
        result = await scenario.ask(model="gemini-nano-banana-2.1")
        assert result.provider == "openai"
        assert [sent.model for sent in scenario.google.sent] == ["gemini-nano-banana-2.1"]

    run_scenario(
        scene,
        routes=f"google:{PRO}, google:gemini-nano-banana-2.1, openai:{FLARE}",
        **FAST,
    )


def changes(scenario: PipelineScenario) -> list[tuple[str, str, str]]:
    """Return route, new state and the call that caused it, of every change of a breaker."""
    found: list[tuple[str, str, str]] = []
    for event in scenario.events.of(BreakerChanged):
        change, sent = event.transition, event.transition.origin
        assert isinstance(sent, AttemptStarted)
        found.append((change.name, change.to_state, sent.call_id))
    return found


def test_an_opening_names_the_call_that_caused_it() -> None:
    """An opening names the call of the last failure, of the slow request, or of the sibling's
    fatal failure.
    """
    sibling = "gemini-nano-banana-2.1"

    async def failures(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503)
        await scenario.ask()
        assert changes(scenario) == [(f"google:{PRO}", "open", ended(scenario).call_id)]

    async def slow(scenario: PipelineScenario) -> None:
        scenario.google.hang()
        await scenario.ask(deadline=100)
        assert changes(scenario) == [(f"google:{PRO}", "open", ended(scenario).call_id)]

    async def account(scenario: PipelineScenario) -> None:
        scenario.google.fail(
            Reason.QUOTA_EXHAUSTED, status=429, account_wide=True, retry_after=7200.0
        )
        await scenario.ask()
        assert changes(scenario) == [
            (f"google:{PRO}", "open", ended(scenario).call_id),
            (f"google:{sibling}", "open", ended(scenario).call_id),
        ]
        routes = scenario.client.snapshot()["routes"][:2]
        assert [route["breaker"]["why"] for route in routes] == ["quota_exhausted"] * 2
        waits = [route["breaker"]["retry_after"] for route in routes]
        assert waits == [pytest.approx(7198.0)] * 2
        scenario.openai.fail(Reason.INVALID_REQUEST, status=400)
        with pytest.raises(InvalidRequestError) as caught:
            await scenario.ask()
        assert caught.value.attempts[-1].provider == "openai"

    run_scenario(failures, **FAST)
    run_scenario(slow, breaker_fail_max=1, breaker_slow_call=5.0, **FAST)
    run_scenario(account, routes=f"google:{PRO}, google:{sibling}, openai:{FLARE}", **FAST)


def test_an_error_keeps_its_vendors_message_without_the_prompt() -> None:
    """The error has the message and the route, and no invalid hint."""
    prompt = "a lighthouse on a cliff in a storm at night"

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.crash(
            provider_failure(
                Reason.INVALID_REQUEST,
                status=400,
                vendor_message=f"cannot draw {prompt} today",
                retry_after=-5.0,
            )
        )
        with pytest.raises(InvalidRequestError) as caught:
            await scenario.client.generate(prompt)
        error = caught.value
        assert (error.provider, error.model, error.retry_after) == ("google", PRO, None)
        assert error.vendor_message == "cannot draw […] today"

    run_scenario(scene, **FAST)


def test_a_fallback_is_reported_with_its_cause() -> None:
    """The event has both routes and the reason."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503)
        await scenario.ask()
        (fell,) = scenario.events.of(RouteFallback)
        assert (fell.from_route, fell.to_route) == (f"google:{PRO}", f"openai:{FLARE}")
        assert fell.cause is Reason.OVERLOADED

    run_scenario(scene, **FAST)


def test_a_call_that_waited_for_an_open_circuit_begins_again() -> None:
    """A call that is then served by the first route is no fallback, and its earlier rejections
    are dropped.
    """

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503, times=3)
        scenario.openai.fail(Reason.QUOTA_EXHAUSTED, status=429)
        with pytest.raises(AllProvidersFailedError):
            await scenario.ask()
        result = await scenario.ask()
        assert (result.provider, result.fallback_reason, result.attempts) == ("google", None, 1)
        scenario.google.fail(Reason.OVERLOADED, status=503)
        with pytest.raises(AllProvidersFailedError):
            await scenario.ask()
        scenario.google.heal().fail(Reason.CONTENT_BLOCKED, status=400)
        with pytest.raises(ContentBlockedError) as caught:
            await scenario.ask()
        assert len(caught.value.attempts) == 1

    run_scenario(scene, when_all_open="wait", **FAST)


def test_endpoint_and_warm_up_of_a_provider_are_optional() -> None:
    """`warm_up` may be an ordinary or a coroutine function."""

    class Built(FakeProvider):
        built = 0

        def warm_up(self) -> None:
            self.built += 1

    async def main() -> None:
        events = RecordingSink()
        google = Built("google")
        google.endpoint = Endpoint("google", base_url="https://relay.example")
        async with ImageClient(Settings(**ALONE), providers=[google], sinks=[events]) as client:
            await client.generate("x")
        assert google.built == 1
        urls = [event.base_url for event in events.of(AttemptStarted)]
        assert urls == ["https://relay.example"]

    run_virtual(main())


def test_the_deadline_error_names_the_build_of_an_sdk() -> None:
    """The error names the route, and states that no request was sent."""

    class Slow(FakeProvider):
        async def warm_up(self) -> None:
            await asyncio.sleep(100)

    async def main() -> None:
        async with ImageClient(Settings(**ALONE), providers=[Slow("google")]) as client:
            with pytest.raises(DeadlineExceededError) as caught:
                await client.generate("x", deadline=10)
        assert str(caught.value) == f"google {PRO}: out of time, mostly spent loading the SDK"
        assert caught.value.retry_after is None

    run_virtual(main())


def test_the_queue_of_a_route_that_is_off_has_its_providers_limits() -> None:
    """The snapshot shows the limits as for a route in use."""

    async def main() -> None:
        settings = Settings(google_api_key="AIzaFAKE", openai_ipm=30, max_concurrent=7)
        _, off = ImageClient(settings).snapshot()["routes"]
        assert off["queue"] == {
            "waiting": 0,
            "in_flight": 0,
            "max_concurrent": 7,
            "interval_s": 2.0,
        }

    run_virtual(main())


def test_a_short_deadline_on_a_single_route_is_not_warned_of() -> None:
    """A single route can use the whole deadline."""
    assert configured((FakeProvider("google"),), routes=f"google:{PRO}", deadline=50) == []
    [(code, text)] = configured(
        (FakeProvider("google"), FakeProvider("openai")), routes=f"google:{PRO}, openai:{FLARE}",
        deadline=50, on_timeout="abandon",
    )  # fmt: skip
    assert code == "hanging_goes_unseen"
    assert text == (
        f"IMAGE_GEN_DEADLINE=50 leaves 25 s for a request to google:{PRO}, and a request that is "
        "cut short counts as failed only if it ran for 30 s, so that requests that hang may never "
        "open the circuit; raise IMAGE_GEN_DEADLINE to 60 or more, or set "
        "IMAGE_GEN_BREAKER_SLOW_CALL to less than 25"
    )
