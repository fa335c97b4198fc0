"""``resilient-imagen settings``: show settings, and change them in running processes."""

from __future__ import annotations

import re
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from resilient_imagen.cli.command_errors import CommandError, suggestion
from resilient_imagen.cli.orders import (
    ControlFilePath,
    FleetUrl,
    Lasts,
    Why,
    open_place,
    send,
    span,
)

if TYPE_CHECKING:
    from resilient_imagen import Settings
    from resilient_imagen.control import Order

__all__ = ["settings"]

_BORDERS: Final = 5
"""Half of the characters that borders take of a line of the table."""
_LIMIT: Final = re.compile(r"IMAGE_GEN_([A-Z0-9_]+)_(?:IPM|MAX_CONCURRENT|TIMEOUT)")


class Action(StrEnum):
    """The action on settings."""

    SHOW = "show"
    SET = "set"
    UNSET = "unset"


def settings(
    action: Annotated[Action, typer.Argument(help="show, set or unset.")],
    assignment: Annotated[
        str | None,
        typer.Argument(metavar="[VARIABLE[=VALUE]]", help="For set and unset.", show_default=False),
    ] = None,
    lasts: Lasts = "30m",
    why: Why = "",
    redis_url: FleetUrl = None,
    control_file: ControlFilePath = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Show settings and where they come from, or change one in running processes for a while.

    [bold]show[/bold] prints the values of this environment, which should be that of the processes,
    and the orders in force. [bold]set IMAGE_GEN_BREAKER_FAIL_MAX=5[/bold] changes a value until
    --for ends, [bold]unset IMAGE_GEN_BREAKER_FAIL_MAX[/bold] returns to the value before.
    """
    if action is Action.SHOW:
        if assignment is not None:
            raise CommandError("settings show needs no variable")
        _show(redis_url, control_file, as_json=as_json)
        return
    variable, separator, value = (assignment or "").partition("=")
    if not variable or bool(separator) is (action is Action.UNSET):
        usage, example = "VARIABLE", "IMAGE_GEN_BREAKER_FAIL_MAX"
        if action is Action.SET:
            usage, example = f"{usage}=VALUE", f"{example}=5"
        raise CommandError(f"write settings {action} {usage}, such as {example}")
    _check(variable, value if separator else None)
    order = {"action": action.value, "target": variable, "value": value if separator else None}
    send(redis_url, control_file, lasts, why, **order)


def _check(variable: str, value: str | None) -> None:
    """Check that a variable can change at runtime, and its new value.

    Raises:
        CommandError: It cannot, or is not a setting; the message has the nearest names.
        ConfigurationError: The value is not allowed.
    """
    from resilient_imagen import Settings
    from resilient_imagen._provider_settings import DECLARATION
    from resilient_imagen._settings_source import is_unknown_variable, unknown_variable_warning
    from resilient_imagen.control.overrides import check_value, variables_for
    from resilient_imagen.redaction import redact

    # A provider's limits may belong to a provider that only the processes know.
    found = _LIMIT.fullmatch(variable)
    providers = [] if found is None else [found[1].lower()]
    known = variables_for(providers)
    # So may the declaration of a provider.
    declares = variable.upper().startswith(DECLARATION)
    if found is None and not declares and is_unknown_variable(variable, Settings):
        raise CommandError(unknown_variable_warning(redact(variable), Settings, ignored=False))
    if variable not in known:
        hint = suggestion(variable.upper(), known) or f"these can: {', '.join(known)}"
        raise CommandError(f"{redact(variable)} cannot change at runtime; {hint}")
    if value is not None:
        check_value(variable, value, providers)


def _show(redis_url: str | None, control_file: Path | None, *, as_json: bool) -> None:
    from resilient_imagen.cli.terminal import echo_json, folding_table, table_console

    place, found = open_place(redis_url, control_file)
    orders = [] if place is None else place.read()
    rows = _rows(found, orders)
    if redis_url:
        rows["IMAGE_GEN_REDIS_URL"] = rows["IMAGE_GEN_REDIS_URL"][0], "--redis-url"
    if as_json:
        names = ("variable", "value", "source")
        echo_json(
            [dict(zip(names, (name, *row), strict=True)) for name, row in rows.items()], indent=2
        )
        return
    console = table_console()
    nowhere = "no orders: neither Redis nor a control file is set"
    shown = nowhere if place is None else f"orders of {place.shown}"
    console.print(f"Settings of this environment, {shown}", soft_wrap=True)
    table = folding_table("variable", "value", "source")
    # Half of the line, so that long values do not cause names of variables to be folded.
    half = max(1, console.width // 2 - _BORDERS)
    table.columns[0].width = min(half, max(map(len, rows)))
    for variable, row in rows.items():
        table.add_row(variable, *row)
    console.print(table)
    for order, left in orders:
        if order.action != "set":
            console.print(f"{order}, ordered by {order.by}, {span(left)} left", soft_wrap=True)


def _rows(found: Settings, orders: list[tuple[Order, float]]) -> dict[str, tuple[str, str]]:
    """Return the value and the source of each variable: default, environment or an order."""
    from pydantic import SecretStr

    from resilient_imagen._provider_settings import limit_variables
    from resilient_imagen._settings_source import field_variables
    from resilient_imagen.effective_settings import value_text

    rows = {}
    for name, (variable, *_) in field_variables(type(found)).items():
        if name != "providers":
            value = getattr(found, name)
            shown = "set, not shown" if isinstance(value, SecretStr) else value_text(value)
            source = "environment" if name in found.model_fields_set else "default"
            rows[variable] = shown, source
    for name, provider in found.providers.items():
        for field, variable in limit_variables(name).items():
            if (value := getattr(provider, field)) is not None:
                rows[variable] = value_text(value), "environment"
    for order, left in orders:
        if order.action == "set":
            until = time.strftime("%H:%M:%S", time.localtime(time.time() + left))
            why = f": {order.why}" if order.why else ""
            rows[order.target] = order.value or "", f"ordered by {order.by} until {until}{why}"
    return rows
