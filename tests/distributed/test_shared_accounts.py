"""Routes with several accounts and a real Redis: processes share the limit of each account."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from redis_kit import RedisServer
from steps_kit import STEP

from resilient_imagen import ImageClient, Reason, Settings
from resilient_imagen.providers.base import Endpoint
from resilient_imagen.testing import FakeProvider

pytestmark = pytest.mark.redis

INTERVAL = 0.05


def accounts() -> list[FakeProvider]:
    found = [FakeProvider(name, latency=0.001) for name in ("google", "google_b")]
    for provider in found:
        provider.endpoint = Endpoint("google", account=provider.name)
    return found


async def serve(server: RedisServer, made: list[list[FakeProvider]], calls: int) -> list[str]:
    """Let one client for each pair of accounts serve calls; return the providers that served."""
    settings = Settings(
        redis_url=server.url, routes=STEP, ipm=60 / INTERVAL, max_concurrent=50, max_retries=0
    )
    clients = [ImageClient(settings, providers=providers) for providers in made]
    async with asyncio.timeout(60):
        for client in clients:
            await client.warm_up()
        results = await asyncio.gather(
            *(client.generate("x") for _ in range(calls) for client in clients)
        )
    for client in clients:
        await client.aclose()
    return [result.provider for result in results]


def test_processes_share_the_limit_of_each_account(server: RedisServer) -> None:
    """Two clients use both accounts, and no account receives requests faster than its limit."""
    made = [accounts(), accounts()]
    served = asyncio.run(serve(server, made, 15))
    assert min(served.count("google"), served.count("google_b")) >= 8
    for account in range(2):
        times = sorted(sent.at for pair in made for sent in pair[account].sent)
        # Places are evenly spaced; a busy machine delays requests, but never lets two share one.
        assert times[-1] - times[0] >= (len(times) - 2) * INTERVAL
        assert all(later >= earlier for earlier, later in pairwise(times))


def test_an_account_without_credit_is_skipped_by_all_processes(server: RedisServer) -> None:
    """The account's circuit is open in every process, and the other account serves all calls."""
    made = [accounts(), accounts()]
    for google, _ in made:
        google.fail(Reason.QUOTA_EXHAUSTED, status=429, latency=0)
    assert set(asyncio.run(serve(server, made, 6))) == {"google_b"}
