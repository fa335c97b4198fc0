"""README tables, generated from the code: ``python tests/readme_tables.py`` updates them."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

from resilient_imagen import Reason, Settings
from resilient_imagen.reasons import POLICIES, BreakerOutcome, Retry

README = Path(__file__).parent.parent / "README.md"

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


def settings_table() -> str:
    """Return the table of all variables with default and meaning."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        alias: Any = field.validation_alias
        variables = ", else ".join(f"`{choice}`" for choice in alias.choices)
        meaning = (field.description or "").replace("|", "\\|")
        rows.append(f"| {variables} | {_default(name, field.default)} | {meaning} |")
    return "\n".join(rows)


def _default(name: str, value: object) -> str:
    if name == "openai_ipm":
        return "as `IMAGE_GEN_IPM`"
    if value is None or value == ():
        return "–"  # noqa: RUF001 - typography, as in every table of README
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


TABLES = {"settings": settings_table, "reasons": reasons_table}


def _pattern(name: str) -> re.Pattern[str]:
    """Return a pattern for the text between a table's markers."""
    return re.compile(rf"(?<=<!-- {name} -->\n).*?(?=\n<!-- /{name} -->)", re.DOTALL)


def in_readme(name: str) -> str:
    """Return the table in README.md."""
    found = _pattern(name).search(README.read_text(encoding="utf-8"))
    assert found, f"README.md has lost its markers for {name}"
    return found[0]


def _put(table: str, _: object) -> str:
    return table


def main() -> None:
    """Write the tables into README.md."""
    text = README.read_text(encoding="utf-8")
    for name, make in TABLES.items():
        text = _pattern(name).sub(partial(_put, make()), text)
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
