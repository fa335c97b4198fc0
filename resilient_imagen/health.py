"""Health: whether a client can deliver images, in one word and with reasons, for health checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from resilient_imagen.snapshots import BreakerSnapshot, RouteSnapshot

__all__ = ["Health", "assess"]


class Health(TypedDict):
    """The answer to a health check, ready for JSON."""

    status: Literal["ok", "degraded", "down"]
    """``ok``: the primary serves. ``degraded``: it does not, but another route serves, or the next
    request may find out that one serves again. ``down``: no route accepts a request now."""
    reasons: list[str]
    """A sentence about each configured route that does not serve, with the cause."""


def assess(
    routes: Iterable[RouteSnapshot], primary: Collection[str], used: Collection[str]
) -> Health:
    """Return the health of a client.

    A route that is due for a probe, or is being probed, counts as able to serve in part: a load
    balancer that sent no requests there would never learn that it has recovered.

    Args:
        routes: The configured routes.
        primary: The names of those that are asked first.
        used: The names of those that calls take; an operator may leave others out.
    """
    found = {row["route"]: row for row in routes}
    serving = {name for name, row in found.items() if name in used and _serves(row)}
    if serving.intersection(primary):
        status: Literal["ok", "degraded", "down"] = "ok"
    elif serving or any(name in used and _may_serve(row) for name, row in found.items()):
        status = "degraded"
    else:
        status = "down"
    reasons = [
        _reason(row) if name in used or row["off"] else f"{name} is left out by an operator's order"
        for name, row in found.items()
        if name not in serving
    ]
    return {"status": status, "reasons": reasons}


def _serves(row: RouteSnapshot) -> bool:
    return row["off"] is None and row["breaker"]["state"] == "closed"


def _may_serve(row: RouteSnapshot) -> bool:
    """Return whether a probe may be sent now, or is in flight."""
    return row["off"] is None and (
        row["breaker"]["state"] == "half_open" or _is_due(row["breaker"])
    )


def _is_due(breaker: BreakerSnapshot) -> bool:
    return breaker["state"] == "open" and breaker["retry_after"] is None


def _reason(row: RouteSnapshot) -> str:
    name, off, breaker = row["route"], row["off"], row["breaker"]
    if off is not None:
        return f"{name} is off: {off}"
    if breaker["state"] == "forced_open":
        return f"{name}: circuit forced open by an operator"
    after = "" if breaker["why"] is None else f" after {breaker['why'].replace('_', ' ')}"
    if breaker["state"] == "half_open":
        return f"{name}: circuit half-open{after}, a probe decides"
    if _is_due(breaker):
        return f"{name}: circuit open{after}, the next request is a probe"
    return f"{name}: circuit open{after}, next probe in {breaker['retry_after']:.0f} s"
