"""Orders for a fleet: eight clients on one fake Redis, on virtual time, with the real scripts."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from fake_redis import ADDRESS, START, FakeRedisCluster
from fleet_kit import run_with_fake_redis

from resilient_imagen import ImageClient, Reason, Settings, client
from resilient_imagen.control import Order
from resilient_imagen.control.fleet import SharedOrder
from resilient_imagen.control.issue import issued
from resilient_imagen.distributed import order_call
from resilient_imagen.distributed.order_board import parse_report
from resilient_imagen.distributed.shared_orders import history_key, order_keys
from resilient_imagen.telemetry.events import OperatorWarning, OrderApplied, OrderEnded
from resilient_imagen.testing import FakeProvider, RecordingSink

GOOGLE = "google:gemini-3-pro-image"
SECRET = "a secret of the operators"
WORKERS = 8
SOON, CHECK_IN = 0.01, 1.2
"""Seconds in which a message has reached all workers, and in which all have checked in."""


@dataclass
class Worker:
    client: ImageClient
    google: FakeProvider
    sink: RecordingSink

    @property
    def state(self) -> str:
        return self.client.snapshot()["routes"][0]["breaker"]["state"]

    @property
    def orders(self) -> list[str]:
        return [each["order"] for each in self.client.snapshot()["control"]["orders"]]

    @property
    def warnings(self) -> list[str]:
        return [each.message for each in self.sink.of(OperatorWarning) if each.code == "control"]


class Fleet:
    """Workers, and the operators' command."""

    def __init__(self, redis: FakeRedisCluster) -> None:
        self.redis = redis
        self.workers: list[Worker] = []
        self.given: list[Order] = []

    async def add(self, count: int = 1, **settings: Any) -> None:
        for _ in range(count):
            google, sink = FakeProvider("google"), RecordingSink()
            made = Settings(redis_url="redis://fake", ipm=6000, max_retries=0, **settings)
            providers = [google, FakeProvider("openai")]
            started = ImageClient(made, providers=providers, sinks=[sink])
            self.workers.append(Worker(started, google, sink))
            await started.warm_up()

    @property
    def now(self) -> int:
        return round((START + self.redis.loop.time() + self.redis.clock_skew) * 1e6)

    def give(
        self, action: str, target: str, ttl: int = 60, *, secret: str | None = None, **fields: Any
    ) -> Order:
        """Give an order, as the command does."""
        draft = Order(action=action, target=target, ttl=ttl, by="ops", serial=1, **fields)
        order = issued(draft, self.given, self.now)
        if secret is not None:
            order = order.signed(secret, ADDRESS.namespace)
        assert self.put(order) == 1
        self.given = [each for each in self.given if not order.replaces(each)] + [order]
        return order

    def put(self, order: Order, text: str | None = None) -> int:
        """Store an order, and notify the workers."""
        call = order_call(
            ADDRESS,
            order.topic,
            order.to_json() if text is None else text,
            serial=order.serial,
            ends=order.ends_at,
            replaced=[each.topic for each in self.given if order.replaces(each)],
        )
        answer = int(self.redis.store.take(call))
        self.redis.deliver()
        return answer

    def codes(self, order: Order) -> list[str | None]:
        """Return what each worker has reported about an order."""
        stored = self.redis.store.hashes.get(order_keys(ADDRESS)[1], {})
        reports = [json.loads(report)["orders"] for report in stored.values()]
        return [report.get(str(order.serial)) for report in reports]

    @property
    def states(self) -> set[str]:
        return {worker.state for worker in self.workers}


@contextlib.asynccontextmanager
async def fleet(
    redis: FakeRedisCluster, count: int = WORKERS, **settings: Any
) -> AsyncIterator[Fleet]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "_new_coordinator", lambda *_: redis.coordinator())
        made = Fleet(redis)
        try:
            await made.add(count, **settings)
            yield made
        finally:
            for worker in made.workers:
                await worker.client.aclose()


def run(scene: Callable[[Fleet], Awaitable[None]], count: int = WORKERS, **settings: Any) -> None:
    async def main(redis: FakeRedisCluster) -> None:
        async with fleet(redis, count, **settings) as made:
            await scene(made)

    run_with_fake_redis(main)


def test_all_workers_obey_at_once_and_report_it() -> None:
    """All obey on the message within milliseconds, and report without waiting for a heartbeat."""

    async def scene(made: Fleet) -> None:
        order = made.give("open", "google", 20)
        await asyncio.sleep(SOON)
        assert made.states == {"forced_open"}
        assert made.codes(order) == ["ok"] * WORKERS
        await asyncio.sleep(20)
        assert made.states == {"closed"}
        for worker in made.workers:
            assert [each.by for each in worker.sink.of(OrderApplied)] == ["ops"]
            assert len(worker.sink.of(OrderEnded)) == 1

    run(scene)


