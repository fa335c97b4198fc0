"""``resilient-imagen settings``: show settings, and change them in running processes."""

from __future__ import annotations

import re
import time
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import typer

from resilient_imagen.cli.command_errors import CommandError
from resilient_imagen.cli.orders import (
    FOR,
    WHY,
    FilePath,
    FleetUrl,
    author,
    lifetime,
    open_place,
    send,
    span,
)

if TYPE_CHECKING:
    from resilient_imagen import Settings
    from resilient_imagen.control import Order

__all__ = ["settings"]

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
    lasts: Annotated[str, typer.Option("--for", help=FOR)] = "30m",
    why: Annotated[str, typer.Option(help=WHY)] = "",
    redis_url: FleetUrl = None,
    control_file: FilePath = None,
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
    draft = _draft(action, assignment or "", lasts, why)
    place, _ = open_place(redis_url, control_file)
    send(place, draft)


def _draft(action: Action, assignment: str, lasts: str, why: str) -> Order:
    from resilient_imagen.control import Order
    from resilient_imagen.control.overrides import check_value, variables_for
    from resilient_imagen.redaction import redact

    variable, separator, value = assignment.partition("=")
    if bool(separator) is (action is Action.UNSET) or not variable:
        usage = (
            "settings unset VARIABLE" if action is Action.UNSET else "settings set VARIABLE=VALUE"
        )
        raise CommandError(f"write {usage}, such as IMAGE_GEN_BREAKER_FAIL_MAX=5")
    # A provider's limits may belong to a provider that only the processes know.
    found = _LIMIT.fullmatch(variable)
    providers = [] if found is None else [found[1].lower()]
    known = variables_for(providers)
    if variable not in known:
        near = get_close_matches(variable.upper(), known, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"these can: {', '.join(known)}"
        raise CommandError(f"{redact(variable)} cannot change at runtime; {hint}")
    if action is Action.SET:
        check_value(variable, value, providers)
    return Order(
        action=action.value,
        target=variable,
        value=value if action is Action.SET else None,
        ttl=lifetime(lasts),
        by=author(),
        why=why,
        serial=1,
    )


class _Row(NamedTuple):
    """One row of the table of settings."""

    variable: str
    value: str
    source: str
    """default, environment, an option of the command, or an order with its author and its end."""


def _show(redis_url: str | None, control_file: Path | None, *, as_json: bool) -> None:
    from rich.table import Table

    from resilient_imagen import Settings
    from resilient_imagen.cli.terminal import Console, echo_json

    try:
        place, found = open_place(redis_url, control_file)
    except CommandError:
        if redis_url or control_file:
            raise
        found, orders, shown = Settings(), [], "no orders: neither Redis nor a control file is set"
    else:
        orders, shown = place.read(), f"orders of {place.shown}"
    options = {"redis_url": "--redis-url"} if redis_url else {}
    rows = _rows(found, {order.target: (order, left) for order, left in orders}, options)
    if as_json:
        echo_json([row._asdict() for row in rows], indent=2)
        return
    console = Console()
    console.print(f"Settings of this environment, {shown}", soft_wrap=True)
    table = Table("variable", "value", "source")
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for order, left in orders:
        if order.action != "set":
            console.print(f"{order}, ordered by {order.by}, {span(left)} left", soft_wrap=True)


def _rows(
    found: Settings, orders: dict[str, tuple[Order, float]], options: dict[str, str]
) -> list[_Row]:
    from pydantic import SecretStr

    from resilient_imagen._settings_source import field_variables
    from resilient_imagen.effective_settings import value_text

    rows = []
    for name, (variable, *_) in field_variables(type(found)).items():
        if name == "providers":
            continue
        value = getattr(found, name)
        shown = "set, not shown" if isinstance(value, SecretStr) else value_text(value)
        source = "environment" if name in found.model_fields_set else "default"
        rows.append(_Row(variable, shown, options.get(name, source)))
    rows += _rows_of_providers(found)
    by_variable = {row.variable: row for row in rows}
    for variable, (order, left) in orders.items():
        if order.action == "set":
            until = time.strftime("%H:%M:%S", time.localtime(time.time() + left))
            why = f": {order.why}" if order.why else ""
            source = f"ordered by {order.by} until {until}{why}"
            by_variable[variable] = _Row(variable, order.value or "", source)
    return list(by_variable.values())


def _rows_of_providers(found: Settings) -> list[_Row]:
    from resilient_imagen._provider_settings import limit_variables
    from resilient_imagen.effective_settings import value_text

    rows = []
    for name, provider in found.providers.items():
        for field, variable in limit_variables(name).items():
            value = getattr(provider, field, None)
            if value is not None:
                rows.append(_Row(variable, value_text(value), "environment"))
    return rows
