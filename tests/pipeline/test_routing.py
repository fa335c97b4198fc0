"""Routes that configuration may name, and models that a call may name."""

from __future__ import annotations

import asyncio
import json
import math
import re
from typing import Any

import pytest
from pipeline_kit import FAST, PipelineScenario, run_scenario
from telemetry_kit import Telemetry

from resilient_imagen import (
    AuthenticationError,
    ConfigurationError,
    ImageClient,
    InvalidRequestError,
    Provider,
    Reason,
    Settings,
    Snapshot,
)
from resilient_imagen.telemetry.events import OperatorWarning
from resilient_imagen.testing import FakeProvider, RecordingSink, run_virtual

KEYS: dict[str, Any] = {"google_api_key": "AIzaFAKE", "openai_api_key": "sk-fake"}


def routes(providers: tuple[Provider, ...] = (), **settings: Any) -> tuple[list[str], list[str]]:
    """Return the names of a client's routes, and its warnings."""

    async def main() -> tuple[list[str], list[str]]:
        sink = RecordingSink()
        chosen = Settings(**{**KEYS, **settings})
        async with ImageClient(chosen, providers=providers, sinks=[sink]) as client:
            names = [route["route"] for route in client.snapshot()["routes"]]
            return names, [warned.message for warned in sink.of(OperatorWarning)]

    return run_virtual(main())


@pytest.mark.parametrize("route", ["google:gpt-image-2", "openai:gemini-3-pro-image"])
def test_a_route_to_another_vendors_model_is_rejected(route: str) -> None:
    """A route to another vendor's model is rejected at startup, with the variable to change."""
    with pytest.raises(ConfigurationError, match=rf"IMAGE_GEN_ROUTES: {route} is not valid"):
        routes(routes=route)


def test_a_relay_may_serve_models_of_any_vendor() -> None:
    """A route with a custom base URL may name models of any vendor."""
    found, _ = routes(
        routes="openai:gemini-3-pro-image", openai_base_url="https://relay.example/v1"
    )
    assert found == ["openai:gemini-3-pro-image"]


@pytest.mark.parametrize(
    ("key", "off", "variable"),
    [
        ("google_api_key", "openai:gpt-image-2.5-flare", "OPENAI_API_KEY"),
        ("openai_api_key", "google:gemini-3-pro-image", "GOOGLE_GENAI_API_KEY"),
    ],
)
def test_a_route_that_is_off_is_in_the_snapshot_with_the_cause(
    key: str, off: str, variable: str
) -> None:
    """The snapshot lists an unconfigured route last, with all keys and the cause."""

    async def main() -> Snapshot:
        client = ImageClient(Settings(**{key: KEYS[key]}))
        await asyncio.sleep(5)
        return client.snapshot()

    in_use, idle = run_virtual(main())["routes"]
    assert in_use["off"] is None
    assert (idle["route"], idle["off"]) == (off, f"{variable} is not set")
    assert f"{idle['provider']}:{idle['model']}" == idle["breaker"]["name"] == off
    assert (idle["breaker"]["state"], idle["breaker"]["since_s"]) == ("forced_open", 5)
    assert idle["breaker"]["retry_after"] is None
    assert idle["last_fallback"] is None
    assert idle["usual_latency_s"] == {}
    assert keys_of(idle) == keys_of(in_use)
    json.dumps(idle)


def keys_of(found: object) -> object:
    """Return the shape of a JSON object."""
    return {key: keys_of(value) for key, value in found.items()} if isinstance(found, dict) else 0


def test_a_route_that_is_off_is_neither_asked_nor_measured() -> None:
    """An unconfigured route has no breaker and no gauge."""

    async def main() -> None:
        telemetry = Telemetry()
        google = FakeProvider("google")
        async with ImageClient(providers=[google], meter_provider=telemetry.meters) as client:
            assert (await client.generate("a lighthouse")).provider == "google"
            assert list(client.breakers) == ["google:gemini-3-pro-image"]
            shown = telemetry.points("imagegen.circuit_breaker.state")
            names = {found["imagegen.circuit_breaker.name"] for found, _ in shown}
            assert names == {"google:gemini-3-pro-image"}

    run_virtual(main())


