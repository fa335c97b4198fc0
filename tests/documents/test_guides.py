"""All guides: links, names and tables are correct, and every Python sample runs."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from cli_kit import python
from paths import ROOT
from readme_kit import GUIDES, Guide
from readme_tables import TABLES, written_tables

from resilient_imagen.telemetry import names

pytest_plugins = ["resilient_imagen.emulator.pytest_plugin"]

EVERY_GUIDE = pytest.mark.parametrize("guide", GUIDES.values(), ids=GUIDES.keys())


@pytest.mark.parametrize("name", TABLES)
def test_tables_agree_with_the_code(name: str) -> None:
    """Each generated table is in a guide, unchanged."""
    assert set(written_tables()[name]) == {f"{TABLES[name]()}\n"}, "run readme_tables.py"


@EVERY_GUIDE
def test_links_refer_to_existing_files_and_headings(guide: Guide) -> None:
    """Every relative link names a file of the project and, after a #, a heading in it."""
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", guide.text):
        file, _, anchor = target.partition("#")
        path = (guide.path.parent / file).resolve() if file else guide.path
        assert path.exists(), target
        if anchor:
            assert anchor in Guide(path).anchors, target


@EVERY_GUIDE
def test_variables_are_settings(guide: Guide) -> None:
    """Every IMAGE_GEN_* variable that a guide names is a setting, or declares a provider."""
    known = set(re.findall(r"`(IMAGE_GEN_[A-Z_]+)", TABLES["settings"]()))
    named = set(re.findall(r"`(IMAGE_GEN_[A-Z_]+)\b", guide.text))
    assert {each for each in named if not each.startswith("IMAGE_GEN_PROVIDER_")} <= known


@EVERY_GUIDE
def test_needed_extras_install_packages(guide: Guide) -> None:
    """Every extra in a sentence about what a part needs exists and installs something."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    sentences = re.findall(r"\bneeds? the extras? [^.\n]*", guide.text)
    named = {each for sentence in sentences for each in re.findall(r"`([a-z]+)`", sentence)}
    assert {each for each in named if not extras.get(each)} == set()


@EVERY_GUIDE
def test_attributes_exist(guide: Guide) -> None:
    """Every name that begins with imagegen is a name of telemetry."""
    known = {value for value in vars(names).values() if isinstance(value, str)}
    named = re.findall(r"\bimagegen\.[a-z_]+(?:\.[a-z_]+)*", guide.text)
    assert set(named) - {"imagegen.generate"} <= known


@EVERY_GUIDE
def test_json_samples_can_be_parsed(guide: Guide) -> None:
    """Each line of a JSON sample is a JSON value."""
    for sample in guide.samples("json"):
        for line in sample.splitlines():
            json.loads(line)


RUNNER = """
import ast, asyncio, inspect, json, sys

names = {"__name__": "guide"}
for number, sample in enumerate(json.loads(sys.argv[1]), 1):
    code = compile(sample, f"sample {number}", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if code.co_flags & inspect.CO_COROUTINE:
        asyncio.run(eval(code, names))
    else:
        exec(code, names)
"""


@EVERY_GUIDE
@pytest.mark.usefixtures("imagen_emulator")
def test_python_samples_run(guide: Guide, tmp_path: Path) -> None:
    """The samples of a guide run in sequence in one program, with the emulator's keys.

    Other tests in this folder call the functions that the samples define.
    """
    samples = guide.samples()
    if not samples:
        pytest.skip("no Python samples")
    done = python("-c", RUNNER, json.dumps(samples), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
