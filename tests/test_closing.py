"""Closing a client, or resetting the default one, while calls are in flight."""

from __future__ import annotations

import asyncio

import pytest
from pipeline_kit import FAST, PipelineScenario, now

import resilient_imagen as ri
from resilient_imagen.emulator import BackgroundEmulator, faults
from resilient_imagen.providers.base import ProviderResult
from resilient_imagen.request import ImageRequest
from resilient_imagen.telemetry.events import AttemptEnded
from resilient_imagen.testing import FakeProvider, RecordingSink, run_virtual


async def in_flight(vendors: BackgroundEmulator, number: int) -> None:
    await asyncio.to_thread(vendors.wait_until, lambda: vendors.google.in_flight == number)


def test_calls_in_flight_survive_a_reset(vendors: BackgroundEmulator) -> None:
    """Calls in flight continue with the old client, and the last one closes it."""

    async def main() -> None:
        vendors.google.set(faults.hang())
        calls = [asyncio.create_task(ri.generate_image(f"scene {n}")) for n in range(3)]
        await in_flight(vendors, 3)
        old = ri.default_client()
        await ri.reset_default_client()
        assert ri.default_client() is not old
        with pytest.raises(RuntimeError, match="closed"):
            await old.generate("too late")
        assert not any(call.done() for call in calls)
        calls[0].cancel()
        await in_flight(vendors, 2)
        for call in calls[1:]:
            call.cancel()
        await asyncio.wait(calls)
        await asyncio.to_thread(vendors.wait_until, lambda: vendors.google.open_connections == 0)
        vendors.google.heal()
        assert (await ri.generate_image("again"))["provider"] == "google"
        await ri.reset_default_client()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def closed(scenario: PipelineScenario) -> list[bool]:
    return [scenario.google.closed, scenario.openai.closed]


async def new_scenario(settings: ri.Settings) -> PipelineScenario:
    google, openai, sink = FakeProvider("google"), FakeProvider("openai"), RecordingSink()
    client = ri.ImageClient(settings, providers=[google, openai], sinks=[sink])
    return PipelineScenario(google, openai, client, sink)


def test_a_retired_client_finishes_its_calls_and_closes_itself() -> None:
    """A retired client finishes its calls, fallbacks included, and then closes its providers."""

    async def main() -> None:
        scenario = await new_scenario(ri.Settings(**FAST))
        scenario.google.fail(ri.Reason.UNAUTHENTICATED, status=401, latency=3)
        first, second = (asyncio.create_task(scenario.ask()) for _ in range(2))
        await asyncio.sleep(1)
        await scenario.client.retire()
        assert now() == pytest.approx(1)
        assert closed(scenario) == [False, False]
        assert ((await first).provider, (await second).provider) == ("openai", "openai")
        await asyncio.sleep(0.01)
        assert closed(scenario) == [True, True]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtual(main())


def test_a_retired_client_is_closed_when_its_loop_ends_first() -> None:
    """asyncio.run cancels the remaining calls, and the client closes its providers."""
    scenarios: list[PipelineScenario] = []
    calls: list[asyncio.Task[ri.ImageResult]] = []

    async def main() -> None:
        scenario = await new_scenario(ri.Settings(**FAST))
        scenarios.append(scenario)
        scenario.google.hang()
        calls.append(asyncio.create_task(scenario.ask()))
        await asyncio.sleep(1)
        await scenario.client.retire()

    run_virtual(main())
    assert scenarios[0].google.closed
    assert scenarios[0].idle()


@pytest.mark.parametrize("deadline", [None, 50.0])
@pytest.mark.parametrize("when", [0.0, 1.0, 4.0])
def test_closing_ends_calls_with_an_error(when: float, deadline: float | None) -> None:
    """Calls in flight, queued or backing off raise RuntimeError without a vote."""

    async def main() -> None:
        scenario = await new_scenario(ri.Settings(ipm=10, max_concurrent=1))
        scenario.google.fail(ri.Reason.OVERLOADED, status=503, latency=2, times=1).hang()
        calls = [asyncio.create_task(scenario.ask(deadline=deadline)) for _ in range(3)]
        await asyncio.sleep(when)
        began = now()
        await scenario.client.aclose()
        assert now() == pytest.approx(began)
        await asyncio.wait(calls)
        for call in calls:
            error = call.exception()
            assert type(error) is RuntimeError
            assert "closed during the call" in str(error)
        assert scenario.google.closed
        assert scenario.idle()
        ends = scenario.events.of(AttemptEnded)
        assert all(end.reason in {ri.Reason.CANCELLED, ri.Reason.OVERLOADED} for end in ends)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        with pytest.raises(RuntimeError, match="is closed"):
            await scenario.ask()

    run_virtual(main())