def test_a_retired_name_beside_its_successor_is_one_route() -> None:
    """A retired model name and its successor share one route."""
    chain = "google:gemini-3-pro-image-preview, google:gemini-3-pro-image, openai:gpt-image-2"
    found, warned = routes(routes=chain, openai_timeout=300)
    assert found == ["google:gemini-3-pro-image", "openai:gpt-image-2"]
    assert warned == ["model gemini-3-pro-image-preview was retired; using gemini-3-pro-image"]


def test_an_unknown_model_is_passed_on_with_one_warning() -> None:
    """A model that is not in the table is sent unchanged and causes one warning."""
    found, warned = routes(routes="google:gemini-9-image, openai:gpt-image-2", openai_timeout=300)
    assert found[0] == "google:gemini-9-image"
    assert warned == ["model gemini-9-image is not in the model table; passed on as is"]


def test_a_custom_providers_models_are_its_own() -> None:
    """Retired models of a vendor are not replaced for custom providers."""
    found, warned = routes((FakeProvider("local"),), routes="local:dall-e-3")
    assert (found, warned) == (["local:dall-e-3"], [])


def test_only_the_keys_of_named_routes_are_asked_for() -> None:
    """A key of a vendor without a route is not required."""
    with pytest.raises(ConfigurationError, match=r"set OPENAI_API_KEY$"):
        routes(routes="openai:gpt-image-2", openai_api_key=None)


def test_a_model_of_the_primary_that_is_off_is_not_used() -> None:
    """A call that names Google's model is served by OpenAI if only its key is set."""

    async def main() -> None:
        sink = RecordingSink()
        openai = FakeProvider("openai")
        settings = Settings(openai_api_key="sk-fake")
        async with ImageClient(settings, providers=[openai], sinks=[sink]) as client:
            for _ in range(2):
                result = await client.generate("x", model="gemini-3-pro-image-preview")
                assert result.provider == "openai"
        off = [w for w in sink.of(OperatorWarning) if w.code == "model_not_used"]
        assert [w.message for w in off] == [
            "routes to google are off, so that model gemini-3-pro-image is not used"
        ]

    run_virtual(main())


@pytest.mark.parametrize(
    "model", ["", "../x", "a b", "x?key=y", "a" + chr(0xD800), "/m", "m/", "sk-abcdefgh"]
)
def test_an_invalid_model_name_is_rejected(model: str) -> None:
    """An invalid model name is rejected before a URL is built from it."""

    async def scene(scenario: PipelineScenario) -> None:
        with pytest.raises(InvalidRequestError, match="model must be a model's name"):
            await scenario.ask(model=model)

    run_scenario(scene)


def test_an_unpaired_surrogate_is_refused_before_it_is_sent() -> None:
    """A prompt with an unpaired surrogate is rejected, because JSON cannot contain it."""

    async def scene(scenario: PipelineScenario) -> None:
        with pytest.raises(InvalidRequestError, match="unpaired surrogate"):
            await scenario.client.generate("a" + chr(0xD800))

    run_scenario(scene)


