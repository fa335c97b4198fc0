"""Orders in one process: a client obeys and shows them, and returns to its settings afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline_kit import FAST, PipelineScenario, now, run_scenario
from telemetry_kit import Telemetry

from resilient_imagen import (
    ConfigurationError,
    ImageClient,
    ImageGenerationError,
    Reason,
    Settings,
    sync,
)
from resilient_imagen.control import Order
from resilient_imagen.telemetry.events import (
    OperatorWarning,
    OrderApplied,
    OrderEnded,
    SettingsReported,
)
from resilient_imagen.testing import FakeProvider, run_virtual

GOOGLE, OPENAI = "google:gemini-3-pro-image", "openai:gpt-image-2.5-flare"
ONE_TRY: dict[str, Any] = {**FAST, "max_retries": 0}
_serials = itertools.count(1)


def order(action: str, target: str, ttl: int = 60, **fields: Any) -> Order:
    serial = next(_serials)
    return Order(
        **{"action": action, "target": target, "ttl": ttl, "by": "ops", "serial": serial, **fields}
    )


def setting(variable: str, value: str | None, ttl: int = 60) -> Order:
    name = f"IMAGE_GEN_{variable}"
    return order("unset" if value is None else "set", name, ttl, value=value)


async def fail(scenario: PipelineScenario, times: int = 1, **details: Any) -> None:
    """Let calls fail at Google, and be served by OpenAI."""
    scenario.google.fail(details.pop("reason", Reason.OVERLOADED), times=times, **details)
    for _ in range(times):
        await scenario.ask()


def orders(client: ImageClient) -> list[str]:
    return [each["order"] for each in client.snapshot()["control"]["orders"]]


# Breakers


def test_an_ordered_opening_holds_until_its_end() -> None:
    """Calls skip the route until the order ends, and then use it without a call in between."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.client.obey(order("open", "google", 20))
        assert (await scenario.ask()).provider == "openai"
        assert scenario.state() == "forced_open"
        assert scenario.client.health()["status"] == "degraded"
        await asyncio.sleep(20)
        assert scenario.state() == "closed"
        assert (await scenario.ask()).provider == "google"
        assert len(scenario.google.sent) == 1

    run_scenario(scene, **FAST)


def test_an_order_about_a_provider_applies_to_all_its_routes() -> None:
    """It applies to routes that a caller names later.

    An order about a route applies to that one only.
    """

    async def scene(scenario: PipelineScenario) -> None:
        client = scenario.client
        client.obey(order("open", GOOGLE))
        assert (await scenario.ask(model="gemini-3.1-flash-image")).provider == "google"
        client.obey(order("open", "google"))
        assert (await scenario.ask(model="gemini-2.5-flash-image")).provider == "openai"
        assert scenario.state(2) == scenario.state(3) == "forced_open"

    run_scenario(scene, **FAST)


def test_an_order_may_name_a_model_of_the_model_file(tmp_path: Path) -> None:
    """The model is known before any call uses it, like those of the built-in table."""
    path = tmp_path / "models.toml"
    path.write_text('[new-model]\nvendor = "google"\n', encoding="utf-8")

    async def scene(scenario: PipelineScenario) -> None:
        scenario.client.obey(order("open", "google:new-model"))
        assert (await scenario.ask(model="new-model")).provider == "openai"

    run_scenario(scene, models=path, **FAST)


def test_close_closes_now_and_the_breaker_may_trip_again() -> None:
    """`close` also ends an earlier order to open."""

    async def scene(scenario: PipelineScenario) -> None:
        await fail(scenario, 3)
        assert scenario.state() == "open"
        scenario.client.obey(order("close", "google"))
        assert scenario.state() == "closed"
        await fail(scenario, 3)
        assert scenario.state() == "open"
        scenario.client.obey(order("open", "google"))
        scenario.client.obey(order("close", "google"))
        assert scenario.state() == "closed"
        assert orders(scenario.client) == []

    run_scenario(scene, **ONE_TRY)


