"""The control file: one or several processes obey the orders in it within a second."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from cli_kit import python

from resilient_imagen import ConfigurationError, ImageClient, Settings
from resilient_imagen.control import Order, control_file
from resilient_imagen.control.control_file import NAMESPACE, read_orders, write_order
from resilient_imagen.telemetry.events import OperatorWarning, OrderApplied
from resilient_imagen.testing import FakeProvider, RecordingSink

SECRET = "a secret of the operators"
PATIENCE = 30.0
THREAD = "resilient_imagen control file"


def order(action: str, target: str, **fields: Any) -> Order:
    serial = time.time_ns() // 1000
    return Order(
        **{"action": action, "target": target, "ttl": 60, "by": "ops", "serial": serial, **fields}
    )


def issue(made: Order) -> Callable[[Iterable[Order], int], Order]:
    return lambda known, now: made


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poll the file a hundred times a second."""
    monkeypatch.setattr(control_file, "PERIOD", 0.01)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.json"


def opened(path: Path, **settings: Any) -> tuple[ImageClient, RecordingSink]:
    sink = RecordingSink()
    providers = [FakeProvider("google", latency=0.0), FakeProvider("openai", latency=0.0)]
    chosen = Settings(control_file=str(path), ipm=6000, **settings)
    return ImageClient(chosen, providers=providers, sinks=[sink]), sink


def rewrite(path: Path, content: bytes | list[Order]) -> None:
    """Replace or create the file atomically, so that no watcher reads half of it."""
    if isinstance(content, list):
        content = json.dumps({"orders": [each.to_dict() for each in content]}).encode()
    beside = path.with_suffix(".new")
    beside.write_bytes(content)
    beside.replace(path)