def test_the_next_heartbeat_replaces_a_lost_message() -> None:
    """Every heartbeat reads new orders, so workers obey within two seconds."""

    async def scene(made: Fleet) -> None:
        for link in made.redis.connections:
            link.drops_messages = True
        order = made.give("open", "google")
        await asyncio.sleep(CHECK_IN)
        assert made.states == {"forced_open"}
        await asyncio.sleep(CHECK_IN)
        assert made.codes(order) == ["ok"] * WORKERS

    run(scene)


def test_an_order_ends_during_an_outage_of_redis() -> None:
    """Each worker ends the order itself; a worker that starts meanwhile does not know it."""

    async def scene(made: Fleet) -> None:
        made.give("open", "google", 30)
        made.give("set", "IMAGE_GEN_BREAKER_FAIL_MAX", 40, value="7")
        await asyncio.sleep(SOON)
        made.redis.stop()
        await asyncio.sleep(20)
        assert made.states == {"forced_open"}
        await asyncio.sleep(10)
        assert made.states == {"closed"}
        thresholds = {each.client.breakers[GOOGLE].config.fail_max for each in made.workers}
        assert thresholds == {7}
        await asyncio.sleep(10)
        thresholds = {each.client.breakers[GOOGLE].config.fail_max for each in made.workers}
        assert thresholds == {3}

    run(scene)


def test_an_emptied_redis_ends_no_order() -> None:
    """Workers keep their orders; for workers that start later, the operator repeats the order."""

    async def scene(made: Fleet) -> None:
        made.give("open", "google", 60)
        await asyncio.sleep(SOON)
        made.redis.stop()
        made.redis.restart(empty=True)
        await asyncio.sleep(5)
        assert made.states == {"forced_open"}
        await made.add()
        assert made.workers[-1].state == "closed"
        made.give("open", "google", 60)
        await asyncio.sleep(SOON)
        assert made.states == {"forced_open"}

    run(scene, 2)


def test_a_worker_that_starts_later_obeys_before_its_first_call() -> None:
    """It obeys for the rest of the order's time, and does not obey a withdrawn order."""

    async def scene(made: Fleet) -> None:
        made.give("open", "google", 60)
        made.give("open", "openai", 60)
        made.give("reset", "openai")
        await asyncio.sleep(30)
        await made.add()
        assert made.workers[-1].orders == ["breaker open google"]
        await asyncio.sleep(29.9)
        assert made.states == {"forced_open"}
        await asyncio.sleep(0.2)
        assert made.states == {"closed"}

    run(scene, 1)


def test_a_disconnected_worker_obeys_after_its_reconnect() -> None:
    """It obeys the later of two orders, for the rest of its time."""

    async def scene(made: Fleet) -> None:
        cut = made.workers[0]
        made.give("open", "google", 600)
        await asyncio.sleep(SOON)
        made.redis.up = False
        made.redis.connections_of[cut.client._coordinator.worker][-1].break_off()  # type: ignore[union-attr]
        await asyncio.sleep(1)
        made.redis.up = True
        made.give("close", "google")
        assert cut.state == "forced_open"
        await asyncio.sleep(10)
        assert made.states == {"closed"}

    run(scene, 3)


def test_close_closes_the_shared_circuit() -> None:
    """All workers send again, and the circuit may trip again for all of them."""

    async def scene(made: Fleet) -> None:
        await open_shared_circuit(made)
        made.give("close", "google")
        await asyncio.sleep(CHECK_IN)
        assert made.states == {"closed"}
        await asyncio.sleep(5)
        assert made.states == {"closed"}
        await open_shared_circuit(made)

    run(scene)


async def open_shared_circuit(made: Fleet) -> None:
    """Let one worker's calls open the shared circuit."""
    failing = made.workers[0]
    failing.google.fail(Reason.OVERLOADED, times=3)
    for _ in range(3):
        await failing.client.generate("a lighthouse")
    await asyncio.sleep(CHECK_IN)
    assert made.states == {"open"}


def test_workers_held_closed_send_requests() -> None:
    """The shared circuit opens without effect, and applies when the hold ends."""

    async def scene(made: Fleet) -> None:
        made.give("hold", "google", 30)
        await asyncio.sleep(SOON)
        failing = made.workers[0]
        failing.google.fail(Reason.OVERLOADED, times=4)
        for _ in range(4):
            await failing.client.generate("a lighthouse")
        assert len(failing.google.sent) == 4
        await made.workers[1].client.generate("a lighthouse")
        assert len(made.workers[1].google.sent) == 1
        assert made.states == {"closed"}
        await asyncio.sleep(30)
        assert made.states == {"open"}

    run(scene, 2)


