"""``on_start``: once, at the honest moment, and never in the way."""

from __future__ import annotations

import asyncio

import pytest
from ladder import FAST, World, now, play

from resilient_imagen import Reason


def test_it_fires_when_the_first_request_leaves_not_when_the_caller_queues() -> None:
    """The second of two callers is told after its turn in the queue has come."""
    told: list[float] = []

    async def scene(world: World) -> None:
        await asyncio.gather(*(world.ask(on_start=lambda: told.append(now())) for _ in range(2)))
        assert told == [pytest.approx(sent.at) for sent in world.google.sent]
        assert told[1] == pytest.approx(6.0, abs=0.01)

    play(scene)


def test_it_fires_once_whatever_follows() -> None:
    """Retries and the fallback are the same generation."""
    told: list[float] = []

    async def scene(world: World) -> None:
        world.google.fail(Reason.OVERLOADED, status=503)
        await world.ask(on_start=lambda: told.append(now()))
        assert len(told) == 1

    play(scene, **FAST)


def test_an_async_callback_is_done_before_the_request_leaves() -> None:
    """The state shown to the user changes first, then the generation starts."""
    order: list[str] = []

    async def scene(world: World) -> None:
        async def on_start() -> None:
            await asyncio.sleep(0.5)
            order.append(f"told, {len(world.google.sent)} sent")

        await world.ask(on_start=on_start)
        assert order == ["told, 0 sent"]

    play(scene)


@pytest.mark.parametrize("kind", ["raises", "async raises", "hangs"])
def test_its_failure_never_touches_the_generation(kind: str) -> None:
    """A callback that fails or hangs costs at most a second and leaves no task behind."""

    def raises() -> None:
        raise RuntimeError("mine")

    async def async_raises() -> None:
        raise RuntimeError("mine")

    async def hangs() -> None:
        await asyncio.Event().wait()

    callback = {"raises": raises, "async raises": async_raises, "hangs": hangs}[kind]

    async def scene(world: World) -> None:
        result = await world.ask(on_start=callback)
        assert result.provider == "google"
        assert now() <= 2.01
        assert asyncio.all_tasks() == {asyncio.current_task()}

    play(scene)


def test_it_does_not_fire_when_nothing_is_sent() -> None:
    """All routes skipped: the caller is not told of a start that never came."""
    told: list[float] = []

    async def scene(world: World) -> None:
        with pytest.raises(Exception, match="skipped by the operator"):
            await world.ask(on_start=lambda: told.append(now()))
        assert told == []

    play(scene, force_open="google,openai")
