"""Host names are resolved in separate threads, which a hanging name server cannot exhaust."""

from __future__ import annotations

import asyncio
import operator
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_imagen import dns
from resilient_imagen.dns import HostResolver

T = TypeVar("T")


@dataclass
class NameServer:
    """A resolver that answers by name, at once or when released."""

    names: dict[str, list[str] | Exception] = field(default_factory=dict)
    hanging: set[str] = field(default_factory=set)
    asked: Counter[str] = field(default_factory=Counter)
    running: int = 0
    most_running: int = 0
    free: threading.Event = field(default_factory=threading.Event)
    """Set to release all hanging look-ups."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def getaddrinfo(self, host: str, port: int, **_options: Any) -> list[Any]:
        with self._lock:
            self.asked[host] += 1
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            if host in self.hanging:
                self.free.wait()
            found = self.names[host]
        finally:
            with self._lock:
                self.running -= 1
        if isinstance(found, Exception):
            raise found
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in found]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    server = NameServer({"a.test": ["192.0.2.1", "192.0.2.2"], "b.test": ["192.0.2.3"]})
    monkeypatch.setattr(socket, "getaddrinfo", server.getaddrinfo)
    yield server
    server.free.set()


def run(main: Callable[[], Awaitable[T]]) -> T:
    async def body() -> T:
        return await main()

    return asyncio.run(body())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - threads change it
            await asyncio.sleep(0.001)


def test_callers_of_one_name_share_a_look_up(server: NameServer) -> None:
    """Eight callers of a slow name server cause one look-up and get its addresses, in order."""
    server.hanging = {"a.test"}

    async def main() -> list[Any]:
        resolver = HostResolver()
        callers = [asyncio.create_task(resolver.resolve("a.test", 1)) for _ in range(8)]
        await until(lambda: server.asked["a.test"] > 0)
        server.free.set()
        return await asyncio.gather(*callers)

    assert run(main) == [("192.0.2.1", "192.0.2.2")] * 8
    assert server.asked["a.test"] == 1


def test_a_cancelled_caller_does_not_cancel_the_look_up(server: NameServer) -> None:
    """Other callers of the same look-up get its addresses."""
    server.hanging = {"a.test"}

    async def main() -> Any:
        resolver = HostResolver()
        first, second = (asyncio.create_task(resolver.resolve("a.test", 1)) for _ in range(2))
        await until(lambda: server.asked["a.test"] > 0)
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        server.free.set()
        return await second

    assert run(main) == ("192.0.2.1", "192.0.2.2")


def test_a_hanging_name_server_occupies_its_own_threads_only(server: NameServer) -> None:
    """The default executor, other names and other resolvers work meanwhile."""
    server.hanging = {"a.test"}

    async def main() -> None:
        resolver = HostResolver(max_threads=2)
        hung = asyncio.create_task(resolver.resolve("a.test", 1))
        await until(lambda: server.asked["a.test"] > 0)
        assert await resolver.resolve("b.test", 1) == ("192.0.2.3",)
        server.names["a.test"] = ["192.0.2.9"]
        assert await asyncio.to_thread(lambda: "served") == "served"
        server.free.set()
        assert await hung == ("192.0.2.9",)

    run(main)


def test_a_look_up_that_hangs_is_not_joined_for_ever(
    server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some seconds the next caller starts another look-up, up to the thread limit."""
    server.hanging = {"a.test"}
    monkeypatch.setattr(dns, "_GIVEN_UP", -1)

    async def main() -> None:
        resolver = HostResolver(max_threads=2)
        callers = []
        for count in (1, 2, 2):
            callers.append(asyncio.create_task(resolver.resolve("a.test", 1)))
            await until(partial(operator.eq, server.asked, {"a.test": count}))
            await asyncio.sleep(0)
        server.free.set()
        assert len(set(await asyncio.gather(*callers))) == 1

    run(main)
    assert server.most_running == 2


