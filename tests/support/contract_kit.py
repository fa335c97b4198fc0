"""The public contract as plain data: names, signatures, settings, reasons, telemetry, commands.

``python tests/support/contract_kit.py`` writes it to ``tests/data/contract.json``. A change of that
file is a change of the public contract, so it must be deliberate and belongs into CHANGELOG.md.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from collections.abc import Callable
from enum import Enum
from importlib import import_module
from typing import Any, Final, get_origin

import typer
from paths import DATA

from resilient_imagen import ImageGenerationError, Reason, Settings
from resilient_imagen._settings_source import field_variables
from resilient_imagen.cli.command_line import COMMANDS, _app
from resilient_imagen.errors import provider_failure
from resilient_imagen.reasons import POLICIES
from resilient_imagen.telemetry import names
from resilient_imagen.telemetry.instruments import Instruments

SNAPSHOT: Final = DATA / "contract.json"
MODULES: Final = (
    "resilient_imagen",
    "resilient_imagen.circuitbreaker",
    "resilient_imagen.dashboard",
    "resilient_imagen.emulator",
    "resilient_imagen.providers.google",
    "resilient_imagen.providers.openai",
    "resilient_imagen.sync",
    "resilient_imagen.testing",
    "resilient_imagen.tuning",
)
"""Modules whose ``__all__`` is public."""


def contract() -> dict[str, Any]:
    """Return everything that other code relies on, as JSON-ready data in a fixed order."""
    return {
        "api": {module: _public_names(module) for module in MODULES},
        "settings": _settings(),
        "reasons": {str(reason): _policy(reason) for reason in Reason},
        "errors": _errors(),
        "telemetry": _telemetry_names(),
        "metrics": _metrics(),
        "commands": {name: _options(name) for name in COMMANDS},
    }


def _public_names(module: str) -> dict[str, Any]:
    loaded = import_module(module)
    return {name: _described(getattr(loaded, name)) for name in sorted(loaded.__all__)}


def _described(value: Any) -> Any:
    if inspect.ismodule(value):
        return sorted(getattr(value, "__all__", ()))
    if inspect.isclass(value):
        return _class(value)
    if get_origin(value) is not None:
        return "type"  # whether it can be called depends on Python's version
    if callable(value):
        return _signature(value)
    return type(value).__name__


def _class(cls: type) -> dict[str, str]:
    """Return the signatures of public methods of the project, and names of attributes."""
    # An enumeration's signature is the standard library's, and depends on Python's version.
    members = {} if issubclass(cls, BaseException | Enum) else {"()": _signature(cls)}
    for name in sorted(set(dir(cls)) | set(getattr(cls, "__annotations__", ()))):
        value = inspect.getattr_static(cls, name, None)
        if name.startswith("_") or not _is_ours(cls, name):
            continue
        if isinstance(value, classmethod | staticmethod):
            value = value.__func__
        members[name] = _signature(value) if inspect.isfunction(value) else "attribute"
    return members


def _is_ours(cls: type, name: str) -> bool:
    """Return whether a class of this project, not of another library, defines the member."""
    return any(
        name in vars(base) or name in inspect.get_annotations(base)
        for base in cls.__mro__
        if base.__module__.startswith("resilient_imagen")
    )


def _signature(function: Any) -> str:
    """Return the parameters with their defaults; type checks cover the annotations."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return "()"
    bare = [each.replace(annotation=each.empty) for each in signature.parameters.values()]
    text = str(signature.replace(parameters=bare, return_annotation=signature.empty))
    return re.sub(r" at 0x[0-9a-f]+|(?<=b')[^']+", "", text)


def _settings() -> dict[str, Any]:
    found = {}
    for field, variables in field_variables(Settings).items():
        default = Settings.model_fields[field].default
        found[field] = {
            "variables": list(variables),
            "default": list(default) if isinstance(default, tuple) else default,
        }
    return found


def _policy(reason: Reason) -> dict[str, Any]:
    policy = POLICIES[reason]
    return {
        "retry": policy.retry.name.lower(),
        "next_route": policy.next_route,
        "breaker": str(policy.verdict),
        "error": type(provider_failure(reason)).__name__,
        "text": str(provider_failure(reason, provider="google", model="m")),
    }


def _errors() -> dict[str, list[str]]:
    """Return each error class with its base classes."""
    kinds: list[type[ImageGenerationError]] = [ImageGenerationError]
    for kind in kinds:
        kinds += [each for each in kind.__subclasses__() if each not in kinds]
    ours = [kind for kind in kinds if kind.__module__ == "resilient_imagen.errors"]
    return {kind.__name__: [base.__name__ for base in kind.__bases__] for kind in ours}


def error_text(outcome: ImageGenerationError | str) -> str:
    """Return the text of a failure as the application sees it."""
    return outcome if isinstance(outcome, str) else f"{type(outcome).__name__}: {outcome}"


def _telemetry_names() -> list[str]:
    """Return every name that telemetry exports: attributes, spans, events, metrics."""
    constants = {name: value for name, value in vars(names).items() if name.isupper()}
    return sorted({value for value in constants.values() if isinstance(value, str)})


class _RecordingMeter:
    """A meter that records the arguments of each instrument."""

    def __init__(self) -> None:
        self.instruments: dict[str, Any] = {}

    def __getattr__(self, kind: str) -> Callable[..., object]:
        def create(name: str, *arguments: Any, **options: Any) -> object:
            unit = arguments[-2]
            buckets = options.get("explicit_bucket_boundaries_advisory")
            found = {"kind": kind.removeprefix("create_"), "unit": unit}
            self.instruments[name] = found if buckets is None else {**found, "buckets": buckets}
            return None

        return create


def _metrics() -> dict[str, Any]:
    """Return kind, unit and buckets of each instrument."""
    recording = _RecordingMeter()
    meter: Any = recording
    Instruments(meter)
    return recording.instruments


def _options(command: str) -> dict[str, Any]:
    group: Any = typer.main.get_command(_app)
    found = group.get_command(typer.Context(group), command)
    return {
        parameter.name: {
            "names": [*parameter.opts, *parameter.secondary_opts],
            "required": parameter.required,
            "default": None if parameter.default is None else str(parameter.default),
        }
        for parameter in found.params
    }


def snapshot() -> dict[str, Any]:
    """Return the stored contract."""
    found: dict[str, Any] = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Write the snapshot."""
    from failure_cases import failures

    outcomes = asyncio.run(failures())
    texts = {case: error_text(outcome) for case, outcome in outcomes.items()}
    text = json.dumps({**contract(), "error_texts": texts}, indent=1, ensure_ascii=False)
    SNAPSHOT.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
