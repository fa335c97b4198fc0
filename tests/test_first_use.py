"""The duration of the first use: within the deadline, in telemetry and in errors."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest
import telemetry_kit
from pipeline_kit import FAST, PipelineScenario, now, run_scenario
from telemetry_kit import attributes

from resilient_imagen import (
    ConfigurationError,
    DeadlineExceededError,
    ImageClient,
    Reason,
    Settings,
)
from resilient_imagen.emulator import Emulator
from resilient_imagen.providers.google import GoogleProvider
from resilient_imagen.providers.openai import OpenAIProvider
from resilient_imagen.telemetry.events import OperatorWarning, RequestEnded
from resilient_imagen.testing import FakeProvider, RecordingSink, run_virtual
from resilient_imagen.virtualtime import VirtualTimeLoop


class Slow(FakeProvider):
    """A provider whose SDK is built slowly, once."""

    def __init__(self, name: str, *, setup: float = 0.0, error: Exception | None = None) -> None:
        super().__init__(name)
        self.setup, self.error = setup, error
        self.asked_to_build: list[float] = []
        self.building = 0

    async def warm_up(self) -> None:
        self.asked_to_build.append(now())
        self.building += 1
        try:
            await asyncio.sleep(self.setup)
        finally:
            self.building -= 1
        if self.error is not None:
            raise self.error
        self.setup = 0.0


def clients(google: Slow, openai: FakeProvider, sink: RecordingSink, **more: Any) -> ImageClient:
    return ImageClient(Settings(**FAST, **more), providers=[google, openai], sinks=[sink])


# -- the deadline ---------------------------------------------------------------------------------

SCRIPT = """
    import asyncio, importlib.abc, os, sys, threading
    import resilient_imagen as ri

    go_on = threading.Event()
    threading.Timer(60, go_on.set).start()

    class Slow(importlib.abc.MetaPathFinder):
        '''An import that does not end before the call has.'''

        def find_spec(self, name, path, target=None):
            if name == "resilient_imagen.client":
                go_on.wait()
            return None

    sys.meta_path.insert(0, Slow())

    async def main():
        try:
            with ri.call_options(deadline=eval(sys.argv[1])):
                await ri.generate_image("a lighthouse", deadline=eval(sys.argv[2]))
        except ri.DeadlineExceededError as error:
            print(go_on.is_set(), error.attempts, error, flush=True)  # os._exit writes nothing
        finally:
            go_on.set()

    asyncio.run(main())
    os._exit(0)
"""


@pytest.mark.parametrize(
    ("options", "argument", "variable"),
    [("None", "0.2", ""), ("0.2", "None", ""), ("None", "None", "0.2"), ("60", "0.2", "90")],
)
def test_a_deadline_passes_while_the_library_is_loaded(
    options: str, argument: str, variable: str
) -> None:
    """The first call ends in time during an import, and the error states the cause."""
    environment = {
        **os.environ, "GOOGLE_GENAI_API_KEY": "made-up", "IMAGE_GEN_DEADLINE": variable,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), options, argument],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stdout == "False () out of time, spent loading the library\n", done.stderr


def test_a_deadline_passes_while_an_sdk_is_built() -> None:
    """The error names the route and the cause of the delay, without a number."""

    async def main() -> None:
        sink = RecordingSink()
        async with clients(Slow("google", setup=100), FakeProvider("openai"), sink) as client:
            with pytest.raises(DeadlineExceededError) as caught:
                await client.generate("a lighthouse", deadline=30)
        assert str(caught.value) == (
            "google gemini-3-pro-image: out of time, mostly spent loading the SDK"
        )
        assert now() == pytest.approx(30)
        assert sink.last(RequestEnded).setup_s == pytest.approx(30)

    run_virtual(main())


def test_a_cold_client_sends_a_request_if_any_time_is_left() -> None:
    """After a slow build, the remaining time is shared again, and the primary is asked."""

    async def main() -> None:
        google, openai = Slow("google", setup=3), Slow("openai", setup=3)
        async with clients(google, openai, RecordingSink()) as client:
            result = await client.generate("a lighthouse", deadline=5.1)
            assert (result.provider, result.attempts) == ("google", 1)
            assert now() == pytest.approx(4)

    run_virtual(main())


ALONE: dict[str, Any] = {"force_open": "openai", "fallback_on": ""}
"""Settings without a fallback."""


async def text_of(scenario: PipelineScenario, **options: Any) -> str:
    """Return the end of the error message of a call whose deadline passes."""
    with pytest.raises(DeadlineExceededError) as caught:
        await scenario.ask(**options)
    return str(caught.value).rpartition(", ")[2]


def test_the_deadline_error_names_waiting_for_answers() -> None:
    """The vendor was asked and did not answer."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.hang()
        assert await text_of(scenario, deadline=30) == "mostly spent waiting for answers"

    run_scenario(scene, **FAST, **ALONE)


def test_the_deadline_error_names_queueing() -> None:
    """The request was sent late, with too little time left."""

    async def scene(scenario: PipelineScenario) -> None:
        await scenario.ask()
        scenario.google.hang()
        assert await text_of(scenario, deadline=25) == "mostly spent queueing"

    run_scenario(scene, ipm=3, **ALONE)


