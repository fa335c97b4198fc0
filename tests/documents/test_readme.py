"""The project's README: its length, commands, example, settings and captions."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from paths import ROOT
from readme_kit import GUIDES, README, Guide, executed
from readme_tables import TABLES

from resilient_imagen.emulator import BackgroundEmulator

pytest_plugins = ["resilient_imagen.emulator.pytest_plugin"]


def test_the_readme_is_short() -> None:
    """The README has at most 200 lines and 1,800 words."""
    assert len(README.text.splitlines()) <= 200
    assert len(README.text.split()) <= 1800


def test_the_readme_links_to_every_guide() -> None:
    """The table of guides is complete."""
    linked = set(re.findall(r"\]\(([^)#]+README\.md)", README.section("Guides")))
    assert linked == GUIDES.keys() - {README.name}


def test_the_first_block_holds_two_commands() -> None:
    """One line starts the demo, one runs the tests; both create their environment."""
    demo, tests = README.samples("bash")[0].splitlines()
    for line in (demo, tests):
        assert line.startswith("python3 -m venv .venv && .venv/bin/pip install -q -e '.[")
    assert demo.endswith(" && .venv/bin/resilient-imagen demo")
    assert tests.endswith(" && .venv/bin/pytest --cov")


def test_the_pictures_caption_explains_its_columns() -> None:
    """The caption says which design each column shows."""
    (caption,) = re.findall(r"\(\.github/outage\.svg\)\n\n(.+)\n", README.text)
    assert re.findall(r"\((\w+)\)", caption) == ["left", "middle", "right"]


def test_the_example(
    imagen_emulator: BackgroundEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example on the first screen saves an image in the requested ratio."""
    monkeypatch.chdir(tmp_path)
    executed(README.samples()[0])
    assert (tmp_path / "lighthouse.jpg").stat().st_size > 1000
    assert [seen.aspect_ratio for seen in imagen_emulator.google.requests] == ["9:16"]


def test_three_lines_replace_the_applications_module() -> None:
    """The three lines export the functions that the call sites use, with the same signatures."""
    (module,) = README.samples(heading="In your application")
    assert len(module.splitlines()) == 3
    exported = executed(module)
    assert all(inspect.iscoroutinefunction(exported[name]) for name in exported["__all__"])
    plain = inspect.signature(exported["generate_image"])
    assert list(plain.parameters)[:3] == ["prompt", "aspect_ratio", "model"]
    guided = inspect.signature(exported["generate_image_with_references"])
    assert list(guided.parameters)[:5] == [
        "prompt", "reference_images", "aspect_ratio", "resolution", "model",
    ]  # fmt: skip


def test_the_applications_variables_are_settings() -> None:
    """The block with variables can be pasted into an environment file as it is."""
    (variables,) = README.samples("bash", heading="In your application")
    table = TABLES["settings"]()
    names = [line.partition("=")[0] for line in variables.splitlines()]
    assert len(names) == 6
    assert all(f"`{name}`" in table for name in names)


def test_the_changelog_states_the_current_defaults() -> None:
    """Each variable in the section about changed defaults has the default that it states."""
    section = Guide(ROOT / "CHANGELOG.md").section("Defaults that changed")
    rows = re.findall(r"^\| ((?:`IMAGE_GEN_[A-Z_]+`(?:, )?)+) \| (.*?) \| ", section, re.MULTILINE)
    stated = [
        f"| {name} | {default} |"
        for names, defaults in rows
        for name, default in (
            zip(names.split(", "), defaults.split(", "), strict=True)
            if ", " in names
            else [(names, defaults)]  # the default may be a list
        )
    ]
    assert len(stated) == 11
    assert [row for row in stated if row not in TABLES["settings"]()] == []
