"""Other libraries in the same measurements, each in a separate environment.

    <its python> benchmarks/peers.py cost LIBRARY [CALLS]          # JSON, as call_cost.py
    <its python> benchmarks/peers.py outages LIBRARY [VARIANTS]    # JSON by outage

All settings are the library's own, except for a limit of 60 s a request in outages, and no retries
in ``cost``, so that nothing sleeps. ``cost`` subtracts the library's own model without a fallback.
In ``outages`` the library decides when to send a request to which route; the responses are
simulated, on virtual time.
"""

import asyncio
import dataclasses
import importlib
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
# The modules of the tuner that are used here need only Python, but its package imports the others.
tuning = ModuleType("resilient_imagen.tuning")
tuning.__path__ = [str(ROOT / "resilient_imagen" / "tuning")]
sys.modules[tuning.__name__] = tuning

from outage_scenarios import (  # noqa: E402
    CASES,
    GOOGLE,
    OPENAI,
    SEEDS,
    Case,
    OutageScenario,
    Outcome,
    Served,
    means,
    run_outage,
)
from stopwatch import best  # noqa: E402

from resilient_imagen.reasons import Reason  # noqa: E402
from resilient_imagen.virtualtime import VirtualTimeLoop  # noqa: E402

Send = Callable[[str], Awaitable[None]]
"""Sends a request for a call; raises the library's own error."""
Ask = Callable[[str], Awaitable[object]]
"""Asks for the image of a call."""


class Library(NamedTuple):
    """How a library asks for images."""

    build: Callable[..., tuple[Ask, Ask]]
    """Returns its model without and with a fallback, by how to send to each of two routes."""
    error: Callable[[Reason], Exception]
    """Returns the error that it knows for a reason."""


def langchain() -> Library:
    """``with_fallbacks`` around two async functions."""
    runnables: Any = importlib.import_module("langchain_core.runnables")

    def build(google: Send, openai: Send, **_: object) -> tuple[Ask, Ask]:
        first, second = runnables.RunnableLambda(google), runnables.RunnableLambda(openai)
        return first.ainvoke, first.with_fallbacks([second]).ainvoke

    return Library(build, lambda _: ConnectionError("503"))


def pydantic_ai() -> Library:
    """``FallbackModel`` over two function models, without an agent."""
    models: Any = importlib.import_module("pydantic_ai.models")
    messages: Any = importlib.import_module("pydantic_ai.messages")
    function = importlib.import_module("pydantic_ai.models.function").FunctionModel
    fallback = importlib.import_module("pydantic_ai.models.fallback").FallbackModel
    http_error = importlib.import_module("pydantic_ai.exceptions").ModelHTTPError

    def model(send: Send) -> Any:
        async def answer(asked: Any, _info: object) -> object:
            await send(asked[0].parts[0].content)
            return messages.ModelResponse(parts=[messages.TextPart("x")])

        return function(answer)

    def ask(which: Any) -> Ask:
        def request(call: str) -> Awaitable[object]:
            asked = [messages.ModelRequest(parts=[messages.UserPromptPart(call)])]
            answer: Awaitable[object] = which.request(asked, None, models.ModelRequestParameters())
            return answer

        return request

    def build(google: Send, openai: Send, **_: object) -> tuple[Ask, Ask]:
        first = model(google)
        return ask(first), ask(fallback(first, model(openai)))

    return Library(build, lambda _: http_error(503, "down"))


