"""The lease protocol as a model: crashes, lost messages, lost writes, and mixed settings.

The commands are the real Lua scripts. An oracle, written from the description of the protocol, runs
beside them:

- A probe needs a lease. The worker that began the half-open state determines how many leases and
  successes there are at most.
- A lease ends at its deadline, which only its holder can move. A request that is not granted moves
  nothing.
- The first request after an open period begins the half-open state.
- Only outcomes of the present state count: successes close, failures open again. A failure that may
  be local to one worker needs a second worker, unless no other worker is present.
- An open period that only a hint caused ends in the closed state; one that a failure extended waits
  for a probe. Hints and fatal failures of an earlier state only extend an open period.
- An open period that is longer than a worker believes ends.
- Workers that left, or were silent for a minute, are not present.
- A server that lost writes begins a new epoch as soon as a worker that knows of them speaks.
"""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass, field
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
PLACES = {"a": 1, "b": 3, "c": 1, "d": 2}
"""`half_open_calls` of each worker: settings are mixed, as in a rolling deploy."""
DEADLINE = 61.0
PAUSE = 60.0
HINT = 20.0
FATAL = 600.0
RULE = {
    "weight": 1,
    "answered": False,
    "calls": 0,
    "failures": 0,
    "pause": 0,
    "cause": "",
    "summary": "",
    "fail_max": 3,
    "failure_rate": 0.5,
    "min_calls": 6,
}
SILENCE = 60.0
"""Seconds without a command after which a worker is not counted."""


def micros(seconds: float) -> int:
    return round(seconds * 1e6)


@dataclass
class LeaseOracle:
    """The expected record."""

    places: int = 1
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
    """When each worker was last received of."""

    def live(self) -> dict[str, float]:
        return {token: end for token, end in self.leases.items() if end > self.now}

    def touch(self, worker: str) -> None:
        self.seen[worker] = self.now
        self.seen = {name: when for name, when in self.seen.items() if when > self.now - SILENCE}

    def lose(self) -> None:
        """Begin a new epoch: a worker knows a record that the server has lost."""
        self.state, self.until, self.generation, self.openings = "closed", self.now, 1, 0
        self.hint_only, self.places = False, 1
        self.leases, self.successes, self.witnesses = {}, 0, set()

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
        """Apply the time-outs."""
        self.leases = self.live()
        if self.state == "open" and self.hint_only and self.now >= self.until:
            self.move("closed")
            self.openings = 0

    def ask(self, worker: str, token: str) -> bool:
        self.pass_time()
        self.touch(worker)
        if self.state == "open" and self.now >= self.until:
            self.move("half_open")
            self.places = PLACES[worker]
        if self.state == "half_open" and (
            token in self.leases or len(self.leases) + self.successes < self.places
        ):
            self.leases[token] = self.now + DEADLINE
            return True
        return self.state == "closed"

    def hint(self, worker: str, *, current: bool, same_epoch: bool) -> None:
        current = self.still(current)
        self.touch(worker)
        if (
            current
            or (same_epoch and self.state == "open")
            or (not same_epoch and self.state == "closed" and self.generation == 1)
        ):
            self.open(HINT, hint=True)

    def report_late(self, worker: str, seconds: float, *, hint: bool, same_epoch: bool) -> None:
        self.pass_time()
        self.touch(worker)
        if (same_epoch and self.state == "open") or (
            not same_epoch and self.state == "closed" and self.generation == 1
        ):
            self.open(seconds, hint=hint)

    def still(self, current: bool) -> bool:
        """Apply the time-outs; return whether the worker's state is still the present one."""
        generation = self.generation
        self.pass_time()
        return current and self.generation == generation

    def limit_period(self, worker: str, longest: float, *, current: bool) -> None:
        current = self.still(current)
        self.touch(worker)
        if current and self.state == "open":
            self.until = self.now if self.until - self.now > longest else self.until

    def fail(
        self, worker: str, token: str, *, current: bool, same_epoch: bool, answered: bool
    ) -> None:
        current = self.still(current)
        self.touch(worker)
        if not current:
            if not same_epoch and self.state == "closed" and self.generation == 1:
                self.openings = 98  # the number that the worker has counted
                self.open(PAUSE)
            return
        if self.state == "half_open" and not answered:
            self.witnesses.add(worker)
            if set(self.seen) != {worker} and self.witnesses == {worker}:
                self.leases.pop(token, None)
                return
        self.open(PAUSE)

    def succeed(self, worker: str, token: str, *, current: bool) -> None:
        current = self.still(current)
        self.touch(worker)
        self.leases.pop(token, None)
        if current and self.state != "closed":
            self.successes += 1
            if self.successes >= min(self.places, PLACES[worker]):
                self.move("closed")
                self.openings = 0

    def release(self, token: str) -> None:
        self.pass_time()
        self.leases.pop(token, None)

    def leave(self, worker: str) -> None:
        self.pass_time()
        self.seen.pop(worker, None)


