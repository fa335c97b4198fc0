"""Orders for a fleet: eight clients on one fake Redis, in virtual time, with the real scripts."""

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
from resilient_imagen.control.issue import issued
from resilient_imagen.distributed import order_call
from resilient_imagen.distributed.shared_orders import order_keys
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
    """Workers, and the operators' tool."""

    def __init__(self, sea: FakeRedisCluster) -> None:
        self.sea = sea
        self.workers: list[Worker] = []
        self.given: list[Order] = []

    async def add(self, count: int = 1, **settings: Any) -> None:
        for _ in range(count):
            google, sink = FakeProvider("google"), RecordingSink()
            made = Settings(redis_url="redis://sea", ipm=6000, max_retries=0, **settings)
            providers = [google, FakeProvider("openai")]
            started = ImageClient(made, providers=providers, sinks=[sink])
            self.workers.append(Worker(started, google, sink))
            await started.warm_up()

    @property
    def now(self) -> int:
        return round((START + self.sea.loop.time() + self.sea.clock_skew) * 1e6)

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
        """Store an order as it is, and let the workers know."""
        call = order_call(
            ADDRESS,
            order.topic,
            order.to_json() if text is None else text,
            serial=order.serial,
            ends=order.ends_at,
            replaced=[each.topic for each in self.given if order.replaces(each)],
        )
        answer = int(self.sea.store.take(call))
        self.sea.spread()
        return answer

    def codes(self, order: Order) -> list[str | None]:
        """Return what each worker has reported about an order."""
        stored = self.sea.store.hashes.get(order_keys(ADDRESS)[1], {})
        reports = [json.loads(report)["orders"] for report in stored.values()]
        return [report.get(str(order.serial)) for report in reports]

    @property
    def states(self) -> set[str]:
        return {worker.state for worker in self.workers}


@contextlib.asynccontextmanager
async def fleet(
    sea: FakeRedisCluster, count: int = WORKERS, **settings: Any
) -> AsyncIterator[Fleet]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "_new_coordinator", lambda *_: sea.coordinator())
        made = Fleet(sea)
        try:
            await made.add(count, **settings)
            yield made
        finally:
            for worker in made.workers:
                await worker.client.aclose()


def run(scene: Callable[[Fleet], Awaitable[None]], count: int = WORKERS, **settings: Any) -> None:
    async def main(sea: FakeRedisCluster) -> None:
        async with fleet(sea, count, **settings) as made:
            await scene(made)

    run_with_fake_redis(main)


def test_all_workers_obey_at_once_and_report_it() -> None:
    """The message is read within milliseconds, and the report follows without a heartbeat."""

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


def test_a_lost_message_is_made_up_for_by_the_next_heartbeat() -> None:
    """Within two seconds, as every check-in reads orders that are new."""

    async def scene(made: Fleet) -> None:
        for link in made.sea.links:
            link.deaf = True
        order = made.give("open", "google")
        await asyncio.sleep(CHECK_IN)
        assert made.states == {"forced_open"}
        await asyncio.sleep(CHECK_IN)
        assert made.codes(order) == ["ok"] * WORKERS

    run(scene)


def test_an_order_ends_by_itself_while_redis_is_away() -> None:
    """The end is the worker's own; another one that starts meanwhile does not know the order."""

    async def scene(made: Fleet) -> None:
        made.give("open", "google", 30)
        made.give("set", "IMAGE_GEN_BREAKER_FAIL_MAX", 40, value="7")
        await asyncio.sleep(SOON)
        made.sea.stop()
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


def test_a_store_that_was_emptied_ends_nothing() -> None:
    """Workers keep what they heard; the operator repeats the order for those that start later."""

    async def scene(made: Fleet) -> None:
        made.give("open", "google", 60)
        await asyncio.sleep(SOON)
        made.sea.stop()
        made.sea.restart(empty=True)
        await asyncio.sleep(5)
        assert made.states == {"forced_open"}
        await made.add()
        assert made.workers[-1].state == "closed"
        made.give("open", "google", 60)
        await asyncio.sleep(SOON)
        assert made.states == {"forced_open"}

    run(scene, 2)


def test_a_worker_that_starts_later_obeys_before_its_first_call() -> None:
    """For the rest of the order's time, and not an order that was withdrawn."""

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


