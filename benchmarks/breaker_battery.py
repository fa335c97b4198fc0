"""Eight situations of a service called with asyncio, through every breaker that is installed.

    python benchmarks/breaker_battery.py

Always run: pybreaker alone, used as its documentation says, and the breaker around it. Run if they
are importable: aiobreaker, purgatory, circuitbreaker, hyx, interlock-cb. Every breaker opens at
three failures in a row for RESET seconds, and is told by its own means that `ExcludedError` is no
failure. Real time, real tasks, real cancellations; some seconds in all.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from resilient_imagen.circuitbreaker import BreakerConfig, CircuitBreaker
from resilient_imagen.reasons import BreakerOutcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

RESET = 0.3


class ServiceDownError(Exception):
    """The service is down."""


class ExcludedError(Exception):
    """Says nothing about the service."""


@dataclass
class Subject:
    """One breaker: how a call is made through it, and in which state it is."""

    name: str
    call: Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]
    read_state: Callable[[], object]

    def state(self) -> str:
        """`closed`, `half-open` or `OPEN`, whatever the breaker calls it."""
        word = str(self.read_state()).lower().replace("_", "-")
        for part, name in (("half", "half-open"), ("recover", "half-open"), ("clos", "closed")):
            if part in word:
                return name
        return "closed" if "work" in word else "OPEN"


# The breakers


def ours() -> Subject:
    config = BreakerConfig(fail_max=3, min_calls=1000, reset_timeout=RESET, probe_deadline=RESET)
    breaker = CircuitBreaker("service", config, random=lambda: 0.0)

    def classify(error: Exception) -> BreakerOutcome:
        return (
            BreakerOutcome.NEUTRAL if isinstance(error, ExcludedError) else BreakerOutcome.FAILURE
        )

    async def call(work: Callable[[], Awaitable[None]]) -> None:
        async with breaker.protect(classify):
            await work()

    return Subject("our gate", call, lambda: breaker.metrics().state)


def pybreaker() -> Subject:
    library = importlib.import_module("pybreaker")
    breaker = library.CircuitBreaker(fail_max=3, reset_timeout=RESET, exclude=[ExcludedError])

    async def call(work: Callable[[], Awaitable[None]]) -> None:
        with breaker.calling():
            await work()

    return Subject("pybreaker calling()", call, lambda: breaker.current_state)


def aiobreaker() -> Subject:
    library = importlib.import_module("aiobreaker")
    breaker = library.CircuitBreaker(
        fail_max=3, timeout_duration=timedelta(seconds=RESET), exclude=[ExcludedError]
    )
    return Subject("aiobreaker", breaker.call_async, lambda: breaker.current_state.name)


def purgatory() -> Subject:
    library = importlib.import_module("purgatory")
    factory = library.AsyncCircuitBreakerFactory(
        default_threshold=3, default_ttl=RESET, exclude=[ExcludedError]
    )
    seen: list[Any] = []

    async def call(work: Callable[[], Awaitable[None]]) -> None:
        breaker = await factory.get_breaker("service")
        seen[:] = [breaker]
        async with breaker:
            await work()

    return Subject("purgatory", call, lambda: seen[0].context.state)


def circuitbreaker() -> Subject:
    library = importlib.import_module("circuitbreaker")
    breaker = library.CircuitBreaker(
        failure_threshold=3,
        recovery_timeout=RESET,
        expected_exception=ServiceDownError,
        name="service",
    )

    async def call(work: Callable[[], Awaitable[None]]) -> None:
        await work()

    return Subject("circuitbreaker", breaker(call), lambda: breaker.state)


def hyx() -> Subject:
    library = importlib.import_module("hyx.circuitbreaker")
    breaker = library.consecutive_breaker(
        exceptions=ServiceDownError,
        failure_threshold=3,
        recovery_time_secs=RESET,
        recovery_threshold=1,
    )

    async def call(work: Callable[[], Awaitable[None]]) -> None:
        async with breaker:
            await work()

    return Subject("hyx", call, lambda: breaker.state.name)


def interlock() -> Subject:
    library = importlib.import_module("interlock")

    class OnlyDown:
        def is_failure(self, *, result: object, exception: Exception | None) -> bool:
            del result
            return isinstance(exception, ServiceDownError)

    config = library.Config(
        failure_rate_threshold=1.0,  # it has no rule of failures in a row
        minimum_number_of_calls=3,
        window_size=3,
        wait_duration_in_open=RESET,
        permitted_calls_in_half_open=1,
    )
    breaker = library.CircuitBreaker(name="service", config=config, classifier=OnlyDown())
    return Subject("interlock-cb", breaker.call_async, lambda: breaker.state)


BREAKERS: dict[str, Callable[[], Subject]] = {
    "pybreaker": pybreaker,
    "aiobreaker": aiobreaker,
    "purgatory": purgatory,
    "circuitbreaker": circuitbreaker,
    "hyx": hyx,
    "interlock-cb": interlock,
    "resilient-imagen": ours,
}


# Work, and how a call through a breaker ends


async def succeed() -> None:
    await asyncio.sleep(0)


async def fail() -> None:
    await asyncio.sleep(0)
    raise ServiceDownError


async def excluded() -> None:
    await asyncio.sleep(0)
    raise ExcludedError


async def hang() -> None:
    await asyncio.Event().wait()


async def end_of(subject: Subject, work: Callable[[], Awaitable[None]]) -> BaseException | None:
    """Make a call and say how it ended for the caller; its own cancellation included."""
    try:
        await subject.call(work)
    except BaseException as error:  # noqa: BLE001 - what is raised instead is the question here
        return error
    return None


async def leave(subject: Subject) -> bool:
    """A caller that is cancelled while its request is on its way; whether it sees just that."""
    task = asyncio.ensure_future(end_of(subject, hang))
    await asyncio.sleep(0.01)
    if task.done():
        return True  # rejected, so there was nothing to cancel
    task.cancel()
    return isinstance(await task, asyncio.CancelledError)


async def fail_times(subject: Subject, times: int) -> None:
    for _ in range(times):
        await end_of(subject, fail)


async def half_open(subject: Subject) -> None:
    await fail_times(subject, 3)
    await asyncio.sleep(RESET * 1.1)


def delayed(release: asyncio.Event, error: Exception | None) -> Callable[[], Awaitable[None]]:
    async def work() -> None:
        await release.wait()
        if error is not None:
            raise error

    return work


# The situations: each says what was seen


async def five_clients_cancel(subject: Subject) -> str:
    honest = [await leave(subject) for _ in range(5)]
    return subject.state() + ("" if all(honest) else ", cancellation LOST")


async def a_cancel_counts_as(subject: Subject) -> str:
    await fail_times(subject, 2)
    await leave(subject)
    if subject.state() == "OPEN":
        return "FAILURE"
    await fail_times(subject, 1)
    return "neutral" if subject.state() == "OPEN" else "SUCCESS"


async def entered_of_200(subject: Subject) -> str:
    await half_open(subject)
    entered = 0

    async def enter() -> None:
        nonlocal entered
        entered += 1
        await asyncio.sleep(0.02)

    await asyncio.gather(*(end_of(subject, enter) for _ in range(200)))
    return str(entered)


async def late_failure_delays(subject: Subject) -> str:
    release = asyncio.Event()
    late = asyncio.ensure_future(end_of(subject, delayed(release, ServiceDownError())))
    await asyncio.sleep(0)
    await fail_times(subject, 3)
    await asyncio.sleep(RESET * 0.7)
    release.set()
    await late
    await asyncio.sleep(RESET * 0.5)
    return "no" if await end_of(subject, succeed) is None else "YES"


async def late_success_closes(subject: Subject) -> str:
    release, verdict = asyncio.Event(), asyncio.Event()
    late = asyncio.ensure_future(end_of(subject, delayed(release, None)))
    await asyncio.sleep(0)
    await half_open(subject)
    probe = asyncio.ensure_future(end_of(subject, delayed(verdict, None)))
    await asyncio.sleep(0.01)
    release.set()
    await late
    seen = "CLOSES" if subject.state() == "closed" else "no"
    verdict.set()
    await probe
    return seen


async def cancelled_probe(subject: Subject) -> str:
    await half_open(subject)
    await leave(subject)
    return {"closed": "CLOSES", "OPEN": "RE-OPENS"}.get(subject.state(), subject.state())


async def excluded_probe(subject: Subject) -> str:
    await half_open(subject)
    await end_of(subject, excluded)
    return {"closed": "CLOSES", "OPEN": "RE-OPENS"}.get(subject.state(), subject.state())


async def hung_probe(subject: Subject) -> str:
    await half_open(subject)
    hung = asyncio.ensure_future(end_of(subject, hang))
    await asyncio.sleep(RESET * 4)
    entered = await end_of(subject, succeed) is None
    hung.cancel()
    await hung
    return "recovers" if entered else "WEDGED"


SITUATIONS: dict[str, Callable[[Subject], Awaitable[str]]] = {
    "5 clients cancel": five_clients_cancel,
    "a cancel counts as": a_cancel_counts_as,
    "entered half-open of 200": entered_of_200,
    "late failure delays recovery": late_failure_delays,
    "late success while half-open": late_success_closes,
    "cancelled probe": cancelled_probe,
    "excluded error in probe": excluded_probe,
    "hung probe": hung_probe,
}

RIGHT = ["closed", "neutral", "1", "no", "no", "half-open", "half-open", "recovers"]


def installed() -> Iterator[tuple[str, Callable[[], Subject]]]:
    for package, make in BREAKERS.items():
        try:
            name = f"{make().name} {importlib.metadata.version(package)}"
        except (ImportError, importlib.metadata.PackageNotFoundError):
            if make is not ours:
                continue
            name = "our gate"
        yield name, make


async def battery(make: Callable[[], Subject]) -> list[str]:
    """Every situation on a fresh breaker, side by side."""
    return await asyncio.gather(*(situation(make()) for situation in SITUATIONS.values()))


def main() -> int:
    rows = {name: asyncio.run(battery(make)) for name, make in installed()}
    print(f"| breaker | {' | '.join(SITUATIONS)} | right |")
    print("|---" * (len(SITUATIONS) + 2) + "|")
    for name, seen in rows.items():
        right = sum(one == other for one, other in zip(seen, RIGHT, strict=True))
        print(f"| {name} | {' | '.join(seen)} | {right} of {len(RIGHT)} |")
    return 0 if list(rows.values())[-1] == RIGHT else 1


if __name__ == "__main__":
    raise SystemExit(main())