def test_hold_keeps_it_closed_through_failures() -> None:
    """Each call tries the route; after the hold the breaker has the state that it counted."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.client.obey(order("hold", "google", 30))
        await fail(scenario, 5)
        assert len(scenario.google.sent) == 5
        await asyncio.sleep(30)
        assert scenario.state() == "open"

    run_scenario(scene, **ONE_TRY)


def test_reset_ends_all_orders_for_the_provider_and_its_routes() -> None:
    """The breakers decide again by the outcomes that they have counted meanwhile."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.client.obey(order("hold", GOOGLE))
        await fail(scenario, 3)
        scenario.client.obey(order("reset", "google"))
        assert scenario.state() == "open"
        assert orders(scenario.client) == []

    run_scenario(scene, **ONE_TRY)


def test_the_latest_order_about_a_route_decides() -> None:
    """A closed route of an opened provider remains closed after the order to close has ended."""

    async def scene(scenario: PipelineScenario) -> None:
        client = scenario.client
        await scenario.ask(model="gemini-3.1-flash-image")
        client.obey(order("open", "google", 600))
        client.obey(order("close", GOOGLE, 60))
        assert (scenario.state(), scenario.state(2)) == ("closed", "forced_open")
        await asyncio.sleep(300)
        assert (scenario.state(), scenario.state(2)) == ("closed", "forced_open")
        await asyncio.sleep(300)
        assert scenario.state(2) == "closed"

    run_scenario(scene, **FAST)


def test_a_rejected_key_needs_an_explicit_order() -> None:
    """`close` and `hold` do not admit calls with a rejected key unless the order includes such
    failures.
    """

    async def scene(scenario: PipelineScenario) -> None:
        client = scenario.client
        await fail(scenario, reason=Reason.UNAUTHENTICATED, account_wide=True)
        for action in ("close", "hold"):
            with pytest.raises(ConfigurationError, match=f"{GOOGLE} stays open .*--even-account"):
                client.obey(order(action, "google"))
            assert scenario.state() == "open"
        client.obey(order("close", "google", even_account=True))
        assert (await scenario.ask()).provider == "google"

    run_scenario(scene, **ONE_TRY)


def test_force_open_of_the_process_takes_precedence() -> None:
    """IMAGE_GEN_FORCE_OPEN and `force_open` stay in force, and the operator is informed."""

    async def scene(scenario: PipelineScenario) -> None:
        with pytest.raises(ConfigurationError, match="is forced open by its process"):
            scenario.client.obey(order("close", "google"))
        assert scenario.state() == "forced_open"

    run_scenario(scene, force_open="google", **FAST)


def test_a_close_that_arrives_late_closes_nothing() -> None:
    """A process that starts an hour later does not close a circuit that opened meanwhile."""

    async def scene(scenario: PipelineScenario) -> None:
        await fail(scenario, 3)
        controller = scenario.client._control
        controller.obey(order("close", "google", 7200), left=3600)
        assert scenario.state() == "open"

    run_scenario(scene, **ONE_TRY)


# Settings


def test_a_changed_threshold_applies_to_failures_already_counted() -> None:
    """After two failures an order lowers the threshold from 5 to 3, and the third failure opens."""

    async def scene(scenario: PipelineScenario) -> None:
        breaker = scenario.client.breakers[GOOGLE]
        await fail(scenario, 2)
        scenario.client.obey(setting("BREAKER_FAIL_MAX", "3"))
        assert (breaker.metrics().window_calls, breaker.metrics().consecutive) == (2, 2)
        assert breaker.metrics().failure_threshold == 3
        await fail(scenario)
        assert scenario.state() == "open"
        assert breaker.metrics().window_calls == 3
        await asyncio.sleep(60)
        assert breaker.metrics().failure_threshold == 5

    run_scenario(scene, breaker_fail_max=5, breaker_min_calls=100, **ONE_TRY)


def test_other_values_of_a_breaker_that_the_application_configured_stay() -> None:
    """An order changes only the value that it names, and its end restores only that value."""

    async def scene(scenario: PipelineScenario) -> None:
        breaker = scenario.client.breakers[GOOGLE]
        breaker.reconfigure(replace(breaker.config, min_calls=77))
        scenario.client.obey(setting("BREAKER_FAIL_MAX", "9"))
        assert (breaker.config.fail_max, breaker.config.min_calls) == (9, 77)
        await asyncio.sleep(60)
        assert (breaker.config.fail_max, breaker.config.min_calls) == (3, 77)

    run_scenario(scene)


