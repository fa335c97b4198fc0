"""Candidate settings beside the live ones: what they report, and that they have no effect."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pipeline_kit import FAST
from telemetry_kit import TelemetryScenario, run_telemetry_scenario

from resilient_imagen import ConfigurationError, ImageClient, ImageGenerationError, Reason, Settings
from resilient_imagen.telemetry.events import BreakerChanged, CandidateDisagreed
from resilient_imagen.testing import FakeProvider, RecordingSink, run_virtual


def outage(calls: int = 12, **settings: Any) -> tuple[RecordingSink, dict[str, Any], list[str]]:
    """Let Google fail every request; return the sink, the snapshot and what Google got."""
    sink = RecordingSink()

    async def main() -> tuple[Any, list[str]]:
        google = FakeProvider("google").fail(Reason.OVERLOADED, status=503)
        openai = FakeProvider("openai", latency=2.0)
        served = []
        made = Settings(**FAST, max_retries=0, **settings)
        async with ImageClient(made, providers=[google, openai], sinks=[sink]) as client:
            for _ in range(calls):
                served.append((await client.generate("a lighthouse")).provider)
                await asyncio.sleep(10)
            return client.snapshot(), [sent.model for sent in google.sent]

    snapshot, sent = run_virtual(main())
    return sink, snapshot, sent


def test_a_stricter_candidate_says_what_it_would_have_refused() -> None:
    """A candidate that opens at the first failure reports the two that the live one let through."""
    sink, snapshot, sent = outage(calls=3, breaker_fail_max=3, shadow={"fail_max": 1})
    found = sink.of(CandidateDisagreed)
    assert [(each.would, each.reason) for each in found] == [("reject", Reason.OVERLOADED)] * 2
    assert len(sent) == 3
    assert snapshot["shadow"]["would_reject"] == 2
    assert snapshot["shadow"]["settings"] == {"fail_max": 1}
    assert snapshot["shadow"]["routes"][0]["state"] == "open"


def test_a_laxer_candidate_says_what_it_would_have_let_through() -> None:
    """A candidate that is still closed reports each caller that the live breaker turned away."""
    sink, snapshot, _ = outage(calls=5, breaker_fail_max=2, shadow={"fail_max": 9, "min_calls": 99})
    found = sink.of(CandidateDisagreed)
    assert [(each.would, each.reason, each.latency_s) for each in found] == [
        ("allow", None, None)
    ] * 3
    assert snapshot["shadow"]["would_allow"] == 3


def test_a_candidate_that_is_due_for_a_probe_would_have_sent_one() -> None:
    """In each open period, one of the rejected callers would have been the candidate's probe.

    The live breaker opens for 90 seconds each time; the candidate, for 20.
    """
    sink, snapshot, sent = outage(
        calls=24, breaker_fail_max=1, breaker_reset_timeout=90, shadow={"reset_timeout": 20}
    )
    assert len(sent) == 3  # by the live breaker: the failure that trips it and two failed probes
    assert snapshot["shadow"]["would_allow"] == 3
    assert len(sink.of(CandidateDisagreed)) == 3


@pytest.mark.parametrize(("factor", "would_allow"), [(0, 1), (100, 0)])
def test_a_candidate_may_have_another_reset_factor(factor: float, would_allow: int) -> None:
    """The candidate's open period after a probe that fails in 2 s follows its own factor.

    Both breakers open at the first call and probe at the same time; the live one then stays open
    for 100 seconds, the candidate for 20 or 200.
    """
    sink = RecordingSink()

    async def main() -> Any:
        google = FakeProvider("google").fail(Reason.OVERLOADED, status=503, latency=2.0)
        made = Settings(
            **FAST,
            max_retries=0,
            breaker_fail_max=1,
            breaker_reset_timeout=20,
            breaker_reset_factor=50,
            shadow={"reset_factor": factor},
        )
        providers = [google, FakeProvider("openai")]
        async with ImageClient(made, providers=providers, sinks=[sink]) as client:
            await client.generate("a lighthouse")
            for seconds in (23, 60):
                await asyncio.sleep(seconds)
                await client.generate("a lighthouse")
            assert len(google.sent) == 2
            return client.snapshot()

    assert run_virtual(main())["shadow"]["would_allow"] == would_allow
    assert len(sink.of(CandidateDisagreed)) == would_allow


ACCOUNT = "google:gemini-3-pro-image,google:gemini-nano-banana-2.1,openai:gpt-image-2.5-flare"


def test_what_concerns_the_account_opens_the_candidates_siblings() -> None:
    """A refused key says as much to the candidate's other routes as to the live ones."""

    async def main() -> Any:
        google = FakeProvider("google").fail(
            Reason.UNAUTHENTICATED, status=401, account_wide=True, retry_after=7200.0
        )
        made = Settings(**FAST, routes=ACCOUNT, shadow="fail_max=9")
        async with ImageClient(made, providers=[google, FakeProvider("openai")]) as client:
            for _ in range(5):
                await client.generate("a lighthouse")
                await asyncio.sleep(1)
            return client.snapshot()

    shadow = run_virtual(main())["shadow"]
    assert [route["state"] for route in shadow["routes"]] == ["open", "open", "closed"]
    assert shadow["would_allow"] == shadow["would_reject"] == 0
    assert shadow["routes"][0]["retry_after"] > 7000  # its own request's hint is not lost


