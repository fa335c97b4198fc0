"""Simulate calls for images without the library, to judge the tuner's predictions by the results.

A plain discrete-event model on SimPy, written from the rules in the guides: a queue with places by
the minute, retries, a breaker for each route, a fallback, hedged probes, and requests that are kept
past their limit. It shares no code with the pipeline, so an error in either of them shows as a
difference. Deadlines, several images and accounts, shared state and half-open places are left out.

`simulate` returns the results, and the recording of them in the tuner's format.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, Final, TypeAlias, TypeVar

from independent_breaker import Breaker, Permit, Queue, Rules
from independent_worlds import COSTS, ROUTES, World
from simpy import Environment, Event

_EPOCH: Final = 1.75e9
_TYPICAL: Final = (20.0, 25.0)
"""Seconds that an image usually takes on each route."""
_RETRIED: Final = frozenset({"overloaded", "server_error", "rate_limited"})
"""Reasons after which the same route is asked again."""
_BILLED: Final = frozenset({None, "timeout", "cancelled"})

T = TypeVar("T")
Waits: TypeAlias = Generator[Event, Any, T]
"""A process of SimPy, or a part of one, which yields events and goes on when they come."""


@dataclass
class Results:
    """The results of all calls, and their recording."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """Of each call with an image."""
    served: list[int] = field(default_factory=lambda: [0, 0])
    lost: int = 0
    """Calls without an image."""
    wasted: int = 0
    """Requests that failed because of the service."""
    cost_usd: float = 0.0

    def lines(self) -> Iterator[str]:
        """Yield the recording as lines of the tuner's format."""
        return map(json.dumps, self.rows)

    def figures(self) -> dict[str, float]:
        """Return the figures that are compared, by the names of the tuner."""
        times, images = sorted(self.seconds), len(self.seconds)
        return {
            "mean_s": sum(times) / images,
            "p95_s": times[int(0.95 * images)],
            "primary_share": self.served[0] / images,
            "cost_usd_per_image": self.cost_usd / images,
            "wasted_requests": self.wasted,
        }


