"""Lua scripts: the atomic commands of the protocol."""

from __future__ import annotations

from hashlib import sha1
from importlib import resources
from typing import Final, NamedTuple, TypeAlias

__all__ = [
    "GIVE_BACK",
    "LEASE",
    "LEAVE",
    "OPEN",
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

Argument: TypeAlias = str | int | float


class LuaScript(NamedTuple):
    """The source of a script and its SHA-1 digest."""

    name: str
    source: str
    sha: str


class ScriptCall(NamedTuple):
    """A call of a script with its keys and arguments."""

    script: LuaScript
    keys: tuple[str, ...]
    arguments: tuple[Argument, ...]


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
TAKE: Final = _script("clock", "pace", "take")
GIVE_BACK: Final = _script("clock", "pace", "give_back")

SCRIPTS: Final = (VOTE, OPEN, LEASE, SETTLE, RELEASE, SHORTEN, LEAVE, TAKE, GIVE_BACK)
