"""IMAGE_GEN_MODELS: a TOML file with further rows of the model table."""

# ruff: noqa: E501 - files and messages, one case a line

from __future__ import annotations

import copy
import pickle
import re
from datetime import date
from pathlib import Path

import pytest
from readme_kit import guide_of

from resilient_imagen import ConfigurationError, Settings, models
from resilient_imagen.cost import TokenUsage, cost_usd
from resilient_imagen.models import MODELS, ModelName


def settings_of(folder: Path, text: str) -> Settings:
    """Return settings with a model file of this text."""
    path = folder / "models.toml"
    path.write_text(text)
    return Settings(models=path)


def test_a_row_has_the_fields_of_the_table(tmp_path: Path) -> None:
    """All fields but name and vendor are optional; a single number applies to all sizes."""
    rows = settings_of(
        tmp_path,
        """
        [flux]
        vendor = "openai"
        ["gemini-next"]
        vendor = "google"
        max_references = 3
        max_reference_bytes = 1000
        max_total_bytes = 2000
        aspect_ratios = ["1:1", "9:16"]
        resolutions = ["1K", "2K"]
        typical_seconds = {1K = 20, 2K = 30.5}
        ["gemini-next".prices]
        per_image = {1K = 0.1, 2K = 0.2}
        source = "contract 7"
        as_of = 2026-11-01
        [any-size]
        vendor = "openai"
        sizes = "any"
        prices = {text_in = 5, image_out = 30}
        """,
    ).model_rows
    flux = rows["flux"]
    assert (flux.sizes, flux.qualities, flux.options, flux.max_references) == (
        None, (), frozenset(), 0,
    )  # fmt: skip
    assert (flux.prices, flux.typical_seconds) == (None, None)
    gemini = ModelName("gemini-next", row=rows["gemini-next"])
    assert models.google_aspect(gemini, "16:9") == "1:1"
    assert models.google_image_size(gemini, "4K") == "2K"
    assert models.typical_latency("google", gemini, "4K") == 30.5
    assert models.max_reference_bytes("google", gemini) == 1000
    assert cost_usd(gemini, TokenUsage(), "4K") == 0.2
    assert gemini.row is not None
    assert gemini.row.prices is not None
    assert (gemini.row.prices.source, gemini.row.prices.as_of) == ("contract 7", date(2026, 11, 1))
    free = ModelName("any-size", row=rows["any-size"])
    assert models.openai_size(free, "9:16", "2K") == models.openai_size("gpt-image-2", "9:16", "2K")
    assert cost_usd(free, TokenUsage(1_000_000, 1_000_000), "1K") == 35


