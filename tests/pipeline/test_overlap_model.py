"""Compare overlap with the rules of the specification, over random scripts and callers.

Three routes, two of which share a provider, follow random scripts. Callers come, leave and have
deadlines. The providers observe the requests of each call by its prompt.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from overlap_kit import THREE_ROUTES, OverlapScenario, run_overlap
from pipeline_kit import CancelAtStep, now, run_guarded

from resilient_imagen import ImageClient, ImageGenerationError, Reason, Settings
from resilient_imagen.circuitbreaker import CircuitBreaker, Permit
from resilient_imagen.cost import TokenUsage
from resilient_imagen.errors import provider_failure
from resilient_imagen.providers.base import Endpoint, ProviderImage, ProviderResult
from resilient_imagen.request import ImageRequest
from resilient_imagen.telemetry.events import AttemptEnded, AttemptStarted, Event, RequestEnded
from resilient_imagen.testing import TINY_PNG, RecordingSink

pytestmark = pytest.mark.no_cover

PRO, FLASH, GPT = "gemini-3-pro-image", "gemini-nano-banana-2.1", "gpt-image-2.5-flare"
ROUTES = [
    [f"google:{PRO}", f"google:{FLASH}", f"openai:{GPT}"],
    [f"google:{PRO}", f"openai:{GPT}", f"google:{FLASH}"],
    [f"openai:{GPT}", f"google:{PRO}", f"google:{FLASH}"],
]
LIMITS = {"google": 10.0, "openai": 25.0}
TINY = 0.01
SLOW_TO_END = 0.4
"""Seconds that a stubborn provider takes to end a cancelled request."""

FAILURES = [
    Reason.OVERLOADED,
    Reason.RATE_LIMITED,
    Reason.QUOTA_EXHAUSTED,
    Reason.CONNECTION,
    Reason.NO_IMAGE,
    Reason.CONTENT_BLOCKED,
]


@dataclass(frozen=True)
class Step:
    """A route's behavior for its next requests."""

    outcome: Reason | None
    """None delivers an image."""
    latency: float
    """Seconds; infinite for a request that hangs."""
    times: int = 1
    slow_to_end: bool = False
    """Whether the provider is slow to end a request that is cancelled."""


steps = st.builds(
    Step,
    outcome=st.sampled_from([None, None, None, *FAILURES]),
    latency=st.sampled_from([0.0, 0.1, 1.0, 3.0, 6.0, 12.0, 19.0, 30.0, math.inf]),
    times=st.integers(1, 3),
    slow_to_end=st.sampled_from([False, False, False, True]),
)


@dataclass(frozen=True)
class Caller:
    start: float
    leaves_after: float | None
    deadline: float | None


callers = st.lists(
    st.builds(
        Caller,
        start=st.sampled_from([0.0, 0.0, 0.5, 15.0, 40.0]) | st.floats(0, 80),
        leaves_after=st.none() | st.none() | st.sampled_from([0.0, 3.0, 10.5]) | st.floats(0, 30),
        deadline=st.none() | st.none() | st.sampled_from([1.0, 15.0, 24.0, 60.0]),
    ),
    min_size=1,
    max_size=7,
)

CHOICES: Mapping[str, Sequence[Any]] = {
    "hedge_probe_after": (3, 0.5, None),
    "hedge_after": (None, 1, 3, "p95"),
    "hedge_budget": (0.05, 1, 0),
    "on_timeout": ("keep", "keep", "abandon"),
    "max_wait": (None, None, 0, 2),
    "max_concurrent": (1, 2, 4),
    "max_queue": (None, None, 0, 1),
    "ipm": (6000, 30),
    "max_retries": (0, 1, 2),
    "retry_base_delay": (0.0, 1.0),
    "breaker_fail_max": (1, 2, 3),
    "breaker_half_open_calls": (1, 2, 3),
    "breaker_reset_timeout": (0.5, 20.0),
    "breaker_reset_max": (20.0,),
    "when_all_open": ("fail", "wait"),
    "fallback_on": (
        None,
        None,
        None,
        "overloaded,circuit_open",
        "timeout,overloaded",
        "overloaded",
    ),
}
choices = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in CHOICES.items()})


@dataclass
class Watched:
    """All requests of all calls, as observed by the providers."""

    in_flight: Counter[str] = field(default_factory=Counter)
    """Requests in flight, by prompt."""
    sent: Counter[str] = field(default_factory=Counter)
    images: Counter[str] = field(default_factory=Counter)
    """Images that were delivered to the client, by prompt."""
    slow_to_end: bool = False
    """Whether a cancelled request took its time to end."""

    def enter(self, prompt: str) -> None:
        self.sent[prompt] += 1
        self.in_flight[prompt] += 1
        assert self.in_flight[prompt] <= 2, "a third request of one call is in flight"