def test_an_order_changes_the_shared_rate_limit() -> None:
    """Two workers share 60 images a minute, then 6; the first images have the new interval."""

    async def scene(made: Fleet) -> None:
        made.give("set", "IMAGE_GEN_IPM", 600, value="60")
        await asyncio.sleep(2 * CHECK_IN)
        calls = [
            worker.client.generate("a lighthouse") for worker in made.workers for _ in range(3)
        ]
        await asyncio.gather(*calls)
        starts = sorted(sent.at for worker in made.workers for sent in worker.google.sent)
        gaps = [after - before for before, after in itertools.pairwise(starts)]
        assert gaps == pytest.approx([1.0] * 5, abs=0.02)
        assert "fleet_settings" not in made.redis.warnings

    run(scene, 2)


def test_settings_that_change_everywhere_are_not_reported_as_different() -> None:
    """Workers begin and end an order at slightly different times, which causes no warning."""

    async def scene(made: Fleet) -> None:
        made.give("set", "IMAGE_GEN_BREAKER_FAIL_MAX", 30, value="7")
        made.give("set", "IMAGE_GEN_IPM", 30, value="600")
        for _ in range(20):
            await made.workers[0].client.generate("a lighthouse")
            await asyncio.sleep(2)
        assert made.redis.warnings == []

    run(scene, 3)


def test_settings_that_one_worker_changed_are_reported_as_different() -> None:
    """A worker whose own program gave an order differs permanently."""

    async def scene(made: Fleet) -> None:
        order = Order(
            action="set", target="IMAGE_GEN_BREAKER_FAIL_MAX", value="7", ttl=600, by="me", serial=9
        )
        made.workers[0].client.obey(order)
        await asyncio.sleep(30)
        assert set(made.redis.warnings) == {"fleet_settings"}

    run(scene, 2)


# Trust


def forgeries(order: Order) -> Iterable[Order]:
    """Return orders that workers with a secret must not obey."""
    yield order
    yield order.signed("another secret of 16", ADDRESS.namespace)
    yield order.signed(SECRET, f"{ADDRESS.namespace}:other")
    signed = order.signed(SECRET, ADDRESS.namespace)
    yield replace(signed, ttl=86_400)
    yield replace(signed, by="somebody else")
    yield replace(signed, serial=signed.serial + 1)


@pytest.mark.parametrize("number", range(6))
def test_a_forged_order_changes_nothing(number: int) -> None:
    """It causes one warning, which the operator's command can read, too."""

    async def scene(made: Fleet) -> None:
        draft = Order(action="open", target="google", ttl=60, by="ops", serial=made.now)
        forged = list(forgeries(draft))[number]
        assert made.put(forged) == 1
        await asyncio.sleep(5)
        assert made.states == {"closed"}
        assert made.codes(forged) == ["unsigned"] * 2
        for worker in made.workers:
            (warned,) = worker.warnings
            assert "IMAGE_GEN_CONTROL_SECRET" in warned
            assert SECRET not in warned

    run(scene, 2, control_secret=SECRET)


def test_a_signed_order_is_obeyed() -> None:
    """It is obeyed by workers with the secret, and by those without one."""

    async def scene(made: Fleet) -> None:
        await made.add()
        order = made.give("open", "google", secret=SECRET)
        await asyncio.sleep(SOON)
        assert made.codes(order) == ["ok"] * 3

    run(scene, 2, control_secret=SECRET)


@pytest.mark.no_cover
def test_a_replayed_order_changes_nothing() -> None:
    """It is ignored while the replacing order lasts, afterwards, and once it has expired itself."""

    async def scene(made: Fleet) -> None:
        first = made.give("open", "google", 600, secret=SECRET)
        await asyncio.sleep(1)
        made.give("open", "google", 20, secret=SECRET)
        await asyncio.sleep(1)
        for pause in (1, 30, 600):
            replay(made, first)
            await asyncio.sleep(pause)
            assert made.states == ({"forced_open"} if pause == 1 else {"closed"})
        assert [each.warnings for each in made.workers] == [[], []]

    run(scene, 2, control_secret=SECRET)


def replay(made: Fleet, order: Order) -> None:
    """Store an order with the permissions of a worker, without the script."""
    key = order_keys(ADDRESS)[0]
    stored = made.redis.store.hashes.setdefault(key, {})
    stored[order.topic] = f"{made.now + 86_400_000_000} {order.to_json()}"
    stored["serial"] = str(made.now)


