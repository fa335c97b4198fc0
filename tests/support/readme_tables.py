"""Tables of the guides; ``python tests/support/readme_tables.py`` generates them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from functools import partial
from itertools import chain
from types import UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from readme_kit import GUIDES

from resilient_imagen import Reason, Settings
from resilient_imagen._settings_source import field_variables
from resilient_imagen.models import MODELS, ModelInfo
from resilient_imagen.pipeline.fitter import MADE_HERE
from resilient_imagen.providers.google import GoogleProvider
from resilient_imagen.providers.openai import OpenAIProvider
from resilient_imagen.providers.vertex import VertexProvider
from resilient_imagen.reasons import POLICIES, BreakerOutcome, Retry
from resilient_imagen.request import RESOLUTIONS, RequestOptions

_RETRIES = {
    Retry.NEVER: "no",
    Retry.ONCE: "once",
    Retry.ONCE_IF_NO_OTHER_ROUTE: "once, if there is no other route",
    Retry.ALWAYS: "yes",
}
_VERDICTS = {
    BreakerOutcome.SUCCESS: "success: the service answered",
    BreakerOutcome.REFUSED: "success: the service answered; a probe does not vote",
    BreakerOutcome.FAILURE: "failure",
    BreakerOutcome.THROTTLED: "opens for as long as the server hints, at most "
    "IMAGE_GEN_BREAKER_RESET_MAX, then closes; for a probe, a hint may only lengthen the next open "
    "period",
    BreakerOutcome.TRIP: "opens at once, for long",
    BreakerOutcome.NEUTRAL: "no vote",
}
_TYPICAL = {
    Reason.OVERLOADED: "503, 529, a 429 about the model's capacity",
    Reason.RATE_LIMITED: "429",
    Reason.QUOTA_EXHAUSTED: "daily quota, billing, `insufficient_quota`",
    Reason.SERVER_ERROR: "500, 502, 520",
    Reason.TIMEOUT: "no answer in time, 504, 524",
    Reason.CONNECTION: "refused, DNS, TLS, reset, a body cut short",
    Reason.UNAUTHENTICATED: "401, Gemini's 400 API_KEY_INVALID",
    Reason.FORBIDDEN: "403, a location that is not served",
    Reason.MODEL_NOT_FOUND: "404",
    Reason.INVALID_RESPONSE: "a 200 that is not what the API promises",
    Reason.NO_IMAGE: "a 200 with text only, or with nothing",
    Reason.CONTENT_BLOCKED: "prompt or picture refused",
    Reason.INVALID_REQUEST: "400, 413, an argument that is not allowed",
    Reason.CIRCUIT_OPEN: "skipped by the breaker",
    Reason.SATURATED: "the queue is full, or too long for the deadline",
    Reason.DEADLINE: "the caller's time is up",
    Reason.CANCELLED: "the caller left, or another route delivered first",
}


_ESSENTIAL = (
    "google_api_key", "openai_api_key", "deadline", "ipm", "max_concurrent", "routes",
    "per_call_timeout", "on_timeout", "openai_quality", "redis_url",
)  # fmt: skip
"""Fields of Settings that an application should decide about, in the order of the table."""


def settings_table() -> str:
    """Return the table of all variables with default, allowed values and meaning."""
    rows = ["| variable | default | allowed | meaning |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        variables, default, meaning = _cells(name)
        allowed = _allowed(field.annotation, field.metadata)
        rows.append(f"| {variables} | {default} | {allowed} | {meaning} |")
    return "\n".join(rows)


def essential_settings_table() -> str:
    """Return the table of the variables that an application should decide about."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    rows += [f"| {' | '.join(_cells(name))} |" for name in _ESSENTIAL]
    return "\n".join(rows)


def _cells(name: str) -> tuple[str, str, str]:
    """Return a field's variables, default and meaning."""
    field = Settings.model_fields[name]
    variables = ", else ".join(f"`{each}`" for each in field_variables(Settings)[name])
    meaning = " ".join((field.description or "").split()).replace("|", "\\|")
    return variables, _default(name, field.default), meaning


