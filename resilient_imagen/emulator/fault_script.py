"""Fault scripts: faults and their schedule in JSON, for the command line and for scenarios."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    ValidationError,
    validate_call,
)

from resilient_imagen._validation import explain
from resilient_imagen.emulator.emulator import Emulator
from resilient_imagen.emulator.faults import KINDS, Fault, Latency, fixed, log_normal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from resilient_imagen.emulator.vendor import Vendor

__all__ = ["Script", "ScriptError", "parse_script"]


class ScriptError(ValueError):
    """A script is not valid; the text has each place and cause."""


def _latency(value: Any) -> Any:
    if isinstance(value, Latency):
        return value
    if isinstance(value, dict):
        return _checked(log_normal, value)
    return _checked(fixed, {"seconds": value})


def _fault(value: Any) -> Any:
    if isinstance(value, Fault):
        return value
    given = dict(value) if isinstance(value, dict) else {"kind": value}
    kind = given.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"a fault's kind is one of {', '.join(sorted(KINDS))}")
    after, share = given.pop("after", None), given.pop("share", None)
    if "latency" in given:
        given["latency"] = _latency(given["latency"])
    fault: Fault = _checked(KINDS[kind], given)
    if after is not None:
        fault = fault.after(_latency(after))
    return fault if share is None else _checked(_with_probability, {"fault": fault, "share": share})


def _with_probability(fault: InstanceOf[Fault], share: float) -> Fault:
    return fault.with_probability(share)


@cache
def _validated(make: Callable[..., Any]) -> Callable[..., Any]:
    return validate_call(make)


def _checked(make: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call ``make`` with arguments from JSON, after checking them against its signature."""
    try:
        return _validated(make)(**arguments)
    except ValidationError as error:
        raise ValueError("; ".join(_problems(error))) from None


def _problems(error: ValidationError) -> list[str]:
    """Return a message with place and cause for each problem."""
    return [
        f"{'.'.join(map(str, problem['loc'])) or 'script'}: {explain(problem)}"
        for problem in error.errors(include_url=False)
    ]


_Fault = Annotated[InstanceOf[Fault], BeforeValidator(_fault)]
_Latency = Annotated[InstanceOf[Latency], BeforeValidator(_latency)]
_Seconds = Annotated[float, Field(ge=0)]


class _Part(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True)


class _FaultEntry(_Part):
    fault: _Fault
    model: str | None = None


class _NextFaults(_FaultEntry):
    times: Annotated[int, Field(ge=1)] = 1


class _FaultWindow(_FaultEntry):
    start: _Seconds = Field(0.0, alias="from")
    end: _Seconds = Field(float("inf"), alias="to")


class _VendorScript(_Part):
    latency: _Latency | None = None
    next: tuple[_NextFaults, ...] = ()
    windows: tuple[_FaultWindow, ...] = ()
    always: tuple[_FaultEntry, ...] = ()

    def apply(self, vendor: Vendor) -> None:
        if self.latency is not None:
            vendor.set_latency(self.latency)
        for entry in self.next:
            vendor.fail(entry.fault, times=entry.times, model=entry.model)
        for window in self.windows:
            span = (window.start, window.end, window.fault)
            vendor.schedule([span], model=window.model)
        for standing in self.always:
            vendor.set(standing.fault, model=standing.model)


class Script(_Part):
    """A valid script. All parts are optional, for each of the services, such as google or azure::

        {"seed": 7,
         "google": {"latency": {"median": 20, "p95": 60},
                    "next": [{"fault": "reset", "times": 2}],
                    "windows": [{"from": 0, "to": 60,
                                 "fault": {"kind": "overload", "share": 0.5}},
                                {"from": 60, "to": 120, "fault": "hang"}],
                    "always": [{"fault": {"kind": "status", "code": 429, "retry_after": 30},
                                "model": "gemini-3-pro-image"}]},
         "openai": {"latency": 12}}

    A fault is the name of a function in ``faults``, or an object with the name as ``kind`` and the
    function's arguments, and optionally ``share`` and ``after`` (a latency). A latency is a number,
    or the median and 95th percentile of a log-normal distribution. Times are in seconds.
    """  # noqa: D415 - the summary leads into the example

    seed: int = 0
    google: _VendorScript = _VendorScript()
    openai: _VendorScript = _VendorScript()
    vertex: _VendorScript = _VendorScript()
    azure: _VendorScript = _VendorScript()
    compatible: _VendorScript = _VendorScript()
    tokens: _VendorScript = _VendorScript()

    def apply(self, app: Emulator) -> None:
        """Add the script's faults to an emulator's present faults.

        Raises:
            ScriptError: A vendor does not have a fault, or a window is empty.
        """
        for vendor in app.services:
            try:
                getattr(self, vendor.name).apply(vendor)
            except ValueError as error:
                raise ScriptError(f"{vendor.name}: {error}") from None

    def emulator(self, **options: Any) -> Emulator:
        """Return a new emulator with the script; ``options`` are those of Emulator."""
        app = Emulator(seed=self.seed, **options)
        self.apply(app)
        return app


def parse_script(text: str | bytes) -> Script:
    """Parse and check a script in JSON.

    Raises:
        ScriptError: The script is not valid; the text has each place and what is allowed there.
    """
    try:
        script = Script.model_validate_json(text)
    except ValidationError as error:
        raise ScriptError("\n".join(_problems(error))) from None
    script.apply(Emulator(picture="tiny"))
    return script
