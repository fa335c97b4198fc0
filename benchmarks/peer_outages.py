"""Another library's own chain in the outages of ``worlds``; in its own environment.

    <its python> benchmarks/peer_outages.py langchain | pydantic_ai | litellm [worlds]

The library decides when to ask whom again, and how long to pause; what answers is the world, on
virtual time. All settings are the library's own, but for a limit of 60 seconds a request. Prints
the figures of each outage as JSON.
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
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
# What the worlds need of the tuner needs nothing but Python; its front door opens on the rest.
tuning = ModuleType("resilient_imagen.tuning")
tuning.__path__ = [str(ROOT / "resilient_imagen" / "tuning")]
sys.modules[tuning.__name__] = tuning

from outage_scenarios import (  # noqa: E402
    CASES,
    GOOGLE,
    OPENAI,
    SEEDS,
    Case,
    Image,
    OutageScenario,
    mean,
    now,
    run_outage,
    sums,
)

from resilient_imagen.reasons import Reason  # noqa: E402
from resilient_imagen.virtualtime import VirtualTimeLoop  # noqa: E402

Ask = Callable[[int, int], Awaitable[None]]
"""Sends the next request of a call to a route; raises what the library knows."""
Chain = Callable[[int], Awaitable[object]]
"""Asks for the image of a call."""


def run(main: Coroutine[Any, Any, None]) -> None:
    """On virtual time, which stands still for threads, and by which what expires expires."""
    loop, began = VirtualTimeLoop(), time.time()

    def clock() -> float:
        # A real one never shows the same moment twice, and litellm's caches rely on that.
        return began + loop.time() + time.perf_counter() * 1e-6

    with asyncio.Runner(loop_factory=lambda: loop) as runner, patch("time.time", clock):
        runner.run(main)


class Peer:
    """A library's chain as a design."""

    def __init__(
        self,
        world: OutageScenario,
        build: Callable[[Ask], Chain],
        error: Callable[[Reason], Exception],
    ) -> None:
        self._world = world
        self._error = error
        self._sent: Counter[tuple[int, int]] = Counter()
        self._served: dict[int, tuple[int, float]] = {}
        self._chain = build(self._ask)

    async def _ask(self, call: int, route: int) -> None:
        number = self._sent[call, route]
        self._sent[call, route] += 1
        met = await self._world.ask(call, route, number)
        if met.reason is not None:
            raise self._error(met.reason)
        self._served[call] = route, met.latency

    async def image(self, call: int) -> Image | None:
        """Through the chain."""
        asked = now()
        try:
            await self._chain(call)
        except Exception:  # noqa: BLE001 - each library has its own
            return None
        route, making = self._served[call]
        return Image(asked, now() - asked, route, making)


def langchain(world: OutageScenario) -> Peer:
    """``with_fallbacks`` around two async functions."""
    runnables: Any = importlib.import_module("langchain_core.runnables")

    def build(ask: Ask) -> Chain:
        async def google(call: int) -> None:
            await ask(call, GOOGLE)

        async def openai(call: int) -> None:
            await ask(call, OPENAI)

        first, second = runnables.RunnableLambda(google), runnables.RunnableLambda(openai)
        chain: Chain = first.with_fallbacks([second]).ainvoke
        return chain

    return Peer(world, build, ConnectionError)


def pydantic_ai(world: OutageScenario) -> Peer:
    """``FallbackModel`` over two function models, without an agent."""
    models: Any = importlib.import_module("pydantic_ai.models")
    messages: Any = importlib.import_module("pydantic_ai.messages")
    function = importlib.import_module("pydantic_ai.models.function").FunctionModel
    fallback = importlib.import_module("pydantic_ai.models.fallback").FallbackModel
    http_error = importlib.import_module("pydantic_ai.exceptions").ModelHTTPError

    def build(ask: Ask) -> Chain:
        def model(route: int) -> object:
            async def answer(asked: Any, _info: object) -> object:
                await ask(int(asked[0].parts[0].content), route)
                return messages.ModelResponse(parts=[messages.TextPart("x")])

            return function(answer)

        chain = fallback(model(GOOGLE), model(OPENAI))

        def request(call: int) -> Awaitable[object]:
            asked = [messages.ModelRequest(parts=[messages.UserPromptPart(str(call))])]
            answer: Awaitable[object] = chain.request(asked, None, models.ModelRequestParameters())
            return answer

        return request

    return Peer(world, build, lambda _: http_error(503, "down"))


def litellm(world: OutageScenario) -> Peer:
    """``Router.aimage_generation`` with a fallback; every other setting is the router's own."""
    library: Any = importlib.import_module("litellm")
    custom: Any = importlib.import_module("litellm.llms.custom_llm")
    image: Any = importlib.import_module("litellm.types.utils")
    library.suppress_debug_info = True
    about = {"message": "down", "model": "google", "llm_provider": "gemini"}

    def error(reason: Reason) -> Exception:
        kind = {Reason.RATE_LIMITED: library.RateLimitError, Reason.TIMEOUT: library.Timeout}
        failed: Exception = kind.get(reason, library.InternalServerError)(**about)
        return failed

    def build(ask: Ask) -> Chain:
        def handler(route: int) -> object:
            async def answer(_self: object, *_: object, **given: Any) -> object:
                await ask(int(given["prompt"]), route)
                return image.ImageResponse(created=1, data=[image.ImageObject(b64_json="eA==")])

            return type("Handler", (custom.CustomLLM,), {"aimage_generation": answer})()

        library.custom_provider_map = [
            {"provider": "first", "custom_handler": handler(GOOGLE)},
            {"provider": "second", "custom_handler": handler(OPENAI)},
        ]
        importlib.import_module("litellm.utils").custom_llm_setup()
        router = library.Router(
            model_list=[
                {"model_name": name, "litellm_params": {"model": f"{name}/x"}}
                for name in ("first", "second")
            ],
            fallbacks=[{"first": ["second"]}],
        )
        return lambda call: router.aimage_generation(prompt=str(call), model="first")

    return Peer(world, build, error)


PEERS = {"langchain": langchain, "pydantic_ai": pydantic_ai, "litellm": litellm}


def measure(peer: str, case: Case, seeds: tuple[int, ...]) -> dict[str, float]:
    """A case's figures, the means of its worlds."""

    def design(world: OutageScenario, _: Case) -> Peer:
        return PEERS[peer](world)

    played = [run_outage(case, design, seed, run) for seed in seeds]
    return dataclasses.asdict(
        mean([sums(case, each, seed) for each, seed in zip(played, seeds, strict=True)])
    )


if __name__ == "__main__":
    logging.disable()
    count = int(sys.argv[2]) if len(sys.argv) > 2 else len(SEEDS)
    print(json.dumps({case.title: measure(sys.argv[1], case, SEEDS[:count]) for case in CASES}))
