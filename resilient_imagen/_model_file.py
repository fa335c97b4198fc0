"""Model file: further rows of the model table, in the TOML file that IMAGE_GEN_MODELS names.

Each table of the file is a row, and its name is the model's. A built-in row is replaced only on
purpose: by a row that is based on it, which then changes the fields that it sets.
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, date, datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from resilient_imagen._settings_types import Seconds  # noqa: TC001 - pydantic evaluates it
from resilient_imagen._validation import explain
from resilient_imagen.models import MODELS, ModelInfo, Prices, Quality, Resolution, TypicalLatency

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic_core import ErrorDetails

__all__ = ["read_model_file"]

_NAME: Final = re.compile(r"[A-Za-z0-9][\w.:@/-]{0,199}", re.ASCII)
_SIZE: Final = re.compile(r"([1-9][0-9]{1,4})x([1-9][0-9]{1,4})", re.ASCII)
_RATIO: Final = re.compile("[1-9][0-9]?:[1-9][0-9]?", re.ASCII)
_RATIOS: Final = MODELS["gemini-3-pro-image"].aspect_ratios
_SHOWN: Final = 60
"""Characters of an unknown name that an error shows."""
_OF_VENDOR: Final = {
    "google": frozenset({"aspect_ratios", "resolutions"}),
    "openai": frozenset({"sizes", "qualities", "options", "response_format"}),
}
"""Fields that only models of a vendor have."""
_AS_GIVEN: Final = (
    "max_references", "max_reference_bytes", "max_total_bytes", "sizes", "response_format",
)  # fmt: skip
"""Fields whose values are those of the model table."""


def _for_each_resolution(value: object) -> object:
    """Take one number for all resolutions."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return dict.fromkeys(("1K", "2K", "4K"), value)
    return value


def _sizes(value: object) -> object:
    """Return the sizes in pixels; none for ``any``, as in the model table."""
    if value == "any":
        return ()
    found = [
        _SIZE.fullmatch(each) if isinstance(each, str) else None
        for each in (value if isinstance(value, list) else [None])
    ]
    sizes = tuple((int(each[1]), int(each[2])) for each in found if each is not None)
    if not sizes or len(sizes) != len(found):
        raise ValueError('must be "any", or a list of sizes such as "1024x1536"')
    return sizes


def _ratios(value: list[str]) -> list[str]:
    if not value or not all(map(_RATIO.fullmatch, value)):
        raise ValueError('must be a list of ratios such as "9:16"')
    return value


def _response_format(value: str) -> str:
    if not re.fullmatch("[a-z0-9_]{1,20}", value):
        raise ValueError("must be a word such as b64_json")
    return value


Price: TypeAlias = Annotated[float, Field(ge=0, le=10_000)]
Option: TypeAlias = Literal[
    "n", "mask", "background", "output_format", "output_compression", "partial_images"
]


class _Model(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
    )


