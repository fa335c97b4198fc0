"""Pipeline test kit: a client with two scripted providers on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from resilient_imagen import ImageClient, ImageResult, Settings
from resilient_imagen.circuitbreaker import CircuitBreaker
from resilient_imagen.snapshots import BreakerSnapshot, QueueSnapshot
from resilient_imagen.testing import FakeProvider, RecordingSink, VirtualTimeLoop

T = TypeVar("T")

FAST: dict[str, Any] = {"ipm": 6000}
"""Settings with a rate limit that tests do not reach."""
ONE_AT_A_TIME: dict[str, Any] = {"on_timeout": "abandon", "hedge_probe_after": None}
"""No two requests of a call in flight: what most scenarios are about."""


def now() -> float:
    return asyncio.get_running_loop().time()


@dataclass
class PipelineScenario:
    """A client with two scripted providers, Google and OpenAI."""

    google: FakeProvider
    openai: FakeProvider
    client: ImageClient
    events: RecordingSink

    async def ask(self, **options: Any) -> ImageResult:
        return await self.client.generate("a lighthouse", **options)

    def start(self, **options: Any) -> asyncio.Task[ImageResult]:
        return asyncio.create_task(self.ask(**options))

    def circuit(self, index: int = 0) -> CircuitBreaker:
        return list(self.client.breakers.values())[index]

    def breaker(self, index: int = 0) -> BreakerSnapshot:
        return self.client.snapshot()["routes"][index]["breaker"]

    def state(self, index: int = 0) -> str:
        return self.breaker(index)["state"]

    def queue(self, index: int = 0) -> QueueSnapshot:
        return self.client.snapshot()["routes"][index]["queue"]

    def idle(self) -> bool:
        """Return whether no request is in flight or queued, and no probe is sent."""
        return all(
            route["queue"]["in_flight"] == 0
            and route["queue"]["waiting"] == 0
            and route["breaker"]["probes_in_flight"] == 0
            for route in self.client.snapshot()["routes"]
        ) and not (self.google.in_flight or self.openai.in_flight)


class CancelAtStep:
    """Runs a call and cancels it when it suspends for the n-th time, in whichever of its tasks.

    Args:
        step: The number of the suspension, from 1.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        self.steps = 0
        """Suspensions so far."""
        self._call: asyncio.Task[Any] | None = None

    async def run(self, call: Coroutine[Any, Any, object]) -> asyncio.Task[Any]:
        """Run the call and return its finished task."""
        loop = asyncio.get_running_loop()
        before = loop.get_task_factory()
        loop.set_task_factory(self._new_task)
        try:
            self._call = task = loop.create_task(call)
            await asyncio.wait({task})
        finally:
            loop.set_task_factory(before)
            self._call = None
        return task

    def _new_task(
        self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any
    ) -> asyncio.Task[Any]:
        return asyncio.Task(self._driven(coroutine), loop=loop, **options)

    async def _driven(self, coroutine: Coroutine[Any, Any, object]) -> object:
        return await _Stepping(coroutine, self._suspended)

    def _suspended(self) -> None:
        self.steps += 1
        if self.steps == self.step and self._call is not None:
            asyncio.get_running_loop().call_soon(self._call.cancel)


class _Stepping:
    """Awaits a coroutine and reports each of its suspensions."""

    def __init__(self, coroutine: Coroutine[Any, Any, object], report: Callable[[], None]) -> None:
        self._coroutine = coroutine
        self._report = report

    def __await__(self) -> Generator[Any, Any, object]:
        thrown: list[BaseException] = []
        while True:
            try:
                if thrown:
                    suspended = self._coroutine.throw(thrown.pop())
                else:
                    suspended = self._coroutine.send(None)
            except StopIteration as done:
                return done.value
            self._report()
            try:
                yield suspended
            except BaseException as error:  # noqa: BLE001 - handed on
                thrown.append(error)
            finally:
                del suspended  # it may keep the error, which keeps this frame


class GuardedLoop(VirtualTimeLoop):
    """A virtual-time loop on which a busy loop fails instead of hanging the test.

    Every iteration of the loop, and every call of a breaker or a limiter, reads the clock. The
    number of reads is limited between two changes of the time, and in total.
    """

    READS_AT_ONE_MOMENT = 100_000
    READS = 20_000_000

    def __init__(self) -> None:
        self._reads_at_this_moment = 0
        self._reads = 0
        super().__init__()

    def time(self) -> float:
        self._reads_at_this_moment += 1
        self._reads += 1
        if self._reads_at_this_moment > self.READS_AT_ONE_MOMENT or self._reads > self.READS:
            self._reads_at_this_moment = self._reads = 0  # cancelled tasks still have to end
            raise AssertionError(f"something spins at {super().time()} s")
        return super().time()

    def advance(self, seconds: float) -> None:
        self._reads_at_this_moment = 0
        super().advance(seconds)


def run_guarded(main: Coroutine[Any, Any, T]) -> T:
    """Run ``main`` as ``run_virtual`` does, on a GuardedLoop."""
    with asyncio.Runner(loop_factory=GuardedLoop) as runner:
        return runner.run(main)


def run_with_client(
    scene: Callable[[ImageClient], Awaitable[T]],
    settings: Settings,
    providers: Sequence[FakeProvider],
    **options: Any,
) -> T:
    """Run ``scene`` with a client on virtual time, and check that no task and no request is left.

    Args:
        scene: The actions of the test.
        settings: The client's settings; their routes select the providers that it gets.
        providers: All scripted providers.
        **options: The client's sinks and OpenTelemetry providers.
    """

    async def main() -> T:
        used = {route.provider for route in settings.accounts}
        chosen = [each for each in providers if each.name in used]
        async with ImageClient(settings, providers=chosen, **options) as client:
            answer = await scene(client)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left
        assert [each.name for each in providers if each.in_flight] == []
        return answer

    return run_guarded(main())


def run_scenario(scene: Callable[[PipelineScenario], Awaitable[T]], **settings: Any) -> T:
    """Run ``scene`` on virtual time with these settings."""
    google, openai = FakeProvider("google"), FakeProvider("openai", latency=2.0)
    events = RecordingSink()
    return run_with_client(
        lambda client: scene(PipelineScenario(google, openai, client, events)),
        Settings(**{**ONE_AT_A_TIME, **settings}),
        [google, openai],
        sinks=[events],
    )