@dataclass(frozen=True)
class Known:
    """The last record that a worker received."""

    epoch: str = ""
    version: int = 0
    generation: int = 0

    def is_newer(self, other: Known) -> bool:
        """Return whether a worker that has ``other`` adopts this one."""
        return self.epoch != other.epoch or self.version > other.version


@dataclass(frozen=True)
class Message:
    """A command on its way to the store."""

    worker: str
    kind: str
    token: str
    known: Known
    answered: bool = True


@dataclass(frozen=True)
class Permission:
    """A lease that a worker believes to hold."""

    worker: str
    token: str
    known: Known


class LeaseProtocol(RuleBasedStateMachine):
    """Any interleaving of commands, losses, crashes, restored snapshots and time."""

    messages = Bundle("messages")
    permissions = Bundle("permissions")

    def __init__(self) -> None:
        super().__init__()
        self.now = self.last_step = 1e9
        self.store = LuaStore(lambda: self.now)
        self.tokens = 0
        self.received: dict[str, Known] = dict.fromkeys(WORKERS, Known())
        """The last record that each worker received."""
        self.snapshots: list[tuple[Any, LeaseOracle]] = []
        """Earlier states of the store, with those of the oracle."""

    @initialize(by_a_hint=st.booleans())
    def begin(self, by_a_hint: bool) -> None:
        self.oracle = LeaseOracle(now=self.now)
        self.heartbeat("a")
        kind = "hint" if by_a_hint else "fail"
        self.deliver_now(Message("a", kind, "", self.received["a"]))

    def take(
        self, script: LuaScript, worker: str, known: Known, **arguments: Any
    ) -> dict[str, Any]:
        common = {
            "worker": worker,
            "channel": "news",
            "route": "google:pro",
            "settings": "",
            **asdict(known),
        }
        step = ScriptCall(script, KEYS, {**common, **arguments})
        reply: dict[str, Any] = json.loads(self.store.take(step))
        self.last_step = self.now
        return reply

    def receive(self, worker: str, reply: dict[str, Any]) -> Known:
        """Return the record of an answer; the worker adopts it if it is newer."""
        record = Known(reply["epoch"], reply["version"], reply["generation"])
        if record.is_newer(self.received[worker]):
            self.received[worker] = record
        return record

    def stored(self) -> Known:
        record = self.store.hashes.get("circuit", {"epoch": "", "version": "0", "generation": "0"})
        return Known(str(record["epoch"]), int(record["version"]), int(record["generation"]))

    def is_lost(self, known: Known) -> bool:
        """Return whether the store lacks a record that a worker received."""
        stored = self.stored()
        ahead = known.version > stored.version or known.generation > stored.generation
        fork = known.version == stored.version and known.generation != stored.generation
        return known.epoch == stored.epoch != "" and (ahead or fork)

    def heartbeat(self, worker: str) -> None:
        known = self.received[worker]
        if self.is_lost(known):
            self.oracle.lose()
        self.oracle.pass_time()
        self.oracle.touch(worker)
        self.receive(worker, self.take(VOTE, worker, known, vote="", share=False, **RULE))

    # -- actions of workers ------------------------------------------------------------------------

    @rule(target=messages, worker=st.sampled_from(WORKERS))
    def want_to_probe(self, worker: str) -> Message:
        return self.probe_request(worker)

    def probe_request(self, worker: str) -> Message:
        self.tokens += 1
        return Message(worker, "ask", f"{worker}:{self.tokens}", self.received[worker])

    @rule(target=permissions, worker=st.sampled_from(WORKERS))
    def probe_as_soon_as_it_is_due(self, worker: str) -> Any:
        """Request a lease at the end of the open period, as most callers do."""
        self.time_passes(max(self.oracle.until - self.now, 0.0))
        return self.deliver_now(self.probe_request(worker))

    @rule(target=messages, worker=st.sampled_from(WORKERS), answered=st.booleans())
    def claim_what_was_seen_while_cut_off(self, worker: str, answered: bool) -> Message:
        kind = "succeed" if answered else "fail"
        return Message(worker, kind, "", self.received[worker], answered)

    @rule(
        target=messages,
        worker=st.sampled_from(WORKERS),
        kind=st.sampled_from(["hint", "late hint", "late fatal", "doubt"]),
    )
    def report_a_late_hint_or_failure(self, worker: str, kind: str) -> Message:
        """Report a hint or a fatal failure of an earlier state, or doubt the length of the open
        period.
        """
        return Message(worker, kind, "", self.received[worker])

    @rule(target=messages, worker=st.sampled_from(WORKERS))
    def leave(self, worker: str) -> Message:
        """Unregister; a probe in flight keeps its lease."""
        return Message(worker, "leave", "", self.received[worker])

    @rule(target=messages, permission=permissions)
    def begin_to_send(self, permission: Permission) -> Message:
        return Message(permission.worker, "ask", permission.token, permission.known)

    @rule(
        target=messages,
        permission=consumes(permissions),
        kind=st.sampled_from(["succeed", "succeed", "fail", "fail", "release", "hint"]),
        answered=st.booleans(),
    )
    def end_a_probe(self, permission: Permission, kind: str, answered: bool) -> Message:
        return Message(permission.worker, kind, permission.token, permission.known, answered)

    @rule(permission=consumes(permissions))
    def crash(self, permission: Permission) -> None:
        """Lose a permission: the process ended, and never settles its lease."""

    # -- actions of the network --------------------------------------------------------------------

    @rule(message=consumes(messages))
    def lose_a_message(self, message: Message) -> None:
        """Drop a message."""

    @rule(target=permissions, message=consumes(messages))
    def deliver(self, message: Message) -> Any:
        return self.deliver_now(message)

    @rule(message=consumes(messages))
    def deliver_and_lose_the_answer(self, message: Message) -> None:
        self.deliver_now(message, answer_is_lost=True)

    def deliver_now(self, message: Message, *, answer_is_lost: bool = False) -> Any:
        before = dict(self.oracle.live())
        granted, reply = self.act(message)
        assert {
            "state": reply["state"],
            "generation": reply["generation"],
            "openings": reply["openings"],
            "granted": reply["granted"],
            "left": reply["left"],
            "closes": reply["closes"],
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
        assert reply["lease"] == 0 or reply["lease"] >= micros(0.05)
        if message.kind == "ask" and not granted:
            assert self.oracle.live() == before or self.oracle.state != "half_open"
        if answer_is_lost:
            return multiple()
        record = self.receive(message.worker, reply)
        if message.kind == "ask" and granted and reply["state"] == "half_open":
            return Permission(message.worker, message.token, record)
        return multiple()

    def act(self, message: Message) -> tuple[bool, dict[str, Any]]:
        """Run the command and the oracle; return whether a probe may be sent."""
        worker, token, known, oracle = message.worker, message.token, message.known, self.oracle
        stored = self.stored()
        lost = self.is_lost(known)
        if lost:
            oracle.lose()
        current = lost or (known.epoch, known.generation) == (stored.epoch, oracle.generation)
        same_epoch = known.epoch == stored.epoch and not lost
        granted = False
        places = PLACES[worker]
        late = {"basis": "late", "openings": 1, "answered": True, "token": ""}
        hint = {"pause": micros(HINT), "cause": "rate_limited", "summary": "429", "closes": True}
        match message.kind:
            case "ask":
                granted = oracle.ask(worker, token)
                more = {"token": token, "deadline": micros(DEADLINE), "places": places}
                reply = self.take(LEASE, worker, known, **more)
            case "succeed":
                oracle.succeed(worker, token, current=current)
                more = {"token": token, "successes": 1, "needed": places}
                reply = self.take(SETTLE, worker, known, **more)
            case "fail":
                oracle.fail(
                    worker,
                    token,
                    current=current,
                    same_epoch=same_epoch,
                    answered=message.answered,
                )
                failed = {"pause": micros(PAUSE), "cause": "timeout", "summary": "timed out"}
                seen = {"basis": "seen", "openings": 99, "token": token, "closes": False}
                reply = self.take(OPEN, worker, known, **failed, **seen, answered=message.answered)
            case "hint":
                oracle.hint(worker, current=current, same_epoch=same_epoch)
                reply = self.take(OPEN, worker, known, **{**late, **hint, "basis": "hinted"})
            case "late hint":
                oracle.report_late(worker, HINT, hint=True, same_epoch=same_epoch)
                reply = self.take(OPEN, worker, known, **late, **hint)
            case "late fatal":
                oracle.report_late(worker, FATAL, hint=False, same_epoch=same_epoch)
                fatal = {**hint, "pause": micros(FATAL), "closes": False}
                reply = self.take(OPEN, worker, known, **late, **fatal)
            case "doubt":
                oracle.limit_period(worker, 2 * PAUSE, current=current)
                reply = self.take(SHORTEN, worker, known, longest=micros(2 * PAUSE))
            case "leave":
                oracle.leave(worker)
                reply = self.take(LEAVE, worker, known)
            case _:
                oracle.release(token)
                reply = self.take(RELEASE, worker, known, token=token)
        return granted, reply

    @precondition(lambda self: self.oracle.state == "closed")
    @rule(worker=st.sampled_from(WORKERS))
    def a_hint_is_received(self, worker: str) -> None:
        self.heartbeat(worker)
        if self.oracle.state == "closed":
            self.deliver_now(Message(worker, "hint", "", self.received[worker]))

    @rule(seconds=st.sampled_from([0.1, 1.0, HINT, 30.0, PAUSE, DEADLINE, 400.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.oracle.now = self.now
        self.store.expires.clear()  # keys would expire after an hour without commands

    @rule(hours=st.sampled_from([1, 24]), first=st.sampled_from(["release", "leave"]))
    def fail_over_to_a_server_with_an_older_clock(self, hours: int, first: str) -> None:
        """Each duration keeps the rest that it had at the last command."""
        self.now -= 3600.0 * hours
        oracle = self.oracle
        seconds = self.last_step - self.now
        oracle.until -= seconds
        oracle.leases = {token: end - seconds for token, end in oracle.leases.items()}
        oracle.seen = {worker: when - seconds for worker, when in oracle.seen.items()}
        oracle.now = self.now
        self.store.expires = {key: when - seconds for key, when in self.store.expires.items()}
        self.snapshots.clear()
        self.act(Message("a", first, "nobody", Known()))

    @rule()
    def save_a_snapshot(self) -> None:
        self.snapshots.append((self.store.copy_data(), copy.deepcopy(self.oracle)))

    @precondition(lambda self: self.snapshots)
    @rule(number=st.integers(0, 5))
    def restore_a_snapshot(self, number: int) -> None:
        """Restart the server from an old snapshot, or promote a replica that lags behind."""
        snapshot, then = self.snapshots[number % len(self.snapshots)]
        self.store.restore(snapshot)
        self.oracle = copy.deepcopy(then)
        self.oracle.now = self.now
        self.act(Message("a", "release", "nobody", Known()))

    # -- invariants -----------------------------------------------------------------------------

    @invariant()
    def no_more_probes_than_places(self) -> None:
        leases = self.store.zsets.get("leases", {})
        places = getattr(self, "oracle", LeaseOracle()).places
        assert len([end for end in leases.values() if end > micros(self.now)]) <= places

    @precondition(lambda self: self.oracle.state != "closed")
    @rule(worker=st.sampled_from(WORKERS))
    def no_worker_is_ever_locked_out(self, worker: str) -> None:
        """Check that the next request is granted after all leases and the open period end."""
        ends = [self.oracle.until, *self.oracle.live().values(), self.now]
        waited = max(ends) - self.now + 0.001
        assert waited <= max(PAUSE, DEADLINE, FATAL) + 1
        self.time_passes(waited)
        self.tokens += 1
        granted, reply = self.act(Message(worker, "ask", f"{worker}:{self.tokens}", Known()))
        assert granted
        assert reply["granted"]

    @rule(worker=st.sampled_from(WORKERS))
    def the_next_outage_is_shared(self, worker: str) -> None:
        """Check that, after a heartbeat of each worker, all adopt an open period of one."""
        for _ in range(2):  # the second round delivers what other heartbeats have restored
            for each in WORKERS:
                self.heartbeat(each)
        assert len({known.epoch for known in self.received.values()}) == 1
        if self.oracle.state != "closed":
            return
        self.deliver_now(Message(worker, "fail", "", self.received[worker]))
        assert self.oracle.state == "open"
        for each in WORKERS:
            self.heartbeat(each)
            assert self.received[each] == self.stored()


def test_the_lease_protocol_under_crashes_and_lost_messages() -> None:
    """Every interleaving agrees with the oracle, respects the limit of probes and locks no worker
    out.
    """
    run_state_machine_as_test(
        LeaseProtocol, settings=settings(max_examples=200, stateful_step_count=40, deadline=None)
    )


@pytest.mark.slow
def test_the_lease_protocol_at_length() -> None:
    """Many more interleavings agree with the oracle."""
    run_state_machine_as_test(
        LeaseProtocol, settings=settings(max_examples=1500, stateful_step_count=60, deadline=None)
    )