def test_a_worker_without_redis_hears_of_it_when_it_is_back() -> None:
    """It obeys for what is left, and the later of two orders."""

    async def scene(made: Fleet) -> None:
        cut = made.workers[0]
        made.give("open", "google", 600)
        await asyncio.sleep(SOON)
        made.sea.up = False
        made.sea.links_of[cut.client._coordinator.worker][-1].break_off()  # type: ignore[union-attr]
        await asyncio.sleep(1)
        made.sea.up = True
        made.give("close", "google")
        assert cut.state == "forced_open"
        await asyncio.sleep(10)
        assert made.states == {"closed"}

    run(scene, 3)


def test_close_closes_the_shared_circuit() -> None:
    """All workers send again, and the circuit may trip again for all of them."""

    async def scene(made: Fleet) -> None:
        await outage(made)
        made.give("close", "google")
        await asyncio.sleep(CHECK_IN)
        assert made.states == {"closed"}
        await asyncio.sleep(5)
        assert made.states == {"closed"}
        await outage(made)

    run(scene)


async def outage(made: Fleet) -> None:
    """Let one worker's calls open the shared circuit."""
    failing = made.workers[0]
    failing.google.fail(Reason.OVERLOADED, times=3)
    for _ in range(3):
        await failing.client.generate("a lighthouse")
    await asyncio.sleep(CHECK_IN)
    assert made.states == {"open"}


def test_held_closed_all_workers_try() -> None:
    """The shared circuit opens without effect, and takes over at the end."""

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


def test_the_shared_pace_follows_an_order() -> None:
    """Two workers share 60 a minute, then 6; the first images show the new pace."""

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
        assert "fleet_settings" not in made.sea.warnings

    run(scene, 2)


def test_settings_that_change_everywhere_are_not_reported_as_different() -> None:
    """Some workers begin or end an order a moment before others, which is no mistake."""

    async def scene(made: Fleet) -> None:
        made.give("set", "IMAGE_GEN_BREAKER_FAIL_MAX", 30, value="7")
        made.give("set", "IMAGE_GEN_IPM", 30, value="600")
        for _ in range(20):
            await made.workers[0].client.generate("a lighthouse")
            await asyncio.sleep(2)
        assert made.sea.warnings == []

    run(scene, 3)


def test_settings_that_one_worker_changed_are_reported_as_different() -> None:
    """Its own program has ordered it, so that it stays different."""

    async def scene(made: Fleet) -> None:
        order = Order(
            action="set", target="IMAGE_GEN_BREAKER_FAIL_MAX", value="7", ttl=600, by="me", serial=9
        )
        made.workers[0].client.obey(order)
        await asyncio.sleep(30)
        assert set(made.sea.warnings) == {"fleet_settings"}

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
    """It is refused with one warning, which the operator's tool can read, too."""

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
    """By workers with the secret, and by those without one."""

    async def scene(made: Fleet) -> None:
        await made.add()
        order = made.give("open", "google", secret=SECRET)
        await asyncio.sleep(SOON)
        assert made.codes(order) == ["ok"] * 3

    run(scene, 2, control_secret=SECRET)


def test_a_replayed_order_changes_nothing() -> None:
    """Not while the order that replaced it lasts, not afterwards, and not once it is over."""

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
    """Store an order with the rights of a worker, past the script."""
    key = order_keys(ADDRESS)[0]
    stored = made.sea.store.hashes.setdefault(key, {})
    stored[order.topic] = f"{made.now + 86_400_000_000} {order.to_json()}"
    stored["serial"] = str(made.now)


def test_an_order_that_was_over_when_it_was_read_changes_nothing() -> None:
    """Its end is signed, so that a longer life in the store does not help."""

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
    """Others beside it are obeyed."""

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


def test_a_worker_that_missed_a_shorter_order_ends_the_longer_one_that_it_replaced() -> None:
    """The worker was without Redis from before the shorter order until after its end."""

    async def scene(made: Fleet) -> None:
        cut = made.workers[0]
        made.give("open", "google", 600)
        made.give("set", "IMAGE_GEN_BREAKER_FAIL_MAX", 600, value="7")
        await asyncio.sleep(SOON)
        made.sea.up = False
        made.sea.links_of[cut.client._coordinator.worker][-1].break_off()  # type: ignore[union-attr]
        await asyncio.sleep(1)
        made.give("open", "google", 5)
        await asyncio.sleep(6)
        assert [worker.state for worker in made.workers] == ["forced_open", "closed", "closed"]
        made.sea.up = True
        await asyncio.sleep(10)
        assert made.states == {"closed"}
        assert cut.orders == ["IMAGE_GEN_BREAKER_FAIL_MAX=7"]
        assert len(cut.sink.of(OrderEnded)) == 1

    run(scene, 3)