def test_changes_of_the_candidate_are_marked_as_shadow() -> None:
    """Its openings are events that say they only would have happened; the live ones say not."""
    sink, _, _ = outage(calls=4, breaker_fail_max=3, shadow={"fail_max": 1, "reset_timeout": 15})
    changes = [
        (change.transition.shadow, change.transition.to_state.value)
        for change in sink.of(BreakerChanged)
    ]
    assert changes[0] == (True, "open")
    assert (False, "open") in changes
    assert (True, "half_open") in changes


def test_candidates_have_no_effect() -> None:
    """Requests sent, callers turned away and live breakers are the same with and without one."""

    def story(**settings: Any) -> list[Any]:
        sink, snapshot, sent = outage(calls=20, breaker_reset_timeout=40, **settings)
        live = [change.at for change in sink.of(BreakerChanged) if not change.transition.shadow]
        return [sent, len(live), len(sink.attempts), snapshot["images"]]

    assert story() == story(shadow="fail_max=1,reset_timeout=5,half_open_calls=2")


def test_metrics_and_log_lines_count_what_differs(caplog: pytest.LogCaptureFixture) -> None:
    """Refusals by the candidate are a counter by breaker and outcome, and a line each."""

    async def scene(world: TelemetryScenario) -> list[Any]:
        world.google.fail(Reason.OVERLOADED, status=503)
        for _ in range(3):
            await world.ask()
        return world.telemetry.points("imagegen.shadow.differences")

    caplog.set_level("INFO", "imagegen")
    points = run_telemetry_scenario(
        scene, max_retries=0, ipm=6000, breaker_fail_max=9, shadow="fail_max=1"
    )
    name = "google:gemini-3-pro-image"
    assert points == [
        (
            {
                "imagegen.circuit_breaker.name": name,
                "imagegen.shadow.would": "reject",
                "error.type": "overloaded",
            },
            2,
        )
    ]
    lines = [line for line in caplog.messages if line.startswith("imagegen.shadow.differed ")]
    assert len(lines) == 2
    assert f"circuit_breaker.name={name}" in lines[0]
    assert "shadow.would=reject" in lines[0]


def test_cut_short_requests_cast_no_vote() -> None:
    """A request that the caller's deadline ended says nothing to the candidate either."""

    async def main() -> Any:
        google = FakeProvider("google").hang()
        made = Settings(**FAST, routes="google:m", shadow="fail_max=1")
        async with ImageClient(made, providers=[google]) as client:
            with pytest.raises(ImageGenerationError):
                await client.generate("a lighthouse", deadline=5)
            return client.snapshot()

    shadow = run_virtual(main())["shadow"]
    assert shadow["routes"][0]["state"] == "closed"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fail_max=0", "fail_max"),
        ("fail_max", "fail_max"),
        ("colour=3", "names: fail_max"),
        ("mode=off", "names: fail_max"),
        ("reset_timeout=900", "reset_max"),
        ("failure_rate=nan", "failure_rate"),
    ],
)
def test_a_wrong_candidate_is_named(text: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not allowed fails at the start, with the variable's name and the part at fault."""
    monkeypatch.setenv("IMAGE_GEN_SHADOW", text)
    with pytest.raises(ConfigurationError, match="IMAGE_GEN_SHADOW") as caught:
        Settings()
    assert says in str(caught.value)


def test_a_candidate_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers are read as the live settings' are; spaces do no harm; empty means none."""
    monkeypatch.setenv("IMAGE_GEN_SHADOW", " reset_timeout = 30, fail_max=5 ")
    assert Settings().shadow == {"reset_timeout": 30.0, "fail_max": 5}
    monkeypatch.setenv("IMAGE_GEN_SHADOW", "")
    assert Settings().shadow is None