@pytest.mark.parametrize("fault", ["hangs", "fails"])
def test_the_last_good_addresses_serve_on(
    server: NameServer, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A known name keeps its addresses while the name server hangs or fails."""
    monkeypatch.setattr(dns, "_STALE_AFTER", 0.01)

    async def main() -> Any:
        resolver = HostResolver()
        await resolver.resolve("b.test", 1)
        if fault == "hangs":
            server.hanging = {"b.test"}
        else:
            server.names["b.test"] = socket.gaierror(socket.EAI_AGAIN, "try again")
        return await resolver.resolve("b.test", 1)

    assert run(main) == ("192.0.2.3",)


def test_a_name_that_no_longer_exists_fails(server: NameServer) -> None:
    """An authoritative negative answer is an error, even for a known name."""

    async def main() -> None:
        resolver = HostResolver()
        await resolver.resolve("b.test", 1)
        server.names["b.test"] = socket.gaierror(socket.EAI_NONAME, "unknown")
        await resolver.resolve("b.test", 1)

    with pytest.raises(socket.gaierror, match="unknown"):
        run(main)


@pytest.mark.parametrize(
    "failure",
    [socket.gaierror(socket.EAI_FAIL, "no"), UnicodeError("label too long"), ValueError("odd")],
    ids=lambda value: type(value).__name__,
)
def test_each_caller_gets_a_separate_error(server: NameServer, failure: Exception) -> None:
    """Every failure is an OSError, and no two callers share one or its traceback."""
    server.names["a.test"] = failure
    server.hanging = {"a.test"}

    async def main() -> list[Any]:
        resolver = HostResolver()
        callers = [asyncio.create_task(resolver.resolve("a.test", 1)) for _ in range(2)]
        await until(lambda: server.asked["a.test"] > 0)
        server.free.set()
        return await asyncio.gather(*callers, return_exceptions=True)

    one, other = run(main)
    assert isinstance(one, OSError)
    assert isinstance(other, OSError)
    assert one is not other


def test_addresses_need_no_look_up(server: NameServer) -> None:
    """Numeric hosts of both families are returned as they are."""

    async def main() -> list[Any]:
        resolver = HostResolver()
        return [await resolver.resolve(host, 1) for host in ("127.0.0.1", "::1")]

    assert run(main) == [("127.0.0.1",), ("::1",)]
    assert not server.asked


def test_a_forked_child_starts_a_new_look_up(
    server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parent's look-up has no thread in the child, which starts another one."""
    server.hanging = {"a.test"}
    resolver = HostResolver()

    async def main() -> None:
        hung = asyncio.create_task(resolver.resolve("a.test", 1))
        await until(lambda: server.asked["a.test"] > 0)
        server.hanging = set()
        monkeypatch.setattr(os, "getpid", lambda: -1)
        assert await resolver.resolve("a.test", 1) == ("192.0.2.1", "192.0.2.2")
        hung.cancel()

    run(main)


def test_successive_loops_share_a_resolver(server: NameServer) -> None:
    """A loop closed during a look-up does not block callers of the next loop."""
    server.hanging = {"a.test"}
    resolver = HostResolver()

    async def leave() -> None:
        asyncio.create_task(resolver.resolve("a.test", 1))  # noqa: RUF006 - cancelled by run()
        await until(lambda: server.asked["a.test"] > 0)

    async def stay() -> Any:
        waiting = asyncio.create_task(resolver.resolve("a.test", 1))
        await asyncio.sleep(0)
        server.free.set()
        return await waiting

    run(leave)
    assert run(stay) == ("192.0.2.1", "192.0.2.2")


HUNG_AT_EXIT = """
import asyncio, socket, threading
asked = threading.Event()

def getaddrinfo(*_args, **_options):
    asked.set()
    threading.Event().wait()

socket.getaddrinfo = getaddrinfo
from resilient_imagen.dns import HostResolver

async def main():
    waiting = asyncio.create_task(HostResolver().resolve("a.test", 1))
    while not asked.is_set():
        await asyncio.sleep(0.001)
    waiting.cancel()

asyncio.run(main())
print("ended")
"""


def test_a_hung_look_up_does_not_keep_the_interpreter_from_exiting() -> None:
    """The process ends although a thread waits for the name server."""
    done = subprocess.run(
        [sys.executable, "-c", HUNG_AT_EXIT],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr


@given(
    callers=st.lists(
        st.tuples(st.sampled_from("abcdef"), st.sampled_from(["stay", "leave"])), max_size=20
    ),
    failing=st.sets(st.sampled_from("abcdef")),
    threads=st.integers(1, 3),
)
def test_every_caller_is_answered_and_nothing_is_left(
    callers: list[tuple[str, str]], failing: set[str], threads: int
) -> None:
    """With random cancellations, few threads run, remaining callers get results, nothing leaks."""
    server = NameServer(hanging=set("abcdef"))
    for name in "abcdef":
        server.names[name] = (
            socket.gaierror(socket.EAI_FAIL, name) if name in failing else [f"192.0.2.{ord(name)}"]
        )
    resolver = HostResolver(threads)

    async def main() -> None:
        tasks = [asyncio.create_task(resolver.resolve(name, 1)) for name, _ in callers]
        await asyncio.sleep(0)
        for task, (_, does) in zip(tasks, callers, strict=True):
            if does == "leave":
                task.cancel()
        await asyncio.sleep(0)
        server.free.set()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        for end, (name, does) in zip(ends, callers, strict=True):
            if does == "leave":
                assert isinstance(end, asyncio.CancelledError)
            elif name in failing:
                assert isinstance(end, socket.gaierror)
            else:
                assert end == (f"192.0.2.{ord(name)}",)
        await until(lambda: resolver._threads == 0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", server.getaddrinfo)
        run(main)
    assert server.most_running <= threads
    assert not resolver._newest
    assert not resolver._queue