def litellm() -> Library:
    """``Router.aimage_generation`` with a fallback, over custom providers."""
    library: Any = importlib.import_module("litellm")
    custom: Any = importlib.import_module("litellm.llms.custom_llm")
    image: Any = importlib.import_module("litellm.types.utils")
    library.suppress_debug_info = True

    def error(reason: Reason) -> Exception:
        kind = {Reason.RATE_LIMITED: library.RateLimitError, Reason.TIMEOUT: library.Timeout}
        about = {"message": "down", "model": "google", "llm_provider": "gemini"}
        failed: Exception = kind.get(reason, library.InternalServerError)(**about)
        return failed

    def handler(send: Send) -> object:
        async def answer(_self: object, *_: object, **given: Any) -> object:
            await send(given["prompt"])
            return image.ImageResponse(created=1, data=[image.ImageObject(b64_json="eA==")])

        return type("Handler", (custom.CustomLLM,), {"aimage_generation": answer})()

    def build(google: Send, openai: Send, **options: Any) -> tuple[Ask, Ask]:
        library.custom_provider_map = [
            {"provider": "first", "custom_handler": handler(google)},
            {"provider": "second", "custom_handler": handler(openai)},
        ]
        importlib.import_module("litellm.utils").custom_llm_setup()
        router = library.Router(
            model_list=[
                {"model_name": name, "litellm_params": {"model": f"{name}/x"}}
                for name in ("first", "second")
            ],
            fallbacks=[{"first": ["second"]}],
            **options,
        )
        return google, lambda call: router.aimage_generation(prompt=call, model="first")

    return Library(build, error)


LIBRARIES = {"langchain": langchain, "pydantic_ai": pydantic_ai, "litellm": litellm}


# -- what a call costs -----------------------------------------------------------------------------


async def cost(name: str, calls: int) -> dict[str, float]:
    """Return the microseconds of processor time that a fallback adds to a call."""
    library = LIBRARIES[name]()

    async def up(_call: str) -> None:
        return

    async def down(_call: str) -> None:
        raise library.error(Reason.OVERLOADED)

    async def added(first: Send) -> float:
        # Its own model, without a fallback, is what an application has anyway.
        alone, _ = library.build(up, up, num_retries=0)
        _, chain = library.build(first, up, num_retries=0)
        taken = await best(calls, alone=lambda: alone("x"), chain=lambda: chain("x"))
        return taken["chain"] - taken["alone"]

    return {"ok": await added(up), "fallback": await added(down)}


# -- outages ---------------------------------------------------------------------------------------


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on virtual time, which ``time.time`` shows, too."""
    loop, began = VirtualTimeLoop(), time.time()

    def clock() -> float:
        # A real clock never shows the same moment twice, and litellm's caches rely on that.
        return began + loop.time() + time.perf_counter() * 1e-6

    with asyncio.Runner(loop_factory=lambda: loop) as runner, patch("time.time", clock):
        runner.run(main)


class Peer:
    """A library as a design."""

    def __init__(self, world: OutageScenario, library: Library) -> None:
        self._world = world
        self._library = library
        self._sent: Counter[tuple[str, int]] = Counter()
        self._served: dict[str, Served] = {}

        async def google(call: str) -> None:
            await self._send(call, GOOGLE)

        async def openai(call: str) -> None:
            await self._send(call, OPENAI)

        _, self._chain = library.build(google, openai)

    async def _send(self, call: str, route: int) -> None:
        number = self._sent[call, route]
        self._sent[call, route] += 1
        outcome = await self._world.send(int(call), route, number)
        if outcome.reason is not None:
            raise self._library.error(outcome.reason)
        self._served[call] = route, outcome.latency

    async def image(self, call: int) -> Served | None:
        """Ask the library."""
        try:
            await self._chain(str(call))
        except Exception:  # noqa: BLE001 - each library has its own
            return None
        return self._served[str(call)]


def outage(library: Library, case: Case, seed: int) -> Outcome:
    """Run one variant of a case."""
    return run_outage(lambda world, _: Peer(world, library).image, case, seed, run)


def outages(name: str, variants: int) -> dict[str, dict[str, float]]:
    """Return the figures of each case."""
    logging.disable()
    library = LIBRARIES[name]()
    return {
        case.title: dataclasses.asdict(
            means(case, lambda each, seed: outage(library, each, seed), SEEDS[:variants])
        )
        for case in CASES
    }


if __name__ == "__main__":
    kind, name, *given = sys.argv[1:]
    found: object
    if kind == "cost":
        found = asyncio.run(cost(name, int(given[0]) if given else 500))
    else:
        found = outages(name, int(given[0]) if given else len(SEEDS))
    print(json.dumps(found))