class ScriptedProvider:
    """Follows a script for each of its models, then delivers an image after a second."""

    def __init__(self, name: str, scripts: Mapping[str, Sequence[Step]], watched: Watched) -> None:
        self.name = name
        self.endpoint = Endpoint(name)
        self._scripts: dict[str, Iterator[Step]] = {
            model: iter([step for step in script for _ in range(step.times)])
            for model, script in scripts.items()
        }
        self._watched = watched
        self.in_flight = 0
        self.max_in_flight = 0

    async def generate(self, request: ImageRequest, model: str) -> ProviderResult:
        step = next(self._scripts[model], Step(None, 1.0))
        self._watched.enter(request.prompt)
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            await _pass(step.latency)
        except asyncio.CancelledError:
            if step.slow_to_end:
                self._watched.slow_to_end = True
                await asyncio.sleep(SLOW_TO_END)
            raise
        finally:
            self.in_flight -= 1
            self._watched.in_flight[request.prompt] -= 1
        if step.outcome is not None:
            raise provider_failure(step.outcome, provider=self.name, model=model, status=503)
        self._watched.images[request.prompt] += 1
        usage = TokenUsage(input_tokens=10, output_tokens=100)
        return ProviderResult((ProviderImage(TINY_PNG, "image/png"),), model, usage)

    async def aclose(self) -> None:
        """Do nothing."""


async def _pass(seconds: float) -> None:
    if math.isinf(seconds):
        await asyncio.Event().wait()
    else:
        await asyncio.sleep(seconds)


@dataclass
class Observed:
    """Observed events and calls."""

    made: Settings
    watched: Watched
    events: list[Event] = field(default_factory=list)
    permits: list[Permit] = field(default_factory=list)
    closed: bool = False
    """Whether the client was closed while callers waited."""


def watch_permits(breaker: CircuitBreaker, permits: list[Permit]) -> None:
    """Record every permit that the breaker grants."""
    for name in ("acquire", "try_acquire_early"):
        original: Callable[[], Any] = getattr(breaker, name)

        def noted(original: Callable[[], Any] = original) -> Any:
            answer = original()
            if isinstance(answer, Permit):
                permits.append(answer)
            return answer

        setattr(breaker, name, noted)


async def one_call(client: ImageClient, seen: Observed, number: int, caller: Caller) -> None:
    """Run one call, perhaps cancel it, and check its end against its events."""
    await asyncio.sleep(caller.start)
    began, prompt = now(), f"image {number}"
    task = asyncio.create_task(client.generate(prompt, deadline=caller.deadline, resolution="1K"))
    if caller.leaves_after is not None:
        asyncio.get_running_loop().call_later(caller.leaves_after, task.cancel)
    await asyncio.wait({task}, timeout=10_000)
    assert task.done()
    slack = TINY + (1.0 if seen.watched.slow_to_end else 0.0)
    if caller.deadline is not None:
        assert now() - began <= caller.deadline + slack
    if caller.leaves_after is not None:
        assert now() - began <= caller.leaves_after + slack
    if task.cancelled():
        assert caller.leaves_after is not None
    elif (error := task.exception()) is not None:
        closed = seen.closed and type(error) is RuntimeError
        assert closed or isinstance(error, ImageGenerationError), repr(error)


async def run_model(
    made: Settings,
    scripts: Sequence[Sequence[Step]],
    planned_callers: Sequence[Caller],
    closes_after: float | None,
) -> None:
    """Run the callers, close the client, and check everything that is observed."""
    watched = Watched()
    by_provider: dict[str, dict[str, Sequence[Step]]] = {}
    for route, script in zip(made.routes, scripts, strict=True):
        by_provider.setdefault(route.provider, {})[route.model] = script
    providers = [ScriptedProvider(name, mine, watched) for name, mine in by_provider.items()]
    sink = RecordingSink()
    seen = Observed(made, watched, sink.events)
    client = ImageClient(made, providers=providers, sinks=[sink])
    for breaker in client.breakers.values():
        watch_permits(breaker, seen.permits)
    async with client:
        calls = asyncio.gather(
            *(one_call(client, seen, *each) for each in enumerate(planned_callers))
        )
        if closes_after is not None:
            await asyncio.wait({calls}, timeout=None if math.isinf(closes_after) else closes_after)
            seen.closed = not calls.done()
            await client.aclose()
        await calls
        if closes_after is None:  # hedged probes may still be in flight, for their limit at most
            await asyncio.sleep(max(LIMITS.values()) + TINY)
            assert not any(provider.in_flight for provider in providers)
    if watched.slow_to_end:
        await asyncio.sleep(SLOW_TO_END + TINY)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert all(permit.settled for permit in seen.permits)
    check_limits(seen, client, providers)
    check_requests(seen)
    check_costs(seen, client)
    for ended in sink.calls:
        check_call(seen, ended)


