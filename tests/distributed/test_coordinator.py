"""The Redis coordinator: connecting, refused connections, waiting times of callers, forks, account
names.
"""

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

REFUSAL = "it refuses the user name or password, or requires one"


def now() -> float:
    return asyncio.get_running_loop().time()


def test_each_caller_gets_an_error_while_redis_refuses_the_first_connection() -> None:
    """Each caller causes one attempt to connect.

    Once Redis accepts it, the next caller connects.
    """

    async def scene(redis: FakeRedisCluster) -> None:
        coordinator = redis.coordinator()
        (factory,) = redis.factories
        factory.refuses = MisconfiguredError(REFUSAL)
        for _ in range(3):
            trips = redis.trips
            with pytest.raises(ConfigurationError, match=f"redis://fake:6379/0: {REFUSAL}"):
                await coordinator.ready()
            await asyncio.sleep(60)
            assert redis.trips == trips + 1
        factory.refuses = None
        await coordinator.ready()
        assert coordinator.joined
        assert redis.warnings == []
        await coordinator.aclose()

    run_with_fake_redis(scene)


@pytest.mark.parametrize("before", ["away", "joined"])
def test_a_refusal_after_the_start_is_reported_once_and_fails_no_call(before: str) -> None:
    """Redis refuses a reconnect: one warning is emitted, and the worker retries until Redis
    accepts.
    """

    async def scene(redis: FakeRedisCluster) -> None:
        redis.up = before == "joined"
        coordinator = redis.coordinator()
        (factory,) = redis.factories
        await coordinator.ready()
        await asyncio.sleep(10)
        factory.refuses = MisconfiguredError(REFUSAL)
        redis.stop()
        redis.up = True
        for _ in range(20):
            await asyncio.sleep(1)
            await coordinator.ready()
        assert [REFUSAL in text for text in redis.texts].count(True) == 1
        assert len(redis.texts) == {"away": 2, "joined": 1}[before]
        factory.refuses = None
        await asyncio.sleep(3)
        assert coordinator.joined
        await coordinator.aclose()

    run_with_fake_redis(scene)


@pytest.mark.parametrize(
    ("time_left", "delay"), [(float("inf"), 1.0), (0.9, 0.09), (4.0, 0.4), (600.0, 1.0)]
)
@pytest.mark.parametrize("fault", ["never opens", "opens late and answers nothing"])
def test_connecting_delays_a_caller_by_a_bounded_share_of_its_deadline(
    fault: str, time_left: float, delay: float
) -> None:
    """Connecting and the first answer together cost a tenth of the time left, at most 1 s.

    Later callers do not wait.
    """

    async def scene(redis: FakeRedisCluster) -> None:
        coordinator = redis.coordinator()
        (factory,) = redis.factories
        factory.takes, factory.stuck = (99, False) if fault == "never opens" else (0.6, True)
        began = now()
        await coordinator.ready(began + time_left)
        assert now() - began == pytest.approx(delay, abs=0.001)
        assert not coordinator.joined
        await asyncio.sleep(1)
        began = now()
        await coordinator.ready(began + time_left)
        assert now() == began
        await coordinator.aclose()

    run_with_fake_redis(scene)


def test_the_time_limit_of_a_command_begins_when_it_is_posted() -> None:
    """Redis takes 0.48 s for each answer, and a command posted during another one times out after
    0.5 s.

    Its limit would end 0.43 s later if it began when the command is sent.
    """

    async def scene(redis: FakeRedisCluster) -> None:
        async with started_workers(redis, 1) as (worker,):
            await asyncio.sleep(0.3)
            redis.latency = 0.24
            ends: dict[str, float] = {}

            def note(name: str) -> Callable[[object], None]:
                def noted(answer: object) -> None:
                    ends[f"{name} {answer is not None}"] = now()

                return noted

            began = now()
            step = worker.limiter.heartbeat().call
            assert worker.coordinator.post(step, note("first"))
            await asyncio.sleep(0.05)
            assert worker.coordinator.post(step, note("second"))
            await asyncio.sleep(1)
            assert ends == {
                "first True": pytest.approx(began + 0.48, abs=0.001),
                "second False": pytest.approx(began + 0.05 + 0.5, abs=0.001),
            }

    run_with_fake_redis(scene)


def test_a_forked_process_is_a_worker_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked process registers under its own name, which its commands carry."""

    async def scene(redis: FakeRedisCluster) -> None:
        worker = Worker(redis)
        await worker.coordinator.ready()
        parent = worker.coordinator.worker
        parents_task = worker.coordinator._task
        monkeypatch.setattr(os, "getpid", lambda: -1)
        await worker.coordinator.ready()
        child = worker.coordinator.worker
        assert child != parent
        assert worker.coordinator.joined
        assert set(redis.store.zsets["resilient_imagen:{google:pro}:seen"]) == {parent, child}
        step = worker.breaker.heartbeat().call
        assert step.arguments["worker"] == child
        await worker.coordinator.aclose()
        assert set(redis.store.zsets["resilient_imagen:{google:pro}:seen"]) == {parent}
        assert parents_task is not None
        parents_task.cancel()  # without a real fork the task of the parent still exists
        await asyncio.wait({parents_task})

    run_with_fake_redis(scene)


def test_account_ids_differ_by_key_and_url_and_reveal_neither() -> None:
    """Each pair of API key and base URL has its own account id."""
    urls = ("https://vendor.example/v1", "https://relay.example/v1")
    ids = {account_id(key, url) for key in ("sk-secret-1", "sk-secret-2") for url in urls}
    assert len(ids) == 4
    assert account_id("k", f"{urls[0]}/") == account_id("k", urls[0])
    assert all(len(each) == 8 and "secret" not in each for each in ids)


def test_names_of_shared_resources_include_the_account_id() -> None:
    """Routes and limiters of a provider with a known account get its id.

    Other names are unchanged.
    """

    async def scene(redis: FakeRedisCluster) -> None:
        accounts = {"google": "ab12", "openai": ""}
        coordinator = RedisCoordinator(ADDRESS, lambda *_: None, accounts=accounts)
        assert coordinator.resource_name("google:pro") == "google:pro@ab12"
        assert coordinator.resource_name("google") == "google@ab12"
        assert coordinator.resource_name("openai:flare") == "openai:flare"
        assert coordinator.resource_name("mine:own") == "mine:own"

    run_with_fake_redis(scene)


def test_the_namespace_is_removed_from_the_url() -> None:
    """The namespace is a prefix of the keys in Redis, and is not passed to redis-py."""
    address = Address.parse("redis://:pw@host/3?db=4&namespace=storyboards.2_x")
    assert address.namespace == "resilient_imagen:storyboards.2_x"
    assert address.url == "redis://:pw@host/3?db=4"
    assert "pw" not in repr(address)


def test_an_error_while_connecting_fails_no_caller() -> None:
    """`ready` returns, and one warning is emitted, if Redis is unavailable or connecting raises any
    error.
    """

    async def scene(redis: FakeRedisCluster) -> None:
        for fault in (StoreUnavailableError("refused"), ZeroDivisionError()):
            coordinator = redis.coordinator()
            redis.factories[-1].refuses = fault
            await coordinator.ready()
            await asyncio.sleep(10)
            assert not coordinator.joined
            await coordinator.aclose()
        assert redis.warnings == ["redis_away"] * 2
        assert "(refused)" in redis.texts[0]

    run_with_fake_redis(scene)