def test_a_changed_rate_limit_applies_to_waiting_callers() -> None:
    """At one image a minute the second caller waits a minute; a higher limit serves it earlier."""

    async def scene(scenario: PipelineScenario) -> None:
        calls = [asyncio.create_task(scenario.ask()) for _ in range(3)]
        await asyncio.sleep(6)
        scenario.client.obey(setting("IPM", "60"))
        await asyncio.gather(*calls)
        starts = [sent.at for sent in scenario.google.sent]
        # 54 of 60 seconds were left, so 0.9 of 1 second is.
        assert starts == pytest.approx([0, 6.9, 7.9])

    run_scenario(scene, ipm=1, max_concurrent=4)


def test_a_lower_rate_limit_ends_with_its_order() -> None:
    """A waiting caller is served by the restored limit."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.client.obey(setting("GOOGLE_IPM", "0.1", 30))
        calls = [asyncio.create_task(scenario.ask()) for _ in range(2)]
        await asyncio.gather(*calls)
        # Of 600 seconds, 570 are left after 30; that share of a second remains.
        assert [sent.at for sent in scenario.google.sent] == pytest.approx([0, 30.95])

    run_scenario(scene, ipm=60)


def test_concurrency_changes_without_a_new_call() -> None:
    """More slots serve waiting callers at once.

    With fewer slots requests in flight still finish.
    """

    async def scene(scenario: PipelineScenario) -> None:
        calls = [asyncio.create_task(scenario.ask()) for _ in range(6)]
        await asyncio.sleep(0.5)
        assert scenario.google.in_flight == 1
        scenario.client.obey(setting("MAX_CONCURRENT", "4", 10))
        await asyncio.sleep(0.2)
        assert scenario.google.in_flight == 4
        scenario.client.obey(setting("MAX_CONCURRENT", None))
        await asyncio.gather(*calls)
        assert scenario.google.max_in_flight == 4
        assert scenario.idle()

    run_scenario(scene, max_concurrent=1, **FAST)


def test_the_time_limit_changes() -> None:
    """The next request has the changed limit, which is also the deadline of probes."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.hang()
        scenario.client.obey(setting("PER_CALL_TIMEOUT", "5", 600))
        assert (await scenario.ask()).provider == "openai"
        assert now() == pytest.approx(5 + 2)
        assert scenario.client.breakers[GOOGLE].config.probe_deadline == 6.0

    run_scenario(scene, **ONE_TRY)


def test_a_lower_time_limit_does_not_shorten_the_wait_for_a_hint() -> None:
    """A hint is waited for as long as the limit with which the failed request was sent."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, latency=5.0, retry_after=30, times=1)
        call = asyncio.create_task(scenario.ask())
        await asyncio.sleep(1)
        scenario.client.obey(setting("PER_CALL_TIMEOUT", "10", 600))
        assert (await call).attempts == 2
        assert now() == pytest.approx(5 + 30 + 1)

    run_scenario(scene, routes=GOOGLE, breaker_mode="off", **FAST)


def test_hedging_changes() -> None:
    """While the order lasts, a slow request is hedged, which is off by default."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.latency = 10.0
        scenario.client.obey(setting("HEDGE_AFTER", "1", 600))
        scenario.client.obey(setting("HEDGE_BUDGET", "1", 600))
        assert (await scenario.ask()).provider == "openai"
        assert now() == pytest.approx(3)
        assert scenario.client.snapshot()["hedging"]["budget"] == 1
        scenario.client.obey(setting("HEDGE_AFTER", None))
        assert (await scenario.ask()).provider == "google"

    run_scenario(scene, on_timeout="keep", **FAST)