def test_an_expired_order_is_ignored() -> None:
    """The end is signed, so a longer life in Redis has no effect."""

    async def scene(made: Fleet) -> None:
        over = Order(action="open", target="google", ttl=60, by="ops", serial=made.now - 61_000_000)
        replay(made, over.signed(SECRET, ADDRESS.namespace))
        await asyncio.sleep(CHECK_IN)
        assert made.states == {"closed"}
        await asyncio.sleep(CHECK_IN)
        assert made.codes(over.signed(SECRET, ADDRESS.namespace)) == ["expired"] * 2

    run(scene, 2, control_secret=SECRET)


@pytest.mark.parametrize("text", ["", "{}", "null", "[" * 1000, '{"action": "open"}', "\\u0000"])
def test_a_damaged_order_changes_nothing(text: str) -> None:
    """Other orders are obeyed."""

    async def scene(made: Fleet) -> None:
        good = made.give("open", "openai")
        bad = Order(action="open", target="google", ttl=60, by="ops", serial=made.now + 10)
        assert made.put(bad, text) == 1
        await asyncio.sleep(3)
        assert made.states == {"closed"}
        assert made.codes(good) == ["ok"] * 2
        for worker in made.workers:
            assert len(worker.warnings) == 1

    run(scene, 2)


def test_a_worker_that_missed_a_short_order_ends_the_order_that_it_replaced() -> None:
    """The worker was disconnected from before the shorter order until after its end."""

    async def scene(made: Fleet) -> None:
        cut = made.workers[0]
        made.give("open", "google", 600)
        made.give("set", "IMAGE_GEN_BREAKER_FAIL_MAX", 600, value="7")
        await asyncio.sleep(SOON)
        made.redis.up = False
        made.redis.connections_of[cut.client._coordinator.worker][-1].break_off()  # type: ignore[union-attr]
        await asyncio.sleep(1)
        made.give("open", "google", 5)
        await asyncio.sleep(6)
        assert [worker.state for worker in made.workers] == ["forced_open", "closed", "closed"]
        made.redis.up = True
        await asyncio.sleep(10)
        assert made.states == {"closed"}
        assert cut.orders == ["IMAGE_GEN_BREAKER_FAIL_MAX=7"]
        assert len(cut.sink.of(OrderEnded)) == 1

    run(scene, 3)


def test_a_forged_order_does_not_hide_the_report_about_another_one() -> None:
    """The forged order has the serial of an order that all workers obey."""

    async def scene(made: Fleet) -> None:
        good = made.give("open", "google", secret=SECRET)
        await asyncio.sleep(SOON)
        forged = Order(
            action="open", target="openai", ttl=60, by="ops", serial=good.serial, signature="0" * 64
        )
        stored = made.redis.store.hashes[order_keys(ADDRESS)[0]]
        stored["breaker openai"] = f"{forged.ends_at} {forged.to_json()}"
        made.give("open", GOOGLE, secret=SECRET)
        await asyncio.sleep(CHECK_IN)
        assert made.codes(good) == ["ok"] * 2
        assert all(len(worker.warnings) == 1 for worker in made.workers)

    run(scene, 2, control_secret=SECRET)


def test_an_invalid_order_is_reported_with_its_cause() -> None:
    """A value does not fit the worker's settings, or the worker does not have the route."""

    async def scene(made: Fleet) -> None:
        value = made.give("set", "IMAGE_GEN_BREAKER_RESET_TIMEOUT", value="9000")
        route = made.give("open", "googel")
        await asyncio.sleep(5)
        assert made.codes(value) == ["invalid"] * 2
        assert made.codes(route) == ["no_route"] * 2
        for worker in made.workers:
            assert worker.orders == []
            assert len(worker.warnings) == 2

    run(scene, 2)


def test_reports_of_other_versions_and_forged_causes_are_read() -> None:
    """Older versions report codes only. Causes are printed in one line, without keys, and only the
    most frequent ones.
    """
    order = Order(action="open", target="googel", ttl=60, by="ops", serial=7)
    key = "sk-proj-" + "a1B2" * 12
    reports = [
        {"known": 7, "orders": {"7": "no_route"}},
        *[{"known": 7, "orders": {"7": "no_route"}, "causes": {"7": "no\nkey " + key}}] * 3,
        *(
            {"known": "7", "orders": {"7": "invalid"}, "causes": {"7": f"{number} " * 500}}
            for number in range(20)
        ),
        {"known": 7, "orders": {"7": "ok"}, "causes": "damaged"},
    ]
    found = [parse_report(str(n), json.dumps(each).encode(), 0) for n, each in enumerate(reports)]
    answer = SharedOrder(order, 60, found).answer
    assert answer.startswith("0 of 25 workers obey; 3 not: no key [")
    assert "; 1 not: no such route; " in answer
    assert answer.endswith("; 17 not, for other causes; 1 without an answer yet")
    assert key not in answer
    assert len(answer) < 1500