def test_a_row_may_be_based_on_a_built_in_one(tmp_path: Path) -> None:
    """It changes the fields that it sets; with the same name it replaces the built-in row."""
    rows = settings_of(
        tmp_path,
        """
        ["gpt-image-3"]
        based_on = "gpt-image-2.5-flare"
        prices = {text_in = 1, image_in = 2, image_out = 3}
        ["gpt-image-2"]
        based_on = "gpt-image-2"
        max_references = 4
        """,
    ).model_rows
    flare = MODELS["gpt-image-2.5-flare"]
    new = rows["gpt-image-3"]
    assert (new.qualities, new.sizes, new.max_references) == (flare.qualities, (), 16)
    assert new.prices is not None
    assert new.prices.image_out == 3
    replaced = rows["gpt-image-2"]
    assert (replaced.max_references, replaced.prices) == (4, MODELS["gpt-image-2"].prices)
    assert MODELS["gpt-image-2"].max_references == 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[m]\nvendor = 'azure'", "row 'm', vendor: must be google or openai, not 'azure'"),
        ("[m]", "row 'm': vendor: must be google or openai"),
        ("m = 3", "row 'm': must be a table, not int"),
        ("['a b']\nvendor = 'openai'", "row 'a b': a model's name has letters"),
        ("[m]\nvendor = 'openai'\nmax_referenses = 1", "max_referenses: is not known; did you mean max_references?"),
        ("[m]\nvendor = 'openai'\nxyz = 1", "xyz: is not known; known are vendor, based_on"),
        ("[m]\nvendor = 'openai'\nmax_references = -1", "max_references: must be at least 0, not -1"),
        ("[m]\nvendor = 'openai'\nmax_references = '1'", "max_references: must be a whole number, not '1'"),
        ("[m]\nvendor = 'openai'\nmax_references = true", "max_references: must be a whole number, not True"),
        ("[m]\nvendor = 'openai'\nsizes = ['big']", 'sizes: must be "any", or a list of sizes'),
        ("[m]\nvendor = 'openai'\nsizes = []", 'sizes: must be "any"'),
        ("[m]\nvendor = 'openai'\nqualities = ['best']", "qualities.0: must be low, medium"),
        ("[m]\nvendor = 'openai'\noptions = ['seed']", "options.0: must be n, mask"),
        ("[m]\nvendor = 'openai'\nresolutions = ['1K']", "resolutions: only models of vendor google have it"),
        ("[m]\nvendor = 'google'\nsizes = 'any'", "sizes: only models of vendor openai have it"),
        ("[m]\nvendor = 'google'\naspect_ratios = ['wide']", "aspect_ratios: must be a list of ratios"),
        ("[m]\nvendor = 'google'\nresolutions = ['8K']", "resolutions.0: must be 1K, 2K or 4K, not '8K'"),
        ("[m]\nvendor = 'openai'\nprices = {}", "prices: must have per_image, or text_in and image_out"),
        ("[m]\nvendor = 'openai'\nprices = {per_image = 1, text_in = 1}", "prices: must be per_image, or"),
        ("[m]\nvendor = 'openai'\nprices = {per_image = -1}", "prices.per_image.1K: must be at least 0, not -1"),
        ("[m]\nvendor = 'openai'\nprices = {per_image = {8K = 1}}", "prices.per_image.8K: must be 1K, 2K or 4K"),
        ("[m]\nvendor = 'openai'\nprices = {per_image = nan}", "prices.per_image.1K: must be"),
        ("[m]\nvendor = 'openai'\nprices = {each = 1}", "prices.each: is not known; known are source"),
        ("[m]\nvendor = 'openai'\ntypical_seconds = 0", "typical_seconds.1K: must be greater than 0"),
        ("[m]\nvendor = 'openai'\nresponse_format = 'a b'", "response_format: must be a word"),
        ("['gpt-image-2']\nvendor = 'openai'", "row 'gpt-image-2': is a model of the built-in table; based_on with the same name"),
        ("['gpt-image-2']\nbased_on = 'gpt-image-1.5'", "based_on: must be gpt-image-2"),
        ("[m]\nbased_on = 'gpt-image-22'", "based_on: must be a model of the built-in table; did you mean gpt-image-2"),
        ("[m]\nbased_on = 'gpt-image-2'\nvendor = 'google'", "vendor: must be openai, that of gpt-image-2"),
        ("[m", "models.toml is not valid TOML"),
        (f"m = {'[' * 2_000}", "models.toml is not valid TOML: it is nested too deeply"),
    ],
)  # fmt: skip
def test_an_error_names_file_row_and_field(tmp_path: Path, text: str, message: str) -> None:
    """The error has the value and the allowed values; an unknown field is rejected."""
    with pytest.raises(ConfigurationError) as caught:
        settings_of(tmp_path, text)
    shown = str(caught.value)
    assert shown.startswith(f"IMAGE_GEN_MODELS: {tmp_path / 'models.toml'}")
    assert message in shown


def test_all_errors_are_reported_at_once(tmp_path: Path) -> None:
    """An operator need not start the program once per error."""
    with pytest.raises(ConfigurationError) as caught:
        settings_of(tmp_path, "[a]\nvendor = 'x'\nsizes = 3\n[b]")
    for part in ("row 'a', vendor", "row 'a', sizes", "row 'b': vendor"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read (No such file or directory)"), (b"\xff\xfe", "is not valid UTF-8")],
)
def test_a_file_that_cannot_be_read_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, message: str
) -> None:
    """The error names the variable and the file."""
    path = tmp_path / "m.toml"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("IMAGE_GEN_MODELS", f" {path} ")
    with pytest.raises(ConfigurationError) as caught:
        Settings()
    assert str(caught.value) == f"IMAGE_GEN_MODELS: {path} {message}"


def test_without_a_file_there_are_no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A blank variable is not set."""
    monkeypatch.setenv("IMAGE_GEN_MODELS", " ")
    assert (Settings().models, dict(Settings().model_rows)) == (None, {})


def test_a_name_keeps_its_row_in_copies(tmp_path: Path) -> None:
    """Copied settings keep the rows, and settings with equal files are equal."""
    text = "[m]\nvendor = 'openai'\nprices = {per_image = 1}"
    settings = settings_of(tmp_path, text)
    assert settings == settings_of(tmp_path, text)
    name = ModelName("m", "mine", settings.model_rows["m"])
    for each in (copy.deepcopy(name), pickle.loads(pickle.dumps(name))):
        assert (each, each.deployment, each.row) == ("m", "mine", name.row)


def test_the_file_of_the_guide_is_valid(tmp_path: Path) -> None:
    """The fields and the built-in row that the file names exist."""
    (example,) = re.findall(r"```toml\n(.*?)```", guide_of("providers").text, re.DOTALL)
    rows = settings_of(tmp_path, example).model_rows
    assert list(rows) == ["grok-2-image", "gpt-image-3"]