def test_a_fatal_failure_of_an_account_opens_routes_created_later() -> None:
    """A rejected key is not tried again with another model of the account."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.UNAUTHENTICATED, status=401, account_wide=True)
        await scenario.ask()
        sent = len(scenario.google.sent)
        result = await scenario.ask(model="gemini-nano-banana-2.1")
        assert (result.provider, result.fallback_reason) == ("openai", "circuit_open")
        assert len(scenario.google.sent) == sent

    run_scenario(scene, **FAST)


def test_a_deadline_that_hides_hangs_is_reported_once() -> None:
    """A deadline whose share is too short to detect hangs causes one warning with the setting."""
    _, warned = routes(on_timeout="abandon", deadline=50)
    assert len(warned) == 1
    assert re.search(r"leaves 25 s .* ran for 30 s.*IMAGE_GEN_BREAKER_SLOW_CALL", warned[0])
    assert routes(on_timeout="abandon", deadline=50, breaker_slow_call=20)[1] == []
    assert routes(on_timeout="abandon", deadline=60)[1] == []
    assert routes(on_timeout="abandon", deadline=300)[1] == []


@pytest.mark.parametrize("on_timeout", ["keep", "abandon"])
@pytest.mark.parametrize("openai_timeout", [5, 180])
def test_the_deadline_in_the_warning_is_the_shortest_one_that_suffices(
    on_timeout: str, openai_timeout: float
) -> None:
    """One second less leads to the warning again."""
    options: dict[str, Any] = {
        "on_timeout": on_timeout, "openai_timeout": openai_timeout, "fallback_on": "timeout",
    }  # fmt: skip

    def hidden(deadline: int) -> list[str]:
        found = routes(deadline=deadline, **options)[1]
        return [each for each in found if "hang" in each]

    [warned] = hidden(10)
    enough = re.search(r"raise IMAGE_GEN_DEADLINE to (\d+) or more", warned)
    assert enough is not None
    assert hidden(int(enough[1])) == []
    assert len(hidden(int(enough[1]) - 1)) == 1


def test_a_deadline_hides_no_hangs_if_calls_do_not_fall_back_on_a_timeout() -> None:
    """A request may then use the whole deadline, as on a single route."""
    assert routes(deadline=50, on_timeout="abandon", fallback_on="connection")[1] == []


def test_kept_requests_detect_hangs_at_shorter_deadlines() -> None:
    """With kept requests, hangs are detected at shorter deadlines."""
    assert routes(deadline=50)[1] == []
    [warned] = routes(deadline=25)[1]
    assert "leaves 25 s" in warned


def test_a_calls_own_deadline_that_hides_hangs_is_warned_of_once() -> None:
    """A deadline argument that hides hangs causes one warning for all calls."""

    async def scene(scenario: PipelineScenario) -> None:
        await scenario.ask(deadline=300)
        assert scenario.events.of(OperatorWarning) == []
        await scenario.ask(deadline=50)
        await scenario.ask(deadline=40)
        [warned] = scenario.events.of(OperatorWarning)
        assert warned.code == "hanging_goes_unseen"
        assert warned.message.startswith("deadline=50 leaves 25 s for a request to google:")

    run_scenario(scene, **FAST)


TOO_SHORT = (
    "{0} is less than the {1} s that an image of {2} typically takes at 2K "
    "(estimate: {3}); raise {4}"
)


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({"per_call_timeout": 30, "openai_timeout": 60}, None),
        (
            {"per_call_timeout": 20},
            TOO_SHORT.format(
                "IMAGE_GEN_PER_CALL_TIMEOUT=20",
                30,
                "google:gemini-3-pro-image",
                "from second-hand 20 s at 1K",
                "IMAGE_GEN_PER_CALL_TIMEOUT",
            ),
        ),
        (
            {"openai_timeout": 59},
            TOO_SHORT.format(
                "IMAGE_GEN_OPENAI_TIMEOUT=59",
                60,
                "openai:gpt-image-2.5-flare",
                "that of gpt-image-2.5-sunburst",
                "IMAGE_GEN_OPENAI_TIMEOUT",
            ),
        ),
        ({"openai_timeout": 59, "openai_quality": "medium"}, None),
    ],
)
def test_a_time_limit_below_the_typical_seconds_is_warned_of_at_startup(
    settings: dict[str, Any], warned: str | None
) -> None:
    """The warning has the variable, both durations, and what the typical one is based on."""
    _, found = routes(**settings)
    assert found == ([] if warned is None else [warned])


def test_a_slow_call_threshold_detects_a_hanging_primary_within_the_deadline() -> None:
    """With a slow-call threshold, three hanging calls open the circuit; the fourth skips it."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.hang()
        for _ in range(3):
            assert (await scenario.ask()).fallback_reason == "timeout"
        assert (await scenario.ask()).fallback_reason == "circuit_open"

    run_scenario(scene, deadline=100, breaker_slow_call=45, **FAST)


def test_a_snapshot_can_be_taken_outside_the_loop() -> None:
    """A snapshot can be taken from synchronous code."""

    async def main() -> ImageClient:
        client = ImageClient(Settings(**KEYS), providers=[FakeProvider("google")])
        await client.generate("x")
        return client

    client = run_virtual(main())
    assert client.snapshot()["routes"][0]["breaker"]["state"] == "closed"