async def until(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up
        await asyncio.sleep(0.005)


def state(client: ImageClient) -> str:
    return client.snapshot()["routes"][0]["breaker"]["state"]


def warnings(sink: RecordingSink) -> list[str]:
    return [each.message for each in sink.of(OperatorWarning) if "control" in each.code]


def test_a_process_obeys_a_file_that_appears_later(path: Path) -> None:
    """The file may be created after the start; each change is obeyed without a call in between."""

    async def main() -> None:
        client, sink = opened(path)
        async with client:
            assert (await client.generate("a lighthouse")).provider == "google"
            write_order(path, issue(order("open", "google")))
            await until(lambda: state(client) == "forced_open")
            assert (await client.generate("a lighthouse")).provider == "openai"
            write_order(path, issue(order("reset", "google")))
            await until(lambda: state(client) == "closed")
            assert warnings(sink) == []
        await until(lambda: THREAD not in {thread.name for thread in threading.enumerate()})

    asyncio.run(main())


def test_a_missing_folder_is_reported_once(tmp_path: Path) -> None:
    """The variable may be mistyped. A process obeys the file if its folder is created later."""
    path = tmp_path / "missing" / "control.json"

    async def main() -> None:
        client, sink = opened(path)
        async with client:
            await client.warm_up()
            await until(lambda: warnings(sink))
            path.parent.mkdir()
            write_order(path, issue(order("open", "google")))
            await until(lambda: state(client) == "forced_open")
            (warned,) = warnings(sink)
            assert f"FILE: {path}: the folder {path.parent} does not exist" in warned

    asyncio.run(main())


def test_successive_loops_obey_one_file(path: Path) -> None:
    """The next loop obeys an order that was written between the loops, and later changes."""
    client, _ = opened(path)

    async def ask() -> str:
        await client.warm_up()
        await until(lambda: state(client) == "forced_open")
        return (await client.generate("a lighthouse")).provider

    async def close() -> None:
        await client.warm_up()
        write_order(path, issue(order("close", "google")))
        await until(lambda: state(client) == "closed")
        await client.aclose()

    asyncio.run(client.warm_up())
    write_order(path, issue(order("open", "google")))
    assert asyncio.run(ask()) == "openai"
    asyncio.run(close())


FORKED = """
import asyncio, os, sys
from resilient_imagen import ImageClient, Settings
from resilient_imagen.testing import FakeProvider

client = ImageClient(Settings(control_file="control.json"), providers=[FakeProvider("google")])

async def obeys():
    await client.warm_up()
    while client.snapshot()["routes"][0]["breaker"]["state"] != "forced_open":
        await asyncio.sleep(0.01)

asyncio.run(client.warm_up())
os.replace("later.json", "control.json")
child = os.fork()
asyncio.run(obeys())
if child:
    sys.exit(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_starts_its_own_watcher(tmp_path: Path) -> None:
    """The parent's watcher thread does not exist in the child, which starts a new one."""
    write_order(tmp_path / "later.json", issue(order("open", "google")))
    done = python("-W", "ignore", "-c", FORKED, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_client_that_is_dropped_ends_its_thread(path: Path) -> None:
    """The watcher thread does not keep the client alive."""
    client, _ = opened(path)
    asyncio.run(client.warm_up())
    gone = weakref.ref(client)
    del client
    give_up = time.monotonic() + PATIENCE
    while gone() is not None or THREAD in {thread.name for thread in threading.enumerate()}:
        assert time.monotonic() < give_up
        gc.collect()
        time.sleep(0.01)


def test_with_a_secret_only_signed_orders_are_obeyed(path: Path) -> None:
    """Unsigned orders, orders for a fleet and modified ones are ignored with a warning."""

    async def main() -> None:
        client, sink = opened(path, control_secret=SECRET)
        signed = order("open", "google", serial=order("open", "google").serial - 5000)
        signed = signed.signed(SECRET, NAMESPACE)
        forged = [
            order("open", "google"),
            order("open", "google").signed(SECRET, "resilient_imagen"),
            order("open", "openai", signature=signed.signature),
        ]
        async with client:
            await client.warm_up()
            rewrite(path, forged)
            await until(lambda: len(warnings(sink)) == 2)  # two read alike
            assert state(client) == "closed"
            rewrite(path, [signed])
            await until(lambda: state(client) == "forced_open")
            assert all("IMAGE_GEN_CONTROL_SECRET" in each for each in warnings(sink))
            assert client.snapshot()["control"]["signed"]

    asyncio.run(main())


def test_expired_and_future_orders_are_ignored(path: Path) -> None:
    """The file has the time of each order, so a process that starts later ignores expired ones."""

    async def main() -> None:
        now = time.time_ns() // 1000
        over = order("open", "google", serial=now - 61_000_000)
        early = order("open", "openai", serial=now + 3_600_000_000)
        last = order("set", "IMAGE_GEN_BREAKER_FAIL_MAX", value="7")
        rewrite(path, [over, early, last])
        client, sink = opened(path)
        async with client:
            await client.warm_up()
            await until(lambda: sink.of(OrderApplied))
            assert [each.order for each in sink.of(OrderApplied)] == [str(last)]
            (warned,) = warnings(sink)
            assert warned.endswith("its serial is a time in the future")

    asyncio.run(main())


def test_control_off_reads_no_file(path: Path) -> None:
    """No watcher thread is started."""

    async def main() -> None:
        write_order(path, issue(order("open", "google")))
        client, _ = opened(path, control="off")
        before = set(threading.enumerate())  # a thread of an earlier test may still end
        async with client:
            await client.warm_up()
            started = set(threading.enumerate()) - before
            assert THREAD not in {thread.name for thread in started}
            assert (await client.generate("a lighthouse")).provider == "google"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", 'the file must be JSON: {"orders": [...]}'),
        (b"[" * 100_000, 'the file must be JSON: {"orders": [...]}'),
        (b"\xff\xfe", 'the file must be JSON: {"orders": [...]}'),
        (b'{"orders": {}}', 'the file must be JSON: {"orders": [...]}'),
        (b'{"orders": [1]}', "orders[0]: an order must be an object with"),
        (b" " * 1_000_001, "the file has more than 1000000 bytes"),
    ],
)
def test_a_damaged_file_is_reported_once(content: bytes, problem: str, path: Path) -> None:
    """The process keeps its current orders, and obeys again once the file is valid."""

    async def main() -> None:
        client, sink = opened(path)
        async with client:
            await client.warm_up()
            rewrite(path, content)
            await until(lambda: warnings(sink))
            rewrite(path, content)  # another change, the same problem
            rewrite(path, [order("open", "google")])
            await until(lambda: state(client) == "forced_open")
            (warned,) = warnings(sink)
            assert warned.startswith(f"IMAGE_GEN_CONTROL_FILE: {path}: {problem}")

    asyncio.run(main())