def check_limits(
    seen: Observed, client: ImageClient, providers: Sequence[ScriptedProvider]
) -> None:
    """Check that no slot, place or probe is lost and that limits were kept."""
    made = seen.made
    kept = made.max_concurrent if made.on_timeout == "keep" else 0
    for provider in providers:
        assert provider.in_flight == 0
        if not seen.watched.slow_to_end:  # else a kept request may still be ending
            assert provider.max_in_flight <= made.max_concurrent + kept
    for state in client.snapshot()["routes"]:
        assert (state["queue"]["in_flight"], state["queue"]["waiting"]) == (0, 0)
        assert state["breaker"]["probes_in_flight"] == 0
    for route in client._routing.routes:
        assert route.limiter.shortest_wait() <= 60 / made.ipm + TINY


def check_requests(seen: Observed) -> None:
    """Check that every request is recorded and settled once, within its time."""
    started = [event for event in seen.events if isinstance(event, AttemptStarted)]
    ended = [event for event in seen.events if isinstance(event, AttemptEnded)]
    assert len(started) == len(ended) == sum(seen.watched.sent.values())
    assert len({id(event.sent) for event in ended}) == len(ended)
    assert len({id(event.settlement) for event in ended}) == len(ended)
    slack = TINY + (1.0 if seen.watched.slow_to_end else 0.0)
    keeps = seen.made.on_timeout == "keep"
    for event in ended:
        limit = LIMITS[event.provider]
        assert event.latency_s <= (2 * limit if keeps else limit) + slack
        if event.latency_s > limit + slack:
            assert event.reason not in {Reason.CANCELLED, Reason.DEADLINE}


def check_costs(seen: Observed, client: ImageClient) -> None:
    """Check that the totals include every request once, even after its call has ended."""
    ended = [event for event in seen.events if isinstance(event, AttemptEnded)]
    costs = [event.usage["cost_usd"] or 0.0 for event in ended if event.usage is not None]
    totals = client.snapshot()
    assert len(costs) == sum(seen.watched.images.values())
    assert totals["cost_usd"] == pytest.approx(math.fsum(costs))
    assert totals["images"] == sum(event.reason is None for event in ended)
    unknown = [event for event in ended if event.may_have_been_billed and event.usage is None]
    assert totals["maybe_billed"]["requests"] == len(unknown)


def check_call(seen: Observed, ended: RequestEnded) -> None:
    """Check that the result or error lists all requests that ended before it."""
    mine = [event for event in seen.events if event.call_id == ended.call_id]
    before = mine[: mine.index(ended)]
    attempts = [event.attempt for event in before if isinstance(event, AttemptEnded)]
    assert ended.attempts == len(attempts)
    if ended.error is not None:
        assert list(ended.error.attempts) == attempts
    first = seen.made.routes[0]
    if ended.result is not None:
        assert ended.result.attempts == len(attempts)
        assert ended.served is not None
        assert ended.served.attempt in attempts
        assert ended.served.usage == ended.result.usage
        by_first = (ended.result.provider, ended.result.model) == (first.provider, first.model)
        assert (ended.result.fallback_reason is None) == by_first
    check_overlap(seen, mine, ended)


def check_overlap(seen: Observed, mine: Sequence[Event], ended: RequestEnded) -> None:
    """Check order and number of requests per route, and the reasons for overlap."""
    names = [str(route) for route in seen.made.routes]
    asked: list[int] = []
    in_flight: list[AttemptStarted] = []
    overlapped = False
    for event in mine:
        if isinstance(event, AttemptStarted):
            asked.append(names.index(f"{event.provider}:{event.model}"))
            assert (event.overlap is not None) == bool(in_flight)
            if in_flight:
                overlapped = True
                cause = Reason.CIRCUIT_OPEN if event.overlap == "probe" else Reason.TIMEOUT
                assert seen.made.falls_back_on(cause)
            in_flight.append(event)
        elif isinstance(event, AttemptEnded):
            in_flight = [sent for sent in in_flight if sent is not event.sent]
    assert overlapped == (ended.hedged is not None)
    if seen.made.when_all_open == "fail":
        first_requests = list(dict.fromkeys(asked))  # an earlier route may retry after a hedge
        assert first_requests == sorted(first_requests)
        for index in set(asked):
            retries = seen.made.max_retries if index == 0 else min(1, seen.made.max_retries)
            assert asked.count(index) <= 1 + retries