def test_a_caller_that_is_cancelled_while_the_client_closes_is_cancelled() -> None:
    """Closing does not replace a caller's own cancellation."""

    async def main() -> None:
        scenario = await new_scenario(ri.Settings(**FAST))
        scenario.google.hang()
        call = asyncio.create_task(scenario.ask())
        await asyncio.sleep(1)
        closing = asyncio.create_task(scenario.client.aclose())
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait({call, closing})
        assert call.cancelled()

    run_virtual(main())


class IgnoresCancellation(FakeProvider):
    """A provider that ignores cancellation."""

    async def generate(self, request: ImageRequest, model: str) -> ProviderResult:
        while True:
            try:
                return await super().generate(request, model)
            except asyncio.CancelledError:
                continue


def test_closing_does_not_wait_for_a_provider_that_ignores_cancellation() -> None:
    """Closing delays the call and the client by a second at most."""

    async def main() -> None:
        google = IgnoresCancellation("google", latency=100)
        settings = ri.Settings(routes="google:gemini-3-pro-image", per_call_timeout=500)
        client = ri.ImageClient(settings, providers=[google])
        call = asyncio.create_task(client.generate("x"))
        await asyncio.sleep(1)
        await client.aclose()
        assert now() <= 2.1
        with pytest.raises(RuntimeError, match="closed during the call"):
            await call

    run_virtual(main())


def test_closing_does_not_wait_for_calls_of_closed_loops() -> None:
    """Calls of a loop that was closed without ending its tasks never end."""
    loop = asyncio.new_event_loop()
    google = FakeProvider("google").hang()
    settings = ri.Settings(routes="google:gemini-3-pro-image")
    client = ri.ImageClient(settings, providers=[google])
    task = loop.create_task(client.generate("x"))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    run_virtual(client.retire())
    assert google.closed
    task.get_coro().close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]


@pytest.mark.parametrize("step", range(1, 12))
def test_closing_at_any_step_of_a_call_leaves_everything_in_order(step: int) -> None:
    """The client is closed after each number of iterations of the loop."""

    async def main() -> None:
        scenario = await new_scenario(ri.Settings(**FAST))
        scenario.google.fail(ri.Reason.OVERLOADED, status=503, latency=0.0, times=1)
        call = asyncio.create_task(scenario.ask())
        for _ in range(step):
            await asyncio.sleep(0)
        await scenario.client.aclose()
        await asyncio.wait({call})
        error = call.exception()
        assert error is None or type(error) is RuntimeError
        assert scenario.idle()

    run_virtual(main())


class SlowToEnd(FakeProvider):
    """A provider that takes half a second to end when cancelled."""

    async def generate(self, request: ImageRequest, model: str) -> ProviderResult:
        try:
            return await super().generate(request, model)
        except asyncio.CancelledError:
            await asyncio.sleep(0.5)
            raise


def test_a_cancelled_aclose_closes_the_connections() -> None:
    """A cancelled `aclose` does not wait for calls, but closes the providers."""

    async def main() -> None:
        google = SlowToEnd("google").hang()
        client = ri.ImageClient(ri.Settings(routes="google:m"), providers=[google])
        call = asyncio.create_task(client.generate("x"))
        await asyncio.sleep(0.1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.aclose()
        assert google.closed
        await asyncio.wait({call})

    run_virtual(main())


def test_a_call_past_its_deadline_keeps_its_own_error_when_the_client_closes() -> None:
    """The deadline error is raised although a running ``on_start`` keeps the call in flight."""

    async def main() -> str:
        closed = asyncio.Event()

        async def slow() -> None:
            try:
                await asyncio.sleep(1000)
            finally:
                closed.set()
                await asyncio.sleep(0)

        providers = [FakeProvider(name, latency=100) for name in ("google", "openai")]
        client = ri.ImageClient(ri.Settings(), providers=providers)
        call = asyncio.create_task(client.generate("x", deadline=10, on_start=slow))
        await closed.wait()
        await client.aclose()
        with pytest.raises(ri.DeadlineExceededError) as caught:
            await call
        return str(caught.value)

    assert "out of time" in run_virtual(main())
