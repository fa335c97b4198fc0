"""The report of the settings in effect: its times and its content."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import pytest
from telemetry_kit import TelemetryScenario, attributes, run_telemetry_scenario

from resilient_imagen import ImageClient, Settings
from resilient_imagen.control import Order
from resilient_imagen.effective_settings import (
    as_text,
    changed_from_defaults,
    read_text,
    settings_from,
    variables_of,
)
from resilient_imagen.errors import ConfigurationError
from resilient_imagen.telemetry.events import SettingsReported
from resilient_imagen.testing import FakeProvider, run_virtual


def reports(scenario: TelemetryScenario) -> list[SettingsReported]:
    return [event for event in scenario.events.events if isinstance(event, SettingsReported)]


def test_the_first_call_reports_settings_of_code_and_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The report has values from both, under the names of the variables."""
    monkeypatch.setenv("IMAGE_GEN_BREAKER_WINDOW", "120")

    async def scene(scenario: TelemetryScenario) -> None:
        await scenario.ask()
        await scenario.ask()
        (report,) = reports(scenario)
        assert report.variables["IMAGE_GEN_BREAKER_WINDOW"] == "120"
        assert report.variables["IMAGE_GEN_BREAKER_FAIL_MAX"] == "5"
        assert report.variables["IMAGE_GEN_MAX_RETRIES"] == "2"

    run_telemetry_scenario(scene, breaker_fail_max=5)


def test_settings_are_reported_again_every_hour() -> None:
    """A log file that is started later has the settings, too."""

    async def scene(scenario: TelemetryScenario) -> None:
        await scenario.ask()
        await asyncio.sleep(3000)
        await scenario.ask()
        assert len(reports(scenario)) == 1
        await asyncio.sleep(700)
        await scenario.ask()
        first, second = reports(scenario)
        assert (first.client_id, first.variables) == (second.client_id, second.variables)

    run_telemetry_scenario(scene)


def test_a_change_of_a_breaker_is_reported_with_the_next_call() -> None:
    """The settings in effect include a reconfigured breaker, and a route that is forced open."""

    async def scene(scenario: TelemetryScenario) -> None:
        await scenario.ask()
        google, openai = scenario.client.breakers.values()
        openai.reconfigure(replace(openai.config, fail_max=7, reset_timeout=20))
        await scenario.ask()
        google.force_open = True
        await scenario.ask()
        before, changed, forced = (event.variables for event in reports(scenario))
        assert "IMAGE_GEN_OPENAI_BREAKER" not in before
        assert changed["IMAGE_GEN_OPENAI_BREAKER"] == "fail_max=7,reset_timeout=20"
        assert changed["IMAGE_GEN_FORCE_OPEN"] == ""
        assert forced["IMAGE_GEN_FORCE_OPEN"] == "google"
        again = settings_from(forced)
        assert again.breaker_settings("openai")["fail_max"] == 7
        assert again.breaker_settings("google")["fail_max"] == 3

    run_telemetry_scenario(scene)


def test_an_operators_order_is_reported_with_the_next_call() -> None:
    """Limits that an order changes are settings in effect, until the order ends."""

    async def scene(scenario: TelemetryScenario) -> None:
        await scenario.ask()
        change = Order(action="set", target="IMAGE_GEN_IPM", value="30", ttl=60, by="ops", serial=1)
        scenario.client.obey(change)
        await scenario.ask()
        await asyncio.sleep(100)
        await scenario.ask()
        found = [event.variables["IMAGE_GEN_IPM"] for event in reports(scenario)]
        assert found == ["10", "30", "10"]

    run_telemetry_scenario(scene)


def test_root_spans_have_the_changed_settings() -> None:
    """The attribute has the settings that differ from the defaults, and follows changes."""

    async def scene(scenario: TelemetryScenario) -> None:
        await scenario.ask()
        breaker = scenario.client.breakers["google:gemini-3-pro-image"]
        breaker.reconfigure(replace(breaker.config, fail_max=2))
        await scenario.ask()
        first, second = (
            attributes(root)["imagegen.settings"] for root in scenario.telemetry.roots()
        )
        assert read_text(first) == {
            "IMAGE_GEN_MAX_RETRIES": "0",
            "IMAGE_GEN_HEDGE_PROBE_AFTER": "",
            "IMAGE_GEN_ON_TIMEOUT": "abandon",
        }
        assert read_text(second) == {**read_text(first), "IMAGE_GEN_GOOGLE_BREAKER": "fail_max=2"}

    run_telemetry_scenario(scene, max_retries=0)