def test_a_forged_order_does_not_hide_the_report_about_another_one() -> None:
    """It has the serial of an order that all workers obey."""

    async def scene(made: Fleet) -> None:
        good = made.give("open", "google", secret=SECRET)
        await asyncio.sleep(SOON)
        forged = Order(
            action="open", target="openai", ttl=60, by="ops", serial=good.serial, signature="0" * 64
        )
        stored = made.sea.store.hashes[order_keys(ADDRESS)[0]]
        stored["breaker openai"] = f"{forged.ends_at} {forged.to_json()}"
        made.give("open", GOOGLE, secret=SECRET)
        await asyncio.sleep(CHECK_IN)
        assert made.codes(good) == ["ok"] * 2
        assert all(len(worker.warnings) == 1 for worker in made.workers)

    run(scene, 2, control_secret=SECRET)


def test_an_invalid_order_changes_nothing_and_says_why() -> None:
    """A value that does not fit to the worker's settings, and a route that it does not have."""

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


def test_workers_that_obey_no_orders_say_so() -> None:
    """The operator's tool can count them, and their log stays quiet."""

    async def scene(made: Fleet) -> None:
        await made.add(control="off")
        order = made.give("open", "google")
        await asyncio.sleep(SOON)
        assert sorted(map(str, made.codes(order))) == ["off", "ok", "ok"]
        assert made.workers[2].state == "closed"
        assert made.workers[2].warnings == []

    run(scene, 2)


def test_a_worker_that_leaves_is_not_waited_for() -> None:
    """Its report goes with it."""

    async def scene(made: Fleet) -> None:
        await made.workers.pop().client.aclose()
        order = made.give("open", "google")
        await asyncio.sleep(SOON)
        assert made.codes(order) == ["ok"]

    run(scene, 2)


def test_of_two_orders_at_once_the_script_accepts_the_later_one() -> None:
    """An order with a serial that is not the highest, or not of about now, is not stored."""

    async def scene(made: Fleet) -> None:
        order = made.give("open", "google")
        assert made.put(order) == 0
        assert made.put(replace(order, serial=order.serial - 1)) == 0
        assert made.put(replace(order, serial=order.serial + 61_000_000)) == 0
        assert made.put(replace(order, serial=order.serial + 1)) == 1

    run(scene, 1)


def test_a_forged_highest_serial_does_not_lock_operators_out() -> None:
    """It is of the future, so that the next order takes its place."""

    async def scene(made: Fleet) -> None:
        key = order_keys(ADDRESS)[0]
        made.sea.store.hashes[key] = {"serial": str(made.now + 3_600_000_000)}
        order = made.give("open", "google")
        await asyncio.sleep(SOON)
        assert made.codes(order) == ["ok"]

    run(scene, 1)


def test_a_clock_that_was_put_back_lengthens_no_order() -> None:
    """What is left is at most the lifetime of the order, and workers count it themselves."""

    async def scene(made: Fleet) -> None:
        made.give("open", "google", 60)
        await asyncio.sleep(30)
        made.sea.clock_skew = -3600.0
        await asyncio.sleep(29)
        assert made.states == {"forced_open"}
        await asyncio.sleep(2)
        assert made.states == {"closed"}

    run(scene, 2)


def test_idle_workers_read_no_orders_again() -> None:
    """A check-in without news has a short answer, however many orders are in force."""

    async def scene(made: Fleet) -> None:
        for number in range(50):
            made.give("set", "IMAGE_GEN_GOOGLE_IPM", value=str(6000 + number))
        await asyncio.sleep(CHECK_IN)
        before = made.sea.trips
        await asyncio.sleep(10)
        assert made.sea.trips - before <= 2 * 10 * 2 * 1.3  # heartbeats and pings

    run(scene, 2)
