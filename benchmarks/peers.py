"""Other libraries in the same measurements, each in a process of an environment with `peers.txt`.

    <its python> benchmarks/peers.py cost LIBRARY [CALLS]         # JSON, as call_cost.py
    <its python> benchmarks/peers.py outage LIBRARY [VARIANTS]    # JSON, the first outage

``cost`` is the processor time of a call, less that of awaiting the vendor's function. All settings
are the library's own, with these exceptions: in ``cost`` nothing is retried, so that nothing
sleeps, and no breaker opens; in ``outage`` a request has a limit of 60 s. In ``outage`` the library
decides when to send a request to which vendor; the responses are simulated, on virtual time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from stopwatch import Figures, best

if TYPE_CHECKING:
    from outage import Case, Serve, Vendors

Send = Callable[[int, str], Awaitable[bool]]
"""Sends a request to the first or the second vendor for a call; returns whether it brings an
image."""
Ask = Callable[[str], Awaitable[object]]
"""Asks for the image of a call."""


def pydantic_ai(send: Send, *, once: bool) -> Ask:
    """``FallbackModel`` over two function models, without an agent."""
    from pydantic_ai.exceptions import ModelHTTPError
    from pydantic_ai.messages import ModelRequest, ModelResponse, TextPart, UserPromptPart
    from pydantic_ai.models import ModelRequestParameters
    from pydantic_ai.models.fallback import FallbackModel
    from pydantic_ai.models.function import FunctionModel

    del once  # it neither retries nor has a breaker

    def model(route: int) -> Any:
        async def answer(asked: Any, _: object) -> object:
            if not await send(route, asked[0].parts[0].content):
                raise ModelHTTPError(503, "down")
            return ModelResponse(parts=[TextPart("x")])

        return FunctionModel(answer)

    def ask(model: Any, call: str) -> Awaitable[object]:
        request = ModelRequest(parts=[UserPromptPart(call)])
        answer: Awaitable[object] = model.request([request], None, ModelRequestParameters())
        return answer

    return partial(ask, FallbackModel(model(0), model(1)))


def litellm(send: Send, *, once: bool) -> Ask:
    """``Router.aimage_generation`` with a fallback, over custom providers."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else the import loads prices
    import litellm
    from litellm.types.utils import ImageObject, ImageResponse

    class Vendor(litellm.CustomLLM):  # type: ignore[misc]
        def __init__(self, route: int) -> None:
            super().__init__()
            self.route = route

        async def aimage_generation(self, prompt: str, *_: object, **__: object) -> object:
            if not await send(self.route, prompt):
                raise litellm.InternalServerError("down", "gemini", "google")
            return ImageResponse(created=1, data=[ImageObject(b64_json="eA==")])

    names = ("first", "second")
    litellm.suppress_debug_info = True
    litellm.custom_provider_map = [
        {"provider": name, "custom_handler": Vendor(route)} for route, name in enumerate(names)
    ]
    litellm.utils.custom_llm_setup()
    router = litellm.Router(
        [{"model_name": name, "litellm_params": {"model": f"{name}/x"}} for name in names],
        fallbacks=[{"first": ["second"]}],
        **({"num_retries": 0} if once else {}),
    )
    return lambda call: router.aimage_generation(prompt=call, model="first")


def tenacity(send: Send, *, once: bool) -> Ask:
    """Up to three attempts through a breaker of pybreaker, then the other vendor."""
    import pybreaker
    from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt
    from tenacity.wait import wait_random_exponential

    breaker = pybreaker.CircuitBreaker(fail_max=10**9) if once else pybreaker.CircuitBreaker()
    attempts = AsyncRetrying(
        stop=stop_after_attempt(1 if once else 3),
        wait=wait_random_exponential(),
        retry=retry_if_exception_type(ConnectionError),
        reraise=True,
    )

    async def google(call: str) -> None:
        with breaker.calling():
            if not await send(0, call):
                raise ConnectionError("503")

    async def chain(call: str) -> None:
        try:
            await attempts(google, call)
        except (ConnectionError, pybreaker.CircuitBreakerError):
            await send(1, call)

    return chain


LIBRARIES: dict[str, Callable[..., Ask]] = {
    "tenacity": tenacity,
    "pydantic_ai": pydantic_ai,
    "litellm": litellm,
}
"""Functions that return the library's chain of both vendors; without retries and breaker if
``once`` is true."""


async def cost(name: str, calls: int) -> Figures:
    """Return the microseconds of processor time of a call, less those of the vendor's function."""

    async def up(_route: int, _call: str) -> bool:
        return True

    async def down(route: int, _call: str) -> bool:
        return route == 1

    ok, falls_back = (LIBRARIES[name](send, once=True) for send in (up, down))
    taken = await best(
        calls,
        bare=lambda: up(0, "x"),
        ok=lambda: ok("x"),
        fallback=lambda: falls_back("x"),
    )
    return {name: taken[name] - taken["bare"] for name in ("ok", "fallback")}


def design(name: str, vendors: Vendors, _: Case) -> Serve:
    """Return a library as a design, with the same jitter in each run."""
    random.seed(vendors.seed)

    async def send(route: int, call: str) -> bool:
        return await vendors.send(int(call), route) is None

    chain = LIBRARIES[name](send, once=False)

    async def serve(call: int) -> None:
        await chain(str(call))  # it raises nothing: the second vendor always serves

    return serve


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on virtual time, which the wall clocks of the libraries show, too."""
    from resilient_imagen.virtualtime import VirtualTimeLoop

    loop, began = VirtualTimeLoop(), time.time()

    def clock() -> float:
        # A real clock never shows the same moment twice, and litellm's caches rely on that.
        return began + loop.time() + time.perf_counter() * 1e-6

    class Date(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls.fromtimestamp(clock(), tz)

    with (
        asyncio.Runner(loop_factory=lambda: loop) as runner,
        patch("time.time", clock),
        patch("pybreaker.datetime", Date),
    ):
        runner.run(main)


def outage(name: str, variants: int) -> Figures:
    """Return the figures of the first outage."""
    from outage import PLAIN, means, run_design

    logging.disable()
    return means(PLAIN, partial(run_design, partial(design, name), run=run), variants)


if __name__ == "__main__":
    kind, name, *given = sys.argv[1:]
    if kind == "cost":
        found = asyncio.run(cost(name, int(given[0]) if given else 500))
    else:
        found = outage(name, int(given[0]) if given else 9)
    print(json.dumps(found))
