"""The package's metadata agree with the project."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
from paths import ROOT
from readme_kit import LIBRARY, README

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT: dict[str, Any] = PYPROJECT["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def _names(requirements: list[str]) -> list[str]:
    return [re.split(r"[\[<>=;~! ]", each)[0] for each in requirements]


def test_the_guides_name_everything_that_is_installed() -> None:
    """The library's guide names each dependency, the README each extra."""
    named = set(re.findall(r"`([\w-]+)`", LIBRARY.section("Dependencies")))
    extras = set(re.findall(r"`([\w-]+)`", README.section("Install")))
    needed = _names(PROJECT["dependencies"])
    for extra in EXTRAS.keys() - {"all", "dev"}:
        needed += _names(EXTRAS[extra])

    assert set(needed) - named == set()
    assert EXTRAS.keys() - named == set()
    assert EXTRAS.keys() - extras == set()


def test_the_index_page_has_no_relative_link() -> None:
    """Images and files of README have absolute URLs; links to headings are unchanged."""
    page = README.text
    for each in PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"][
        "substitutions"
    ]:
        page = re.sub(each["pattern"], each["replacement"], page)
    source = PROJECT["urls"]["Source"]
    raw = source.replace("github.com", "raw.githubusercontent.com") + "/main/"

    targets = re.findall(r"(!?)\[[^\]]*\]\(([^)]+)\)", page)
    before = re.findall(r"\]\(([^)]+)\)", README.text)
    assert len(targets) == len(before)
    for (is_image, target), relative in zip(targets, before, strict=True):
        base = raw if is_image else f"{source}/blob/main/"
        assert target == (relative if relative[0] == "#" else base + relative)
    assert any(is_image for is_image, _ in targets)


@pytest.mark.parametrize("name", ["Documentation", "Source", "Issues", "Changelog"])
def test_the_project_has_links(name: str) -> None:
    """All links are in one repository."""
    assert PROJECT["urls"][name].startswith(PROJECT["urls"]["Source"])


def test_the_versions_of_python_are_those_of_the_tests() -> None:
    """The declared versions are those that the test script uses."""
    claimed = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert PROJECT["requires-python"] == f">={claimed[0]}"
    script = ROOT / ".ci" / "run"
    (tested,) = re.findall(r"^for version in (.*); do$", script.read_text("utf-8"), re.MULTILINE)
    assert tested.split() == claimed