def test_routes_change_their_order() -> None:
    """The fallback is asked first, a route may be left out, and their order is restored."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.client.obey(setting("ROUTES", f"{OPENAI}, {GOOGLE}"))
        result = await scenario.ask()
        assert (result.provider, result.fallback_reason) == ("openai", None)
        scenario.client.obey(setting("ROUTES", OPENAI))
        scenario.openai.fail(Reason.OVERLOADED, times=1)
        with pytest.raises(ImageGenerationError):
            await scenario.ask()
        assert scenario.client.health()["status"] == "ok"
        await asyncio.sleep(60)
        assert (await scenario.ask()).provider == "google"

    run_scenario(scene, **ONE_TRY)


def test_accounts_of_a_step_can_be_separated() -> None:
    """A step of two accounts becomes two steps, and the snapshot names the steps in effect."""

    async def main() -> None:
        accounts = [FakeProvider(name) for name in ("google", "google_b", "openai")]
        step = "google+google_b:gemini-3-pro-image"
        async with ImageClient(Settings(routes=f"{step}, {OPENAI}"), providers=accounts) as client:
            separated = f"google_b:gemini-3-pro-image, {GOOGLE}, {OPENAI}"
            client.obey(setting("ROUTES", separated))
            assert [row.get("step") for row in client.snapshot()["routes"]] == [None] * 3
            assert (await client.generate("a lighthouse")).provider == "google_b"
            client.obey(setting("ROUTES", None))
            steps = [row.get("step") for row in client.snapshot()["routes"]]
            assert steps == [step, step, None]

    run_virtual(main())


REFUSED = {
    "BREAKER_FAIL_MAX=0": "IMAGE_GEN_BREAKER_FAIL_MAX must be at least 1, not '0'",
    "BREAKER_FAIL_MAX=many": "IMAGE_GEN_BREAKER_FAIL_MAX must be a whole number, not 'many'",
    "BREAKER_RESET_TIMEOUT=900": "RESET_TIMEOUT: 600 is less than 900",
    "BREAKER_FAILURE_RATE=nan": "IMAGE_GEN_BREAKER_FAILURE_RATE",
    "IPM=": "IMAGE_GEN_IPM must be a number",
    "BURST=" + "9" * 400: "IMAGE_GEN_BURST must be at most 1000000000",
    "OPENAI_MAX_CONCURRENT=1000000001": (
        "IMAGE_GEN_OPENAI_MAX_CONCURRENT must be at most 1000000000"
    ),
    "GOOGLE_IPM=-1": "IMAGE_GEN_GOOGLE_IPM must be greater than 0",
    "OTHER_IPM=5": "IMAGE_GEN_OTHER_IPM cannot change at runtime",
    "ROUTES=google:gemini-3.1-flash-image": "may only name configured routes at runtime",
    "ROUTES=": "must name at least one provider:model",
    "REDIS_URL=redis://host": "IMAGE_GEN_REDIS_URL cannot change at runtime; these can: IMAGE_GEN_",
    "CONTROL_SECRET=0123456789abcdef": "cannot change at runtime",
    "MAX_RETRIES=0": "cannot change at runtime",
}


@pytest.mark.parametrize("assignment", REFUSED)
def test_a_value_is_checked_like_a_variable(assignment: str) -> None:
    """An invalid order changes nothing, and the error names the allowed values."""

    async def scene(scenario: PipelineScenario) -> None:
        before = scenario.client.snapshot()
        variable, _, value = assignment.partition("=")
        with pytest.raises(ConfigurationError) as caught:
            scenario.client.obey(setting(variable, value))
        assert REFUSED[assignment] in str(caught.value)
        assert scenario.client.snapshot() == before
        warned = scenario.events.of(OperatorWarning)
        assert [each.code for each in warned].count("control") == 1

    run_scenario(scene)


def test_limits_of_a_custom_provider_are_rejected() -> None:
    """IMAGE_GEN_<NAME>_IPM is a variable of built-in and declared providers only."""
    client = ImageClient(Settings(routes="mine:model"), providers=[FakeProvider("mine")])

    async def main() -> None:
        with pytest.raises(ConfigurationError, match="IMAGE_GEN_MINE_IPM cannot change at runtime"):
            client.obey(setting("MINE_IPM", "5"))

    run_virtual(main())


def test_two_values_that_are_valid_only_together_end_in_sequence() -> None:
    """After the first order has ended, the second is invalid alone and suspended with a warning."""

    async def scene(scenario: PipelineScenario) -> None:
        config = scenario.client.breakers[GOOGLE]
        scenario.client.obey(setting("BREAKER_RESET_MAX", "2000", 60))
        scenario.client.obey(setting("BREAKER_RESET_TIMEOUT", "1000", 600))
        assert (config.config.reset_max, config.config.reset_timeout) == (2000, 1000)
        await asyncio.sleep(60)
        assert (config.config.reset_max, config.config.reset_timeout) == (600, 60)
        (warned,) = [each for each in scenario.events.of(OperatorWarning) if each.code == "control"]
        assert "IMAGE_GEN_BREAKER_RESET_TIMEOUT=1000 by ops: IMAGE_GEN_BREAKER_RESET_MAX" in (
            warned.message
        )

    run_scenario(scene)


def test_a_suspended_order_does_not_affect_others() -> None:
    """An invalid order is not shown as in force, and applies again once it is valid.

    An order that ends an earlier one is obeyed although a third one is invalid without it.
    """

    async def scene(scenario: PipelineScenario) -> None:
        client, breaker = scenario.client, scenario.client.breakers[GOOGLE]
        client.obey(setting("BREAKER_RESET_MAX", "2000", 600))
        timeout = setting("BREAKER_RESET_TIMEOUT", "1000", 600)
        client.obey(timeout)
        client.obey(setting("BREAKER_RESET_MAX", None, 600))
        assert (breaker.config.reset_max, breaker.config.reset_timeout) == (600, 60)
        assert orders(client) == []
        assert client._control.in_force is None
        assert client._control.report()["orders"][timeout.serial] == "invalid"
        client.obey(setting("BREAKER_FAIL_MAX", "7", 600))
        assert breaker.config.fail_max == 7
        client.obey(setting("BREAKER_RESET_MAX", "3000", 600))
        assert (breaker.config.reset_max, breaker.config.reset_timeout) == (3000, 1000)
        assert client._control.report()["orders"][timeout.serial] == "ok"
        assert len(orders(client)) == 3

    run_scenario(scene)


# What is visible


def test_orders_are_in_snapshot_log_and_spans(caplog: pytest.LogCaptureFixture) -> None:
    """Orders have author, reason and duration.

    The end of an order is an event, and nothing is left.
    """
    caplog.set_level(logging.INFO, "imagegen")
    telemetry = Telemetry()

    async def main() -> None:
        providers = [FakeProvider("google"), FakeProvider("openai")]
        async with ImageClient(
            Settings(), providers=providers, tracer_provider=telemetry.tracers
        ) as client:
            client.obey(order("open", "google", 20, why="incident 7", by="ana", serial=5))
            client.obey(setting("BREAKER_FAIL_MAX", "4", 20))
            orders = {each["target"]: each for each in client.snapshot()["control"]["orders"]}
            assert len(orders) == 2
            assert orders["google"] == {
                "order": "breaker open google", "action": "open", "target": "google",
                "value": None, "by": "ana", "why": "incident 7", "left_s": 20, "serial": 5,
            }  # fmt: skip
            await client.generate("a lighthouse")
            await asyncio.sleep(20)
            await client.generate("a lighthouse")
            assert client.snapshot()["control"] == {"enabled": True, "signed": False, "orders": []}

    run_virtual(main())
    first, second = [
        dict(span.attributes or {})
        for span in telemetry.spans()
        if span.name == "imagegen.generate"
    ]
    assert first["imagegen.control.orders"] == ("breaker open google; IMAGE_GEN_BREAKER_FAIL_MAX=4")
    assert "imagegen.control.orders" not in second
    logged = [vars(record) for record in caplog.records if "control" in vars(record)["event"]]
    summaries = [record["summary"] for record in logged]
    assert summaries == [
        "ana ordered breaker open google for 20 s: incident 7",
        "ops ordered IMAGE_GEN_BREAKER_FAIL_MAX=4 for 20 s",
        "breaker open google, ordered by ana, has ended",
        "IMAGE_GEN_BREAKER_FAIL_MAX=4, ordered by ops, has ended",
    ]
    assert logged[0]["control.by"] == "ana"
    assert logged[0]["control.why"] == "incident 7"


def test_reported_settings_include_orders() -> None:
    """A recording has the settings under which its calls were made, so that a replay is correct."""

    async def scene(scenario: PipelineScenario) -> None:
        await scenario.ask()
        scenario.client.obey(order("open", "google", 20))
        scenario.client.obey(setting("BREAKER_FAIL_MAX", "7", 20))
        await scenario.ask()
        await asyncio.sleep(20)
        await scenario.ask()
        reported = [
            (each.variables["IMAGE_GEN_FORCE_OPEN"], each.variables["IMAGE_GEN_BREAKER_FAIL_MAX"])
            for each in scenario.events.of(SettingsReported)
        ]
        assert reported == [("", "3"), ("google", "7"), ("", "3")]

    run_scenario(scene, **FAST)


def test_a_repeated_order_has_no_effect() -> None:
    """The same order is reported once, and not obeyed again after its end."""

    async def scene(scenario: PipelineScenario) -> None:
        client, opening = scenario.client, order("open", "google", 20)
        client.obey(opening)
        client.obey(opening)
        assert len(scenario.events.of(OrderApplied)) == 1
        later = order("reset", "google")
        client.obey(later)
        with pytest.raises(ConfigurationError, match="a later order is known"):
            client.obey(opening)
        assert scenario.state() == "closed"
        assert scenario.events.of(OrderEnded) == []
        json.dumps(client.snapshot())

    run_scenario(scene)


def test_control_can_be_switched_off() -> None:
    """No order is obeyed then, not even one of the process itself."""

    async def scene(scenario: PipelineScenario) -> None:
        with pytest.raises(ConfigurationError, match="IMAGE_GEN_CONTROL is off"):
            scenario.client.obey(order("open", "google"))
        assert scenario.state() == "closed"
        assert not scenario.client.snapshot()["control"]["enabled"]

    run_scenario(scene, control="off")


@pytest.mark.parametrize("target", ["gogle", "google:gemini-4-pro-image", "openai_b"])
def test_an_order_about_an_unknown_route_is_rejected(target: str) -> None:
    """The error lists the known routes."""

    async def scene(scenario: PipelineScenario) -> None:
        with pytest.raises(ConfigurationError, match=f"no such route; routes are {GOOGLE}, "):
            scenario.client.obey(order("open", target))

    run_scenario(scene)


def test_threads_may_give_orders() -> None:
    """The synchronous client applies an order of any thread on its loop."""
    google, openai = FakeProvider("google"), FakeProvider("openai")
    with sync.ImageClient(Settings(), providers=[google, openai]) as client:
        client.obey(order("open", "google"))
        assert client.snapshot()["routes"][0]["breaker"]["held"] == "open"


VALUES = {
    "BREAKER_FAIL_MAX": ["1", "9"],
    "BREAKER_WINDOW": ["60"],
    "BREAKER_RESET_TIMEOUT": ["30", "900"],
    "BREAKER_RESET_MAX": ["1200"],
    "IPM": ["6", "600"],
    "OPENAI_IPM": ["30"],
    "GOOGLE_MAX_CONCURRENT": ["1", "16"],
    "PER_CALL_TIMEOUT": ["5"],
    "HEDGE_AFTER": ["p95"],
    "HEDGE_BUDGET": ["0.5"],
    "ROUTES": [f"{OPENAI},{GOOGLE}", OPENAI],
    "MAX_RETRIES": ["0"],
}
ttls = st.sampled_from([1, 20, 300])
given_orders = st.one_of(
    st.builds(
        order,
        st.sampled_from(["open", "close", "hold", "reset"]),
        st.sampled_from(["google", "openai", GOOGLE, "nobody"]),
        ttls,
    ),
    st.sampled_from([(name, value) for name, values in VALUES.items() for value in values]).flatmap(
        lambda pair: st.builds(setting, st.just(pair[0]), st.just(pair[1]), ttls)
    ),
    st.builds(setting, st.sampled_from(sorted(VALUES)), st.none(), ttls),
)


@given(st.lists(st.tuples(given_orders, st.sampled_from([0.0, 0.5, 30.0])), max_size=12))
def test_the_state_is_restored_after_any_sequence_of_orders(
    plan: list[tuple[Order, float]],
) -> None:
    """Orders are given, rejected, replaced and ended in any sequence, with calls in between."""

    async def scene(scenario: PipelineScenario) -> None:
        def condition() -> object:
            client = scenario.client
            rows = client.snapshot()["routes"]
            return (
                [route.name for step in client._routing.steps for route in step],
                [(row["breaker"]["state"], row["queue"]["interval_s"]) for row in rows],
                [row["queue"]["max_concurrent"] for row in rows],
                [breaker.config for breaker in client.breakers.values()],
                [route.timeout for route in client._routing.routes],
                client.snapshot()["hedging"]["budget"],
                client._pipeline._attempts._overlap._slow_after,
                client.snapshot()["control"],
            )

        before = condition()
        for given_order, pause in plan:
            with contextlib.suppress(ConfigurationError):
                scenario.client.obey(given_order)
            with contextlib.suppress(ImageGenerationError):
                await scenario.ask()
            await asyncio.sleep(pause)
        await asyncio.sleep(301)
        assert condition() == before
        assert scenario.idle()
        assert len(scenario.events.of(OrderEnded)) <= len(scenario.events.of(OrderApplied))

    run_scenario(scene, **FAST)
