"""What another wrapper adds to a call that is answered at once; in its own environment.

    <python of the environment> benchmarks/peer.py langchain | pydantic_ai | litellm [calls]

Prints microseconds of processor time per call, over its own bare model: when the first answers,
and when the first fails at once and the second answers. Logging is as Python starts with it, here
as for us: who warns of a fallback pays for that.
"""

import asyncio
import importlib
import json
import sys
import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any

Once = Callable[[], Awaitable[object]]
Ways = tuple[Once, Once, Once]
"""The model alone, the chain, and the chain with a first that fails."""


def langchain() -> Ways:
    """``with_fallbacks`` around an async function."""
    runnables = importlib.import_module("langchain_core.runnables")

    async def answer(prompt: str) -> str:
        return prompt

    async def fail(prompt: str) -> str:
        raise ConnectionError(prompt)

    model, down = runnables.RunnableLambda(answer), runnables.RunnableLambda(fail)
    chain, second = model.with_fallbacks([model]), down.with_fallbacks([model])
    return (
        lambda: model.ainvoke("x"),
        lambda: chain.ainvoke("x"),
        lambda: second.ainvoke("x"),
    )


def pydantic_ai() -> Ways:
    """``FallbackModel`` over function models, without an agent."""
    models = importlib.import_module("pydantic_ai.models")
    messages = importlib.import_module("pydantic_ai.messages")
    function = importlib.import_module("pydantic_ai.models.function").FunctionModel
    fallback = importlib.import_module("pydantic_ai.models.fallback").FallbackModel
    http_error = importlib.import_module("pydantic_ai.exceptions").ModelHTTPError

    async def answer(_messages: object, _info: object) -> object:
        return messages.ModelResponse(parts=[messages.TextPart("x")])

    async def fail(_messages: object, _info: object) -> object:
        raise http_error(503, "down")

    model, down = function(answer), function(fail)
    asked = [messages.ModelRequest(parts=[messages.UserPromptPart("x")])]
    parameters = models.ModelRequestParameters()

    def once(which: Any) -> Once:
        def ask() -> Awaitable[object]:
            request: Awaitable[object] = which.request(asked, None, parameters)
            return request

        return ask

    return once(model), once(fallback(model, model)), once(fallback(down, model))


def litellm() -> Ways:
    """``Router.aimage_generation`` over custom providers; no retries, so that it never sleeps."""
    library: Any = importlib.import_module("litellm")
    custom = importlib.import_module("litellm.llms.custom_llm")
    image = importlib.import_module("litellm.types.utils")
    library.suppress_debug_info = True

    async def answer(_self: object, *_: object, **__: object) -> object:
        return image.ImageResponse(created=1, data=[image.ImageObject(b64_json="eA==")])

    async def fail(_self: object, *_: object, **__: object) -> object:
        raise custom.CustomLLMError(500, "down")

    up = type("Up", (custom.CustomLLM,), {"aimage_generation": answer})()
    down = type("Down", (custom.CustomLLM,), {"aimage_generation": fail})()
    library.custom_provider_map = [
        {"provider": "up", "custom_handler": up},
        {"provider": "down", "custom_handler": down},
    ]
    importlib.import_module("litellm.utils").custom_llm_setup()
    models = [
        {"model_name": name, "litellm_params": {"model": model}}
        for name, model in (("up", "up/x"), ("down", "down/x"), ("second", "up/y"))
    ]
    router = library.Router(
        model_list=models, fallbacks=[{"up": ["second"]}, {"down": ["second"]}], num_retries=0
    )
    return (
        lambda: answer(up),
        lambda: router.aimage_generation(prompt="x", model="up"),
        lambda: router.aimage_generation(prompt="x", model="down"),
    )


async def microseconds(once: Once, calls: int) -> float:
    """Processor time per call, the median of five rounds."""
    rounds = []
    for _ in range(5):
        began = time.process_time()
        for _ in range(calls):
            await once()
        rounds.append((time.process_time() - began) / calls * 1e6)
    return median(rounds)


async def main(peer: str, calls: int) -> None:
    ways = {"langchain": langchain, "pydantic_ai": pydantic_ai, "litellm": litellm}[peer]()
    bare, ok, fallback = [await microseconds(once, calls) for once in ways]
    print(json.dumps({"ok": ok - bare, "fallback": fallback - bare}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 500))