def test_no_secret_is_in_the_report(caplog: pytest.LogCaptureFixture) -> None:
    """Keys, addresses and the URL of Redis are left out of the record."""
    caplog.set_level(logging.INFO, logger="imagegen")

    async def main() -> None:
        settings = Settings(
            google_api_key="secret-key",
            openai_base_url="https://secret.example",
            providers={"second": {"kind": "google", "api_key": "secret-too", "ipm": 5}},
            routes="google+second:gemini-3-pro-image",
        )
        providers = [FakeProvider("google"), FakeProvider("second")]
        async with ImageClient(settings, providers=providers) as client:
            await client.generate("a lighthouse")

    run_virtual(main())
    record = next(each for each in caplog.records if "settings.reported" in each.getMessage())
    message = record.getMessage()
    assert "secret" not in message
    assert "IMAGE_GEN_SECOND_IPM=5" in message
    assert "IMAGE_GEN_PROVIDER_SECOND=google" in message
    assert "IMAGE_GEN_ROUTES=google+second:gemini-3-pro-image" in record.__dict__["summary"]


def test_a_reported_setting_is_parsed_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every setting is restored, and the reader's environment has no effect."""
    made = Settings(
        providers={"second": {"kind": "google", "ipm": 5, "breaker": "fail_max=2"}},
        hedge_probe_after=None,
        hedge_after="p95",
        fallback_on="overloaded,timeout",
        retry_base_delay=1 / 3,
        breaker_slow_call=40,
    )
    text = as_text(variables_of(made))
    assert text.isascii()
    monkeypatch.setenv("IMAGE_GEN_BREAKER_FAIL_MAX", "9")
    again = settings_from(read_text(text))
    assert variables_of(again) == variables_of(made)
    assert again.breaker_fail_max == 3
    assert again.retry_base_delay == 1 / 3
    assert changed_from_defaults(variables_of(settings_from({}))) == {}


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"IMAGE_GEN_BREAKER_FAILMAX": "3"}, "not a setting; did you mean IMAGE_GEN_BREAKER_FAIL"),
        ({"IMAGE_GEN_BREAKER_FAIL_MAX": "0"}, "IMAGE_GEN_BREAKER_FAIL_MAX: must be at least 1"),
        ({"IMAGE_GEN_OPENAI_BREAKER": "fail=3"}, "IMAGE_GEN_OPENAI_BREAKER: must be NAME=VALUE"),
        ({"IMAGE_GEN_OPENAI_BREAKER": "fail_max=0"}, "fail_max: must be at least 1"),
        (
            {"IMAGE_GEN_OPENAI_BREAKER": "reset_timeout=900"},
            "IMAGE_GEN_OPENAI_BREAKER: reset_max must not be less than reset_timeout",
        ),
    ],
)
def test_a_wrong_variable_is_named(variables: dict[str, str], says: str) -> None:
    """The error names the variable and the allowed values."""
    with pytest.raises(ConfigurationError, match=says):
        settings_from(variables)


def test_one_providers_breaker_has_its_own_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """IMAGE_GEN_<NAME>_BREAKER changes the breakers of that provider's routes only."""
    monkeypatch.setenv("IMAGE_GEN_OPENAI_BREAKER", "fail_max=8,reset_timeout=15")
    monkeypatch.setenv("IMAGE_GEN_BREAKER_FAIL_MAX", "4")

    async def scene(scenario: TelemetryScenario) -> None:
        google, openai = scenario.client.breakers.values()
        assert (google.config.fail_max, google.config.reset_timeout) == (4, 60)
        assert (openai.config.fail_max, openai.config.reset_timeout) == (8, 15)

    run_telemetry_scenario(scene)
