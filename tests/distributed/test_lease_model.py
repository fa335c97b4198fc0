"""The lease protocol, as a model: processes that crash, messages that get lost or come late.

The steps are the real Lua. Beside them runs an oracle, written from the protocol's description:

- a probe needs a lease; at most `half_open_calls` are held at once, successes included;
- a lease ends at its deadline, which only its holder can move; asking in vain moves nothing;
- the first to ask once an opening is over begins the round;
- only what was seen in the present state counts: successes close, failures open again, and a
  failure that may be the worker's own trouble needs a second worker, or nobody else to be there;
- an opening by a hint alone is closed when it is over, one that a failure had a part in waits for a
  probe; hints and fatal failures of an earlier state lengthen an opening, and do nothing else;
- an opening that lasts longer than a worker believes is over;
- who has said goodbye, or nothing for a minute, is not there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from fake_redis import LuaStore
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from resilient_imagen.distributed.scripts import (
    LEASE,
    LEAVE,
    OPEN,
    RELEASE,
    SETTLE,
    SHORTEN,
    VOTE,
    LuaScript,
    ScriptCall,
)

pytestmark = pytest.mark.no_cover

KEYS = ("circuit", "leases", "workers", "seen")
WORKERS = ("a", "b", "c", "d")
DEADLINE = 61.0
PAUSE = 60.0
HINT = 20.0
FATAL = 600.0
SILENCE = 60.0
"""Seconds after which a worker that says nothing is not counted."""


def micros(seconds: float) -> int:
    return round(seconds * 1e6)


@dataclass
class LeaseOracle:
    """What the record has to be."""

    places: int
    now: float = 0.0
    state: str = "closed"
    until: float = 0.0
    generation: int = 1
    openings: int = 0
    hint_only: bool = False
    successes: int = 0
    witnesses: set[str] = field(default_factory=set)
    leases: dict[str, float] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)
    """When each worker was last heard of."""

    def live(self) -> dict[str, float]:
        return {token: end for token, end in self.leases.items() if end > self.now}

    def touch(self, worker: str) -> None:
        self.seen[worker] = self.now
        for who in [who for who, when in self.seen.items() if when <= self.now - SILENCE]:
            del self.seen[who]

    def move(self, state: str) -> None:
        self.state, self.generation = state, self.generation + 1
        self.leases, self.successes, self.witnesses = {}, 0, set()

    def open(self, seconds: float, *, hint: bool = False) -> None:
        if self.state != "open":
            self.hint_only = hint and self.state == "closed"
            self.openings += 1
            self.move("open")
            self.until = self.now + seconds
        else:
            self.until = max(self.until, self.now + seconds)
            self.hint_only = self.hint_only and hint

    def pass_time(self) -> None:
        """What every step finds done."""
        self.leases = self.live()
        if self.state == "open" and self.hint_only and self.now >= self.until:
            self.move("closed")
            self.openings = 0

    def ask(self, worker: str, token: str) -> bool:
        self.pass_time()
        self.touch(worker)
        if self.state == "open" and self.now >= self.until:
            self.move("half_open")
        if self.state == "half_open" and (
            token in self.leases or len(self.leases) + self.successes < self.places
        ):
            self.leases[token] = self.now + DEADLINE
            return True
        return self.state == "closed"

    def hint(self, worker: str, generation: int) -> None:
        self.pass_time()
        self.touch(worker)
        if generation == self.generation or self.state == "open":
            self.open(HINT, hint=True)

    def hear_late(self, worker: str, seconds: float, *, hint: bool) -> None:
        self.pass_time()
        self.touch(worker)
        if self.state == "open":
            self.open(seconds, hint=hint)

    def doubt(self, worker: str, generation: int, longest: float) -> None:
        self.pass_time()
        self.touch(worker)
        if generation == self.generation and self.state == "open":
            self.until = self.now if self.until - self.now > longest else self.until

    def fail(self, worker: str, token: str, generation: int, *, answered: bool) -> None:
        self.pass_time()
        self.touch(worker)
        if generation != self.generation:
            return
        if self.state == "half_open" and not answered:
            self.witnesses.add(worker)
            if set(self.seen) != {worker} and self.witnesses == {worker}:
                self.leases.pop(token, None)
                return
        self.open(PAUSE)

    def succeed(self, worker: str, token: str, generation: int) -> None:
        self.pass_time()
        self.touch(worker)
        self.leases.pop(token, None)
        if generation == self.generation and self.state != "closed":
            self.successes += 1
            if self.successes >= self.places:
                self.move("closed")
                self.openings = 0

    def release(self, token: str) -> None:
        self.pass_time()
        self.leases.pop(token, None)

    def leave(self, worker: str) -> None:
        self.pass_time()
        self.seen.pop(worker, None)


@dataclass(frozen=True)
class Message:
    """On its way to the store."""

    worker: str
    kind: str
    token: str
    generation: int
    answered: bool = True


@dataclass(frozen=True)
class Permission:
    """A lease a worker believes to hold."""

    worker: str
    token: str
    generation: int


class LeaseProtocol(RuleBasedStateMachine):
    """Any interleaving of what processes say, of losses, crashes and time passing."""

    messages = Bundle("messages")
    permissions = Bundle("permissions")

    def __init__(self) -> None:
        super().__init__()
        self.now = self.last_step = 1e9
        self.store = LuaStore(lambda: self.now)
        self.tokens = 0
        self.heard: dict[str, int] = dict.fromkeys(WORKERS, 1)
        """The generation each worker last heard of."""
        self.epoch = ""

    @initialize(places=st.sampled_from([1, 1, 1, 2]), by_a_hint=st.booleans())
    def begin(self, places: int, by_a_hint: bool) -> None:
        self.oracle = LeaseOracle(places, now=self.now)
        told = self.take(VOTE, "a", "", 0, "", 1, 0, 0, 0, 0, 0, "", "", 3, 0.5, 6)
        self.epoch = told["epoch"]
        if by_a_hint:
            self.act(Message("a", "hint", "", 1))
            return
        self.take(OPEN, "a", self.epoch, 1, micros(PAUSE), "overloaded", "503", 1, "seen", 1, "", 0)
        self.oracle.fail("a", "", 1, answered=True)

    def take(self, script: LuaScript, worker: str, *arguments: Any) -> dict[str, Any]:
        step = ScriptCall(script, KEYS, (worker, "news", "google:pro", *arguments))
        told: dict[str, Any] = json.loads(self.store.take(step))
        self.last_step = self.now
        return told

    # -- what processes do ------------------------------------------------------------------------

    @rule(target=messages, worker=st.sampled_from(WORKERS))
    def want_to_probe(self, worker: str) -> Message:
        return self.wish(worker)

    def wish(self, worker: str) -> Message:
        self.tokens += 1
        return Message(worker, "ask", f"{worker}:{self.tokens}", self.heard[worker])

    @rule(target=permissions, worker=st.sampled_from(WORKERS))
    def probe_as_soon_as_it_is_due(self, worker: str) -> Any:
        """What most callers do, and what leads where it is interesting."""
        self.time_passes(max(self.oracle.until - self.now, 0.0))
        return self.deliver_now(self.wish(worker))

    @rule(target=messages, worker=st.sampled_from(WORKERS), answered=st.booleans())
    def claim_what_was_seen_while_cut_off(self, worker: str, answered: bool) -> Message:
        kind = "succeed" if answered else "fail"
        return Message(worker, kind, "", self.heard[worker], answered)

    @rule(
        target=messages,
        worker=st.sampled_from(WORKERS),
        kind=st.sampled_from(["hint", "late hint", "late fatal", "doubt"]),
    )
    def pass_on_news(self, worker: str, kind: str) -> Message:
        """Of the server: a hint, a used-up quota. Or a worker that does not believe the record."""
        return Message(worker, kind, "", self.heard[worker])

    @rule(target=messages, worker=st.sampled_from(WORKERS))
    def say_goodbye(self, worker: str) -> Message:
        """A probe of its that is still on its way keeps its place."""
        return Message(worker, "leave", "", self.heard[worker])

    @rule(target=messages, permission=permissions)
    def begin_to_send(self, permission: Permission) -> Message:
        return Message(permission.worker, "ask", permission.token, permission.generation)

    @rule(
        target=messages,
        permission=consumes(permissions),
        kind=st.sampled_from(["succeed", "succeed", "fail", "fail", "release", "hint"]),
        answered=st.booleans(),
    )
    def end_a_probe(self, permission: Permission, kind: str, answered: bool) -> Message:
        return Message(permission.worker, kind, permission.token, permission.generation, answered)

    @rule(permission=consumes(permissions))
    def crash(self, permission: Permission) -> None:
        """The process is gone, and says nothing of the lease that it holds."""

    # -- what the network does --------------------------------------------------------------------

    @rule(message=consumes(messages))
    def lose_a_message(self, message: Message) -> None:
        """It never arrives."""

    @rule(target=permissions, message=consumes(messages))
    def deliver(self, message: Message) -> Any:
        return self.deliver_now(message)

    @rule(message=consumes(messages))
    def deliver_and_lose_the_answer(self, message: Message) -> None:
        self.deliver_now(message, answer_is_lost=True)

    def deliver_now(self, message: Message, *, answer_is_lost: bool = False) -> Any:
        before = dict(self.oracle.live())
        granted, told = self.act(message)
        assert {
            "state": told["state"],
            "generation": told["generation"],
            "openings": told["openings"],
            "granted": told["granted"],
            "left": told["left"],
            "closes": told["closes"],
        } == {
            "state": self.oracle.state,
            "generation": self.oracle.generation,
            "openings": self.oracle.openings,
            "granted": granted,
            "left": max(micros(self.oracle.until) - micros(self.now), 0)
            if self.oracle.state == "open"
            else 0,
            "closes": self.oracle.state == "open" and self.oracle.hint_only,
        }
        if message.kind == "ask" and not granted:
            assert self.oracle.live() == before or self.oracle.state != "half_open"
        if answer_is_lost:
            return multiple()
        self.heard[message.worker] = told["generation"]
        if message.kind == "ask" and granted and told["state"] == "half_open":
            return Permission(message.worker, message.token, told["generation"])
        return multiple()

    def act(self, message: Message) -> tuple[bool, dict[str, Any]]:
        """Take the step, in both worlds; returns whether a probe may be sent."""
        worker, token, oracle = message.worker, message.token, self.oracle
        fence = (self.epoch, message.generation)
        granted = False
        match message.kind:
            case "ask":
                granted = oracle.ask(worker, token)
                told = self.take(LEASE, worker, token, micros(DEADLINE), oracle.places)
            case "succeed":
                oracle.succeed(worker, token, message.generation)
                told = self.take(SETTLE, worker, *fence, token, 1, oracle.places)
            case "fail":
                oracle.fail(worker, token, message.generation, answered=message.answered)
                opening = (micros(PAUSE), "timeout", "timed out", int(message.answered), "seen", 99)
                told = self.take(OPEN, worker, *fence, *opening, token, 0)
            case "hint":
                oracle.hint(worker, message.generation)
                hint = (micros(HINT), "rate_limited", "429", 1, "told", 1)
                told = self.take(OPEN, worker, *fence, *hint, token, 1)
            case "late hint":
                oracle.hear_late(worker, HINT, hint=True)
                hint = (micros(HINT), "rate_limited", "429", 1, "late", 1)
                told = self.take(OPEN, worker, *fence, *hint, "", 1)
            case "late fatal":
                oracle.hear_late(worker, FATAL, hint=False)
                fatal = (micros(FATAL), "quota_exhausted", "429", 1, "late", 1)
                told = self.take(OPEN, worker, *fence, *fatal, "", 0)
            case "doubt":
                oracle.doubt(worker, message.generation, 2 * PAUSE)
                told = self.take(SHORTEN, worker, *fence, micros(2 * PAUSE))
            case "leave":
                oracle.leave(worker)
                told = self.take(LEAVE, worker)
            case _:
                oracle.release(token)
                told = self.take(RELEASE, worker, token)
        return granted, told

    @precondition(lambda self: self.oracle.state == "closed")
    @rule(worker=st.sampled_from(WORKERS))
    def a_hint_is_received(self, worker: str) -> None:
        self.deliver_now(Message(worker, "hint", "", self.oracle.generation))

    @rule(seconds=st.sampled_from([0.1, 1.0, HINT, 30.0, PAUSE, DEADLINE, 400.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.oracle.now = self.now
        self.store.expires.clear()  # in an hour without a word it would forget, as it should

    @rule(hours=st.sampled_from([1, 24]), first=st.sampled_from(["release", "leave"]))
    def another_server_takes_over_whose_clock_is_behind(self, hours: int, first: str) -> None:
        """What was left of each duration at the last step is left still, whoever speaks first."""
        self.now -= 3600.0 * hours
        oracle = self.oracle
        seconds = self.last_step - self.now
        oracle.until -= seconds
        oracle.leases = {token: end - seconds for token, end in oracle.leases.items()}
        oracle.seen = {who: when - seconds for who, when in oracle.seen.items()}
        oracle.now = self.now
        self.store.expires = {key: when - seconds for key, when in self.store.expires.items()}
        self.act(Message("a", first, "nobody", 0))

    # -- what must always be so -------------------------------------------------------------------

    @invariant()
    def no_more_probes_than_places(self) -> None:
        leases = self.store.zsets.get("leases", {})
        assert (
            len([end for end in leases.values() if end > micros(self.now)])
            <= getattr(self, "oracle", LeaseOracle(1)).places
        )

    @precondition(lambda self: self.oracle.state != "closed")
    @rule(worker=st.sampled_from(WORKERS))
    def nobody_is_ever_locked_out(self, worker: str) -> None:
        """Once every lease has run out and the opening is over, whoever asks may probe."""
        ends = [self.oracle.until, *self.oracle.live().values(), self.now]
        waited = max(ends) - self.now + 0.001
        assert waited <= max(PAUSE, DEADLINE, FATAL) + 1
        self.time_passes(waited)
        self.tokens += 1
        granted, told = self.act(Message(worker, "ask", f"{worker}:{self.tokens}", 0))
        assert granted
        assert told["granted"]


def test_the_lease_protocol_under_crashes_and_lost_messages() -> None:
    """Any interleaving agrees with the oracle, never has two probes, and never locks out."""
    run_state_machine_as_test(
        LeaseProtocol, settings=settings(max_examples=200, stateful_step_count=40, deadline=None)
    )


@pytest.mark.slow
def test_the_lease_protocol_at_length() -> None:
    """The same, in many more worlds."""
    run_state_machine_as_test(
        LeaseProtocol, settings=settings(max_examples=1500, stateful_step_count=60, deadline=None)
    )