def test_the_deadline_error_names_backing_off() -> None:
    """The server asked for a wait, and then did not answer."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.google.fail(Reason.OVERLOADED, status=503, retry_after=20, times=1).hang()
        assert await text_of(scenario, deadline=25) == "mostly spent pausing before retries"

    run_scenario(scene, **FAST, **ALONE)


def test_the_deadline_error_names_waiting_for_a_circuit() -> None:
    """The call waited for another caller's probe."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.client.breakers["google:gemini-3-pro-image"].open_for(5, cause=None, summary=None)
        await asyncio.sleep(6)
        scenario.google.hang()
        probe = asyncio.create_task(scenario.ask())
        await asyncio.sleep(1)
        assert await text_of(scenario, deadline=20) == "mostly spent waiting for a circuit breaker"
        probe.cancel()
        await asyncio.wait({probe})

    run_scenario(scene, **FAST, **ALONE)


def test_the_deadline_error_names_waiting_for_an_open_circuit() -> None:
    """The call waited until the open circuit let a probe through, which was not answered."""

    async def scene(scenario: PipelineScenario) -> None:
        scenario.client.breakers["google:gemini-3-pro-image"].open_for(30, cause=None, summary=None)
        scenario.google.hang()
        assert await text_of(scenario, deadline=40) == "mostly spent waiting for a circuit breaker"

    run_scenario(scene, when_all_open="wait", **FAST, **ALONE)


def test_the_deadline_error_names_no_phase_if_none_took_the_time() -> None:
    """The application blocked the event loop until the deadline, while no circuit was open."""

    async def scene(scenario: PipelineScenario) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        loop.call_soon(loop.advance, 100)
        assert await text_of(scenario, deadline=20) == "google gemini-3-pro-image: out of time"

    run_scenario(scene, **FAST, **ALONE)


# -- telemetry ------------------------------------------------------------------------------------


def test_building_is_in_a_root_attribute_and_not_in_the_queue() -> None:
    """``imagegen.setup_s`` on root span and event has it; ``queue_s`` is queueing only."""

    async def scene(scenario: telemetry_kit.TelemetryScenario) -> None:
        async def warm_up() -> None:
            await asyncio.sleep(7)

        scenario.google.warm_up = warm_up  # type: ignore[attr-defined]
        await scenario.ask()
        root = attributes(scenario.telemetry.roots()[0])
        assert root["imagegen.setup_s"] == pytest.approx(7)
        assert root["imagegen.queue_s"] == 0
        assert scenario.events.last(RequestEnded).setup_s == pytest.approx(7)

    telemetry_kit.run_telemetry_scenario(scene, **FAST)


# -- the fallback's SDK ---------------------------------------------------------------------------


def test_the_fallback_is_built_after_the_first_image_and_delays_no_call() -> None:
    """The fallback's SDK is built once, after the first image, in the background."""

    async def main() -> None:
        google, openai = Slow("google", setup=2), Slow("openai", setup=50)
        async with clients(google, openai, RecordingSink()) as client:
            await client.generate("a lighthouse")
            assert openai.asked_to_build == []
            began = now()
            for _ in range(5):
                await client.generate("a lighthouse")
            assert now() - began == pytest.approx(5, abs=0.1)
            assert openai.asked_to_build == [pytest.approx(4)]
            await asyncio.sleep(60)
            google.hang()
            assert (await client.generate("a lighthouse")).provider == "openai"
            assert len(asyncio.all_tasks()) == 1

    run_virtual(main())


def test_a_fallback_that_cannot_be_built_is_reported_early() -> None:
    """An operator gets a warning before the fallback is needed; calls are not affected."""

    async def main() -> None:
        sink = RecordingSink()
        openai = Slow("openai", error=ConfigurationError("openai cannot be loaded: x is missing"))
        async with clients(Slow("google"), openai, sink) as client:
            await client.generate("a lighthouse")
            await asyncio.sleep(5)
            assert "openai:gpt-image-2.5-flare cannot be used" in sink.last(OperatorWarning).message
            assert "x is missing" in sink.last(OperatorWarning).message
            assert (await client.generate("a lighthouse")).provider == "google"

    run_virtual(main())


@pytest.mark.parametrize("after", [0.0, 0.5, 1.5, 30.0])
def test_closing_cancels_the_build(after: float) -> None:
    """A client that is closed before, during or after the build leaves no task."""

    async def main() -> None:
        openai = Slow("openai", setup=10)
        async with clients(Slow("google"), openai, RecordingSink()) as client:
            await client.generate("a lighthouse")
            await asyncio.sleep(after)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert openai.building == 0
        assert now() <= 1 + after + 0.01

    run_virtual(main())


def test_successive_loops_each_build_it() -> None:
    """Each loop builds its SDK clients, and cancels the build when it ends."""
    google, openai = Slow("google"), Slow("openai", setup=10)
    client = clients(google, openai, RecordingSink())

    async def one(stay: float) -> None:
        await client.generate("a lighthouse")
        await asyncio.sleep(stay)

    for stay in (0.0, 2.0, 20.0):
        run_virtual(one(stay))
    assert len(openai.asked_to_build) == 2
    run_virtual(client.aclose())


def test_the_real_sdk_is_ready_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first image, the fallback's client is complete and builds nothing later."""

    async def main() -> None:
        app = Emulator(picture="tiny")
        google = GoogleProvider(api_key="made-up", transport=app.transport())
        openai = OpenAIProvider(api_key="made-up", transport=app.transport())
        async with ImageClient(Settings(**FAST), providers=[google, openai]) as client:
            await client.generate("a lighthouse")
            await asyncio.sleep(2)
            monkeypatch.setattr(openai, "_build_sdk", None)  # building once more would fail
            await openai.warm_up()

    run_virtual(main())
