"""Order: one instruction of an operator to running clients, valid for a limited time.

Orders reach a client through Redis, through its control file, or from its own application. They are
values: nothing here reads a clock or does I/O.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, Self

from resilient_imagen.errors import ConfigurationError

__all__ = [
    "BREAKER_ACTIONS",
    "CLOCKS_DIFFER",
    "LONGEST",
    "SETTING_ACTIONS",
    "Order",
    "parse_duration",
]

LONGEST: Final = 24 * 3600
"""Seconds for which an order may last."""
CLOCKS_DIFFER: Final = 60
"""Seconds by which an order may have been issued in the future, because clocks differ."""
BREAKER_ACTIONS: Final = ("open", "close", "hold", "reset")
"""Actions on a route: reject all calls; close now; keep closed; end earlier orders."""
SETTING_ACTIONS: Final = ("set", "unset")

_ROUTE: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,60}(?::[A-Za-z0-9][\w.:@/-]{0,150})?", re.ASCII)
_VARIABLE: Final = re.compile(r"IMAGE_GEN_[A-Z0-9_]{1,80}", re.ASCII)
_LONGEST_TEXT: Final = {"value": 1000, "by": 80, "why": 200}
"""Maximum characters of each string."""
_SIGNATURE: Final = re.compile(r"(?:[0-9a-f]{64})?", re.ASCII)
_LARGEST_SERIAL: Final = 2**53 - 1
"""Lua's numbers are exact up to here."""
_DURATION: Final = re.compile(r"([0-9]{1,6})(s|m|h)", re.ASCII)
_UNITS: Final = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One instruction, such as to open the circuits of a provider for 30 minutes.

    Raises:
        ConfigurationError: A value is not allowed. Whether a variable exists, and allows the value,
            is only known to the client that receives the order.
    """

    action: str
    """open, close, hold or reset for a route; set or unset for a setting."""
    target: str
    """A route (``provider:model``, or a provider's name for all its routes), or a variable."""
    value: str | None = None
    """The new value of the variable, as in the environment; None for all other actions."""
    even_account: bool = False
    """Whether close and hold also apply to a circuit that a failure of the account opened, such as
    a used-up quota or a refused key."""
    ttl: int
    """Seconds from its issue until it ends, from 1 to 86,400."""
    by: str
    """The name of the person or the program that gives it."""
    why: str = ""
    """The reason, for the log and for other operators."""
    serial: int
    """When it was issued, in microseconds since 1970; unique. The latest on a topic applies."""
    signature: str = ""
    """HMAC-SHA256 of everything else, in hexadecimal; empty if it is not signed."""

    def __post_init__(self) -> None:
        """Check each value."""
        _check_types(self)
        self._check_target()
        if (self.value is not None) != (self.action == "set"):
            raise ConfigurationError("an order has a value exactly if its action is set")
        if self.even_account and self.action not in {"close", "hold"}:
            raise ConfigurationError("only close and hold may apply even to a tripped account")
        if not 1 <= self.ttl <= LONGEST:
            raise ConfigurationError("an order must last from 1 second to 24 hours")
        if not 0 < self.serial <= _LARGEST_SERIAL:
            raise ConfigurationError("an order's serial must be microseconds since 1970")
        if not _SIGNATURE.fullmatch(self.signature):
            raise ConfigurationError("an order's signature must have 64 hexadecimal digits")
        if not self.by.strip():
            raise ConfigurationError("an order must name its author")

    def _check_target(self) -> None:
        if self.action in SETTING_ACTIONS:
            if not _VARIABLE.fullmatch(self.target):
                raise ConfigurationError("an order's setting must be a variable IMAGE_GEN_...")
        elif self.action not in BREAKER_ACTIONS:
            known = ", ".join((*BREAKER_ACTIONS, *SETTING_ACTIONS))
            raise ConfigurationError(f"an order's action must be one of {known}")
        elif not _ROUTE.fullmatch(self.target):
            raise ConfigurationError(
                "an order's route must be provider:model, or a provider's name for all its routes"
            )

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """Read an order in the format of ``to_json``.

        Raises:
            ConfigurationError: The text is not an order; it is not repeated in the message.
        """
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            raise ConfigurationError("an order must be a JSON object") from None
        return cls.from_dict(found)

    @classmethod
    def from_dict(cls, found: Any) -> Self:
        """Return the order with these fields. Raises as ``parse``."""
        names = {each.name for each in fields(cls)}
        if not isinstance(found, dict) or not names.issuperset(found):
            raise ConfigurationError(f"an order must be an object with {', '.join(sorted(names))}")
        try:
            return cls(**found)
        except TypeError:  # a field is missing
            raise ConfigurationError("an order lacks a field") from None

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, ready for JSON."""
        return asdict(self)

    def to_json(self) -> str:
        """Return the order as one line."""
        return json.dumps(self.to_dict(), separators=(",", ":"))

    @property
    def topic(self) -> str:
        """The subject: of two orders on one topic, only the later one is in force."""
        return self.target if self.action in SETTING_ACTIONS else f"breaker {self.target}"

    @property
    def lasts(self) -> bool:
        """Whether it has an effect until its end; others act once, or end earlier orders."""
        return self.action in {"open", "hold", "set"}

    @property
    def ends_at(self) -> int:
        """When it ends, in microseconds since 1970 by the clock that issued it."""
        return self.serial + self.ttl * 1_000_000

    def applies_to(self, route: str) -> bool:
        """Return whether it concerns a route, given as ``provider:model``."""
        if self.action in SETTING_ACTIONS:
            return False
        return self.target in {route, route.partition(":")[0]}

    def replaces(self, other: Order) -> bool:
        """Return whether it ends an earlier order, which must concern nothing else."""
        if self.serial <= other.serial:
            return False
        return self.topic == other.topic or (
            other.action not in SETTING_ACTIONS and self.applies_to(other.target)
        )

    def __str__(self) -> str:
        """Return the order as an operator would write it, without time, name and reason."""
        if self.action == "set":
            return f"{self.target}={self.value}"
        if self.action == "unset":
            return f"{self.target} unset"
        action = "close --hold" if self.action == "hold" else self.action
        even = " --even-account" if self.even_account else ""
        return f"breaker {action} {self.target}{even}"

    def signed(self, secret: str, namespace: str) -> Self:
        """Return the order with a signature.

        Args:
            secret: The value of IMAGE_GEN_CONTROL_SECRET.
            namespace: Where it is valid: an order for one fleet is not valid in another.
        """
        return replace(self, signature=self._digest(secret, namespace))

    def is_signed(self, secret: str, namespace: str) -> bool:
        """Return whether it was signed with this secret for this namespace, and not changed."""
        return hmac.compare_digest(self.signature, self._digest(secret, namespace))

    def _digest(self, secret: str, namespace: str) -> str:
        signed = {**self.to_dict(), "signature": None, "namespace": namespace}
        message = json.dumps(signed, sort_keys=True).encode()
        return hmac.new(secret.encode(), message, hashlib.sha256).hexdigest()


def parse_duration(text: str) -> int:
    """Return the seconds of a time such as ``20s``, ``30m`` or ``2h``.

    Raises:
        ConfigurationError: It is not a time, or not from 1 second to 24 hours.
    """
    found = _DURATION.fullmatch(text.strip())
    seconds = 0 if found is None else int(found[1]) * _UNITS[found[2]]
    if not 1 <= seconds <= LONGEST:
        shown = f", not {text!r}" if len(text) <= 20 else ""  # noqa: PLR2004 - a typing error
        raise ConfigurationError(f"must be a time such as 20s, 30m or 2h, at most 24h{shown}")
    return seconds


def _check_types(order: Order) -> None:
    for name in ("ttl", "serial"):
        if type(getattr(order, name)) is not int:
            raise ConfigurationError(f"an order's {name} must be a whole number")
    if type(order.even_account) is not bool:
        raise ConfigurationError("an order's even_account must be true or false")
    for name in ("action", "target", "by", "why", "signature"):
        if not isinstance(getattr(order, name), str):
            raise ConfigurationError(f"an order's {name} must be a string")
    if not isinstance(order.value, str | None):
        raise ConfigurationError("an order's value must be a string")
    for name, longest in _LONGEST_TEXT.items():
        text = getattr(order, name) or ""
        if len(text) > longest or not text.isprintable() or not _is_encodable(text):
            raise ConfigurationError(
                f"an order's {name} must be printable, with at most {longest} characters"
            )


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