class _PricesRow(_Model):
    """Prices in US dollars, as in ``models.Prices``."""

    source: str | None = None
    as_of: date | None = None
    text_in: Price | None = None
    image_in: Price | None = None
    image_out: Price | None = None
    per_image: Annotated[dict[Resolution, Price] | None, BeforeValidator(_for_each_resolution)] = (
        None
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        tokens = (self.text_in, self.image_in, self.image_out)
        if self.per_image is not None:
            if any(each is not None for each in tokens):
                raise ValueError("must be per_image, or text_in, image_in and image_out")
        elif self.text_in is None or self.image_out is None:
            raise ValueError("must have per_image, or text_in and image_out")
        return self


class _Row(_Model):
    """One row of the file; the fields are those of ``ModelInfo``."""

    vendor: Literal["google", "openai"] | None = None
    based_on: str | None = None
    max_references: Annotated[int, Field(ge=0, le=1000)] | None = None
    max_reference_bytes: Annotated[int, Field(ge=1)] | None = None
    max_total_bytes: Annotated[int, Field(ge=1)] | None = None
    aspect_ratios: Annotated[list[str], AfterValidator(_ratios)] | None = None
    resolutions: list[Resolution] | None = None
    sizes: Annotated[tuple[tuple[int, int], ...] | None, BeforeValidator(_sizes)] = None
    qualities: list[Quality] | None = None
    options: list[Option] | None = None
    response_format: Annotated[str, AfterValidator(_response_format)] | None = None
    prices: _PricesRow | None = None
    typical_seconds: Annotated[
        dict[Resolution, Seconds] | None,
        BeforeValidator(_for_each_resolution),
    ] = None


def read_model_file(path: Path) -> dict[str, ModelInfo]:
    """Return the rows of the file by the model's name.

    Raises:
        ValueError: The file cannot be read, or a row is not valid; the text names file, row, field
            and allowed values.
    """
    import tomllib  # only where there is such a file

    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
            changed = datetime.fromtimestamp(path.stat().st_mtime, UTC).date()
    except OSError as error:
        cause = error.strerror or type(error).__name__
        raise ValueError(f"{path} cannot be read ({cause})") from None
    except UnicodeError:
        raise ValueError(f"{path} is not valid UTF-8") from None
    except RecursionError:
        raise ValueError(f"{path} is not valid TOML: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    rows, problems = {}, []
    for name, given in document.items():
        row = f"row {ascii(name)[:_SHOWN]}"
        try:
            rows[name] = _model_info(name, _Row.model_validate(given), str(path), changed)
        except ValidationError as error:
            problems += [f"{row}{_explained(each)}" for each in error.errors(include_url=False)]
        except ValueError as error:
            problems.append(f"{row}: {error}")
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}")
    return rows


def _explained(problem: ErrorDetails) -> str:
    """Return the field, the value and the allowed values."""
    path = [str(part) for part in problem["loc"] if part != "[key]"]
    field = f", {'.'.join(path)}" if path else ""
    if problem["type"] == "extra_forbidden":
        known = list((_PricesRow if path[0] == "prices" else _Row).model_fields)
        nearest = get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(known)}"
        return f"{field[:_SHOWN]}: is not known; {hint}"
    if problem["type"] in {"model_type", "dict_type"}:
        return f"{field}: must be a table, not {type(problem['input']).__name__}"
    return f"{field}: {explain(problem)}"


def _model_info(name: str, row: _Row, path: str, changed: date) -> ModelInfo:
    """Return a row of the model table.

    Raises:
        ValueError: The name or a combination of fields is not allowed.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            "a model's name has letters, digits and _ . : @ / - and no other character"
        )
    basis = _basis(name, row)
    vendor = basis.vendor
    for other, fields in _OF_VENDOR.items():
        if other != vendor and (wrong := sorted(fields & row.model_fields_set)):
            raise ValueError(f"{wrong[0]}: only models of vendor {other} have it, not of {vendor}")
    found: dict[str, Any] = {
        field: getattr(row, field) for field in _AS_GIVEN if field in row.model_fields_set
    }
    for field in ("aspect_ratios", "resolutions", "qualities"):
        if field in row.model_fields_set:
            found[field] = tuple(getattr(row, field))
    if row.options is not None:
        found["options"] = frozenset(row.options)
    if row.prices is not None:
        prices = row.prices.model_dump()
        found["prices"] = Prices(
            **{**prices, "source": row.prices.source or path, "as_of": row.prices.as_of or changed}
        )
    if row.typical_seconds is not None:
        found["typical_seconds"] = {
            resolution: TypicalLatency(seconds, "operator", path)
            for resolution, seconds in row.typical_seconds.items()
        }
    return replace(basis, name=name, **found)


def _basis(name: str, row: _Row) -> ModelInfo:
    """Return the row that provides the fields that the file does not set.

    Raises:
        ValueError: ``vendor`` or ``based_on`` is missing, or does not suit.
    """
    if row.based_on is None:
        if name in MODELS:
            raise ValueError(
                "is a model of the built-in table; based_on with the same name changes the fields "
                "that the row sets"
            )
        if row.vendor is None:
            raise ValueError(
                "vendor: must be google or openai, the API through which the model is used"
            )
        return ModelInfo(
            name,
            vendor=row.vendor,
            max_references=0,
            aspect_ratios=_RATIOS if row.vendor == "google" else (),
            sizes=None if row.vendor == "openai" else (),
            options=frozenset() if row.vendor == "openai" else None,
        )
    basis = MODELS.get(row.based_on)
    if basis is None:
        nearest = get_close_matches(row.based_on, MODELS, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise ValueError(f"based_on: must be a model of the built-in table{hint}")
    if name in MODELS and name != row.based_on:
        raise ValueError(f"based_on: must be {name}, as the name is that of a built-in model")
    if row.vendor not in {None, basis.vendor}:
        raise ValueError(f"vendor: must be {basis.vendor}, that of {row.based_on}")
    return basis if name == row.based_on else replace(basis, retired_on=None, successor=None)
