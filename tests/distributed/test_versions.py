"""Processes of different versions and settings that share one Redis."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_redis import FakeRedisCluster
from fleet_kit import (
    Worker,
    messages_delivered,
    open_breaker,
    run_with_fake_redis,
    started_workers,
    states,
)

from resilient_imagen.distributed import scripts
from resilient_imagen.reasons import Reason

CIRCUIT = "resilient_imagen:{google:pro}:circuit"
PACE = "resilient_imagen:{google}:pace"


def test_data_of_a_newer_protocol_are_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An older worker works locally beside a newer one, warns once, and writes nothing."""

    async def scene(redis: FakeRedisCluster) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(scripts, "PROTOCOL", scripts.PROTOCOL + 1)
            async with started_workers(redis, 1):
                pass
        redis.warnings.clear()
        redis.texts.clear()
        # The newer worker does not unregister, and sends nothing from now on.
        for key in ("{google:pro}:seen", "{google}:pacers"):
            scores = redis.store.zsets.setdefault(f"resilient_imagen:{key}", {})
            scores["host/1/1"] = redis.store._now() * 1e6
        circuit, pace = dict(redis.store.hashes[CIRCUIT]), dict(redis.store.hashes[PACE])
        async with started_workers(redis, 2) as workers:
            assert all(worker.coordinator.joined for worker in workers)
            await workers[0].fail(3)
            await messages_delivered()
            assert [worker.state for worker in workers] == ["open", "closed"]
            assert redis.store.hashes[CIRCUIT] == circuit
            assert redis.store.hashes[PACE] == pace
            assert redis.warnings == ["redis_protocol"] * 2
            assert f"protocol {scripts.PROTOCOL + 1}" in redis.texts[0]
            assert not workers[0].limiter.snapshot()["shared"]

            await asyncio.sleep(
                70
            )  # the newer worker sends nothing: after a rollback all share again
            await workers[0].request()
            await open_breaker(workers)
            assert workers[0].limiter.snapshot()["shared"]

    run_with_fake_redis(scene)


def test_data_of_an_older_protocol_are_replaced() -> None:
    """Data without a version, and a state that this version does not know, do not stop a worker."""

    async def scene(redis: FakeRedisCluster) -> None:
        redis.store.hashes[CIRCUIT] = {"state": "paused", "generation": "7", "version": "9"}
        redis.store.hashes[PACE] = {"next": "1", "at": "1"}
        async with started_workers(redis, 2) as workers:
            await open_breaker(workers)
            assert redis.warnings == []

    run_with_fake_redis(scene)


@pytest.mark.parametrize(
    ("setting", "mine", "other", "named"),
    [
        ("fail_max", 3, 5, "IMAGE_GEN_BREAKER_FAIL_MAX is 3 here and 5 there"),
        ("half_open_calls", 1, 3, "IMAGE_GEN_BREAKER_HALF_OPEN_CALLS is 1 here and 3 there"),
        ("reset_timeout", 60.0, 90.0, "IMAGE_GEN_BREAKER_RESET_TIMEOUT is 60 here and 90 there"),
    ],
)
def test_different_settings_are_named_in_one_warning(
    setting: str, mine: Any, other: Any, named: str
) -> None:
    """Each of two workers warns once, with the variable, its own value and the other worker's
    value.
    """

    async def scene(redis: FakeRedisCluster) -> None:
        workers = [Worker(redis, **{setting: value}) for value in (mine, other)]
        for worker in workers:
            await worker.coordinator.ready()
        await asyncio.sleep(30)
        assert redis.warnings == ["fleet_settings"] * 2
        assert any(named in text for text in redis.texts)
        for worker in workers:
            await worker.coordinator.aclose()

    run_with_fake_redis(scene)


def test_a_worker_in_shadow_mode_does_not_vote() -> None:
    """Failures of a worker in shadow mode do not open the breaker of another worker."""

    async def scene(redis: FakeRedisCluster) -> None:
        shadow, *others = [Worker(redis, mode=mode) for mode in ("shadow", "on", "on")]
        for worker in (shadow, *others):
            await worker.coordinator.ready()
        await shadow.fail(5)
        await shadow.fail(1, Reason.QUOTA_EXHAUSTED)
        await messages_delivered()
        assert states(others) == {"closed"}
        for worker in (shadow, *others):
            await worker.coordinator.aclose()

    run_with_fake_redis(scene)


@pytest.mark.parametrize(
    ("hosts", "state"),
    [(("a", "a", "b", "b"), "closed"), (("a", "b", "b", "b"), "open"), (("a",) * 4, "open")],
)
def test_failures_of_one_host_count_as_one_for_the_quorum(
    hosts: tuple[str, ...], state: str
) -> None:
    """Connection failures of two workers on one host may be local to it; on two hosts they open for
    all.

    If all workers are on one host, two processes are sufficient.
    """

    async def scene(redis: FakeRedisCluster) -> None:
        workers = [Worker(redis, host=host) for host in hosts]
        for worker in workers:
            await worker.coordinator.ready()
            await worker.request()
        for worker in workers[:2]:
            await worker.fail(2, Reason.CONNECTION)
        await messages_delivered()
        assert states(workers[2:]) == {state}
        for worker in workers:
            await worker.coordinator.aclose()

    run_with_fake_redis(scene)