def test_a_refused_key_reaches_a_caller_with_one_route() -> None:
    """With one route, a rejected key raises its own error class."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.UNAUTHENTICATED, status=401)
        with pytest.raises(AuthenticationError):
            await scenario.ask()

    run_scenario(scene, fallback_on="overloaded")


def test_a_downgraded_resolution_is_listed_in_the_result() -> None:
    """The result lists that 4K was requested and 1K was made."""

    async def scene(scenario: PipelineScenario) -> None:
        result = await scenario.ask(model="gemini-3.1-flash-lite-image", resolution="4K")
        assert result.adjustments == ("google:gemini-3.1-flash-lite-image makes 1K, not 4K",)

    run_scenario(scene)


@pytest.mark.no_cover
@pytest.mark.parametrize("others", [31, 32, 33, 60, 200])
def test_an_open_circuit_is_not_forgotten_for_other_names(others: int) -> None:
    """An open circuit is kept however many other models callers name."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503)
        await scenario.ask(model="gemini-nano-banana-2.1")
        scenario.google.heal()
        for number in range(others):
            await scenario.ask(model=f"gemini-9-image-{number}")
        sent = len(scenario.google.sent)
        result = await scenario.ask(model="gemini-nano-banana-2.1")
        assert (result.fallback_reason, len(scenario.google.sent)) == ("circuit_open", sent)

    run_scenario(
        scene,
        max_concurrent=1000,
        ipm=1_000_000,
        breaker_reset_timeout=3600,
        breaker_reset_max=3600,
    )


@pytest.mark.no_cover
def test_failures_of_many_names_in_turn_are_counted_for_each() -> None:
    """Failures of forty models in turn open forty circuits."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503, latency=0.0)
        for _ in range(4):
            for number in range(40):
                await scenario.ask(model=f"gemini-9-image-{number}")
        assert len(scenario.google.sent) == 3 * 40

    run_scenario(
        scene, max_retries=0, ipm=1_000_000, breaker_reset_timeout=3600, breaker_reset_max=3600
    )


def dynamic_routes(scenario: PipelineScenario) -> list[int]:
    """Return the numbers of the made-up models that have a route."""
    names = (name.partition("gemini-9-image-")[2] for name in scenario.client.breakers)
    return [int(number) for number in names if number]


def test_the_number_of_caller_named_models_is_limited() -> None:
    """Only the 32 most recently used caller-named models keep their routes."""

    async def scene(scenario: PipelineScenario) -> None:
        for number in (*range(32), 0, *range(32, 40)):
            await scenario.ask(model=f"gemini-9-image-{number}")
        assert dynamic_routes(scenario) == [*range(9, 32), 0, *range(32, 40)]

    run_scenario(scene, ipm=1_000_000)


@pytest.mark.no_cover
def test_the_number_of_open_circuits_and_warnings_of_caller_named_models_is_limited() -> None:
    """At most 256 open circuits and warnings of caller-named models are kept."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.MODEL_NOT_FOUND, status=404)
        for number in range(260):
            await scenario.ask(model=f"gemini-9-image-{number}")
        assert dynamic_routes(scenario) == list(range(4, 260))

        def warned() -> list[str]:
            found = (
                w.message for w in scenario.events.of(OperatorWarning) if w.code == "unknown_model"
            )
            return [re.sub("[^0-9]*9-image-([0-9]+) .*", r"\1", message) for message in found]

        assert warned() == [str(number) for number in range(260)]
        await scenario.ask(model="gemini-9-image-259")
        await scenario.ask(model="gemini-9-image-4")
        await scenario.ask(model="gemini-9-image-0")
        assert warned()[260:] == ["0"]

    run_scenario(scene, ipm=1_000_000)


def test_the_length_of_a_model_name_is_limited() -> None:
    """The length of a model name is limited, because it is part of URLs and metrics."""

    async def scene(scenario: PipelineScenario) -> None:
        assert (await scenario.ask(model="gemini-" + "9" * 193)).provider == "google"
        with pytest.raises(InvalidRequestError, match="at most 200 characters"):
            await scenario.ask(model="gemini-" + "9" * 194)

    run_scenario(scene)


def test_a_route_that_an_operator_forces_open_does_not_block_other_models_for_ever() -> None:
    """A caller-named model of a tripped account is asked again after the operator releases the
    route.
    """

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.QUOTA_EXHAUSTED, times=1, account_wide=True)
        await scenario.ask()
        primary = scenario.client.breakers["google:gemini-3-pro-image"]
        primary.force_open = True
        await scenario.ask(model="gemini-9-image")
        primary.force_open = False
        until = scenario.client.breakers["google:gemini-9-image"].blocked_until()
        assert until is None or until < math.inf

    run_scenario(scene, **FAST)
