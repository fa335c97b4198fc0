"""Metrics count what happened, under few and fixed attributes."""

from __future__ import annotations

import asyncio
import gc

import pytest
from opentelemetry.metrics import MeterProvider
from opentelemetry.sdk.metrics import MeterProvider as SdkMeterProvider
from telemetry_kit import FAST, Telemetry, World, play

from resilient_imagen import ImageClient, ImageGenerationError, Reason, Settings
from resilient_imagen.telemetry import metrics
from resilient_imagen.testing import FakeProvider, run_virtual

PRIMARY, SECOND = "google:gemini-3-pro-image", "openai:gpt-image-2.5-flare"


def test_a_fallback_is_counted_everywhere_it_should_be() -> None:
    """Retries, fallbacks, breaker votes, transitions, refusals, durations and tokens."""

    async def scene(world: World) -> None:
        world.google.fail(Reason.OVERLOADED, status=503, times=3)
        await world.ask()
        await world.ask()
        points = world.telemetry.points
        gemini = {"gen_ai.provider.name": "gcp.gemini", "error.type": "overloaded"}
        assert points("imagegen.retries") == [(gemini, 2)]
        edge = {"imagegen.fallback.from": PRIMARY, "imagegen.fallback.to": SECOND}
        assert points("imagegen.fallbacks") == [
            ({**edge, "imagegen.fallback.cause": "overloaded"}, 1),
            ({**edge, "imagegen.fallback.cause": "circuit_open"}, 1),
        ]
        votes = {
            (found["imagegen.circuit_breaker.name"], found["imagegen.circuit_breaker.result"]): n
            for found, n in points("imagegen.circuit_breaker.calls")
        }
        assert votes == {
            (PRIMARY, "failure"): 3,
            (PRIMARY, "not_permitted"): 1,
            (SECOND, "success"): 2,
        }
        opened = {
            "imagegen.circuit_breaker.name": PRIMARY,
            "imagegen.circuit_breaker.from": "closed",
            "imagegen.circuit_breaker.to": "open",
        }
        assert points("imagegen.circuit_breaker.transitions") == [(opened, 1)]
        durations = points("gen_ai.client.operation.duration")
        assert [(found.get("error.type"), count) for found, (count, _) in durations] == [
            ("overloaded", 3),
            (None, 2),
        ]
        tokens = {
            found["gen_ai.token.type"]: value
            for found, value in points("gen_ai.client.token.usage")
        }
        assert tokens == {"input": (2, 20), "output": (2, 200)}
        assert points("imagegen.operation.attempts") == [
            ({"imagegen.operation": "generate", "imagegen.outcome": "success"}, (2, 5))
        ]
        ((found, (count, total)),) = points("imagegen.operation.duration")
        assert found == {
            "imagegen.operation": "generate",
            "imagegen.outcome": "success",
            "imagegen.provider.served": "openai",
            "imagegen.fallback.used": True,
        }
        assert count == 2
        assert total > 4

    play(scene, **FAST)


def test_gauges_show_the_breakers_as_they_are_now() -> None:
    """1 for the present state and 0 for the others, read when asked and not when told."""

    async def scene(world: World) -> None:
        world.google.fail(Reason.OVERLOADED, status=503, times=3)
        await world.ask()

        def state() -> dict[str, int]:
            return {
                found["imagegen.circuit_breaker.state"]: value
                for found, value in world.telemetry.points("imagegen.circuit_breaker.state")
                if found["imagegen.circuit_breaker.name"] == PRIMARY
            }

        assert state() == {"closed": 0, "open": 1, "half_open": 0, "forced_open": 0}
        rates = world.telemetry.points("imagegen.circuit_breaker.failure_rate")
        assert [value for _, value in rates] == [1.0, 0.0] or [v for _, v in rates] == [0.0, 1.0]
        calls = world.telemetry.points("imagegen.circuit_breaker.window.calls")
        assert sorted(value for _, value in calls) == [1, 3]
        await asyncio.sleep(100)
        await world.ask()
        assert state() == {"closed": 1, "open": 0, "half_open": 0, "forced_open": 0}

    play(scene, **FAST)