def test_only_the_latest_causes_are_reported() -> None:
    """A heartbeat stays small after many refusals."""

    async def scene(made: Fleet) -> None:
        for number in range(20):
            order = made.give("open", f"googel-{number}")
        await asyncio.sleep(CHECK_IN)
        (report,) = made.redis.store.hashes[order_keys(ADDRESS)[1]].values()
        found = json.loads(report)
        assert len(found["orders"]) == 20
        assert len(found["causes"]) == 5
        assert f"routes are {GOOGLE}, " in found["causes"][str(order.serial)]

    run(scene, 1)


def test_workers_with_control_off_report_it() -> None:
    """The operator's command counts such workers, and they log nothing."""

    async def scene(made: Fleet) -> None:
        await made.add(control="off")
        order = made.give("open", "google")
        await asyncio.sleep(SOON)
        assert sorted(map(str, made.codes(order))) == ["off", "ok", "ok"]
        assert made.workers[2].state == "closed"
        assert made.workers[2].warnings == []

    run(scene, 2)


def test_a_worker_that_leaves_is_not_waited_for() -> None:
    """The report of a worker is deleted when it unregisters."""

    async def scene(made: Fleet) -> None:
        await made.workers.pop().client.aclose()
        order = made.give("open", "google")
        await asyncio.sleep(SOON)
        assert made.codes(order) == ["ok"]

    run(scene, 2)


def test_of_two_orders_at_once_the_script_accepts_the_later_one() -> None:
    """The script rejects a serial that is not the highest, or not close to the present time."""

    async def scene(made: Fleet) -> None:
        order = made.give("open", "google")
        assert made.put(order) == 0
        assert made.put(replace(order, serial=order.serial - 1)) == 0
        assert made.put(replace(order, serial=order.serial + 61_000_000)) == 0
        assert made.put(replace(order, serial=order.serial + 1)) == 1

    run(scene, 1)


def test_a_forged_highest_serial_does_not_lock_operators_out() -> None:
    """A serial in the future is ignored, so the next order is stored."""

    async def scene(made: Fleet) -> None:
        key = order_keys(ADDRESS)[0]
        made.redis.store.hashes[key] = {"serial": str(made.now + 3_600_000_000)}
        order = made.give("open", "google")
        await asyncio.sleep(SOON)
        assert made.codes(order) == ["ok"]

    run(scene, 1)


def test_a_clock_that_steps_back_does_not_extend_an_order() -> None:
    """Workers measure the rest of an order themselves, and it is at most the order's lifetime."""

    async def scene(made: Fleet) -> None:
        made.give("open", "google", 60)
        await asyncio.sleep(30)
        made.redis.clock_skew = -3600.0
        await asyncio.sleep(29)
        assert made.states == {"forced_open"}
        await asyncio.sleep(2)
        assert made.states == {"closed"}

    run(scene, 2)


def test_the_last_orders_are_kept_for_a_week() -> None:
    """At most 100 of them, also those that have ended or were replaced."""

    async def scene(made: Fleet) -> None:
        history = made.redis.store.zsets.setdefault(history_key(ADDRESS), {})
        orders = [made.give("open", "google", 1, why=f"number {each}") for each in range(102)]
        kept = sorted(history, key=lambda each: history[each])
        assert [Order.parse(each) for each in kept] == orders[2:]
        await asyncio.sleep(7 * 24 * 3600 - 10)
        last = made.give("reset", "google")
        assert len(history) == 100
        await asyncio.sleep(20)
        after = made.give("open", "google")
        assert {Order.parse(each) for each in history} == {last, after}

    run(scene, 0)


def test_idle_workers_read_no_orders_again() -> None:
    """The answer to a heartbeat without changes does not repeat the orders."""

    async def scene(made: Fleet) -> None:
        for number in range(50):
            made.give("set", "IMAGE_GEN_GOOGLE_IPM", value=str(6000 + number))
        await asyncio.sleep(CHECK_IN)
        before = made.redis.trips
        await asyncio.sleep(10)
        assert made.redis.trips - before <= 2 * 10 * 2 * 1.3  # heartbeats and pings

    run(scene, 2)
