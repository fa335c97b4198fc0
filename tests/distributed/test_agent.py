"""The background task: joining, refusals, how long anybody waits, forks, accounts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import pytest
from fake_redis import ADDRESS, FakeRedisCluster
from fleet_kit import Worker, run_with_fake_redis, started_workers

from resilient_imagen.distributed import Address, RedisCoordinator
from resilient_imagen.distributed.store import MisconfiguredError, StoreUnavailableError
from resilient_imagen.errors import ConfigurationError
from resilient_imagen.providers.base import account_id

REFUSAL = "it refuses the user name or password, or wants one"


def now() -> float:
    return asyncio.get_running_loop().time()


def test_a_refusal_at_the_start_is_an_error_for_each_caller_until_it_is_lifted() -> None:
    """Nothing is tried in between; once Redis agrees, the next caller joins."""

    async def scene(sea: FakeRedisCluster) -> None:
        coordinator = sea.coordinator()
        (door,) = sea.doors
        door.refuses = MisconfiguredError(REFUSAL)
        for _ in range(3):
            trips = sea.trips
            with pytest.raises(ConfigurationError, match=f"redis://sea:6379/0: {REFUSAL}"):
                await coordinator.ready()
            await asyncio.sleep(60)
            assert sea.trips == trips + 1
        door.refuses = None
        await coordinator.ready()
        assert coordinator.joined
        assert sea.warnings == []
        await coordinator.aclose()

    run_with_fake_redis(scene)


@pytest.mark.parametrize("before", ["away", "joined"])
def test_a_refusal_later_on_stops_nobody(before: str) -> None:
    """A refusal is reported once, and commands are tried again until it is lifted."""

    async def scene(sea: FakeRedisCluster) -> None:
        sea.up = before == "joined"
        coordinator = sea.coordinator()
        (door,) = sea.doors
        await coordinator.ready()
        await asyncio.sleep(10)
        door.refuses = MisconfiguredError(REFUSAL)
        sea.stop()
        sea.up = True
        for _ in range(20):
            await asyncio.sleep(1)
            await coordinator.ready()
        assert [REFUSAL in text for text in sea.texts].count(True) == 1
        assert len(sea.texts) == {"away": 2, "joined": 1}[before]
        door.refuses = None
        await asyncio.sleep(3)
        assert coordinator.joined
        await coordinator.aclose()

    run_with_fake_redis(scene)


@pytest.mark.parametrize(
    ("patience", "loses"), [(float("inf"), 1.0), (0.9, 0.09), (4.0, 0.4), (600.0, 1.0)]
)
@pytest.mark.parametrize("trouble", ["never opens", "opens late and answers nothing"])
def test_joining_takes_a_caller_a_second_at_most_and_a_small_share_of_its_time(
    trouble: str, patience: float, loses: float
) -> None:
    """Both ways to the first answer together; those who come later lose nothing."""

    async def scene(sea: FakeRedisCluster) -> None:
        coordinator = sea.coordinator()
        (door,) = sea.doors
        door.takes, door.stuck = (99, False) if trouble == "never opens" else (0.6, True)
        began = now()
        await coordinator.ready(began + patience)
        assert now() - began == pytest.approx(loses, abs=0.001)
        assert not coordinator.joined
        await asyncio.sleep(1)
        began = now()
        await coordinator.ready(began + patience)
        assert now() == began
        await coordinator.aclose()

    run_with_fake_redis(scene)


def test_who_asks_while_another_answer_is_awaited_waits_no_longer_for_that() -> None:
    """Redis takes 0.48 s for each answer. Two ask, one after the other: each loses half a second.

    Were the second one's time counted from when its turn came, it would be 0.48 s more.
    """

    async def scene(sea: FakeRedisCluster) -> None:
        async with started_workers(sea, 1) as (worker,):
            await asyncio.sleep(0.3)
            sea.latency = 0.24
            ends: dict[str, float] = {}

            def note(name: str) -> Callable[[object], None]:
                def noted(answer: object) -> None:
                    ends[f"{name} {answer is not None}"] = now()

                return noted

            began = now()
            step = worker.pacer.heartbeat().call
            assert worker.fleet.post(step, note("first"))
            await asyncio.sleep(0.05)
            assert worker.fleet.post(step, note("second"))
            await asyncio.sleep(1)
            assert ends == {
                "first True": pytest.approx(began + 0.48, abs=0.001),
                "second False": pytest.approx(began + 0.05 + 0.5, abs=0.001),
            }

    run_with_fake_redis(scene)


def test_a_process_that_was_forked_is_another_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked process joins under its own name, which its commands carry."""

    async def scene(sea: FakeRedisCluster) -> None:
        worker = Worker(sea)
        await worker.fleet.ready()
        parent = worker.fleet.worker
        parents_task = worker.fleet._task
        monkeypatch.setattr(os, "getpid", lambda: -1)
        await worker.fleet.ready()
        child = worker.fleet.worker
        assert child != parent
        assert worker.fleet.joined
        assert set(sea.store.zsets["resilient_imagen:{google:pro}:seen"]) == {parent, child}
        step = worker.gate.heartbeat().call
        assert step.arguments["worker"] == child
        await worker.fleet.aclose()
        assert set(sea.store.zsets["resilient_imagen:{google:pro}:seen"]) == {parent}
        assert parents_task is not None
        parents_task.cancel()  # here it was no fork, and the parent's is still there
        await asyncio.wait({parents_task})

    run_with_fake_redis(scene)


def test_accounts_are_distinguished_by_key_and_address_and_reveal_neither() -> None:
    """Each pair of key and base URL has its own account id."""
    urls = ("https://vendor.example/v1", "https://relay.example/v1")
    ids = {account_id(key, url) for key in ("sk-secret-1", "sk-secret-2") for url in urls}
    assert len(ids) == 4
    assert account_id("k", f"{urls[0]}/") == account_id("k", urls[0])
    assert all(len(each) == 8 and "secret" not in each for each in ids)


def test_what_is_shared_goes_by_the_account_where_it_is_known() -> None:
    """Routes and pace of one provider alike; others keep their name."""

    async def scene(sea: FakeRedisCluster) -> None:
        accounts = {"google": "ab12", "openai": ""}
        coordinator = RedisCoordinator(ADDRESS, lambda *_: None, accounts=accounts)
        assert coordinator.resource_name("google:pro") == "google:pro@ab12"
        assert coordinator.resource_name("google") == "google@ab12"
        assert coordinator.resource_name("openai:flare") == "openai:flare"
        assert coordinator.resource_name("mine:own") == "mine:own"

    run_with_fake_redis(scene)


def test_an_address_keeps_its_namespace_to_itself() -> None:
    """It is what keys begin with, and no part of the URL that redis-py sees."""
    address = Address.parse("redis://:pw@host/3?db=4&namespace=storyboards.2_x")
    assert address.namespace == "resilient_imagen:storyboards.2_x"
    assert address.url == "redis://:pw@host/3?db=4"
    assert "pw" not in repr(address)


def test_a_link_error_of_any_kind_is_no_caller_s_business() -> None:
    """Redis away at the start, and a bug of ours: `ready` returns, one event."""

    async def scene(sea: FakeRedisCluster) -> None:
        for trouble in (StoreUnavailableError("refused"), ZeroDivisionError()):
            coordinator = sea.coordinator()
            sea.doors[-1].refuses = trouble
            await coordinator.ready()
            await asyncio.sleep(10)
            assert not coordinator.joined
            await coordinator.aclose()
        assert sea.warnings == ["redis_away"] * 2
        assert "(refused)" in sea.texts[0]

    run_with_fake_redis(scene)