def test_two_clients_share_one_set_of_instruments() -> None:
    """Gauges are registered once per meter, and forget the breakers of clients that are gone."""
    telemetry = Telemetry()

    async def use(name: str) -> None:
        client = ImageClient(
            Settings(routes=f"{name}:m"),
            providers=[FakeProvider(name)],
            meter_provider=telemetry.meters,
        )
        await client.generate("a lighthouse")
        await client.aclose()

    run_virtual(use("one"))
    run_virtual(use("two"))
    names = telemetry.metric_names()
    assert names.count("imagegen.circuit_breaker.window.calls") <= 1
    assert len(names) == len(set(names))
    gc.collect()
    assert telemetry.points("imagegen.circuit_breaker.state") == []


def test_a_meter_that_is_gone_takes_its_instruments_along() -> None:
    """Nothing global grows with the providers that tests and applications make."""
    gc.collect()
    before = len(metrics._per_meter)
    provider: MeterProvider = SdkMeterProvider()
    metrics.MetricSink(provider)
    assert len(metrics._per_meter) == before + 1
    provider.shutdown()  # type: ignore[attr-defined]
    del provider
    gc.collect()
    assert len(metrics._per_meter) == before


def test_a_model_that_only_a_caller_named_is_other() -> None:
    """Whatever names callers come up with, there is one more value at most."""

    async def scene(world: World) -> None:
        for name in ("flux-1", "flux-2", "flux-3"):
            await world.ask(model=name)
        models = {
            found["gen_ai.request.model"]
            for found, _ in world.telemetry.points("gen_ai.client.operation.duration")
        }
        assert models == {"other"}
        gauges = {
            found["imagegen.circuit_breaker.name"]
            for found, _ in world.telemetry.points("imagegen.circuit_breaker.state")
        }
        assert gauges == {"google:gemini-3-pro-image", "custom:m"}
        served = world.telemetry.attempts()[0].attributes or {}
        assert served["gen_ai.request.model"] == "flux-1"

    async def main() -> None:
        telemetry = Telemetry()
        google, custom = FakeProvider("google"), FakeProvider("custom")
        async with ImageClient(
            Settings(routes="google:gemini-3-pro-image,custom:m", **FAST),
            providers=[google, custom],
            tracer_provider=telemetry.tracers,
            meter_provider=telemetry.meters,
        ) as client:
            await scene(World(google, custom, client, None, telemetry))  # type: ignore[arg-type]

    run_virtual(main())


@pytest.mark.parametrize(
    ("error", "word"),
    [(Reason.INVALID_REQUEST, "invalid_request"), (KeyError("x"), "_OTHER")],
)
def test_error_types_come_from_a_fixed_list(error: Reason | Exception, word: str) -> None:
    """A reason is its own word; the type of somebody's bug is not a metric attribute."""

    async def scene(world: World) -> None:
        if isinstance(error, Reason):
            world.google.fail(error, status=400)
        else:
            world.google.crash(error)
        with pytest.raises((ImageGenerationError, KeyError)):
            await world.ask()
        for metric in ("gen_ai.client.operation.duration", "imagegen.operation.duration"):
            ((found, _),) = world.telemetry.points(metric)
            assert found["error.type"] == word

    play(scene)


def test_shadow_decisions_are_no_transitions() -> None:
    """What only would have happened is told in logs, not counted as having happened."""

    async def scene(world: World) -> None:
        world.google.fail(Reason.OVERLOADED, status=503, times=3)
        await world.ask()
        assert world.telemetry.points("imagegen.circuit_breaker.transitions") == []
        votes = {
            found["imagegen.circuit_breaker.result"]
            for found, _ in world.telemetry.points("imagegen.circuit_breaker.calls")
        }
        assert "not_permitted" not in votes

    play(scene, breaker_mode="shadow", **FAST)