def test_a_deleted_file_ends_no_order(path: Path) -> None:
    """A process keeps its orders when the file is damaged, and when it is then deleted. A process
    that starts later does not know them.
    """
    delete = path.unlink

    async def main() -> None:
        write_order(path, issue(order("open", "google")))
        client, sink = opened(path)
        async with client:
            await client.warm_up()
            await until(lambda: state(client) == "forced_open")
            rewrite(path, b"{}")
            await until(lambda: warnings(sink))
            delete()
            write_order(path, issue(order("set", "IMAGE_GEN_IPM", value="7")))
            await until(lambda: client._control.effective.ipm == 7)
            assert state(client) == "forced_open"
            later, _ = opened(path)
            async with later:
                await later.warm_up()
                await until(lambda: later._control.effective.ipm == 7)
                assert state(later) == "closed"

    asyncio.run(main())


def test_a_file_that_cannot_be_read_is_retried(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cause may end without a change of the file, such as too many open files."""
    reads = control_file.read_orders
    tries = itertools.count()

    def fails_at_first(path: Path) -> control_file.FileContent:
        if next(tries) < 3:
            raise OSError
        return reads(path)

    async def main() -> None:
        write_order(path, issue(order("open", "google")))
        monkeypatch.setattr(control_file, "read_orders", fails_at_first)
        client, sink = opened(path)
        async with client:
            await client.warm_up()
            await until(lambda: state(client) == "forced_open")
            assert warnings(sink) == [f"IMAGE_GEN_CONTROL_FILE: {path}: cannot be read (OSError)"]

    asyncio.run(main())


def test_a_link_to_a_file_stays_a_link(path: Path, tmp_path: Path) -> None:
    """Writing replaces the target of the link, so processes may read the file by either name."""
    target = tmp_path / "target" / "orders.json"
    target.parent.mkdir()
    path.symlink_to(target)
    for made in (order("open", "google"), order("open", "openai")):
        write_order(path, issue(made))
    assert path.is_symlink()
    assert len(read_orders(target).orders) == 2


def test_writing_as_root_keeps_the_owner(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator may write as root, and only the processes' user may read the file."""
    write_order(path, issue(order("open", "google")))
    path.chmod(0o600)
    owners: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "chown", lambda _, *owner: owners.append(owner))
    write_order(path, issue(order("open", "openai")))
    assert owners == [(path.stat().st_uid, path.stat().st_gid)]
    assert path.stat().st_mode & 0o7777 == 0o600


def test_valid_orders_beside_a_damaged_one_are_read(path: Path) -> None:
    """One invalid order does not keep the others from being obeyed."""
    good = order("open", "google")
    path.write_text(json.dumps({"orders": [{"action": "open"}, good.to_dict()]}), encoding="utf-8")
    orders, problems = read_orders(path)
    assert orders == [good]
    assert len(problems) == 1
    with pytest.raises(ConfigurationError, match=r"orders\[0\]"):
        write_order(path, issue(good))  # writing would lose it


def test_writing_removes_expired_and_replaced_orders(path: Path) -> None:
    """The file does not grow, and keeps its permissions."""
    over = order("open", "openai", serial=1)
    first, second = order("open", "google"), order("set", "IMAGE_GEN_IPM", value="5")
    for each in (over, first, second):
        write_order(path, issue(each))
    path.chmod(0o600)
    last = order("reset", "google", serial=first.serial + 1)
    write_order(path, issue(last))
    assert read_orders(path).orders == [second, last]
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["control.json"]


def test_concurrent_writers_lose_no_order(path: Path) -> None:
    """Each writer waits for the other one."""
    names = [f"IMAGE_GEN_P{number}_IPM" for number in range(20)]
    threads = [
        threading.Thread(target=write_order, args=(path, issue(order("set", name, value="5"))))
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.target for each in read_orders(path).orders) == sorted(names)