any_scenario = given(
    routes=st.sampled_from(ROUTES),
    chosen=choices,
    scripts=st.tuples(*[st.lists(steps, max_size=5)] * 3),
    planned_callers=callers,
    closes_after=st.sampled_from([None, None, math.inf, math.inf, 3.2, 10.5, 20.0]),
)


def check(
    routes: list[str],
    chosen: dict[str, Any],
    scripts: Sequence[Sequence[Step]],
    planned_callers: list[Caller],
    closes_after: float | None,
) -> None:
    made = Settings(
        routes=routes,
        per_call_timeout=LIMITS["google"],
        openai_timeout=LIMITS["openai"],
        **chosen,
    )
    run_guarded(run_model(made, scripts, planned_callers, closes_after))


@settings(max_examples=100, deadline=None)
@any_scenario
def test_overlap_keeps_the_rules(
    routes: list[str],
    chosen: dict[str, Any],
    scripts: Sequence[Sequence[Step]],
    planned_callers: list[Caller],
    closes_after: float | None,
) -> None:
    """At most two requests of a call are in flight, and each is settled and recorded once."""
    check(routes, chosen, scripts, planned_callers, closes_after)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@any_scenario
def test_overlap_keeps_the_rules_thousands_of_times(
    routes: list[str],
    chosen: dict[str, Any],
    scripts: Sequence[Sequence[Step]],
    planned_callers: list[Caller],
    closes_after: float | None,
) -> None:
    """The rules hold for thousands of examples."""
    check(routes, chosen, scripts, planned_callers, closes_after)


# -- cancellation at every await ------------------------------------------------------------------


async def probing(scenario: OverlapScenario) -> None:
    await scenario.make_probe_due()
    scenario.google.latency = 20.0
    scenario.openai.latency = 5.0


async def hanging_probe(scenario: OverlapScenario) -> None:
    await scenario.make_probe_due()
    scenario.google.hang()
    scenario.openai.fail(Reason.QUOTA_EXHAUSTED, latency=1.0)


async def hanging(scenario: OverlapScenario) -> None:
    scenario.google.hang()
    scenario.openai.hang()


async def slow(scenario: OverlapScenario) -> None:
    for _ in range(5):  # for the budget
        await scenario.ask()
    scenario.google.latency, scenario.openai.latency = 15.0, 30.0


async def failing(scenario: OverlapScenario) -> None:
    scenario.google.fail(Reason.OVERLOADED, status=503, latency=11.0)
    scenario.openai.fail(Reason.OVERLOADED, status=503, latency=11.0)


SCRIPTS = (probing, hanging_probe, hanging, slow, failing)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
@pytest.mark.parametrize("deadline", [None, 25.0], ids=["no-deadline", "deadline"])
def test_a_call_cancelled_at_any_await_leaves_nothing_behind(
    script: Callable[[OverlapScenario], Any], deadline: float | None
) -> None:
    """Each call is cancelled one suspension later than the one before, in any of its tasks."""

    async def scene(scenario: OverlapScenario) -> None:
        for step in range(1, 200):
            await script(scenario)
            canceller = CancelAtStep(step)
            task = await canceller.run(scenario.ask(deadline=deadline))
            if not task.cancelled() and (error := task.exception()) is not None:
                assert isinstance(error, ImageGenerationError), error
            if task.cancelled():
                check_idle(scenario)
            for provider in (scenario.google, scenario.openai, scenario.local):
                provider.heal().latency = 1.0
            await asyncio.sleep(1300)  # probes have ended, and any breaker is due again
            check_idle(scenario)
            for _ in range(2):
                assert (await scenario.ask()).provider == "google"
            assert scenario.breaker()["state"] == "closed"
            if not task.cancelled() and canceller.steps < step:
                assert step > 4
                return
        raise AssertionError("the call never ends without being cancelled")

    run_overlap(scene, routes=THREE_ROUTES, hedge_after=10, hedge_budget=1, openai_timeout=60)


def check_idle(scenario: OverlapScenario) -> None:
    """Check that no request, slot, probe or task is left."""
    assert not any(each.in_flight for each in (scenario.google, scenario.openai, scenario.local))
    for route in scenario.client.snapshot()["routes"]:
        assert (route["queue"]["in_flight"], route["queue"]["waiting"]) == (0, 0)
        assert route["breaker"]["probes_in_flight"] == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}