def _allowed(kind: Any, metadata: Iterable[Any] = ()) -> str:
    """Return the words or the limits of a type; nothing if the meaning describes its values."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        nested = chain.from_iterable(getattr(each, "metadata", [each]) for each in arguments[1:])
        return _allowed(arguments[0], nested)
    if origin is Literal:
        return ", ".join(arguments)
    if origin in {Union, UnionType}:
        return ", or ".join(filter(None, map(_allowed, arguments)))
    if kind is bool:
        return "true, false"
    bounds = [
        f"{sign} {getattr(each, name)}"
        for each in metadata
        for name, sign in (("gt", ">"), ("ge", "≥"), ("le", "≤"))
        if hasattr(each, name)
    ]
    return ", ".join(bounds)


def _default(name: str, value: object) -> str:
    if name == "openai_ipm":
        return "as `IMAGE_GEN_IPM`"
    if value in (None, (), {}):
        return "–"  # noqa: RUF001 - typography, as in every table
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def reasons_table() -> str:
    """Return the table of all reasons and their consequences."""
    rows = [
        "| reason | same route again | next route | circuit breaker | typical |",
        "|---|---|---|---|---|",
    ]
    for reason, policy in POLICIES.items():
        onwards = "yes" if policy.next_route else "no"
        rows.append(
            f"| `{reason}` | {_RETRIES[policy.retry]} | {onwards} | {_VERDICTS[policy.verdict]} "
            f"| {_TYPICAL[reason]} |"
        )
    return "\n".join(rows)


def prices_per_image_table() -> str:
    """Return the table of the models that charge by the image, with dollars by resolution."""
    rows = [
        (row, [_image_price(row, resolution) for resolution in RESOLUTIONS])
        for row in _current_models()
        if row.prices is not None and row.prices.per_image is not None
    ]
    return _price_table(RESOLUTIONS, rows)


def _image_price(row: ModelInfo, resolution: str) -> str:
    assert row.prices is not None
    assert row.prices.per_image is not None
    if resolution not in (row.resolutions or ("1K",)):
        return "–"  # noqa: RUF001 - typography, as in every table
    dollars = row.prices.per_image.get(resolution)
    return "unknown" if dollars is None else f"{dollars:g}"


def prices_per_token_table() -> str:
    """Return the table of the models that charge by the token, with dollars per million."""
    rows = [
        (row, [f"{each:g}" for each in (prices.text_in, prices.image_in, prices.image_out)])
        for row in _current_models()
        if (prices := row.prices) is not None and prices.per_image is None
    ]
    return _price_table(("prompt", "references", "image"), rows)


def _price_table(titles: Sequence[str], rows: Iterable[tuple[ModelInfo, list[str]]]) -> str:
    """Return a table of prices with one row for all models that have the same ones."""
    models: dict[tuple[str, ...], list[str]] = {}
    for row, prices in rows:
        assert row.prices is not None
        page = row.prices.source
        link = f"[the vendor]({page})" if page.startswith("https://") else "second-hand"
        source = f"{link}, {row.prices.as_of}"
        until = "" if row.retired_on is None else f" (until {row.retired_on})"
        models.setdefault((*prices, source), []).append(f"`{row.name}`{until}")
    lines = [f"| model | {' | '.join(titles)} | source |", "|---|---:|---:|---:|---|"]
    lines += [f"| {', '.join(names)} | {' | '.join(cells)} |" for cells, names in models.items()]
    return "\n".join(lines)


def _current_models() -> list[ModelInfo]:
    """Return the models that were not yet retired on the day when the prices were read."""
    read_on = max(row.prices.as_of for row in MODELS.values() if row.prices is not None)
    return [row for row in MODELS.values() if (row.retired_on or date.max) > read_on]


_WITHOUT: Final[Mapping[str, str]] = {
    "n": "one request for each image",
    "mask": "routes that support it are asked first; without any, `InvalidRequestError`",
    "vendor_options": "fields of other vendors are not sent",
    **dict.fromkeys(MADE_HERE, "converted by the library, and listed in `adjustments`"),
}
"""What happens if the vendor does not support an option; otherwise it is reported."""


def options_table() -> str:
    """Return the table of a request's options, by vendor."""
    vendors = (GoogleProvider, VertexProvider, OpenAIProvider)
    rows = [
        "| option | Gemini | Vertex AI | OpenAI, Azure | if the vendor does not have it |",
        "|---|---|---|---|---|",
    ]
    for option in sorted({"mask", *RequestOptions.__annotations__}):
        cells = [
            "yes" if option in {*vendor.supported_options, "vendor_options"} else "no"
            for vendor in vendors
        ]
        without = _WITHOUT.get(option, "listed in `adjustments`")
        rows.append(f"| `{option}` | {' | '.join(cells)} | {without} |")
    return "\n".join(rows)


def qualities_table() -> str:
    """Return the table of the quality levels of OpenAI's models."""
    models: dict[tuple[str, ...], list[str]] = {}
    for row in _current_models():
        if row.qualities:
            models.setdefault(row.qualities, []).append(f"`{row.name}`")
    rows = [f"| {', '.join(names)} | {', '.join(levels)} |" for levels, names in models.items()]
    return "\n".join(["| model | quality |", "|---|---|", *rows])


TABLES: Final[Mapping[str, Callable[[], str]]] = {
    "settings": settings_table,
    "essential-settings": essential_settings_table,
    "reasons": reasons_table,
    "prices-per-image": prices_per_image_table,
    "prices-per-token": prices_per_token_table,
    "options": options_table,
    "qualities": qualities_table,
}
"""Generators by the name in the markers, ``<!-- name -->`` and ``<!-- /name -->``."""


def _pattern(name: str) -> re.Pattern[str]:
    """Return a pattern for the text between a table's markers."""
    return re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)


def written_tables() -> dict[str, list[str]]:
    """Return the tables in the guides, by name."""
    return {
        name: [each for guide in GUIDES.values() for each in _pattern(name).findall(guide.text)]
        for name in TABLES
    }


def _put(table: str, _: object) -> str:
    return table


def main() -> None:
    """Write the tables into the guides."""
    for guide in GUIDES.values():
        text = guide.text
        for name, make in TABLES.items():
            text = _pattern(name).sub(partial(_put, make() + "\n"), text)
        if text != guide.text:
            guide.path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