class Client:
    """The queues and breakers of both routes, and the results so far."""

    def __init__(self, world: World, rules: Rules) -> None:
        self.world, self.rules, self.env, self.results = world, rules, Environment(), Results()
        self.chance = Random(f"{world.seed} client")
        self.queues = [Queue(self.env, rules) for _ in ROUTES]
        self.breakers = [Breaker(self.env, rules, self.chance) for _ in ROUTES]
        self.limits = (rules.per_call_timeout, rules.openai_timeout)
        self.latencies = [deque[float](maxlen=16) for _ in ROUTES]

    def run(self) -> Results:
        """Simulate all calls to their ends."""
        for number, at in enumerate(self.world.arrivals()):
            self.env.timeout(at).callbacks.append(partial(self._arrive, number))
        self.env.run()
        return self.results

    def _arrive(self, number: int, _timeout: Event) -> None:
        self.results.rows.append({"asked": _EPOCH + self.env.now, "call": str(number)})
        Call(self, number).go_on()

    def usual(self, route: int) -> float | None:
        """Return the median of a route's latest latencies, if there are four."""
        known = sorted(self.latencies[route])
        return known[len(known) // 2] if len(known) >= 4 else None


class Call:
    """One call: a branch for each route that was asked, of which the first image wins."""

    def __init__(self, client: Client, number: int) -> None:
        self.client, self.number, self._started = client, number, client.env.now
        self.branches: list[Branch] = []
        self._delivered = False

    def go_on(self) -> bool:
        """Start the next route; return whether there was one."""
        if self._delivered or len(self.branches) == len(ROUTES):
            return False
        branch = Branch(self, len(self.branches))
        self.branches.append(branch)
        self.client.env.process(branch.run())
        return True

    def deliver(self, branch: Branch) -> None:
        """Take the first image, and end the other branch, unless that is a probe."""
        if self._delivered:
            return
        self._delivered = True
        results = self.client.results
        results.seconds.append(self.client.env.now - self._started)
        results.served[branch.route] += 1
        for other in self.branches:
            if other is branch or other.over:
                continue
            if other.probes and other.route < branch.route:
                other.detached = True
            else:
                other.cancelled.succeed()

    def fail(self) -> None:
        """Go on after a branch has failed."""
        if not self._delivered and not self.go_on() and all(each.over for each in self.branches):
            self.client.results.lost += 1


class Branch:
    """One call on one route: a process."""

    def __init__(self, call: Call, route: int) -> None:
        self.call, self.route, client = call, route, call.client
        self._client, self._env, self._rules = client, client.env, client.rules
        self._queue, self._breaker = client.queues[route], client.breakers[route]
        self._limit = client.limits[route]
        self.cancelled = client.env.event()
        self.over = self.detached = self.probes = False
        """Whether it has ended, goes on after its call, and has a probe in flight."""
        self._voted = self._holds_slot = False
        self._sent, self._queued, self._number = 0.0, 0.0, 0
        self._first_failure: float | None = None

    def run(self) -> Waits[None]:
        """Ask the route until it delivers, or is given up."""
        while not self.cancelled.triggered:
            permit = yield from self._admitted()
            if permit is None:
                break
            permit = yield from self._through_queue(permit)
            if permit is None:
                continue
            reason, hint = yield from self._request(permit)
            if reason is None:
                self.over = True
                self.call.deliver(self)
                return
            if self.cancelled.triggered or self.detached:
                break
            wait = self._back_off(reason, hint)
            if wait is None or self._has_successor:
                break
            wakes = self._env.now + wait
            while self._env.now < wakes - 1e-9 and not self.cancelled.triggered:
                if not self._breaker.is_usable(wakes):
                    break
                slept = self._env.timeout(wakes - self._env.now)
                yield slept | self._breaker.changed | self.cancelled
        self.over = True
        if not self.cancelled.triggered and not self.detached:
            self.call.fail()

    @property
    def _has_successor(self) -> bool:
        return len(self.call.branches) > self.route + 1

    def _admitted(self) -> Waits[Permit | None]:
        """Return a permit; on the last route, wait for the outcome of a probe."""
        while not self.cancelled.triggered:
            if (permit := self._breaker.ask()) is not None:
                return permit
            if self.route == 0 or self._breaker.state != "half-open":
                self._record("rejected", self._env.now)
                return None
            yield self._breaker.changed | self.cancelled
        return None

    def _through_queue(self, permit: Permit) -> Waits[Permit | None]:
        """Wait for the turn, unless the breaker opens; return the permit to send with."""
        joined, turn = self._env.now, self._queue.join()
        while not turn.triggered and not self.cancelled.triggered:
            if permit.era != self._breaker.era and not self._breaker.is_usable(self._env.now):
                break
            yield turn | self._breaker.changed | self.cancelled
        self._queued = self._env.now - joined
        if turn.triggered and not self.cancelled.triggered:
            current = permit if permit.era == self._breaker.era else self._breaker.ask()
            if current is not None:
                return current
        self._queue.leave(turn)
        self._breaker.hand_back(permit)
        return None

    def _request(self, permit: Permit) -> Waits[tuple[str | None, float | None]]:
        """Send a request, and record and count its outcome; return its reason and hint."""
        sent = self._sent = self._env.now
        reason, after, hint = self._client.world.outcome(
            self.route, sent, self.call.number, self._number
        )
        self._number += 1
        self.probes, self._voted = permit.probe, False
        answered = yield from self._response(permit, after)
        took = self._env.now - sent
        if not answered:
            over = took >= self._limit - 1e-6
            reason, hint = "timeout" if over else "cancelled", None
        if not self._voted:
            usual = self._client.usual(self.route) or _TYPICAL[self.route]
            if reason == "cancelled" and took < min(1.5 * usual, 0.7 * self._limit):
                self._breaker.hand_back(permit)
            else:
                self._breaker.vote(permit, reason, took, hint)
        self.probes = False
        if reason is None:
            self._client.latencies[self.route].append(took)
        self._record("sent", sent, latency=took, reason=reason, hint=hint, queue=self._queued,
                     cost=COSTS[self.route] if reason is None else None,
                     given_up=None if answered else True)  # fmt: skip
        self._client.results.wasted += reason not in {None, "cancelled"}
        self._client.results.cost_usd += COSTS[self.route] if reason in _BILLED else 0.0
        return reason, hint

    def _response(self, permit: Permit, after: float) -> Waits[bool]:
        """Wait for the response; return whether it came, and act at the moments before."""
        limit, keeps = self._limit, self._rules.on_timeout == "keep"
        usual = self._client.usual(self.route)
        moments = [(after, "response"), (2 * limit if keeps else limit, "end")]
        if keeps:
            votes = limit if permit.probe or usual is None else max(limit, 1.5 * usual)
            moments += [(limit, "limit"), (votes, "vote")]
        if permit.probe and self._rules.hedge_probe_after is not None:
            moments.append((self._rules.hedge_probe_after, "hedge"))
        self._holds_slot, answered = True, False
        for moment, action in sorted(moments):
            at = self._sent + moment
            while self._env.now < at - 1e-9 and not self.cancelled.triggered:
                yield self._env.timeout(at - self._env.now) | self.cancelled
            answered = action == "response" and not self.cancelled.triggered
            if answered or action == "end" or self.cancelled.triggered:
                break
            self._act(action, permit, moment)
            if self.detached and self._voted:  # its call is over, and so is the round of probes
                break
        if self._holds_slot:
            self._queue.release()
        return answered

    def _act(self, action: str, permit: Permit, took: float) -> None:
        """Act at a moment before the response."""
        if action == "vote":
            self._breaker.vote(permit, "timeout", took, None)
            self.probes, self._voted = False, True
            return
        if action == "limit":
            self._queue.release()
            self._holds_slot = False
        if (action == "limit" or self._next_is_usable) and not self._has_successor:
            self.call.go_on()

    @property
    def _next_is_usable(self) -> bool:
        return self.route == 0 and self._client.breakers[1].is_usable(self._env.now)

    def _back_off(self, reason: str, hint: float | None) -> float | None:
        """Return the seconds until the route is asked again, or None."""
        rules, now = self._rules, self._env.now
        budget = rules.retry_base_delay * (2.0**rules.max_retries - 1)
        at_most = 1 + (rules.max_retries if self.route == 0 else min(1, rules.max_retries))
        if reason == "timeout" and rules.on_timeout != "keep" and not self._next_is_usable:
            at_most = min(at_most, 2)
        elif reason not in _RETRIED:
            return None
        if self._number >= at_most:
            return None
        if hint is not None:
            longest = self._limit
            if self._next_is_usable:
                longest = min(budget, self._client.usual(1) or budget)
            return hint if hint <= longest else None
        wait = rules.retry_base_delay * 2.0 ** (self._number - 1)
        wait *= 1.0 - 0.3 * self._client.chance.random()
        if self._first_failure is None:
            self._first_failure = now
            return wait
        left = self._first_failure + budget - now - (now - self._sent)
        return max(0.0, min(wait - self._queued, left))

    def _record(self, kind: str, at: float, **rest: Any) -> None:
        row = {kind: _EPOCH + at, "call": str(self.call.number), "route": ROUTES[self.route]}
        row |= {name: value for name, value in rest.items() if value is not None}
        self._client.results.rows.append(row)


def simulate(world: World, settings: Mapping[str, Any]) -> Results:
    """Simulate a world under some settings, named as in the library."""
    return Client(world, Rules(**settings)).run()
