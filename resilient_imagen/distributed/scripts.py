"""Lua scripts: the atomic commands of the protocol."""

from __future__ import annotations

import json
from hashlib import sha1
from importlib import resources
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "LEASE",
    "LEAVE",
    "OPEN",
    "ORDER",
    "ORDERS",
    "PROTOCOL",
    "REGISTER",
    "RELEASE",
    "SCRIPTS",
    "SETTLE",
    "SHORTEN",
    "TAKE",
    "VOTE",
    "LuaScript",
    "ScriptCall",
    "microseconds",
]

PROTOCOL: Final = 2
"""Version of the stored data, increased by changes that older workers would misread. A worker that
finds data of a newer version does not touch them and works locally; it takes over data of an older
version. New fields need no new version, because unknown fields are kept and ignored."""


class LuaScript(NamedTuple):
    """The source of a script and its SHA-1 digest."""

    name: str
    source: str
    sha: str


class ScriptCall(NamedTuple):
    """A call of a script with its keys and named arguments."""

    script: LuaScript
    keys: tuple[str, ...]
    arguments: Mapping[str, Any]

    def encoded(self) -> str:
        """Return the arguments as the JSON object that the script decodes."""
        return json.dumps({"protocol": PROTOCOL, **self.arguments}, allow_nan=False)


def microseconds(seconds: float) -> int:
    """Convert seconds to microseconds, the unit of the scripts."""
    return round(seconds * 1_000_000)


def _script(*names: str) -> LuaScript:
    folder = resources.files("resilient_imagen.distributed") / "lua"
    source = "\n".join((folder / f"{name}.lua").read_text("utf-8") for name in names)
    return LuaScript(names[-1], source, sha1(source.encode(), usedforsecurity=False).hexdigest())


VOTE: Final = _script("clock", "record", "vote")
OPEN: Final = _script("clock", "record", "open")
LEASE: Final = _script("clock", "record", "lease")
SETTLE: Final = _script("clock", "record", "settle")
RELEASE: Final = _script("clock", "record", "release")
SHORTEN: Final = _script("clock", "record", "shorten")
LEAVE: Final = _script("clock", "record", "leave")
TAKE: Final = _script("clock", "take")
REGISTER: Final = _script("clock", "register")
ORDER: Final = _script("clock", "order")
ORDERS: Final = _script("clock", "orders")

SCRIPTS: Final = (
    VOTE, OPEN, LEASE, SETTLE, RELEASE, SHORTEN, LEAVE, TAKE, REGISTER, ORDER, ORDERS,
)  # fmt: skip
